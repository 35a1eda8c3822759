#!/usr/bin/env bash
# Sets up a host for the suite's Docker images: NVIDIA driver, Docker Engine and NVIDIA container
# toolkit, each only where it is missing, then checks that a container sees the GPU.
#
#   sudo ./install_cuda_docker.sh        # Ubuntu 22.04, Ubuntu 24.04 or Debian 12, x86_64
#   ./install_cuda_docker.sh --dry-run   # print the commands, in order, and run none
#
# A new driver needs a reboot: run this again after it, and it goes on with the check. A host
# without an NVIDIA card gets Docker Engine alone.
#
# Exit status: 0 checked and well (or a dry run); 1 a step or the check failed; 2 refused, nothing
# was changed; 3 all is installed, and the host must be rebooted.
#
# What nobody has checked yet: the tests run this against stand-ins for apt, Docker and NVIDIA's
# tools, so it has not yet installed anything on a real host, and package names, addresses and
# fingerprints are as the makers' documents and package indexes give them.
set -euo pipefail
umask 022
PATH=$PATH:/usr/sbin:/sbin # modinfo, for a dry run without root's rights

# --- facts ----------------------------------------------------------------------------------------

# One branch for all cards. 580 is the last with Maxwell, Pascal and Volta and the first with CUDA
# 13.0, which the images built with requirements-newest.txt bring; it knows Blackwell, and NVIDIA
# supports it until June 2028. The production branch 595 ends before it, in March 2027; whether
# these systems have packages of 620, the next long-term branch, could not be established. One
# driver is also one difference less between hosts whose times are compared.
# (docs.nvidia.com/datacenter/tesla/drivers, supported drivers, November 2026)
DRIVER_BRANCH=580
DRIVER_GUIDE=https://docs.nvidia.com/datacenter/tesla/driver-installation-guide/

# The driver comes from NVIDIA's repository on all three systems: Debian 12 itself has 535, which
# does not know Blackwell, and one way is simpler than two. Its price is that DKMS compiles the
# kernel modules here, which takes a compiler, and under Secure Boot a key of one's own.
# Ubuntu 22.04 has kernels made by GCC 11 and by GCC 12, and their headers bring no compiler along
# (bugs.launchpad.net/1991664).
SYSTEMS=(
  # ID     VERSION_ID   codename   folder at NVIDIA   compilers of its kernels
  "ubuntu  22.04        jammy      ubuntu2204         gcc gcc-12"
  "ubuntu  24.04        noble      ubuntu2404         gcc"
  "debian  12           bookworm   debian12           gcc"
)

# repository NAME: sets url, suite, key_url and fingerprint. The one key that is fetched must be the
# one with this fingerprint.
repository() {
  case $1 in
    docker)
      url=https://download.docker.com/linux/$id suite="$codename stable"
      key_url=$url/gpg
      fingerprint=9DC858229FC7DD38854AE2D88D81803C0EBFCD88
      ;;
    nvidia-driver)
      url=https://developer.download.nvidia.com/compute/cuda/repos/$nvidia_folder/x86_64 suite=/
      key_url=$url/3bf863cc.pub
      fingerprint=EB693B3035CD5710E231E123A4B469963BF863CC
      ;;
    nvidia-container-toolkit)
      url=https://nvidia.github.io/libnvidia-container/stable/deb/amd64 suite=/
      key_url=https://nvidia.github.io/libnvidia-container/gpgkey
      fingerprint=C95B321B61E88C1809C4F759DDCAE044F796ECB0
      ;;
  esac
}

# The open modules begin with Turing, and Blackwell has no others. For cards of both kinds in one
# host, NVIDIA says to take the proprietary ones.
ARCHITECTURES=(
  # name      kernel modules   last driver branch
  "Kepler     none             470" # or older
  "Maxwell    proprietary      580"
  "Pascal     proprietary      580"
  "Volta      proprietary      580"
  "Turing     both             -"
  "Ampere     both             -"
  "Hopper     both             -"
  "Ada        both             -"
  "Blackwell  open             -"
)

# NVIDIA's device ids, first to last, drawn from pci.ids of 2026-10-24. The chip's name in lspci's
# text would do on a current system only: Debian 12 and Ubuntu 22.04 call a Blackwell card "Device".
DEVICES=(
  "0000 133f Kepler"
  "1340 14ff Maxwell"
  "15c0 15ff Pascal" # GP100
  "1600 16ff Maxwell"
  "1700 173f Pascal" # GP100
  "1740 17ff Maxwell"
  "1b00 1d7f Pascal"
  "1d80 1dff Volta"
  "1e00 1fff Turing"
  "2080 20ff Ampere" # GA100
  "2180 21ff Turing" # TU116
  "2200 227f Ampere"
  "2300 23ff Hopper"
  "2400 25ff Ampere"
  "2680 28ff Ada"
  "2900 2f7f Blackwell"
  "3180 34ff Blackwell" # GB110
)

# On a fresh cloud machine the first upgrades hold apt's lock for some minutes.
INSTALL="DEBIAN_FRONTEND=noninteractive apt-get install --yes -o DPkg::Lock::Timeout=600"
FETCH="curl --fail --silent --show-error --location --proto '=https' --retry 3"

# The folder that stands for / where files are read and written: the tests set it. apt brings the
# three folders on all these systems.
root=${HOST_ROOT-}
keyrings=$root/etc/apt/keyrings
sources=$root/etc/apt/sources.list.d
preferences=$root/etc/apt/preferences.d

# --- words ----------------------------------------------------------------------------------------

say() { printf '%s\n' "$*" >&2; }

# fail STATUS CAUSE NEXT_STEP
fail() {
  say "error: $2; $3"
  exit "$1"
}

# step COMMAND [CAUSE]: one line of bash. A dry run prints it, and a real run hands the same line to
# bash, so that the two cannot differ. CAUSE says what its failure means.
step() {
  if ((dry_run)); then
    printf '%s\n' "$1"
    return
  fi
  say "+ $1"
  bash -o errexit -o nounset -o pipefail -c "$1" </dev/null \
    || fail 1 "${2:-this step failed: $1}" \
      "mend what stands above and run this again: it goes on from there"
}

# --- this host ------------------------------------------------------------------------------------

os_release() {
  sed -n "s/^$1=//p" "$root/etc/os-release" 2>/dev/null | tr -d "\"'"
}

# Sets id, codename, nvidia_folder, compilers and kernel.
check_system() {
  local row version name machine
  name=$(os_release PRETTY_NAME) || true
  machine=$(uname -m)
  kernel=$(uname -r)
  for row in "${SYSTEMS[@]}"; do
    read -r id version codename nvidia_folder compilers <<<"$row"
    if [[ "$machine $(os_release ID) $(os_release VERSION_ID)" == "x86_64 $id $version" ]]; then
      say "system   $name, Linux $kernel"
      return
    fi
  done
  name="${name:-an unknown system} on $machine"
  fail 2 "this is $name, not Ubuntu 22.04, Ubuntu 24.04 or Debian 12 on x86_64" \
    "install driver, Docker Engine and NVIDIA container toolkit as their makers describe"
}

check_rights() {
  command -v lspci >/dev/null \
    || fail 2 "lspci is missing, which tells the card" "run apt-get install pciutils as root"
  [[ $EUID == 0 || -n $root ]] || ((dry_run)) \
    || fail 2 "this needs root's rights" "run sudo $0 (--dry-run shows what it will do)"
}

# architecture_of DEVICE_ID: its name, or "unknown".
architecture_of() {
  local row first last architecture
  for row in "${DEVICES[@]}"; do
    read -r first last architecture <<<"$row"
    if ((16#$1 >= 16#$first && 16#$1 <= 16#$last)); then
      printf '%s\n' "$architecture"
      return
    fi
  done
  printf 'unknown\n'
}

# Sets card_names and card_architectures, an entry for each NVIDIA card (display controllers have
# class 03xx), and has_nvswitch.
find_cards() {
  local line device architecture
  card_names=() card_architectures=() has_nvswitch=0
  while IFS= read -r line; do
    if [[ $line =~ \[03[0-9a-f]{2}\]:\ NVIDIA\ Corporation\ (.*\ \[10de:([0-9a-f]{4})\]) ]]; then
      device=${BASH_REMATCH[2]}
      architecture=$(architecture_of "$device")
      card_names+=("${BASH_REMATCH[1]} ($architecture)")
      card_architectures+=("$architecture")
      say "card     ${card_names[-1]}"
    elif [[ $line == *NVSwitch* ]]; then
      has_nvswitch=1
    fi
  done < <(lspci -nn -d 10de: 2>/dev/null)
}

# facts_of ARCHITECTURE: sets card_modules and card_last_branch (9999: none is the last).
facts_of() {
  local row name
  for row in "${ARCHITECTURES[@]}" "$1 none -"; do
    read -r name card_modules card_last_branch <<<"$row"
    [[ $name != "$1" ]] || break
  done
  card_last_branch=${card_last_branch/-/9999}
}

# Sets driver (running; waiting: installed, but the kernel does not run it; or missing) and
# driver_version, which is empty where there is no module for this kernel.
find_driver() {
  if driver_version=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null); then
    driver=running
    driver_version=${driver_version%%$'\n'*}
  elif driver_version=$(modinfo --field version nvidia 2>/dev/null); then
    driver=waiting
  elif command -v nvidia-smi >/dev/null; then
    driver=waiting
  else
    driver=missing
  fi
}

# Sets docker_version and toolkit_version, empty where they are missing.
find_docker() {
  docker_version=$(docker --version 2>/dev/null) || docker_version=
  toolkit_version=$(nvidia-ctk --version 2>/dev/null) || toolkit_version=
  toolkit_version=${toolkit_version%%$'\n'*}
  [[ -z $docker_version || $docker_version == "Docker version "* ]] \
    || fail 2 "the command docker here is \"$docker_version\", not Docker Engine" \
      "remove the package that brings it and run this again"
}

# Whoever may not ask the daemon is told no: the dry run of such a user shows two steps more.
docker_knows_nvidia() {
  [[ $(docker info --format '{{json .Runtimes}}' 2>/dev/null) == *'"nvidia"'* ]]
}

# --- what to do -----------------------------------------------------------------------------------

# Sets modules: the kernel modules that serve these cards (open, proprietary, or none), and why.
choose_modules() {
  local i name old="" new="" served=""
  for i in "${!card_names[@]}"; do
    name=${card_names[i]}
    facts_of "${card_architectures[i]}"
    case $card_modules in
      proprietary) old=$name ;;
      open) new=$name ;;
      both) served=$name ;;
      none) say "note: driver branch $DRIVER_BRANCH is not for $name" ;;
    esac
  done
  if [[ -n $old && -n $new ]]; then
    fail 2 "$old needs proprietary kernel modules and $new open ones, and a kernel loads one kind" \
      "take one of the cards out and run this again"
  elif [[ -n $old ]]; then
    modules=proprietary
    why="$DRIVER_BRANCH is the last branch for $old, and the open modules are not for it"
  elif [[ -n $new ]]; then
    modules=open
    why="$new has no others"
  elif [[ -n $served ]]; then
    modules=open
    why="as NVIDIA recommends for $served"
  else
    modules=none
    why=
  fi
}

# newer_than_cards: says for which card the driver that is here is too new; false if for none, or if
# there is another card that it serves.
newer_than_cards() {
  local i too_new=0
  for i in "${!card_names[@]}"; do
    facts_of "${card_architectures[i]}"
    if ((${driver_version%%.*} > card_last_branch)); then
      too_new=$((too_new + 1))
      say "note: driver $driver_version is too new for ${card_names[i]}," \
        "whose last branch is $card_last_branch"
    fi
  done
  ((too_new > 0 && too_new == ${#card_names[@]}))
}

# Driver packages are there, and no GPU answers: names the cause, or leaves it to a reboot.
explain_waiting_driver() {
  local license remove
  remove="remove that driver (apt-get purge '^nvidia-.*' '^libnvidia-.*' '^cuda-drivers.*', if apt"
  remove+=" brought it), reboot and run this again"
  [[ -n $driver_version ]] \
    || fail 2 "an NVIDIA driver is installed, but it has no module for Linux $kernel" \
      "run apt-get install linux-headers-$kernel and dkms autoinstall as root, and reboot"
  if newer_than_cards; then
    fail 2 "driver $driver_version is too new for every card here" "$remove"
  fi
  license=$(modinfo --field license nvidia 2>/dev/null) || license=
  if [[ "$modules $license" == "open NVIDIA" ]]; then
    fail 2 "driver $driver_version has the proprietary kernel modules here, but $why" "$remove"
  elif [[ "$modules $license" == "proprietary Dual MIT/GPL" ]]; then
    fail 2 "driver $driver_version has the open kernel modules here, but $why" "$remove"
  fi
}

# Says which driver is there or will be; sets needs_driver and has_gpu.
decide_driver() {
  needs_driver=0 has_gpu=1
  case $driver in
    running)
      say "driver   $driver_version is there already"
      newer_than_cards || true
      ((${driver_version%%.*} >= DRIVER_BRANCH)) || say "note: images built with" \
        "requirements-newest.txt bring CUDA 13.0, which needs driver $DRIVER_BRANCH or newer"
      ;;
    waiting)
      choose_modules
      explain_waiting_driver
      say "driver   $driver_version is there already, but not running"
      ;;
    missing)
      choose_modules
      if [[ $modules != none ]]; then
        needs_driver=1
        say "driver   missing: branch $DRIVER_BRANCH, $modules kernel modules ($why)"
      elif ((${#card_names[@]})); then
        fail 2 "this script has no driver for ${card_names[-1]}" \
          "install one as $DRIVER_GUIDE describes, reboot and run this again"
      else
        has_gpu=0
        say "driver   none: lspci shows no NVIDIA card, so this host gets Docker Engine alone"
      fi
      ;;
  esac
  ((!has_nvswitch)) || say "note: this host has NVSwitches, so CUDA also needs NVIDIA's fabric" \
    "manager (package nvidia-fabricmanager-$DRIVER_BRANCH), in exactly the driver's version"
}

# Says what is there of the rest; sets needs_docker and needs_toolkit.
decide_docker() {
  needs_docker=0 needs_toolkit=0
  if [[ -n $docker_version ]]; then
    say "docker   $docker_version is there already"
  else
    needs_docker=1
    say "docker   missing: Docker Engine from Docker's repository"
  fi
  if [[ -n $toolkit_version ]]; then
    say "toolkit  $toolkit_version is there already"
  elif ((has_gpu)); then
    needs_toolkit=1
    say "toolkit  missing: NVIDIA container toolkit from NVIDIA's repository"
  fi
}

# --- installing -----------------------------------------------------------------------------------

install_tools() {
  local tool missing=""
  for tool in curl gpg; do
    command -v "$tool" >/dev/null || missing+=" $tool"
  done
  if [[ -n $missing ]]; then
    step "apt-get update"
    step "$INSTALL ca-certificates$missing"
  fi
}

# add_repository NAME: its key and its source for apt, unless a source of the same address is there
# already, since apt refuses two that name different keys.
add_repository() {
  local url suite key_url fingerprint file key=$keyrings/$1.asc primary_keys
  repository "$1"
  file=$(grep -rs --files-with-matches "^[^#]*$url" "$root/etc/apt" | sed -n 1p) || true
  if [[ -n $file ]]; then
    say "source   $url is there already, in $file"
    return
  fi
  primary_keys="gpg --show-keys --with-colons $key.new | awk -F : '\$1 == \"pub\" { primary = 1 }"
  primary_keys+=" \$1 == \"fpr\" && primary { print \$10; primary = 0 }'"
  step "$FETCH --output $key.new $key_url" "the key $key_url could not be fetched"
  step "[ \"\$($primary_keys)\" = $fingerprint ]" "$key_url is not the key $fingerprint"
  step "mv $key.new $key"
  step "echo 'deb [arch=amd64 signed-by=$key] $url $suite' >$sources/$1.list"
}

add_repositories() {
  if ((needs_driver)); then
    add_repository nvidia-driver
    # As NVIDIA's package cuda-keyring has it: Ubuntu has packages of the same names, and the two do
    # not mix.
    step "printf '%s\n' 'Package: *' 'Pin: release l=NVIDIA CUDA' 'Pin-Priority: 600'\
 >$preferences/nvidia-driver"
  fi
  if ((needs_docker)); then
    add_repository docker
  fi
  if ((needs_toolkit)); then
    add_repository nvidia-container-toolkit
  fi
  step "apt-get update"
}

install_driver() {
  local package=nvidia-open-$DRIVER_BRANCH headers="linux-headers-$kernel"
  if [[ $modules == proprietary ]]; then
    package=cuda-drivers-$DRIVER_BRANCH
  fi
  # Ubuntu's kernels bring the headers of the next kernel along, Debian's do not.
  if [[ $id == debian ]]; then
    headers+=" linux-headers-${kernel##*[0-9]-}"
  fi
  step "$INSTALL $headers $compilers" \
    "the headers of Linux $kernel cannot be installed (after an upgrade, reboot first)"
  # On its own: it tells apt which versions to take.
  step "$INSTALL nvidia-driver-pinning-$DRIVER_BRANCH"
  step "$INSTALL $package"
}

install_missing() {
  if ((!needs_driver && !needs_docker && !needs_toolkit)); then
    return
  fi
  install_tools
  add_repositories
  if ((needs_driver)); then
    install_driver
  fi
  # --no-remove: Docker Engine replaces the system's containerd, which something may be using.
  if ((needs_docker)); then
    step "$INSTALL --no-remove docker-ce docker-ce-cli containerd.io docker-buildx-plugin"
  fi
  if ((needs_toolkit)); then
    step "$INSTALL --no-remove nvidia-container-toolkit"
  fi
}

configure_docker() {
  if ((needs_docker)) || ! docker_knows_nvidia; then
    step "nvidia-ctk runtime configure --runtime=docker"
    step "systemctl restart docker"
  fi
}

# --- the end --------------------------------------------------------------------------------------

# A driver that does not run yet cannot be checked.
ask_for_reboot() {
  if [[ $(mokutil --sb-state 2>/dev/null) == *"SecureBoot enabled"* ]]; then
    say "note: Secure Boot is on, and the kernel loads the driver only once the key is enrolled" \
      "that DKMS signs with: run mokutil --import /var/lib/dkms/mok.pub as root (on Ubuntu" \
      "/var/lib/shim-signed/mok/MOK.der, if it is there), and choose \"Enroll MOK\" at the reboot"
  fi
  if [[ -e $root/sys/module/nouveau ]]; then
    say "note: nouveau drives the card now; the driver's packages keep it out from the next boot" \
      "on (where they do not: update-initramfs -u, and another reboot)"
  fi
  if [[ $driver == waiting ]]; then
    say "note: where this host was rebooted since the driver came," \
      "journalctl -k -g 'NVRM|nouveau' says why it does not run"
  fi
  say "next: reboot, then run this again: it goes on with the check"
  ((dry_run)) || exit 3
}

# check COMMAND TEXT FINDING: runs a container, whose output must hold TEXT.
check() {
  local output
  if ((dry_run)); then
    step "$1"
    return
  fi
  say "+ $1"
  output=$(bash -c "$1" </dev/null) \
    || fail 1 "the check failed: $1" "mend what stands above and run this again"
  [[ $output == *"$2"* ]] \
    || fail 1 "the output of $1 has no \"$2\"" "run it by hand and see what it prints"
  say "$output"
  printf 'OK: %s\n' "$3"
}

main() {
  check_system
  check_rights
  find_cards
  find_driver
  find_docker
  decide_driver
  decide_docker
  install_missing
  if ((has_gpu)); then
    configure_docker
  fi
  say "hint: docker without sudo: sudo usermod -aG docker ${SUDO_USER:-USER}, then log in anew;" \
    "who is in that group can do whatever root can"
  if ((!has_gpu)); then
    check "docker run --rm hello-world" "Hello from Docker" "Docker runs containers"
  elif [[ $driver == running ]]; then
    check "docker run --rm --gpus all debian:bookworm nvidia-smi --list-gpus" "GPU 0: " \
      "containers see the GPU"
  else
    ask_for_reboot
  fi
}

dry_run=0
case "$# $*" in
  "0 ") ;;
  "1 --dry-run") dry_run=1 ;;
  "1 -h" | "1 --help")
    sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p}' "$(readlink -f "${BASH_SOURCE[0]}")"
    exit 0
    ;;
  *) fail 2 "unknown argument: $*" "usage: sudo $0 [--dry-run]" ;;
esac
main
