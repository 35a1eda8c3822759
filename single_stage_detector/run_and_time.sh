#!/usr/bin/env bash
# Trains SSD300 to its target and prints the time: run_and_time.sh [SEED] [TARGET]
set -euo pipefail
export LAUNCHER=torchrun
exec "$(dirname "${BASH_SOURCE[0]}")/../harness/run_and_time.sh" single_stage_detector "$@"
