#!/usr/bin/env bash
# Trains Seq-CNN to its target and prints the time: run_and_time.sh [SEED] [TARGET]
set -euo pipefail
export LAUNCHER=torchrun
exec "$(dirname "${BASH_SOURCE[0]}")/../harness/run_and_time.sh" sentiment_analysis "$@"
