#!/usr/bin/env bash
# Writes every requirements lock anew: exact versions and hashes, for Python 3.11 to 3.13.
#
#   tools/lock.sh              # keeps locked versions, adds and drops what the .in files ask for
#   tools/lock.sh --upgrade    # takes the newest versions that the .in files allow
#
# Needs uv (pip install uv), which nothing else in the project does. The development lock comes
# first: it holds the needs of all benchmarks at once and binds all the others, so that they agree
# and one virtual environment serves them all. In the locks for the newest PyTorch only PyTorch and
# what it drags along may differ, in those of the TensorFlow images only NVIDIA's libraries.
set -euo pipefail

case "$*" in
  "" | --upgrade) ;;
  *)
    echo "error: unknown argument: $*; usage: tools/lock.sh [--upgrade]" >&2
    exit 2
    ;;
esac
if ! command -v uv >/dev/null; then
  echo "error: uv is missing; run: pip install uv" >&2
  exit 2
fi
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

upgrade=("$@")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# lock OUTPUT UV_ARGUMENT...
lock() {
  local output=$1
  shift
  # --no-build: only what has wheels, since nothing is compiled at install time.
  uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --no-build \
    --generate-hashes --no-emit-index-url --custom-compile-command tools/lock.sh \
    "${upgrade[@]}" --output-file "$output" "$@"
  echo "$output: $(grep -c == "$output") packages"
}

# lock_within CONSTRAINTS OUTPUT INPUT...: takes over every version that CONSTRAINTS names. Only the
# development lock says what asks for each package: such notes would name the temporary file here.
lock_within() {
  local constraints=$1
  shift
  lock "$@" --constraints "$constraints" --no-annotate
}

# pins LOCK: its versions, without hashes.
pins() {
  grep -E '^[a-z0-9].*==' "$1" | sed 's/ \\$//'
}

lock requirements-dev.txt requirements-dev.in
lock_within requirements-dev.txt harness/requirements-torch.txt harness/requirements-torch.in

shared=$scratch/shared.txt
pins requirements-dev.txt | grep -vE '^(torch|triton|cuda-|nvidia-)' >"$shared"
lock_within "$shared" harness/requirements-torch-newest.txt harness/requirements-torch-newest.in
newest=$scratch/newest.txt
{
  cat "$shared"
  pins harness/requirements-torch-newest.txt
  echo "torchvision==0.29.1" # the one that was made for this PyTorch
} >"$newest"

# The two frameworks pin other versions of NVIDIA's libraries.
without_nvidia=$scratch/without-nvidia.txt
pins requirements-dev.txt | grep -vE '^nvidia-' >"$without_nvidia"
lock_within "$without_nvidia" harness/requirements-tensorflow.txt harness/requirements-tensorflow.in
tensorflow=$scratch/tensorflow.txt
{
  cat "$without_nvidia"
  pins harness/requirements-tensorflow.txt | grep -E '^nvidia-'
} >"$tensorflow"

for folder in */; do
  folder=${folder%/}
  if [[ $folder == harness || ! -e $folder/requirements.in ]]; then
    continue
  fi
  if grep -qx tensorflow "$folder/requirements.in"; then
    lock_within "$tensorflow" "$folder/requirements.txt" \
      "$folder/requirements.in" harness/requirements-tensorflow.in
    lock_within requirements-dev.txt "$folder/requirements-host.txt" \
      "$folder/requirements.in" harness/requirements-tensorflow-host.in
    continue
  fi
  lock_within requirements-dev.txt "$folder/requirements.txt" \
    "$folder/requirements.in" harness/requirements-torch.in
  lock_within "$newest" "$folder/requirements-newest.txt" \
    "$folder/requirements.in" harness/requirements-torch-newest.in
done

# The peers of comparisons/ agree with nobody, but for what their .in files take from harness/.
for input in comparisons/*.in; do
  name=${input%.in}
  excludes=()
  if [[ -e $name.excludes ]]; then
    excludes=(--excludes "$name.excludes")
  fi
  lock "$name.txt" "$input" "${excludes[@]}"
done
