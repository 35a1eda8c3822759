# shellcheck shell=bash
# The machine's checks, the benchmarks that are asked for and the virtual environment .venv:
# quickstart.sh, gpu_acceptance.sh and test.sh source this file. It sets `repository` (the checkout)
# and PYTHON. Where PYTHON is set already, that interpreter is taken as it is and no environment is
# made.
#
# .venv/locks.sha256 names the locks whose packages are all in .venv, with their digests, so that a
# second run starts at once. .venv/unpacking is there while pip writes into .venv: an environment
# that was left in the middle is made anew, since pip takes half a package for a whole one.

repository=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd -P)
environment=$repository/.venv
given_python=${PYTHON-}

say() { printf '%s\n' "$*" >&2; }

# show_help SCRIPT: the comment that it begins with.
show_help() {
  sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p}' "$(readlink -f "$1")"
}

# fail CAUSE NEXT_STEP
fail() {
  say "error: $1; $2"
  exit 2
}

# --- this machine ---------------------------------------------------------------------------------

python_in_range() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null
}

python_version() {
  "$1" -c 'import sys; print("Python %d.%d" % sys.version_info[:2])' 2>/dev/null
}

# Sets base_python, the interpreter that makes the environment.
find_base_python() {
  for base_python in python3 python3.11 python3.12 python3.13; do
    ! python_in_range "$base_python" || return 0
  done
  return 1
}

# check_machine COMMAND...: that this machine can hold the environment and has each COMMAND (a
# Debian package of the same name). All that is missing stands in one line, with the command that
# brings it.
check_machine() {
  local system command missing=() packages=() apt_get=apt-get
  system="$(uname -s) $(uname -m)"
  [[ $system == "Linux x86_64" ]] \
    || fail "this is $system, but the frameworks are programs for Linux x86_64" \
      "run this on such a machine"

  for command in "$@"; do
    if ! command -v "$command" >/dev/null; then
      missing+=("$command")
      packages+=("$command")
    fi
  done

  if [[ -n $given_python ]]; then
    python_in_range "$given_python" \
      || fail "PYTHON=$given_python is not Python 3.11, 3.12 or 3.13" "unset it or name one that is"
  elif ! find_base_python; then
    if command -v python3 >/dev/null; then
      missing+=("Python 3.11, 3.12 or 3.13 (python3 is $(python_version python3 || echo broken))")
      packages+=(python3.11 python3.11-venv)
    else
      missing+=("Python 3.11, 3.12 or 3.13")
      packages+=(python3 python3-venv)
    fi
  elif ! "$base_python" -c 'import ensurepip, venv' 2>/dev/null; then
    missing+=("venv for $(python_version "$base_python")")
    packages+=("$base_python-venv")
  fi

  if ((${#missing[@]})); then
    [[ $EUID == 0 ]] || apt_get="sudo apt-get"
    fail "missing: $(printf '%s, ' "${missing[@]}" | sed 's/, $//')" \
      "on Debian or Ubuntu run: $apt_get update && $apt_get install -y ${packages[*]}"
  fi
}

# --- the benchmarks that are asked for --------------------------------------------------------------

all_benchmarks() {
  local script
  for script in "$repository"/*/run_and_time.sh; do
    script=${script%/run_and_time.sh}
    [[ ${script##*/} == harness ]] || printf '%s\n' "${script##*/}"
  done
}

# choose_benchmarks NAME...: sets `benchmarks` (all stands for every one there is), DATA_DIR and
# RESULTS_DIR.
choose_benchmarks() {
  local available benchmark
  mapfile -t available < <(all_benchmarks)
  benchmarks=("$@")
  if [[ "$*" == all ]]; then
    benchmarks=("${available[@]}")
  fi
  for benchmark in "${benchmarks[@]}"; do
    [[ " ${available[*]} " == *" $benchmark "* ]] \
      || fail "there is no benchmark \"$benchmark\" here" "choose from: ${available[*]} (or all)"
  done
  if ((${#benchmarks[@]} > 1)) && [[ -n ${DATA_DIR-} ]]; then
    fail "DATA_DIR is one data set's folder, and several benchmarks are asked for" "unset DATA_DIR"
  fi
  if [[ -n ${DATA_DIR-} ]]; then
    DATA_DIR=$(realpath -m "$DATA_DIR")
  fi
  RESULTS_DIR=$(realpath -m "${RESULTS_DIR:-$repository/results}")
  export RESULTS_DIR
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

has_gpu() {
  nvidia-smi --list-gpus 2>/dev/null | grep -q '^GPU'
}

uses_tensorflow() {
  [[ -e $repository/$1/requirements-host.txt ]]
}

# choose_locks: sets `locks` by `benchmarks` and the GPU here. TensorFlow brings no CUDA libraries
# where there is no GPU, and takes those of PyTorch 2.7.1 where there is one. A GPU newer than that
# gets the newest PyTorch, and TensorFlow with its own libraries, which cannot lie beside those.
choose_locks() {
  local benchmark torch_lock=requirements.txt tensorflow_lock=requirements-host.txt
  local num_tensorflow=0
  if has_newer_gpu; then
    torch_lock=requirements-newest.txt
    tensorflow_lock=requirements.txt
  fi
  locks=()
  for benchmark in "${benchmarks[@]}"; do
    if uses_tensorflow "$benchmark"; then
      num_tensorflow=$((num_tensorflow + 1))
      locks+=("$benchmark/$tensorflow_lock")
    else
      locks+=("$benchmark/$torch_lock")
    fi
  done
  if ((num_tensorflow)) && has_gpu; then
    if [[ $tensorflow_lock == requirements-host.txt ]]; then
      locks+=(harness/requirements-torch.txt)
    elif ((num_tensorflow < ${#benchmarks[@]})); then
      fail "the newest PyTorch and TensorFlow exclude each other's CUDA libraries on this GPU" \
        "ask for these one by one: ${benchmarks[*]}"
    fi
  fi
}

# --- the environment ------------------------------------------------------------------------------

# environment_is_ready LOCK...: whether .venv holds all packages of these locks, which are named
# from the repository's root.
environment_is_ready() {
  local line
  [[ -e $environment/locks.sha256 && ! -e $environment/unpacking ]] || return 1
  grep -qxF "$(python_version "$environment/bin/python")" "$environment/locks.sha256" || return 1
  while read -r line; do
    grep -qxF "$line" "$environment/locks.sha256" || return 1
  done < <(cd "$repository" && sha256sum "$@")
}

# measure_environment LOCK...: sets what the environment takes at most, measured with the locks as
# they are: for TensorFlow without CUDA libraries, for PyTorch, or for both. While pip unpacks, the
# download is there twice (its cache keeps a copy) beside what comes out of it.
measure_environment() {
  local locks=("${@/#/$repository/}")
  if ! grep -qs '^tensorflow==' "${locks[@]}"; then
    download_gb=3.1 environment_gb=5.9 free_gb_needed=12
  elif ! grep -qs '^nvidia-cublas' "${locks[@]}"; then
    download_gb=0.8 environment_gb=2.7 free_gb_needed=5
  else
    download_gb=3.8 environment_gb=8.1 free_gb_needed=16
  fi
}

# announce_environment LOCK...: says what making the environment takes, before it is made.
announce_environment() {
  local free_gb
  if [[ -n $given_python ]]; then
    say "  environment  $given_python, as PYTHON says"
  elif environment_is_ready "$@"; then
    say "  environment  .venv is there already"
  else
    measure_environment "$@"
    say "  environment  up to $download_gb GB to download, $environment_gb GB of disk in .venv" \
      "($free_gb_needed GB while it is made; pip keeps the download in its cache)"
    free_gb=$(df --output=avail --block-size=GB "$repository" | tail -n 1 | tr -dc 0-9)
    ((free_gb >= free_gb_needed)) \
      || fail "$free_gb_needed GB of free disk are needed and $repository has $free_gb" \
        "make room and run this again"
  fi
}

# make_environment LOCK...: .venv with the packages of these locks, in the versions and with the
# digests that they state. What other locks brought before stays.
make_environment() {
  if [[ -n $given_python ]]; then
    return
  fi
  export PYTHON=$environment/bin/python
  if environment_is_ready "$@"; then
    return
  fi
  if ! environment_is_whole; then
    make_empty_environment
  fi
  install_locks "$@"
  remember_locks "$@"
}

environment_is_whole() {
  [[ ! -e $environment/unpacking ]] && python_in_range "$PYTHON" \
    && "$PYTHON" -m pip --version >/dev/null 2>&1
}

make_empty_environment() {
  # Moved aside first: a deletion that is interrupted must not leave half an environment.
  rm -rf "$environment-discarded"
  [[ ! -e $environment ]] || mv "$environment" "$environment-discarded"
  rm -rf "$environment-discarded"
  "$base_python" -m venv "$environment" >&2 \
    || fail "$base_python could not make $environment" "mend what it says above and run this again"
}

install_locks() {
  local lock num_packages
  local arguments=(--no-input --progress-bar off --only-binary ':all:' --require-hashes)
  for lock in "$@"; do
    arguments+=(--requirement "$repository/$lock")
  done
  # The locks hold for every system; what only Windows needs is not fetched.
  num_packages=$(cd "$repository" && grep -hE '^[a-z0-9].*==' "$@" | grep -v win32 | cut -d' ' -f1 \
    | sort -u | wc -l)
  # pip's temporary files are as large as what it fetches, and /tmp may be held in memory.
  mkdir -p "$environment/tmp"
  TMPDIR=$environment/tmp PIP_DISABLE_PIP_VERSION_CHECK=1 \
    "$PYTHON" -m pip install "${arguments[@]}" 2>&1 | show_progress "$num_packages" \
    || fail "pip could not install $*" "see $environment/pip.log, mend the cause and run this again"
  rm -rf "$environment/unpacking" "$environment/tmp"
}

# show_progress NUM_PACKAGES: out of pip's output, a line for each package of a megabyte or more and
# for each error. All of it goes to .venv/pip.log.
show_progress() {
  local line name num_seen=0
  : >"$environment/pip.log"
  while IFS= read -r line; do
    printf '%s\n' "$line" >>"$environment/pip.log"
    case $line in
      Collecting* | Processing* | "Requirement already satisfied"*) num_seen=$((num_seen + 1)) ;;
      *Downloading*MB\) | *"Using cached"*MB\))
        name=${line##*Downloading }
        name=${name##*cached }
        say "  [$num_seen/$1] ${name%%-[a-z]*} (${line##* (}"
        ;;
      "Installing collected packages"*)
        touch "$environment/unpacking"
        say "  unpacking: this takes a minute"
        ;;
      *ERROR* | *"No space left"*) say "  pip: $line" ;;
    esac
  done
}

agrees() {
  [[ $1 != *-newest.txt ]] && ! { [[ $1 == */requirements.txt ]] && uses_tensorflow "${1%/*}"; }
}

# remember_locks LOCK...: writes .venv/locks.sha256. What was installed before still counts where
# its lock is unchanged, since all locks agree; but those for the newest PyTorch and TensorFlow's
# with its own CUDA libraries agree with no other.
remember_locks() {
  local known=$environment/locks.sha256 digest lock
  {
    python_version "$PYTHON"
    cd "$repository" || return
    sha256sum "$@"
    while read -r digest lock; do
      if agrees "$lock" && agrees "$1" \
        && sha256sum --check --status <<<"$digest  $lock" 2>/dev/null; then
        printf '%s  %s\n' "$digest" "$lock"
      fi
    done < <(cat "$known" 2>/dev/null)
  } | sort -u >"$known.new"
  mv "$known.new" "$known"
}
