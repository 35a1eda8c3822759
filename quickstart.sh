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

# What the environment takes, measured with the locks as they are. While pip unpacks, the download
# is there twice (its cache keeps a copy) beside what comes out of it.
DOWNLOAD_GB=3.1
ENVIRONMENT_GB=5.9
FREE_GB=12

all_benchmarks() {
  local script
  for script in "$repository"/*/run_and_time.sh; do
    script=${script%/run_and_time.sh}
    [[ ${script##*/} == harness ]] || printf '%s\n' "${script##*/}"
  done
}

# Whether a GPU here is newer than PyTorch 2.7.1 carries code for (up to compute capability 9.0).
has_newer_gpu() {
  local capability
  while read -r capability; do
    if [[ $capability =~ ^([0-9]+)\.([0-9]+)$ ]] \
      && ((BASH_REMATCH[1] * 10 + BASH_REMATCH[2] > 90)); then
      return 0
    fi
  done < <(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null)
  return 1
}

# lock_of BENCHMARK: its lock for this machine.
lock_of() {
  if [[ -e $repository/$1/requirements-newest.txt ]] && has_newer_gpu; then
    printf '%s\n' "$1/requirements-newest.txt"
  else
    printf '%s\n' "$1/requirements.txt"
  fi
}

# Says what will be downloaded and how much disk it takes, before any of it happens.
announce() {
  local benchmark free_gb
  say "quickstart: ${benchmarks[*]}, preset mini"
  if [[ -n $given_python ]]; then
    say "  environment  $given_python, as PYTHON says"
  elif environment_is_ready "${locks[@]}"; then
    say "  environment  .venv is there already"
  else
    say "  environment  up to $DOWNLOAD_GB GB to download, $ENVIRONMENT_GB GB of disk in .venv" \
      "($FREE_GB GB while it is made; pip keeps the download in its cache)"
    free_gb=$(df --output=avail --block-size=GB "$repository" | tail -n 1 | tr -dc 0-9)
    ((free_gb >= FREE_GB)) \
      || fail "$FREE_GB GB of free disk are needed and $repository has $free_gb" \
        "make room and run this again"
  fi
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
  sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p}' "$(readlink -f "${BASH_SOURCE[0]}")"
  exit 0
fi
mapfile -t known < <(all_benchmarks)
benchmarks=("${@:-recommendation}")
if [[ "${benchmarks[*]}" == all ]]; then
  benchmarks=("${known[@]}")
fi
for benchmark in "${benchmarks[@]}"; do
  [[ " ${known[*]} " == *" $benchmark "* ]] \
    || fail "there is no benchmark \"$benchmark\" here" "choose from: ${known[*]} (or all)"
done
if ((${#benchmarks[@]} > 1)) && [[ -n ${DATA_DIR-} ]]; then
  fail "DATA_DIR is one data set's folder, and several benchmarks are asked for" "unset DATA_DIR"
fi
if [[ -n ${DATA_DIR-} ]]; then
  DATA_DIR=$(realpath -m "$DATA_DIR")
fi
RESULTS_DIR=$(realpath -m "${RESULTS_DIR:-$repository/results}")
export RESULTS_DIR

# --- environment ----------------------------------------------------------------------------------

check_machine curl unzip
locks=()
for benchmark in "${benchmarks[@]}"; do
  locks+=("$(lock_of "$benchmark")")
done
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
