"""What must be identical for results to be comparable: clock, log, stop rule, seeds, checkpoints.

A benchmark calls the harness; the harness never calls back. See README.md in this folder.
"""
