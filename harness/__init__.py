"""What must be identical for results to be comparable: clock, log, stop rule, seeds, checkpoints.

A benchmark calls the harness; the harness never calls back.
"""

import os

# Threads that wait for the next parallel section sleep instead of spinning. Where anything else
# runs on the machine, spinning makes small steps 20 times slower. OpenMP reads this when a
# framework is loaded, so every benchmark package imports the harness first.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
