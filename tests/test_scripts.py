"""quickstart.sh, test.sh and .ci/run: run as a person would, on a checkout with stub benchmarks.

No network, no framework: the stubs write down how they were called, and the environment is made
with the real pip from wheels that the tests write.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# All that the scripts call besides what a test takes away or replaces.
TOOLS = """
    bash basename cat cp curl cut date dirname df env find grep head mkdir mktemp mv printf readlink
    realpath rm sed sh sha256sum sleep sort tail tee touch tr uname unzip wc xargs
"""

STUB = """#!/usr/bin/env bash
if [[ ${1-} == --help ]]; then
  echo "  reference  a lot: 9 GB"
  echo "  mini       films of BENCHMARK: 2 MB"
  exit
fi
here=$(cd "$(dirname "$0")" && pwd)
echo "BENCHMARK/$(basename "$0")${*:+ $*} PRESET=${PRESET-}" >>"$here/../calls"
echo "SCRIPT of BENCHMARK"
[[ -e $here/SCRIPT.status ]] && exit "$(cat "$here/SCRIPT.status")"
exit 0
"""

TRAIN = """#!/usr/bin/env bash
here=$(cd "$(dirname "$0")" && pwd)
echo "BENCHMARK/run_and_time.sh${*:+ $*} PRESET=$PRESET PYTHON=$PYTHON" >>"$here/../calls"
status=0
[[ -e $here/run_and_time.sh.status ]] && status=$(cat "$here/run_and_time.sh.status")
if ((status != 2)); then
  run=${RESULTS_DIR:-$here/../results}/BENCHMARK/mini/seed-1/$(date -u +%Y%m%dT%H%M%S.%N)
  mkdir -p "$run"
  echo ':::MLLOG {}' | tee "$run/log.txt"
fi
echo "progress of BENCHMARK" >&2
((status == 0)) && echo "RESULT,BENCHMARK,1,3,somebody,2026-11-24 09:00:00 AM"
((status == 1)) && echo "ABORTED,BENCHMARK,1,3,0.1,0.2"
exit "$status"
"""

FAKE_PYTHON = """#!/usr/bin/env bash
# Answers as an interpreter with everything installed; writes down which modules it was to run.
here=$(cd "$(dirname "$0")" && pwd)
if [[ $1 == -m ]]; then
  echo "python $*" >>"$here/modules"
  [[ -e $here/fail ]] && grep -qF -- "$(cat "$here/fail")" <<<"$*" && exit 1
  exit 0
fi
exec REAL "$@"
"""


class Checkout:
    """A copy of the suite's scripts with stub benchmarks, and a PATH with nothing else on it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a clone"
        for name in ("quickstart.sh", "test.sh", "tools/environment.sh", ".ci/run"):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, self.root / name)
        for benchmark in ("recommendation", "translation"):
            for script in ("download_dataset.sh", "verify_dataset.sh"):
                text = STUB.replace("BENCHMARK", benchmark).replace("SCRIPT", script)
                write_script(self.root / benchmark / script, text)
            write_script(
                self.root / benchmark / "run_and_time.sh", TRAIN.replace("BENCHMARK", benchmark)
            )
        write_script(self.root / "harness" / "run_and_time.sh", "exit 3\n")

        self.bin = folder / "bin"
        self.bin.mkdir()
        for tool in TOOLS.split():
            (self.bin / tool).symlink_to(str(shutil.which(tool)))
        self.python = folder / "venv" / "bin" / "python"
        write_script(self.python, FAKE_PYTHON.replace("REAL", sys.executable))
        self.environment = {"PATH": str(self.bin), "HOME": str(folder), "PYTHON": str(self.python)}

    def run(
        self, *command: str, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.root / command[0]), *command[1:]],
            cwd=cwd or self.root,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def run_without_python(self, *command: str) -> subprocess.CompletedProcess[str]:
        """As on a fresh machine: PYTHON is not set, so that an environment is made."""
        self.environment.pop("PYTHON", None)
        return self.run(*command)

    def set_status(self, script: str, status: int) -> None:
        (self.root / f"{script}.status").write_text(str(status))

    @property
    def calls(self) -> list[str]:
        calls = self.root / "calls"
        return [line.split(" PRESET")[0] for line in calls.read_text().splitlines()]

    @property
    def modules(self) -> list[str]:
        """What the fake interpreter was to run."""
        modules = self.python.parent / "modules"
        return modules.read_text().splitlines() if modules.exists() else []


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def write_script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if text.startswith("#!") else f"#!/usr/bin/env bash\n{text}")
    path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def assert_one_error_line(run: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Status 2, nothing on stdout, one line `error: <cause>; <next step>` with all of `parts`."""
    assert (run.returncode, run.stdout) == (2, ""), run.stderr
    assert run.stderr.count("\n") == 1, run.stderr
    assert run.stderr.startswith("error: ")
    assert "; " in run.stderr
    for part in parts:
        assert part in run.stderr


# --- quickstart.sh: the steps -------------------------------------------------------------------


def test_quickstart_gets_verifies_trains_draws_and_ends_with_result(checkout: Checkout) -> None:
    run = checkout.run("quickstart.sh")

    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        ":::MLLOG {}",
        "RESULT,recommendation,1,3,somebody,2026-11-24 09:00:00 AM",
    ]
    assert (checkout.root / "calls").read_text().splitlines() == [
        "recommendation/download_dataset.sh mini PRESET=",
        "recommendation/verify_dataset.sh mini PRESET=",
        f"recommendation/run_and_time.sh PRESET=mini PYTHON={checkout.python}",
    ]
    newest = next((checkout.root / "results/recommendation/mini/seed-1").iterdir())
    assert checkout.modules == [f"python -m harness plot {newest}"]
    assert f"{newest}/log.txt" in run.stderr
    assert "recommendation.predict" in run.stderr
    announced, _, rest = run.stderr.partition("download_dataset.sh of recommendation")
    assert "films of recommendation: 2 MB" in announced
    assert "progress of recommendation" in rest


@pytest.mark.parametrize("status", [1, 2, 130])
def test_quickstart_returns_the_status_of_the_training(checkout: Checkout, status: int) -> None:
    checkout.set_status("recommendation/run_and_time.sh", status)
    run = checkout.run("quickstart.sh")
    assert run.returncode == status
    assert run.stdout.endswith("ABORTED,recommendation,1,3,0.1,0.2\n") == (status == 1)
    # Wrong data leaves no run behind, so that no older one may be shown in its place.
    assert len(checkout.modules) == (status != 2)


@pytest.mark.parametrize("script", ["download_dataset.sh", "verify_dataset.sh"])
def test_quickstart_does_not_train_without_whole_data(checkout: Checkout, script: str) -> None:
    checkout.set_status(f"recommendation/{script}", 1)
    run = checkout.run("quickstart.sh")
    assert (run.returncode, run.stdout) == (1, "")
    assert checkout.calls[-1] == f"recommendation/{script} mini"


def test_quickstart_tries_each_benchmark_and_returns_the_first_failure(checkout: Checkout) -> None:
    checkout.set_status("recommendation/run_and_time.sh", 1)
    run = checkout.run("quickstart.sh", "all")
    assert run.returncode == 1
    assert checkout.calls[-1] == "translation/run_and_time.sh"
    assert run.stdout.splitlines()[-1].startswith("RESULT,translation,")
    assert "recommendation: failed with status 1" in run.stderr

    checkout.set_status("translation/run_and_time.sh", 2)
    assert checkout.run("quickstart.sh", "translation", "recommendation").returncode == 2


def test_quickstart_stops_after_an_interrupted_training(checkout: Checkout) -> None:
    checkout.set_status("recommendation/run_and_time.sh", 143)
    assert checkout.run("quickstart.sh", "all").returncode == 143
    assert checkout.calls[-1] == "recommendation/run_and_time.sh"


def test_quickstart_works_from_anywhere_and_through_a_link(
    checkout: Checkout, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    (checkout.bin / "go").symlink_to(checkout.root / "quickstart.sh")
    run = subprocess.run(
        ["go"],
        cwd=elsewhere,
        env=checkout.environment | {"RESULTS_DIR": "my results", "CDPATH": "/"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert list((elsewhere / "my results/recommendation/mini/seed-1").iterdir())
    assert not (checkout.root / "results").exists()


def test_quickstart_says_when_no_picture_can_be_drawn(checkout: Checkout) -> None:
    (checkout.python.parent / "fail").write_text("harness plot")
    run = checkout.run("quickstart.sh")
    assert run.returncode == 0
    assert "picture      none" in run.stderr


@pytest.mark.parametrize("name", ["harness", "recommend", "tools", "--mini", "all all"])
def test_quickstart_refuses_an_unknown_benchmark(checkout: Checkout, name: str) -> None:
    run = checkout.run("quickstart.sh", "recommendation", *name.split())
    assert_one_error_line(run, f'"{name.split()[0]}"', "recommendation translation")


def test_quickstart_refuses_one_data_folder_for_two_benchmarks(checkout: Checkout) -> None:
    assert_one_error_line(checkout.run("quickstart.sh", "all", DATA_DIR="/data"), "DATA_DIR")


def test_quickstart_help_is_its_header(checkout: Checkout) -> None:
    run = checkout.run("quickstart.sh", "--help")
    assert run.returncode == 0
    assert run.stdout.startswith("From a fresh clone")
    assert "./quickstart.sh all" in run.stdout
    assert "set -e" not in run.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_quickstart_passes_a_signal_on_and_waits(
    checkout: Checkout, number: signal.Signals
) -> None:
    """Only quickstart.sh itself is signalled, as by kill; the training takes its time to end."""
    write_script(
        checkout.root / "recommendation/run_and_time.sh",
        f"""trap 'sleep 0.5; echo closed >"$0.closed"; exit {128 + number}' TERM INT
        touch "$0.started"
        while :; do sleep 0.05; done""",
    )
    process = subprocess.Popen(
        [checkout.root / "quickstart.sh", "all"],
        env=checkout.environment,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(checkout.root / "recommendation/run_and_time.sh.started")
    process.send_signal(number)
    assert process.wait(timeout=20) == 128 + number
    assert (checkout.root / "recommendation/run_and_time.sh.closed").exists()
    assert not any(call.startswith("translation") for call in checkout.calls)


# --- quickstart.sh: the machine -----------------------------------------------------------------


def fake_interpreter(path: Path, *statements: str) -> None:
    """An interpreter that first runs `statements`: another version, a module that is not there."""
    program = f"import sys; {'; '.join(statements)}; exec(sys.argv[2])"
    write_script(path, f"""exec {sys.executable} -c "{program}" "$@"\n""")


OLD = "sys.version_info = (3, 9, 2)"
TOO_NEW = "sys.version_info = (3, 14, 0)"
GOOD = "sys.version_info = (3, 12, 1)"
NO_VENV = "sys.modules['ensurepip'] = None"


@pytest.mark.parametrize(
    ("absent", "interpreters", "named", "packages"),
    [
        (["curl"], {"python3": [GOOD]}, "missing: curl;", "curl"),
        (["unzip"], {"python3": [GOOD]}, "missing: unzip;", "unzip"),
        ([], {"python3": [GOOD, NO_VENV]}, "missing: venv for Python 3.12;", "python3-venv"),
        ([], {}, "missing: Python 3.11, 3.12 or 3.13;", "python3 python3-venv"),
        ([], {"python3": [OLD]}, "(python3 is Python 3.9);", "python3.11 python3.11-venv"),
        ([], {"python3": [TOO_NEW]}, "(python3 is Python 3.14);", "python3.11 python3.11-venv"),
        (
            [],
            {"python3": [OLD], "python3.12": [GOOD, NO_VENV]},
            "missing: venv for Python 3.12;",
            "python3.12-venv",
        ),
        (
            ["curl", "unzip"],
            {"python3": [GOOD, NO_VENV]},
            "missing: curl, unzip, venv for Python 3.12;",
            "curl unzip python3-venv",
        ),
    ],
)
def test_all_that_is_missing_is_named_in_one_line(
    checkout: Checkout,
    absent: list[str],
    interpreters: dict[str, list[str]],
    named: str,
    packages: str,
) -> None:
    for tool in absent:
        (checkout.bin / tool).unlink()
    for name, statements in interpreters.items():
        fake_interpreter(checkout.bin / name, *statements)
    for script in ("quickstart.sh", "test.sh"):
        run = checkout.run_without_python(script)
        assert_one_error_line(run, named, "apt-get update && ")
        assert run.stderr.endswith(f"apt-get install -y {packages}\n")
    assert not (checkout.root / ".venv").exists()
    assert not (checkout.root / "calls").exists()


def test_another_system_is_refused(checkout: Checkout) -> None:
    (checkout.bin / "uname").unlink()
    write_script(checkout.bin / "uname", "[[ $1 == -m ]] && echo arm64 || echo Darwin")
    assert_one_error_line(checkout.run("quickstart.sh"), "this is Darwin arm64")


def test_an_old_interpreter_in_python_is_refused(checkout: Checkout) -> None:
    fake_interpreter(checkout.bin / "old", OLD)
    assert_one_error_line(checkout.run("quickstart.sh", PYTHON="old"), "PYTHON=old")


# --- the environment ----------------------------------------------------------------------------


METADATA = "Metadata-Version: 2.1\nName: framework\nVersion: {}\n"


class Packages:
    """Wheels of a package `framework`, which pip takes instead of the network, and their locks."""

    def __init__(self, checkout: Checkout, folder: Path) -> None:
        self.checkout = checkout
        self.wheels = folder / "wheels"
        self.wheels.mkdir()
        # Behind the wrapper stands the interpreter that made the environment of these tests.
        write_script(checkout.bin / "python3", f'exec {sys._base_executable} "$@"\n')  # type: ignore[attr-defined]
        self.set_free_disk(500)
        checkout.environment |= {
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
            "PIP_CONFIG_FILE": os.devnull,
        }

    def set_free_disk(self, gigabytes: int) -> None:
        (self.checkout.bin / "df").unlink(missing_ok=True)
        write_script(self.checkout.bin / "df", f"echo Avail; echo ' {gigabytes}GB'")

    def lock(self, path: str, version: str, num_files: int = 0) -> None:
        """Write a wheel of this version, with so many more files in it, and a lock that pins it."""
        wheel = self.wheels / f"framework-{version}-py3-none-any.whl"
        information = f"framework-{version}.dist-info"
        files = {
            "framework.py": f"VERSION = '{version}'\n",
            **{f"framework_data/{number}.txt": "" for number in range(num_files)},
            f"{information}/METADATA": METADATA.format(version),
            f"{information}/WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any\n",
        }
        record = f"{information}/RECORD"
        files[record] = "".join(f"{name},,\n" for name in (*files, record))
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        target = self.checkout.root / path
        target.write_text(f"framework=={version} \\\n    --hash=sha256:{digest}\n")

    @property
    def installed_version(self) -> str:
        (module,) = (self.checkout.root / ".venv").glob("lib/python3*/site-packages/framework.py")
        return module.read_text().split("'")[1]

    @property
    def pip_log_time_ns(self) -> int:
        """When pip last ran: each run begins its log anew."""
        return (self.checkout.root / ".venv/pip.log").stat().st_mtime_ns


@pytest.fixture
def packages(checkout: Checkout, tmp_path: Path) -> Packages:
    packages = Packages(checkout, tmp_path)
    packages.lock("recommendation/requirements.txt", "1.0")
    return packages


@pytest.mark.slow
def test_environment_is_made_reused_and_renewed(checkout: Checkout, packages: Packages) -> None:
    run = checkout.run_without_python("quickstart.sh")
    assert run.returncode == 0, run.stderr
    assert "3.1 GB to download, 5.9 GB of disk" in run.stderr
    assert packages.installed_version == "1.0"
    assert f"PYTHON={checkout.root}/.venv/bin/python" in (checkout.root / "calls").read_text()

    first_time_ns = packages.pip_log_time_ns
    run = checkout.run_without_python("quickstart.sh")
    assert ".venv is there already" in run.stderr
    assert packages.pip_log_time_ns == first_time_ns

    packages.lock("recommendation/requirements.txt", "1.1")
    assert checkout.run_without_python("quickstart.sh").returncode == 0
    assert packages.installed_version == "1.1"


@pytest.mark.slow
def test_environment_is_made_anew_when_pip_was_killed_while_it_unpacked(
    checkout: Checkout, packages: Packages
) -> None:
    num_files = 3000
    packages.lock("recommendation/requirements.txt", "1.0", num_files)
    del checkout.environment["PYTHON"]
    process = subprocess.Popen(
        [checkout.root / "quickstart.sh"],
        env=checkout.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    unpacking = checkout.root / ".venv/unpacking"
    wait_for(unpacking)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (checkout.root / "calls").exists()
    # What pip would take for a whole package: its description is there, though not its files.
    (site_packages,) = (checkout.root / ".venv").glob("lib/python3*/site-packages")
    shutil.rmtree(site_packages / "framework_data", ignore_errors=True)
    information = site_packages / "framework-1.0.dist-info"
    information.mkdir(exist_ok=True)
    (information / "METADATA").write_text(METADATA.format("1.0"))

    run = checkout.run_without_python("quickstart.sh")
    assert run.returncode == 0, run.stderr
    assert len(list((site_packages / "framework_data").iterdir())) == num_files
    assert not unpacking.exists()


@pytest.mark.slow
def test_environment_survives_a_failed_download(checkout: Checkout, packages: Packages) -> None:
    lock = checkout.root / "recommendation/requirements.txt"
    assert checkout.run_without_python("quickstart.sh").returncode == 0
    good_lock = lock.read_text()
    inode = (checkout.root / ".venv").stat().st_ino

    packages.lock("recommendation/requirements.txt", "1.1")
    wrong_digest = hashlib.sha256(b"another file").hexdigest()
    lock.write_text(f"framework==1.1 --hash=sha256:{wrong_digest}\n")
    run = checkout.run_without_python("quickstart.sh")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.splitlines()[-1].startswith("error: pip could not install recommendation/")
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in run.stderr

    lock.write_text(good_lock)
    run = checkout.run_without_python("quickstart.sh")
    assert ".venv is there already" in run.stderr
    assert (checkout.root / ".venv").stat().st_ino == inode


@pytest.mark.slow
def test_environment_follows_the_gpu(checkout: Checkout, packages: Packages) -> None:
    packages.lock("recommendation/requirements-newest.txt", "2.0")

    def version_on(capability: str) -> str:
        answer = f"echo {capability}" if capability else "exit 9"
        write_script(checkout.bin / "nvidia-smi", answer)
        run = checkout.run_without_python("quickstart.sh")
        assert run.returncode == 0, run.stderr
        return packages.installed_version

    assert version_on("6.0") == "1.0"  # P100
    assert version_on("12.0") == "2.0"
    # The other framework has pushed the first one out, so that its lock no longer counts.
    assert version_on("9.0") == "1.0"
    assert version_on("10.0") == "2.0"
    assert version_on("") == "1.0"


@pytest.mark.parametrize(
    ("capability", "benchmarks", "expected"),
    [
        ("", "all", "recommendation/requirements.txt translation/requirements-host.txt"),
        ("9.0", "recommendation", "recommendation/requirements.txt"),
        (
            "9.0",
            "translation",
            "translation/requirements-host.txt harness/requirements-torch.txt",
        ),
        (
            "6.0",
            "all",
            "recommendation/requirements.txt translation/requirements-host.txt "
            "harness/requirements-torch.txt",
        ),
        ("12.0", "recommendation", "recommendation/requirements-newest.txt"),
        ("12.0", "translation", "translation/requirements.txt"),
    ],
)
def test_locks_follow_the_gpu_and_the_framework(
    checkout: Checkout, capability: str, benchmarks: str, expected: str
) -> None:
    assert locks(checkout, capability, benchmarks) == (0, expected)


def test_no_environment_holds_the_newest_pytorch_and_tensorflow_with_a_gpu(
    checkout: Checkout,
) -> None:
    status, line = locks(checkout, "12.0", "all")
    assert status == 2
    assert line.endswith("ask for these one by one: recommendation translation")


def locks(checkout: Checkout, capability: str, benchmarks: str) -> tuple[int, str]:
    """What tools/environment.sh chooses on such a GPU, and its exit status."""
    (checkout.root / "translation/requirements-host.txt").touch()
    answer = f'if [[ $1 == --list-gpus ]]; then echo "GPU 0: A"; else echo {capability}; fi'
    write_script(checkout.bin / "nvidia-smi", answer if capability else "exit 9")
    choose = 'source tools/environment.sh; choose_benchmarks "$1"; choose_locks'
    program = f'set -euo pipefail; {choose}; echo "${{locks[*]}}"'
    done = subprocess.run(
        ["bash", "-c", program, "bash", benchmarks],
        cwd=checkout.root,
        env=checkout.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout.strip()


@pytest.mark.slow
def test_tensorflows_own_cuda_libraries_push_out_the_others(
    checkout: Checkout, packages: Packages
) -> None:
    packages.lock("translation/requirements-host.txt", "1.0")
    packages.lock("translation/requirements.txt", "2.0")

    def version_on(capability: str, benchmark: str) -> str:
        write_script(checkout.bin / "nvidia-smi", f"echo {capability}" if capability else "exit 9")
        run = checkout.run_without_python("quickstart.sh", benchmark)
        assert run.returncode == 0, run.stderr
        return packages.installed_version

    assert version_on("", "recommendation") == "1.0"
    assert version_on("", "translation") == "1.0"
    assert version_on("12.0", "translation") == "2.0"
    assert version_on("", "recommendation") == "1.0"


@pytest.mark.slow
def test_a_lock_without_digests_is_refused(checkout: Checkout, packages: Packages) -> None:
    packages.lock("recommendation/requirements.txt", "1.0")
    (checkout.root / "recommendation/requirements.txt").write_text("framework==1.0\n")
    run = checkout.run_without_python("quickstart.sh")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.splitlines()[-1].startswith("error: pip could not install")


def test_full_disk_is_seen_before_the_download(checkout: Checkout, packages: Packages) -> None:
    packages.set_free_disk(3)
    run = checkout.run_without_python("quickstart.sh")
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith("error: 12 GB of free disk are needed")
    assert not (checkout.root / ".venv").exists()


@pytest.mark.parametrize(
    ("locks", "words"),
    [
        ("recommendation/requirements.txt", "3.1 GB to download, 5.9 GB of disk"),
        ("recommendation/requirements-newest.txt", "3.1 GB to download, 5.9 GB of disk"),
        ("image_classification/requirements-host.txt", "0.8 GB to download, 2.7 GB of disk"),
        (
            "image_classification/requirements-host.txt recommendation/requirements.txt",
            "3.8 GB to download, 8.1 GB of disk",
        ),
    ],
)
def test_the_environments_size_follows_the_frameworks(locks: str, words: str) -> None:
    """With the true locks."""
    program = "set -euo pipefail; source tools/environment.sh; environment=/nowhere"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    done = subprocess.run(
        ["bash", "-c", f"{program}; announce_environment {locks}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert words in done.stderr


# --- test.sh ------------------------------------------------------------------------------------


@pytest.fixture
def linters(checkout: Checkout) -> Checkout:
    """A checkout whose fake interpreter has a shellcheck beside it."""
    shellcheck = 'echo "shellcheck $*" >>"$(dirname "$0")/modules"'
    write_script(checkout.python.parent / "shellcheck", shellcheck)
    return checkout


@pytest.mark.parametrize(
    ("arguments", "selection"),
    [
        ([], "not exhaustive"),
        (["--fast"], "not slow and not exhaustive"),
        (["--all"], ""),
    ],
)
def test_test_sh_runs_every_part(
    linters: Checkout, tmp_path: Path, arguments: list[str], selection: str
) -> None:
    run = linters.run("test.sh", *arguments, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    ruff_format, ruff_check, mypy, shellcheck, pytest_call = linters.modules
    assert ruff_format == "python -m ruff format --check ."
    assert ruff_check == "python -m ruff check ."
    assert mypy == "python -m mypy"
    assert pytest_call == f"python -m pytest -m {selection}"
    for script in ("./quickstart.sh", "./tools/environment.sh", ".ci/run"):
        assert script in shellcheck.split()
    assert linters.calls == [
        "recommendation/download_dataset.sh mini",
        "translation/download_dataset.sh mini",
    ]


@pytest.mark.parametrize("part", ["ruff format", "ruff check", "mypy", "pytest"])
def test_test_sh_fails_with_any_part_but_runs_them_all(linters: Checkout, part: str) -> None:
    (linters.python.parent / "fail").write_text(f"-m {part}")
    run = linters.run("test.sh")
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == f"failed: {part}"
    assert len(linters.modules) == 5


def test_test_sh_fails_with_shellcheck(linters: Checkout) -> None:
    write_script(linters.python.parent / "shellcheck", "exit 1")
    run = linters.run("test.sh")
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == "failed: shellcheck"


def test_test_sh_goes_on_without_data(linters: Checkout) -> None:
    linters.set_status("recommendation/download_dataset.sh", 1)
    run = linters.run("test.sh")
    assert run.returncode == 0
    assert "note: recommendation/download_dataset.sh mini failed" in run.stderr
    assert linters.modules[-1].startswith("python -m pytest")


@pytest.mark.parametrize("arguments", [["--slow"], ["--fast", "--all"], ["tests"]])
def test_test_sh_refuses_other_arguments(checkout: Checkout, arguments: list[str]) -> None:
    assert_one_error_line(checkout.run("test.sh", *arguments), "usage: ./test.sh [--fast|--all]")


# --- .ci/run ------------------------------------------------------------------------------------


@pytest.fixture
def ci(checkout: Checkout) -> Checkout:
    write_script(checkout.root / "test.sh", '[[ $* == --all ]] || exit 9; [[ ! -e "$0.fails" ]]')
    return checkout


def test_ci_trains_and_checks_every_benchmark(ci: Checkout) -> None:
    run = ci.run(".ci/run")
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "3 passed, 0 failed"
    assert [call for call in ci.calls if "run_and_time" in call] == [
        "recommendation/run_and_time.sh",
        "translation/run_and_time.sh",
    ]
    logs = [module.removeprefix("python -m harness check ") for module in ci.modules]
    assert [log.split("/")[2] for log in logs] == ["recommendation", "translation"]
    assert all((ci.root / log).is_file() for log in logs)


def test_ci_fails_when_the_tests_fail(ci: Checkout) -> None:
    (ci.root / "test.sh.fails").touch()
    run = ci.run(".ci/run")
    assert run.returncode == 1
    assert run.stdout.splitlines()[-1] == "2 passed, 1 failed"


@pytest.mark.parametrize("script", ["download_dataset.sh", "verify_dataset.sh", "run_and_time.sh"])
def test_ci_fails_when_a_benchmark_fails(ci: Checkout, script: str) -> None:
    ci.set_status(f"recommendation/{script}", 1)
    run = ci.run(".ci/run")
    assert run.returncode == 1
    assert run.stdout.splitlines()[-1] == "2 passed, 1 failed"
    assert ci.calls[-1] == "translation/run_and_time.sh"


def test_ci_fails_without_a_result_line(ci: Checkout) -> None:
    script = ci.root / "recommendation/run_and_time.sh"
    script.write_text(script.read_text().replace("RESULT,", "ABORTED,"))
    assert ci.run(".ci/run").stdout.splitlines()[-1] == "2 passed, 1 failed"


def test_ci_fails_when_the_checker_refuses_a_log(ci: Checkout) -> None:
    (ci.python.parent / "fail").write_text("harness check results/ci/translation/")
    run = ci.run(".ci/run")
    assert run.returncode == 1
    assert run.stdout.splitlines()[-1] == "2 passed, 1 failed"
