#!/usr/bin/env bash
# Trains ResNet-50 to its target and prints the time: run_and_time.sh [SEED] [TARGET]
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/../harness/run_and_time.sh" image_classification "$@"
