#!/usr/bin/env bash
# Accepts the suite on this machine's GPU, and this GPU for the suite: run it once after cloning.
#
#   ./gpu_acceptance.sh                  # every benchmark
#   ./gpu_acceptance.sh BENCHMARK...     # or these
#
# For each benchmark: the losses of 20 steps on CPU and GPU agree; the reference preset's peak memory
# fits a P100 (16 GB); its throughput in fp32, bf16 and fp16, with and without --compile; and the
# mini preset trained to its target, which `python -m harness report` then shows. Without a GPU, or
# with NUM_GPUS=0, the same runs on the CPU as a self-test of this script.
#
# stdout holds the summary only; all the rest goes to stderr. Results lie in
# RESULTS_DIR/acceptance/<UTC start>/. Exit status: 0 all passed, 1 a check failed or could not be
# done, 2 wrong usage, 128 + signal. RESULTS_DIR and DATA_DIR (the mini data set of one benchmark)
# work as everywhere; where PYTHON is set, that interpreter is used and no environment is made.
set -euo pipefail

# shellcheck source=tools/environment.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/tools/environment.sh"

if [[ ${1-} == -h || ${1-} == --help ]]; then
  show_help "${BASH_SOURCE[0]}"
  exit 0
fi
choose_benchmarks "${@:-all}"
check_machine curl unzip
choose_locks
say "gpu_acceptance: ${benchmarks[*]}"
announce_environment "${locks[@]}"
make_environment "${locks[@]}"
cd "$repository"
exec "$PYTHON" -m harness acceptance "${benchmarks[@]}"
