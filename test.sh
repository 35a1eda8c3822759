#!/usr/bin/env bash
# Environment, linters and tests, in a fresh clone as well.
#
#   ./test.sh           # all tests but those that take minutes
#   ./test.sh --fast    # without those that take more than a few seconds
#   ./test.sh --all     # every test
#
# Every part runs even where an earlier one failed; exit status 0 means that all passed. Where
# PYTHON is set, that interpreter (with the packages of requirements-dev.txt) is used and no
# environment made.
set -euo pipefail

# shellcheck source=tools/environment.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/tools/environment.sh"

case "$*" in
  "") tests="not exhaustive" ;;
  --fast) tests="not slow and not exhaustive" ;;
  --all) tests="" ;;
  *) fail "unknown argument: $*" "usage: ./test.sh [--fast|--all]" ;;
esac

check_machine curl unzip
make_environment requirements-dev.txt
cd "$repository"

failures=()

# part NAME COMMAND...
part() {
  local name=$1
  shift
  say "--- $name"
  "$@" || failures+=("$name")
}

# The mini data sets, which the tests against independent implementations read.
get_mini_data() {
  local script
  for script in */download_dataset.sh; do
    "$script" mini >&2 || say "note: $script mini failed; the tests that need this data are skipped"
  done
}

check_shell_scripts() {
  find . \( -path ./.venv -o -path ./.environments -o -path ./data -o -path ./results \) -prune \
    -o -name '*.sh' -print0 \
    | xargs -0 "$(dirname "$PYTHON")/shellcheck" --external-sources .ci/run
}

part "ruff format" "$PYTHON" -m ruff format --check .
part "ruff check" "$PYTHON" -m ruff check .
part "mypy" "$PYTHON" -m mypy
part "shellcheck" check_shell_scripts
get_mini_data
part "pytest" "$PYTHON" -m pytest -m "$tests"

if ((${#failures[@]})); then
  say "failed: $(printf '%s, ' "${failures[@]}" | sed 's/, $//')"
  exit 1
fi
say "all passed"
