#!/usr/bin/env bash
# From a fresh clone to a trained model: environment, mini data, training to the target, a picture.
#
#   ./quickstart.sh                  # recommendation
#   ./quickstart.sh BENCHMARK...     # or these
#   ./quickstart.sh all
#
# stdout holds the contract's lines only, RESULT last; all the rest goes to stderr. The exit status
# is the training's (0: target reached). Of several benchmarks each is tried, and the status is the
# first failure's. RESULTS_DIR and DATA_DIR work as everywhere; where PYTHON is set, that
# interpreter is used and no environment is made.
set -euo pipefail

# shellcheck source=tools/environment.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/tools/environment.sh"

# Says what will be downloaded and how much disk it takes, before any of it happens.
announce() {
  local benchmark
  say "quickstart: ${benchmarks[*]}, preset mini"
  announce_environment "${locks[@]}"
  for benchmark in "${benchmarks[@]}"; do
    # In the download script's own words: its help has a line for each preset.
    say "  data         $benchmark:" \
      "$("$repository/$benchmark/download_dataset.sh" --help | sed -n 's/^ *mini  *//p')"
  done
}

# train BENCHMARK: as a job of its own, to which a signal to this script is passed on.
train() {
  local job status signalled=1
  set -m
  PRESET=mini "$repository/$1/run_and_time.sh" &
  job=$!
  set +m
  trap 'signalled=1; kill -TERM "$job" 2>/dev/null || true' TERM
  trap 'signalled=1; kill -INT "$job" 2>/dev/null || true' INT
  # A trap that runs ends the wait early.
  while ((signalled)); do
    signalled=0
    status=0
    wait "$job" || status=$?
  done
  trap - TERM INT
  return "$status"
}

# show_results BENCHMARK: log and picture of the run that has just ended, and what to try next.
show_results() {
  local run
  run=$(find "$RESULTS_DIR/$1/mini/seed-1" -mindepth 1 -maxdepth 1 -type d | sort | tail -n 1)
  say "  log          $run/log.txt"
  (cd "$repository" && "$PYTHON" -m harness plot "$run" >&2) || say "  picture      none: see above"
  say "  another seed PRESET=mini $1/run_and_time.sh 2"
  say "  try it       .venv/bin/python -m $1.predict mini"
}

# run_benchmark BENCHMARK: data, training, results; the status of the first that fails.
run_benchmark() {
  local benchmark=$1 start=$SECONDS script status=0 data_s train_s
  say "$benchmark: data"
  for script in download_dataset.sh verify_dataset.sh; do
    "$repository/$benchmark/$script" mini >&2 || return
  done
  data_s=$((SECONDS - start))
  start=$SECONDS
  say "$benchmark: training"
  train "$benchmark" || status=$?
  train_s=$((SECONDS - start))
  say "$benchmark: $environment_s s environment, $data_s s data, $train_s s preparation and training"
  # Status 2, wrong usage or data, leaves no run behind.
  ((status == 2)) || show_results "$benchmark"
  return "$status"
}

# --- what is asked for ----------------------------------------------------------------------------

if [[ ${1-} == -h || ${1-} == --help ]]; then
  show_help "${BASH_SOURCE[0]}"
  exit 0
fi
choose_benchmarks "${@:-recommendation}"

# --- environment ----------------------------------------------------------------------------------

check_machine curl unzip
choose_locks
announce
make_environment "${locks[@]}"
environment_s=$SECONDS

# --- one benchmark after the other ----------------------------------------------------------------

first_failure=0
for benchmark in "${benchmarks[@]}"; do
  status=0
  run_benchmark "$benchmark" || status=$?
  if ((status != 0)); then
    say "$benchmark: failed with status $status"
    ((first_failure != 0)) || first_failure=$status
  fi
  # 128 + signal: whoever interrupts one training wants none of the others either.
  ((status < 128)) || break
done
exit "$first_failure"
