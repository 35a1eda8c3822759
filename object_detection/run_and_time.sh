#!/usr/bin/env bash
# Trains Mask R-CNN to its targets and prints the time: run_and_time.sh [SEED] [BOX_AP/MASK_AP]
set -euo pipefail
export LAUNCHER=torchrun
exec "$(dirname "${BASH_SOURCE[0]}")/../harness/run_and_time.sh" object_detection "$@"
