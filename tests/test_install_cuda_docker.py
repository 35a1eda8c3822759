"""install_cuda_docker.sh: on hosts made of an os-release file and stand-ins for the tools it calls.

The stand-ins write down how they were called. Nothing is fetched or installed.
"""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "install_cuda_docker.sh"

# All that the script calls besides the stand-ins.
TOOLS = ("awk", "bash", "cat", "cp", "grep", "mv", "readlink", "sed", "tr")

RELEASES = {  # PRETTY_NAME, ID, VERSION_ID, kernel
    "Ubuntu 22.04": ("Ubuntu 22.04.5 LTS", "ubuntu", '"22.04"', "6.8.0-85-generic"),
    "Ubuntu 24.04": ("Ubuntu 24.04.3 LTS", "ubuntu", '"24.04"', "6.14.0-33-generic"),
    "Debian 12": ("Debian GNU/Linux 12 (bookworm)", "debian", '"12"', "6.1.0-40-amd64"),
    "Ubuntu 20.04": ("Ubuntu 20.04.6 LTS", "ubuntu", '"20.04"', "5.4.0-216-generic"),
    "Debian 13": ("Debian GNU/Linux 13 (trixie)", "debian", '"13"', "6.12.48+deb13-amd64"),
    "Fedora": ("Fedora Linux 42 (Server Edition)", "fedora", "42", "6.14.0-63.fc42.x86_64"),
    "Mint": ("Linux Mint 22", "linuxmint", '"22"', "6.8.0-38-generic"),
}
SYSTEMS = ("Ubuntu 22.04", "Ubuntu 24.04", "Debian 12")

CARDS = {  # as lspci -nn prints them
    "K80": "07:00.0 3D controller [0302]: NVIDIA Corporation GK210GL [Tesla K80] [10de:102d]",
    "P100": "04:00.0 3D controller [0302]: NVIDIA Corporation GP100GL [Tesla P100 PCIe 16GB] "
    "[10de:15f8] (rev a1)",
    "V100": "3b:00.0 3D controller [0302]: NVIDIA Corporation GV100GL [Tesla V100 PCIe 32GB] "
    "[10de:1db6] (rev a1)",
    "GTX 1080 Ti": "01:00.0 VGA compatible controller [0300]: NVIDIA Corporation GP102 [GeForce "
    "GTX 1080 Ti] [10de:1b06] (rev a1)",
    "T4": "00:1e.0 3D controller [0302]: NVIDIA Corporation TU104GL [Tesla T4] [10de:1eb8]",
    "A100": "07:00.0 3D controller [0302]: NVIDIA Corporation GA100 [A100 SXM4 40GB] [10de:20b0] "
    "(rev a1)",
    "RTX 4090": "01:00.0 VGA compatible controller [0300]: NVIDIA Corporation AD102 [GeForce RTX "
    "4090] [10de:2684] (rev a1)",
    "H100": "0000:19:00.0 3D controller [0302]: NVIDIA Corporation GH100 [H100 SXM5 80GB] "
    "[10de:2330] (rev a1)",
    # Two names that lspci of Debian 12 does not know.
    "RTX 5090": "01:00.0 VGA compatible controller [0300]: NVIDIA Corporation Device [10de:2b85] "
    "(rev a1)",
    "B200": "1a:00.0 3D controller [0302]: NVIDIA Corporation Device [10de:2901] (rev a1)",
    "B300": "1a:00.0 3D controller [0302]: NVIDIA Corporation GB110 [B300 SXM6 AC] [10de:3182]",
    "unknown": "1a:00.0 3D controller [0302]: NVIDIA Corporation Device [10de:3001] (rev a1)",
    # Not cards, though NVIDIA's.
    "audio": "01:00.1 Audio device [0403]: NVIDIA Corporation GP104 HDA [10de:10f0] (rev a1)",
    "NVSwitch": "07:00.0 Bridge [0680]: NVIDIA Corporation GH100 [H100 NVSwitch] [10de:22a3]",
}
PROPRIETARY = {"P100": "Pascal", "V100": "Volta", "GTX 1080 Ti": "Pascal"}
OPEN = {
    "T4": "Turing",
    "A100": "Ampere",
    "RTX 4090": "Ada",
    "H100": "Hopper",
    "RTX 5090": "Blackwell",
    "B200": "Blackwell",
    "B300": "Blackwell",
}

FINGERPRINTS = {
    "https://download.docker.com/linux/ubuntu/gpg": "9DC858229FC7DD38854AE2D88D81803C0EBFCD88",
    "https://download.docker.com/linux/debian/gpg": "9DC858229FC7DD38854AE2D88D81803C0EBFCD88",
    "https://nvidia.github.io/libnvidia-container/gpgkey": (
        "C95B321B61E88C1809C4F759DDCAE044F796ECB0"
    ),
} | {
    f"https://developer.download.nvidia.com/compute/cuda/repos/{folder}/x86_64/3bf863cc.pub": (
        "EB693B3035CD5710E231E123A4B469963BF863CC"
    )
    for folder in ("ubuntu2204", "ubuntu2404", "debian12")
}

# Writes down the call, fails where the test says so, and then goes on with what the tool would do.
STAND_IN = """#!{bash}
call="${{0##*/}} $*"
state={state}
# What only looks is not written down.
if [[ ! $call =~ ^(lspci|uname|mokutil|modinfo|gpg|docker\\ info)|--version|--query-gpu ]]; then
  echo "${{DEBIAN_FRONTEND:+$DEBIAN_FRONTEND }}$call" >>"$state/calls"
  [[ ! -e $state/fail || $call != *"$(cat "$state/fail")"* ]] || {{ echo "E: no" >&2; exit 100; }}
fi
{body}
"""
BODIES = {
    "apt-get": """
case $* in
  *"install "*docker-ce*) cp $state/later/docker $state/../bin/ ;;
  *"install "*nvidia-container-toolkit*) cp $state/later/nvidia-ctk $state/../bin/ ;;
esac""",
    "curl": """
while (($#)); do
  [[ $1 != --output ]] || output=$2
  url=$1
  shift
done
echo "$url" >"$output" """,
    "gpg": """
fingerprint=$(grep -hF -A 1 -x -- "$(cat "${@: -1}")" "$state/fingerprints" | sed -n 2p)
for primary in $fingerprint; do
  echo "pub:-:4096:1:${primary:24}:1487788586:::-:::scESA::::::23::0:"
  echo "fpr:::::::::$primary:"
  echo "sub:-:4096:1:7EA0A9C3F273FCD8:1487788586::::::s::::::23:"
  echo "fpr:::::::::D3306A018370199E527AE7997EA0A9C3F273FCD8:"
done""",
    "lspci": 'cat "$state/cards"',
    "uname": """
case $1 in -m) cat "$state/machine" ;; -r) cat "$state/kernel" ;; esac""",
    "modinfo": '[[ -s $state/module ]] && sed -n "s/^$2=//p" "$state/module"',
    "mokutil": 'echo "SecureBoot $(cat "$state/secure_boot")"',
    "systemctl": "",
}
LATER = {  # what a test or the stand-in of apt-get installs
    "docker": """
case $1 in
  --version) echo "Docker version 29.1.3, build f52814d" ;;
  info) cat "$state/runtimes" ;;
  run) cat "$state/container" ;;
esac""",
    "nvidia-ctk": """
[[ $1 != --version ]] || printf '%s\\n' "NVIDIA Container Toolkit CLI version 1.18.1" commit""",
    "nvidia-smi": """
[[ -s $state/running ]] || { echo "NVIDIA-SMI has failed"; exit 9; }
cat "$state/running" """,
    "podman": 'echo "podman version 4.3.1"',
}
CHECK_GPU = "docker run --rm --gpus all debian:bookworm nvidia-smi --list-gpus"
GPUS = "GPU 0: Tesla P100-PCIE-16GB (UUID: GPU-0)\nGPU 1: Tesla P100-PCIE-16GB (UUID: GPU-1)\n"


class Host:
    """A folder that stands for /, and a PATH with the stand-ins and little else on it."""

    def __init__(self, folder: Path, system: str = "Ubuntu 24.04", *cards: str) -> None:
        self.root = folder
        self.bin = folder / "bin"
        self.state = folder / "state"
        for path in (self.bin, self.state / "later"):
            path.mkdir(parents=True)
        for name in ("keyrings", "preferences.d", "sources.list.d"):
            (folder / "etc/apt" / name).mkdir(parents=True)
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found, tool
            (self.bin / tool).symlink_to(found)
        for name, body in BODIES.items():
            self.write_stand_in(self.bin / name, body)
        for name, body in LATER.items():
            self.write_stand_in(self.state / "later" / name, body)

        name, identity, version, kernel = RELEASES[system]
        (folder / "etc/os-release").write_text(
            f'PRETTY_NAME="{name}"\nNAME="whatever"\nVERSION_ID={version}\nID={identity}\n'
        )
        self.set("cards", "".join(CARDS[card] + "\n" for card in cards))
        self.set("machine", "x86_64\n")
        self.set("kernel", kernel + "\n")
        self.set("secure_boot", "disabled\n")
        self.set("runtimes", '{"io.containerd.runc.v2":{},"runc":{}}\n')
        self.set("container", GPUS if cards else "\nHello from Docker!\n")
        self.set("fingerprints", "".join(f"{url}\n{key}\n" for url, key in FINGERPRINTS.items()))

    def write_stand_in(self, path: Path, body: str) -> None:
        path.write_text(STAND_IN.format(bash=shutil.which("bash"), state=self.state, body=body))
        path.chmod(0o755)

    def set(self, name: str, text: str) -> None:
        (self.state / name).write_text(text)

    def install(self, *names: str) -> None:
        for name in names:
            shutil.copy2(self.state / "later" / name, self.bin)

    def run(self, *arguments: str, script: Path = SCRIPT) -> subprocess.CompletedProcess[str]:
        return self.shell(str(script), *arguments)

    def shell(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", *arguments],
            env={"PATH": str(self.bin), "HOST_ROOT": str(self.root), "SUDO_USER": "ada"},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def plan(self) -> list[str]:
        """The commands of a dry run, without this host's folder in them."""
        before = self.files()
        result = self.run("--dry-run")
        assert result.returncode == 0, result.stderr
        assert self.calls() == [] and self.files() == before
        return result.stdout.replace(str(self.root), "").splitlines()

    def calls(self) -> list[str]:
        path = self.state / "calls"
        text = path.read_text() if path.exists() else ""
        return text.replace(str(self.root), "").splitlines()

    def files(self) -> dict[str, str]:
        """What lies below /etc."""
        return {
            str(path.relative_to(self.root)): path.read_text().replace(str(self.root), "")
            for path in (self.root / "etc").rglob("*")
            if path.is_file()
        }


def packages(plan: list[str]) -> list[str]:
    """All that apt-get is to install, in order."""
    install = "DEBIAN_FRONTEND=noninteractive apt-get install --yes -o DPkg::Lock::Timeout=600 "
    lines = [line.removeprefix(install) for line in plan if line.startswith(install)]
    return [name for line in lines for name in line.split() if not name.startswith("-")]


def assert_refused(host: Host, *causes: str, arguments: tuple[str, ...] = ()) -> None:
    """One line with cause and next step, exit status 2, nothing done."""
    before = host.files()
    result = host.run(*arguments)
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and result.stderr.endswith(errors[0] + "\n")
    assert "; " in errors[0]
    for cause in causes:
        assert cause in errors[0]
    assert host.calls() == [] and host.files() == before


# --- what is installed ----------------------------------------------------------------------------

HEADERS = {
    "Ubuntu 22.04": ["linux-headers-6.8.0-85-generic", "gcc", "gcc-12"],
    "Ubuntu 24.04": ["linux-headers-6.14.0-33-generic", "gcc"],
    "Debian 12": ["linux-headers-6.1.0-40-amd64", "linux-headers-amd64", "gcc"],
}
DOCKER = ["docker-ce", "docker-ce-cli", "containerd.io", "docker-buildx-plugin"]


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("card", [*PROPRIETARY, *OPEN])
def test_a_fresh_host_gets_the_driver_of_its_card(tmp_path, system, card):
    driver = "cuda-drivers-580" if card in PROPRIETARY else "nvidia-open-580"
    host = Host(tmp_path, system, card, "audio")

    assert packages(host.plan()) == [
        *HEADERS[system],
        "nvidia-driver-pinning-580",
        driver,
        *DOCKER,
        "nvidia-container-toolkit",
    ]

    said = host.run("--dry-run").stderr
    architecture = (PROPRIETARY | OPEN)[card]
    modules = "proprietary" if card in PROPRIETARY else "open"
    assert re.search(rf"^card     .+ \[10de:.{{4}}\] \({architecture}\)$", said, re.M)
    assert re.search(
        rf"^driver   missing: branch 580, {modules} kernel modules \(.*{architecture}.*\)$",
        said,
        re.M,
    )
    assert "next: reboot, then run this again" in said
    assert len(re.findall("^card ", said, re.M)) == 1


@pytest.mark.parametrize(
    ("system", "docker", "nvidia"),
    [
        ("Ubuntu 22.04", "ubuntu jammy", "ubuntu2204"),
        ("Ubuntu 24.04", "ubuntu noble", "ubuntu2404"),
        ("Debian 12", "debian bookworm", "debian12"),
    ],
)
def test_sources_are_signed_by_keys_of_their_own(tmp_path, system, docker, nvidia):
    host = Host(tmp_path, system, "A100")
    assert host.run().returncode == 3
    files = host.files()
    del files["etc/os-release"]
    folder, suite = docker.split()
    keys = "deb [arch=amd64 signed-by=/etc/apt/keyrings"
    driver = f"https://developer.download.nvidia.com/compute/cuda/repos/{nvidia}/x86_64"
    docker_url = f"https://download.docker.com/linux/{folder}"
    toolkit = "https://nvidia.github.io/libnvidia-container"
    assert files == {
        "etc/apt/keyrings/docker.asc": f"{docker_url}/gpg\n",
        "etc/apt/keyrings/nvidia-driver.asc": f"{driver}/3bf863cc.pub\n",
        "etc/apt/keyrings/nvidia-container-toolkit.asc": f"{toolkit}/gpgkey\n",
        "etc/apt/sources.list.d/docker.list": (f"{keys}/docker.asc] {docker_url} {suite} stable\n"),
        "etc/apt/sources.list.d/nvidia-driver.list": f"{keys}/nvidia-driver.asc] {driver} /\n",
        "etc/apt/sources.list.d/nvidia-container-toolkit.list": (
            f"{keys}/nvidia-container-toolkit.asc] {toolkit}/stable/deb/amd64 /\n"
        ),
        "etc/apt/preferences.d/nvidia-driver": (
            "Package: *\nPin: release l=NVIDIA CUDA\nPin-Priority: 600\n"
        ),
    }


def test_the_headers_follow_a_cloud_kernel_of_debian(tmp_path):
    host = Host(tmp_path, "Debian 12", "T4")
    host.set("kernel", "6.1.0-40-cloud-amd64\n")
    assert packages(host.plan())[:2] == [
        "linux-headers-6.1.0-40-cloud-amd64",
        "linux-headers-cloud-amd64",
    ]


def test_curl_and_gpg_are_installed_where_they_are_missing(tmp_path):
    host = Host(tmp_path, "Debian 12", "T4")
    (host.bin / "curl").unlink()
    assert packages(host.plan())[:2] == ["ca-certificates", "curl"]
    (host.bin / "gpg").unlink()
    plan = host.plan()
    assert packages(plan)[:3] == ["ca-certificates", "curl", "gpg"]
    assert plan[0] == "apt-get update"


def test_a_host_without_a_card_gets_docker_alone(tmp_path):
    host = Host(tmp_path, "Debian 12", "audio")
    host.set("container", "\nHello from Docker!\n")
    plan = host.plan()
    assert packages(plan) == DOCKER
    assert not any("nvidia" in line for line in plan)
    assert plan[-1] == "docker run --rm hello-world"

    result = host.run()
    assert (result.returncode, result.stdout) == (0, "OK: Docker runs containers\n")
    assert host.calls()[-1] == "docker run --rm hello-world"
    assert "lspci shows no NVIDIA card" in result.stderr


# --- several cards, and cards that have no driver here --------------------------------------------


@pytest.mark.parametrize(
    ("cards", "driver"),
    [
        (("P100", "V100"), "cuda-drivers-580"),
        (("P100", "T4"), "cuda-drivers-580"),
        (("H100", "V100"), "cuda-drivers-580"),
        (("T4", "RTX 5090"), "nvidia-open-580"),
        (("A100", "RTX 4090"), "nvidia-open-580"),
        (("K80", "A100"), "nvidia-open-580"),
        (("RTX 4090", "unknown"), "nvidia-open-580"),
    ],
)
def test_two_different_cards_get_the_modules_that_serve_both(tmp_path, cards, driver):
    host = Host(tmp_path, "Ubuntu 22.04", *cards)
    drivers = {"cuda-drivers-580", "nvidia-open-580"}
    assert drivers & set(packages(host.plan())) == {driver}
    said = host.run("--dry-run").stderr
    assert ("note: driver branch 580 is not for" in said) == bool({"K80", "unknown"} & set(cards))


@pytest.mark.parametrize("cards", [("P100", "RTX 5090"), ("B200", "V100")])
def test_old_and_new_modules_do_not_go_together(tmp_path, cards):
    host = Host(tmp_path, "Ubuntu 24.04", *cards)
    assert_refused(host, "a kernel loads one kind", "take one of the cards out")


@pytest.mark.parametrize("card", ["K80", "unknown"])
def test_a_card_that_no_driver_here_serves_is_refused(tmp_path, card):
    assert_refused(Host(tmp_path, "Debian 12", card), "this script has no driver for", "[10de:")


def test_the_device_id_tells_the_architecture(tmp_path):
    """The first and the last product of each run of ids in pci.ids, and what is none."""
    ids = {
        "Kepler": "06c0 12ba",
        "Maxwell": "1340 1436 1617 17fd",
        "Pascal": "15c2 15fc 1725 1b00 1d56",
        "Volta": "1d81 1df6",
        "Turing": "1e02 1ff9 2182 21d1",
        "Ampere": "2082 20f6 2203 2238 2414 25fb",
        "Hopper": "230c 237e",
        "Ada": "2681 28f8",
        "Blackwell": "2901 2f58 3182 31c3",
        "unknown": "3001 3fff",
    }
    host = Host(tmp_path, "Debian 12")
    expected = [(device, name) for name, devices in ids.items() for device in devices.split()]
    lines = [f"01:00.0 3D controller [0302]: NVIDIA Corporation X [10de:{i}]" for i, _ in expected]
    host.set("cards", "\n".join(lines) + "\n")
    said = host.run().stderr
    assert re.findall(r"^card     X \[10de:(.+)\] \((.+)\)$", said, re.M) == expected


def test_nvswitches_are_named(tmp_path):
    host = Host(tmp_path, "Ubuntu 24.04", "H100", "NVSwitch")
    assert "nvidia-fabricmanager-580" in host.run("--dry-run").stderr
    host = Host(tmp_path / "b", "Ubuntu 24.04", "H100")
    assert "fabric" not in host.run("--dry-run").stderr


# --- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", ["Ubuntu 20.04", "Debian 13", "Fedora", "Mint"])
def test_other_systems_are_refused(tmp_path, system):
    host = Host(tmp_path, system, "P100")
    assert_refused(host, f"this is {RELEASES[system][0]} on x86_64")
    assert_refused(host, arguments=("--dry-run",))


@pytest.mark.parametrize("system", SYSTEMS)
def test_other_machines_are_refused(tmp_path, system):
    host = Host(tmp_path, system, "H100")
    host.set("machine", "aarch64\n")
    assert_refused(host, f"this is {RELEASES[system][0]} on aarch64")


def test_a_host_without_os_release_is_refused(tmp_path):
    host = Host(tmp_path)
    (tmp_path / "etc/os-release").unlink()
    assert_refused(host, "this is an unknown system on x86_64")


def test_without_lspci_there_is_no_guess(tmp_path):
    host = Host(tmp_path)
    (host.bin / "lspci").unlink()
    assert_refused(host, "lspci is missing", "apt-get install pciutils")


def test_a_docker_that_is_podman_is_refused(tmp_path):
    host = Host(tmp_path, "Debian 12", "T4")
    shutil.copy2(host.state / "later/podman", host.bin / "docker")
    assert_refused(host, '"podman version 4.3.1", not Docker Engine')


@pytest.mark.parametrize("arguments", [("--no-driver",), ("--dry-run", "x"), ("",)])
def test_unknown_arguments_are_refused(tmp_path, arguments):
    assert_refused(Host(tmp_path), "unknown argument", "usage: sudo ", arguments=arguments)


def test_it_wants_the_rights_of_root():
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        host = Host(Path(folder) / "host")
        host.bin.chmod(0o755)
        result = subprocess.run(
            ["bash", "-s"],
            input=SCRIPT.read_text().replace("root=${HOST_ROOT-}", f"root= # {folder}"),
            env={"PATH": f"{host.bin}:{os.environ['PATH']}"},
            user=65534 if os.geteuid() == 0 else None,
            cwd="/",
            capture_output=True,
            text=True,
        )
        assert result.returncode == 2
        if "not Ubuntu" not in result.stderr:  # the tests' own system is read here
            assert "error: this needs root's rights; run sudo" in result.stderr
        assert host.calls() == []


# --- what is there already ------------------------------------------------------------------------


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("cards", [("P100",), ()])
def test_nothing_is_installed_again(tmp_path, system, cards):
    """Without a card that lspci shows as well: nvidia-smi in a virtual machine is enough."""
    host = Host(tmp_path, system, *cards)
    host.install("docker", "nvidia-ctk", "nvidia-smi")
    host.set("running", "580.95.05\n580.95.05\n")
    host.set("runtimes", '{"nvidia":{"path":"nvidia-container-runtime"},"runc":{}}\n')
    host.set("container", GPUS)
    assert host.plan() == [CHECK_GPU]

    before = host.files()
    result = host.run()
    assert (result.returncode, result.stdout) == (0, "OK: containers see the GPU\n")
    assert host.calls() == [CHECK_GPU] and host.files() == before
    for line in (
        "driver   580.95.05 is there already",
        "docker   Docker version 29.1.3, build f52814d is there already",
        "toolkit  NVIDIA Container Toolkit CLI version 1.18.1 is there already",
    ):
        assert line in result.stderr.splitlines()
    assert "note:" not in result.stderr
    assert "sudo usermod -aG docker ada" in result.stderr


def test_docker_is_restarted_only_where_its_configuration_changes(tmp_path):
    host = Host(tmp_path, "Debian 12", "A100")
    host.install("docker", "nvidia-ctk", "nvidia-smi")
    host.set("running", "580.95.05\n")
    configure = ["nvidia-ctk runtime configure --runtime=docker", "systemctl restart docker"]
    assert host.plan() == [*configure, CHECK_GPU]


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        (("docker", "nvidia-ctk"), "driver"),
        (("nvidia-smi", "nvidia-ctk"), "docker"),
        (("docker", "nvidia-smi"), "nvidia-container-toolkit"),
    ],
)
def test_only_what_is_missing_comes(tmp_path, there, missing):
    host = Host(tmp_path, "Ubuntu 24.04", "H100")
    host.install(*there)
    if "nvidia-smi" in there:
        host.set("running", "580.95.05\n")
    plan = host.plan()
    lists = [line for line in plan if "sources.list.d" in line]
    assert len(lists) == 1
    assert f"/{missing}.list" in lists[0] or "/nvidia-driver.list" in lists[0]
    expected = {
        "driver": [*HEADERS["Ubuntu 24.04"], "nvidia-driver-pinning-580", "nvidia-open-580"],
        "docker": DOCKER,
    }
    assert packages(plan) == expected.get(missing, [missing])


@pytest.mark.parametrize(
    "line",
    [
        "deb [signed-by=/usr/share/keyrings/docker.gpg] https://download.docker.com/linux/ubuntu "
        "noble stable\n",
        "Types: deb\nURIs: https://download.docker.com/linux/ubuntu\nSuites: noble\n",
    ],
)
def test_a_source_that_is_there_is_left_alone(tmp_path, line):
    host = Host(tmp_path)
    own = tmp_path / "etc/apt/sources.list.d/own.list"
    own.write_text(line)
    plan = host.plan()
    assert not any("keyrings" in step or "sources.list.d" in step for step in plan)
    assert packages(plan) == DOCKER
    assert f"is there already, in {own}" in host.run("--dry-run").stderr


def test_a_source_in_a_comment_does_not_count(tmp_path):
    host = Host(tmp_path)
    own = tmp_path / "etc/apt/sources.list.d/own.list"
    own.write_text("# deb https://download.docker.com/linux/ubuntu noble stable\n")
    assert any("sources.list.d/docker.list" in step for step in host.plan())


# --- a driver that is there and does not serve ----------------------------------------------------


@pytest.mark.parametrize("card", PROPRIETARY)
def test_a_driver_too_new_for_the_card_is_named(tmp_path, card):
    host = Host(tmp_path, "Ubuntu 24.04", card)
    host.install("nvidia-smi")
    host.set("module", "version=595.71.05\nlicense=NVIDIA\n")
    assert_refused(host, "driver 595.71.05 is too new for every card here", "remove that driver")
    said = host.run().stderr
    assert re.search(rf"too new for .*\({PROPRIETARY[card]}\), whose last branch is 580", said)


def test_a_driver_too_new_for_one_of_two_cards_is_noted(tmp_path):
    host = Host(tmp_path, "Ubuntu 24.04", "P100", "RTX 4090")
    host.install("docker", "nvidia-ctk", "nvidia-smi")
    host.set("running", "595.71.05\n")
    result = host.run()
    assert result.returncode == 0
    notes = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1 and "595.71.05 is too new for GP100GL [Tesla P100" in notes[0]


@pytest.mark.parametrize(("version", "noted"), [("570.195.03", True), ("580.95.05", False)])
def test_a_driver_too_old_for_cuda_13_is_noted(tmp_path, version, noted):
    host = Host(tmp_path, "Ubuntu 24.04", "A100")
    host.install("docker", "nvidia-ctk", "nvidia-smi")
    host.set("running", f"{version}\n")
    assert ("which needs driver 580 or newer" in host.run().stderr) == noted


@pytest.mark.parametrize(
    ("card", "license", "found"),
    [("RTX 5090", "NVIDIA", "proprietary"), ("V100", "Dual MIT/GPL", "open")],
)
def test_a_driver_with_the_wrong_modules_is_named(tmp_path, card, license, found):  # noqa: A002
    host = Host(tmp_path, "Debian 12", card)
    host.set("module", f"version=580.95.05\nlicense={license}\n")
    assert_refused(host, f"driver 580.95.05 has the {found} kernel modules here, but")


def test_a_driver_without_a_module_for_this_kernel_is_named(tmp_path):
    host = Host(tmp_path, "Debian 12", "V100")
    host.install("nvidia-smi")
    assert_refused(host, "no module for Linux 6.1.0-40-amd64", "dkms autoinstall")


# --- the real run ---------------------------------------------------------------------------------

SITUATIONS = [  # system, cards, what is there
    ("Ubuntu 22.04", ("P100",), ()),
    ("Ubuntu 24.04", ("RTX 5090", "audio"), ()),
    ("Debian 12", ("H100", "H100"), ()),
    ("Debian 12", (), ()),
    ("Ubuntu 24.04", ("T4",), ("docker",)),
    ("Debian 12", ("V100",), ("nvidia-smi",)),
    ("Ubuntu 22.04", ("A100",), ("docker", "nvidia-smi", "nvidia-ctk")),
]


def make_host(folder, situation):
    system, cards, there = situation
    host = Host(folder, system, *cards)
    host.install(*there)
    if "nvidia-smi" in there:
        host.set("running", "580.95.05\n")
    return host


@pytest.mark.parametrize("situation", SITUATIONS)
def test_the_real_run_is_the_dry_run(tmp_path, situation):
    """The same lines; and given to bash, the dry run's lines do what the real run did."""
    real = make_host(tmp_path / "real", situation)
    plan = real.plan()
    result = real.run()
    expects_reboot = bool(situation[1]) and "nvidia-smi" not in situation[2]
    assert result.returncode == (3 if expects_reboot else 0), result.stderr
    said = result.stderr.replace(str(real.root), "").splitlines()
    assert [line.removeprefix("+ ") for line in said if line.startswith("+ ")] == plan
    assert result.stdout == "" if expects_reboot else result.stdout.startswith("OK: ")

    by_hand = make_host(tmp_path / "by_hand", situation)
    printed = by_hand.run("--dry-run").stdout
    (tmp_path / "plan.sh").write_text(printed)
    assert by_hand.shell("-e", str(tmp_path / "plan.sh")).returncode == 0
    assert by_hand.calls() == real.calls() and len(real.calls()) > 0
    assert by_hand.files() == real.files()


def test_after_the_reboot_it_goes_on_with_the_check(tmp_path):
    host = Host(tmp_path, "Debian 12", "P100")
    assert host.run().returncode == 3
    num_calls = len(host.calls())

    # Before the reboot: the driver is there, and not running.
    host.install("nvidia-smi")
    host.set("module", "version=580.95.05\nlicense=NVIDIA\n")
    host.set("runtimes", '{"nvidia":{}}\n')
    result = host.run()
    assert result.returncode == 3 and result.stdout == ""
    assert "driver   580.95.05 is there already, but not running" in result.stderr
    assert "journalctl -k" in result.stderr
    assert len(host.calls()) == num_calls

    host.set("running", "580.95.05\n")
    result = host.run()
    assert (result.returncode, result.stdout) == (0, "OK: containers see the GPU\n")
    assert host.calls()[num_calls:] == [CHECK_GPU]
    assert "GPU 1: Tesla P100" in result.stderr


def test_a_waiting_driver_does_not_keep_docker_away(tmp_path):
    host = Host(tmp_path, "Debian 12", "P100")
    host.install("nvidia-smi")
    host.set("module", "version=580.95.05\nlicense=NVIDIA\n")
    assert packages(host.plan()) == [*DOCKER, "nvidia-container-toolkit"]


def test_secure_boot_and_nouveau_are_noted(tmp_path):
    host = Host(tmp_path, "Ubuntu 24.04", "RTX 4090")
    said = host.run("--dry-run").stderr
    assert "mokutil --import" not in said and "nouveau" not in said
    host.set("secure_boot", "enabled\n")
    (tmp_path / "sys/module/nouveau").mkdir(parents=True)
    said = host.run("--dry-run").stderr
    assert "mokutil --import /var/lib/dkms/mok.pub" in said and "nouveau drives the card" in said


@pytest.mark.slow
def test_a_step_that_fails_is_the_last(tmp_path):
    """Whichever it is: one line, status 1, and none of the later steps."""
    situation = ("Ubuntu 22.04", ("V100",), ())
    calls = make_host(tmp_path / "whole", situation)
    assert calls.run().returncode == 3
    expected = calls.calls()
    assert len(expected) == 11
    for i, call in enumerate(expected):
        host = make_host(tmp_path / str(i), situation)
        host.set("fail", call.removeprefix("noninteractive ").replace("/etc/", f"{host.root}/etc/"))
        result = host.run()
        assert result.returncode == 1, call
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and "run this again" in errors[0]
        assert host.calls() == expected[: i + 1]
        # The next run goes on, and leaves what one run would have left.
        (host.state / "fail").unlink()
        assert host.run().returncode == 3
        assert host.files() == calls.files()


@pytest.mark.parametrize(
    ("output", "finding"),
    [("", "has no"), ("No devices were found\n", "has no"), (None, "the check failed")],
)
@pytest.mark.parametrize("cards", [("P100",), ()])
def test_a_check_that_finds_nothing_fails(tmp_path, output, finding, cards):
    host = make_host(tmp_path, ("Debian 12", cards, ("docker", "nvidia-ctk")))
    if cards:
        host.install("nvidia-smi")
        host.set("running", "580.95.05\n")
    host.set("container", output or "")
    if output is None:
        host.set("fail", "docker run")
    result = host.run()
    assert result.returncode == 1 and result.stdout == ""
    assert finding in result.stderr.splitlines()[-1]


# --- keys and sources -----------------------------------------------------------------------------

STRANGER = "0123456789ABCDEF0123456789ABCDEF01234567"


@pytest.mark.parametrize("url", [url for url in FINGERPRINTS if "debian" in url or "io/" in url])
@pytest.mark.parametrize("keys", ["", STRANGER, "{} " + STRANGER, STRANGER + " {}"])
def test_another_key_is_not_taken(tmp_path, url, keys):
    host = Host(tmp_path, "Debian 12", "P100")
    text = (host.state / "fingerprints").read_text()
    right = f"{url}\n{FINGERPRINTS[url]}\n"
    assert right in text
    wrong = f"{url}\n{keys.format(FINGERPRINTS[url])}\n"
    host.set("fingerprints", text.replace(right, wrong))
    result = host.run()
    assert result.returncode == 1
    assert f"error: {url} is not the key {FINGERPRINTS[url]}; " in result.stderr
    assert not any("apt-get" in call for call in host.calls())
    assert not any(url in text for name, text in host.files().items() if not name.endswith(".new"))


@pytest.mark.skipif(shutil.which("gpg") is None, reason="needs gpg")
def test_the_fingerprint_is_read_from_a_real_key(tmp_path):
    """A key with a subkey, as gpg itself makes and prints it."""
    home = tempfile.mkdtemp()  # gpg's socket has a short path only
    gpg = ["gpg", "--homedir", home, "--batch", "--quiet"]
    try:
        for command in (
            ["--passphrase", "", "--quick-generate-key", "a test <a@test>", "ed25519", "cert"],
        ):
            subprocess.run([*gpg, *command], check=True, capture_output=True)
        listing = subprocess.run(
            [*gpg, "--with-colons", "--list-keys"], check=True, capture_output=True, text=True
        ).stdout
        fingerprint = re.findall("^fpr:+([0-9A-F]{40}):", listing, re.M)[0]
        subprocess.run(
            [*gpg, "--passphrase", "", "--quick-add-key", fingerprint, "ed25519", "sign"],
            check=True,
            capture_output=True,
        )
        key = subprocess.run([*gpg, "--armor", "--export"], check=True, capture_output=True).stdout
    finally:
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=False)
        shutil.rmtree(home)

    host = Host(tmp_path / "host")
    (tmp_path / "key").write_bytes(key)
    host.write_stand_in(
        host.bin / "curl", BODIES["curl"].replace('echo "$url"', f"cat {tmp_path / 'key'}")
    )
    (host.bin / "gpg").unlink()
    (host.bin / "gpg").symlink_to(str(shutil.which("gpg")))
    assert "is not the key 9DC8" in host.run().stderr

    changed = tmp_path / "changed.sh"
    changed.write_text(SCRIPT.read_text().replace(next(iter(FINGERPRINTS.values())), fingerprint))
    result = host.run(script=changed)
    assert result.returncode == 0, result.stderr
    assert (host.root / "etc/apt/keyrings/docker.asc").read_bytes() == key


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt")
def test_apt_reads_the_sources_and_the_preferences(tmp_path):
    host = Host(tmp_path, "Debian 12", "P100")
    assert host.run().returncode == 3
    options = [
        *("-o", "Dir::Etc::sourcelist=/dev/null"),
        *("-o", f"Dir::Etc::sourceparts={tmp_path}/etc/apt/sources.list.d"),
        *("-o", "Dir::Etc::preferences=/dev/null"),
        *("-o", f"Dir::Etc::preferencesparts={tmp_path}/etc/apt/preferences.d"),
        *("-o", f"Dir::State::lists={tmp_path}"),
        *("-o", f"Dir::Cache={tmp_path}"),
        *("-o", "APT::Architecture=amd64"),
    ]
    targets = subprocess.run(
        ["apt-get", *options, "indextargets", "--no-release-info", "--format", "$(URI)"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert targets.stderr == ""
    docker = "https://download.docker.com/linux/debian/dists/bookworm/stable/binary-amd64"
    assert set(targets.stdout.split()) >= {
        f"{docker}/Packages",
        "https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/Packages",
        "https://nvidia.github.io/libnvidia-container/stable/deb/amd64/Packages",
    }
    policy = subprocess.run(
        ["apt-cache", *options, "policy"], check=True, capture_output=True, text=True
    )
    assert policy.stderr == ""


def test_all_is_fetched_by_https_and_nothing_runs_unread(tmp_path):
    plans = []
    for i, situation in enumerate(SITUATIONS):
        plans += make_host(tmp_path / str(i), situation).plan()
    text = SCRIPT.read_text()
    for line in [*text.splitlines(), *plans]:
        assert "apt-key" not in line
        assert "http:" not in line
        assert not re.search(r"(curl|FETCH).*\|", line)
        assert "trusted=yes" not in line and "allow-unauthenticated" not in line
    fetches = [line for line in plans if line.startswith("curl ")]
    assert fetches
    assert all("--proto '=https'" in line and " https://" in line for line in fetches)
    sources = [line for line in plans if line.startswith("echo 'deb ")]
    assert len(sources) == len(fetches)
    assert all("signed-by=/etc/apt/keyrings/" in line for line in sources)
    assert not any("usermod" in line for line in plans)  # a hint only
