"""What must be identical for results to be comparable: clock, log, stop rule, seeds, checkpoints.

A benchmark calls the harness; the harness never calls back.
"""

import os

# Threads that wait for the next parallel section spin for microseconds only, then sleep. GNU
# OpenMP's default is milliseconds, which makes small steps several times slower as soon as anything
# else runs on the machine. It is read when a framework is loaded, so every benchmark package
# imports the harness first.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# TensorFlow's start-up notes (which CPU features, which kernels) would hide the run's own lines.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
