#!/usr/bin/env bash
# Trains one benchmark to its target and prints the time:
#
#   harness/run_and_time.sh BENCHMARK [SEED] [TARGET]
#
# Each benchmark's own run_and_time.sh calls this. Environment: PRESET, DATA_DIR, RESULTS_DIR,
# PYTHON, NUM_GPUS, RESUME (README.md says what each means), and LAUNCHER=torchrun where several
# GPUs mean several processes. Data is prepared first, off the clock. Everything on stdout comes
# from the training itself: STARTING, log lines, ENDING, RESULT or ABORTED.
set -euo pipefail

fail() {
  echo "error: $*" >&2
  exit 2
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
benchmark=${1:?BENCHMARK is missing}
shift
case ${1:-} in
  -h | --help)
    echo "usage: $benchmark/run_and_time.sh [SEED] [TARGET]   (defaults: 1, the preset's target)"
    exit 0
    ;;
esac
[ $# -le 2 ] || fail "too many arguments: $*; usage: $benchmark/run_and_time.sh [SEED] [TARGET]"
seed=${1:-1}
[[ $seed =~ ^[0-9]+$ ]] || fail "seed '$seed' is not a whole number; give one, such as 1"
options=("${PRESET:-reference}" --seed "$seed")
[ $# -lt 2 ] || options+=(--target "$2")

if [ -z "${PYTHON:-}" ]; then
  PYTHON=$root/.venv/bin/python
  [ -x "$PYTHON" ] || PYTHON=python3
fi
# The project is imported from here, never from the folder that this was called in.
export PYTHONPATH=$root PYTHONSAFEPATH=1
framework=torch
! grep -qx tensorflow "$root/$benchmark/requirements.in" || framework=tensorflow
is_there='import importlib.util, sys; sys.exit(not all(map(importlib.util.find_spec, sys.argv[1:])))'
"$PYTHON" -c "$is_there" tyro "$framework" \
  || fail "$PYTHON lacks what $benchmark needs; run ./quickstart.sh $benchmark, or install" \
    "$benchmark/requirements.txt"

num_gpus_here=0
if command -v nvidia-smi >/dev/null; then
  num_gpus_here=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)
fi
num_gpus=${NUM_GPUS:-$((num_gpus_here > 0 ? 1 : 0))}
[[ $num_gpus =~ ^[0-9]+$ ]] || fail "NUM_GPUS='$num_gpus' is not a whole number; leave it unset"
[ "$num_gpus" -le "$num_gpus_here" ] \
  || fail "NUM_GPUS=$num_gpus, but this machine has $num_gpus_here; lower it or leave it unset"
# A GPU that is there but cannot be used is an error, never a slow run on the CPU.
if [ "$num_gpus" -gt 0 ]; then options+=(--device cuda); else options+=(--device cpu); fi

# Run a command to its end; SIGTERM and SIGINT reach it as SIGTERM (a background command of a
# script ignores SIGINT), and the script ends with 128 + signal.
run_forwarding_signals() {
  local child signal="" status=0
  "$@" &
  child=$!
  trap 'signal=15; kill -TERM "$child"' TERM
  trap 'signal=2; kill -TERM "$child"' INT
  while true; do
    status=0
    wait "$child" || status=$?
    kill -0 "$child" 2>/dev/null || break # not ended: a signal woke the wait
  done
  trap - TERM INT
  [ -z "$signal" ] || exit $((128 + signal))
  return "$status"
}

if [ -f "$root/$benchmark/prepare.py" ]; then
  run_forwarding_signals "$PYTHON" -m "$benchmark.prepare" "${options[0]}" >&2 || exit $?
fi

if [ "$num_gpus" -gt 1 ] && [ "${LAUNCHER:-}" = torchrun ]; then
  # torchrun turns every status into 1: the training leaves its own in a file.
  STATUS_FILE=$(mktemp)
  export STATUS_FILE
  trap 'rm -f "$STATUS_FILE"' EXIT
  status=0
  run_forwarding_signals "$PYTHON" -m torch.distributed.run --standalone \
    --nproc-per-node "$num_gpus" -m "$benchmark.train" "${options[@]}" || status=$?
  exit "$(grep . "$STATUS_FILE" || echo "$status")"
fi
export NUM_GPUS=$num_gpus
exec "$PYTHON" -m "$benchmark.train" "${options[@]}"
