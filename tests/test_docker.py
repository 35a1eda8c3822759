"""python -m harness docker: the real SDK against an engine of a few lines, then a real engine.

The engine of a few lines answers on a Unix socket as the Docker Engine API says, and writes down
what it was asked. The tests with a real engine build a toy benchmark; they are skipped where no
engine answers or the base image of all Dockerfiles is not there.
"""

import http.server
import io
import json
import os
import re
import shlex
import shutil
import signal
import socketserver
import struct
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import docker as sdk
import pytest

from harness import container, docker, options, system
from harness.errors import UsageError

ROOT = Path(__file__).parent.parent
BASE_IMAGE = "python:3.11-slim-bookworm"
OUT, ERR = 1, 2
NVIDIA = {"Runtimes": {"runc": {}, "nvidia": {}}}
GPU = {"name": "Tesla P100", "compute_cap": "6.0"}
NO_DRIVER = 'could not select device driver "" with capabilities: [[gpu]]'
RESULT = b"RESULT,toy,1,3,0,2026-11-24 09:00:00 AM\n"

DOWNLOAD = """#!/bin/sh
cat <<'USAGE'
usage: toy/download_dataset.sh [PRESET]

PRESET, an argument or from the environment (default reference):
  reference  a lot: 9 GB
  mini       toys: 2 MB
  tiny       made-up data, nothing to fetch

environment:
  DATA_DIR         where the data set lies
USAGE
"""


class Engine(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers the calls of one build and one run; what a test sets decides how they go."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), Handler)
        self.calls = []  # (verb, what, query, body)
        self.info = {"Runtimes": {"runc": {}}}
        self.build = [{"stream": "Step 1/1 : FROM scratch\n"}]
        self.create_error = self.start_error = None  # (HTTP status, message)
        self.frames = [(OUT, RESULT)]
        self.status = 0
        self.remove_status = 204
        self.signalled_status = None  # 128 + signal
        self.on_build = self.on_start = lambda: None
        self.silent_s = 0.0  # in the midst of a build and of a run
        self.runs_on = False  # after its output, until a signal that it obeys
        self.obeys = {"15", "2", "9"}
        self.goes_away = []  # when asked for these, as an engine that is restarted does
        self.started, self.ended = threading.Event(), threading.Event()

    def bodies(self, what):
        return [body for _, called, _, body in self.calls if called == what]

    def names(self):
        """What was called for, without what only asks."""
        asking = ("version", "info", "json", "wait", "attach")
        return [what for _, what, _, _ in self.calls if what not in asking]

    def handle_error(self, request, client_address):
        """Say nothing where the client hung up, which is its right: stderr is what is tested."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def address_string(self):
        return ""

    def log_message(self, *_):
        pass

    def answer(self, status, value=None):
        body = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do(self):
        self.engine = engine = self.server
        url = urlsplit(self.path)
        self.query = query = {name: values[0] for name, values in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        what = "remove" if self.command == "DELETE" else url.path.rpartition("/")[2]
        engine.calls.append((self.command, what, query, body))
        if what in engine.goes_away and what != "build":
            self.close_connection = True
            return
        getattr(self, f"do_{what}")()

    do_GET = do_POST = do_DELETE = do  # noqa: N815

    def do_version(self):
        self.answer(200, {"ApiVersion": "1.41"})

    def do_info(self):
        self.answer(200, self.engine.info)

    def do_build(self):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.engine.on_build()
        time.sleep(self.engine.silent_s)
        for message in self.engine.build:
            piece = json.dumps(message).encode() + b"\r\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        if "build" in self.engine.goes_away:
            self.close_connection = True
        else:
            self.wfile.write(b"0\r\n\r\n")

    def do_create(self):
        if self.engine.create_error:
            self.answer(self.engine.create_error[0], {"message": self.engine.create_error[1]})
        else:
            self.engine.started.clear()
            self.engine.ended.clear()
            self.answer(201, {"Id": "c1"})

    def do_json(self):
        self.answer(200, {"Id": "c1", "Config": {"Tty": False}})

    def do_attach(self):
        self.send_response(101)
        self.send_header("Connection", "Upgrade")
        self.send_header("Upgrade", "tcp")
        self.end_headers()
        self.close_connection = True
        assert self.engine.started.wait(20)
        for stream, piece in self.engine.frames:
            time.sleep(self.engine.silent_s)
            self.wfile.write(struct.pack(">BxxxL", stream, len(piece)) + piece)
        if not self.engine.runs_on:
            self.engine.ended.set()
        self.engine.ended.wait(20)

    def do_start(self):
        if self.engine.start_error:
            self.answer(self.engine.start_error[0], {"message": self.engine.start_error[1]})
            self.engine.ended.set()
        else:
            self.answer(204)
            self.engine.on_start()
        self.engine.started.set()

    def do_kill(self):
        self.answer(204)
        if self.query["signal"] in self.engine.obeys:
            number = int(self.query["signal"])
            self.engine.status = (
                128 + number
                if self.engine.signalled_status is None
                else self.engine.signalled_status
            )
            self.engine.ended.set()

    def do_wait(self):
        self.engine.ended.wait(20)
        self.answer(200, {"StatusCode": self.engine.status})

    def do_stop(self):
        self.answer(304 if self.engine.ended.is_set() else 204)
        self.engine.ended.set()

    def do_remove(self):
        status = self.engine.remove_status
        self.answer(status, None if status == 204 else {"message": "it is busy"})


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A repository with the benchmark toy and its mini data; no variable of the caller's."""
    root = tmp_path / "a clone"
    add_benchmark(root, "toy")
    (root / ".dockerignore").write_text((ROOT / ".dockerignore").read_text())
    (root / "tests").mkdir()
    (root / "toy" / "tests").mkdir()
    for module in (docker, options):
        monkeypatch.setattr(module, "REPOSITORY", root)
    for name in ("PRESET", "DATA_DIR", "RESULTS_DIR", "NUM_GPUS", "RESUME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_COMMIT", "abc1234")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(system, "gpus", list)
    monkeypatch.setattr(docker.shutil, "which", lambda name: None)
    return root


def add_benchmark(root, name):
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "Dockerfile").write_text("FROM scratch\n")
    for lock in ("requirements.txt", "requirements-newest.txt"):
        (folder / lock).touch()
    (folder / "download_dataset.sh").write_text(DOWNLOAD)
    (folder / "download_dataset.sh").chmod(0o755)
    data = root / "data" / name / "mini"
    data.mkdir(parents=True)
    (data / "toys.csv").touch()


@pytest.fixture
def engine(clone, tmp_path, monkeypatch):  # noqa: ARG001 (its variables come first)
    path = tmp_path / "engine.sock"
    with Engine(path) as server:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def train(*arguments):
    return docker.main(["toy", "--preset", "mini", *arguments])


def only_error(capfd):
    """The one line `error: <cause>; <next step>`, with nothing on stdout."""
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert "; " in lines[0]
    assert out == ""
    return lines[0]


# --- what is built and run -----------------------------------------------------------------------


def test_the_image_is_built_from_what_dockerignore_leaves(engine):
    assert train() == 0
    (query,) = (query for _, what, query, _ in engine.calls if what == "build")
    assert query["t"] == "mlperf/toy"
    assert query["dockerfile"] == "toy/Dockerfile"
    assert (query["rm"], query["forcerm"]) == ("True", "True")
    assert json.loads(query["buildargs"]) == {"GIT_COMMIT": "abc1234"}
    (context,) = engine.bodies("build")
    with tarfile.open(fileobj=io.BytesIO(context)) as tar:
        names = tar.getnames()
    assert {"toy/Dockerfile", "toy/requirements.txt"} <= set(names)
    assert not [name for name in names if "tests" in name or name.startswith(("data", "results"))]


def test_the_container_has_the_mounts_and_settings_of_the_contract(engine, clone):
    assert train("--seed", "7", "--target", "0.3/0.4") == 0
    (created,) = map(json.loads, engine.bodies("create"))
    assert created["Image"] == "mlperf/toy"
    assert created["Cmd"] == ["7", "0.3/0.4"]
    assert created["Env"] == ["PRESET=mini"]
    assert created["User"] == f"{os.getuid()}:{os.getgid()}"
    host = created["HostConfig"]
    assert host["Binds"] == [f"{clone}/data/toy/mini:/data", f"{clone}/results:/results"]
    assert (host["IpcMode"], host["Init"]) == ("host", True)
    assert not host.get("DeviceRequests")
    assert (clone / "results").is_dir()
    assert engine.names() == ["build", "create", "start", "stop", "remove"]


@pytest.mark.usefixtures("engine")
def test_the_equal_commands_are_printed_first(clone, capfd):
    newest = "requirements-newest.txt"
    assert train("--resume", "--requirements", newest, "--target", "0.3/0.4") == 0
    lines = capfd.readouterr().err.splitlines()
    user = f"{os.getuid()}:{os.getgid()}"
    assert lines[1:5] == [
        "docker build -t mlperf/toy --build-arg GIT_COMMIT=abc1234"
        " --build-arg REQUIREMENTS=requirements-newest.txt -f toy/Dockerfile .",
        f"mkdir -p '{clone}/results'",
        f"docker run --rm --init --ipc=host --user {user} -e PRESET=mini -e RESUME=1"
        f" -v '{clone}/data/toy/mini:/data' -v '{clone}/results:/results' mlperf/toy 1 0.3/0.4",
        "Step 1/1 : FROM scratch",
    ]


def test_the_environment_sets_the_defaults(engine, tmp_path, monkeypatch):
    (tmp_path / "toys").mkdir()
    (tmp_path / "toys" / "a file").touch()
    settings = {"PRESET": "reference", "DATA_DIR": "toys", "RESULTS_DIR": "out"}
    for name, value in (settings | {"NUM_GPUS": "0", "RESUME": "1"}).items():
        monkeypatch.setenv(name, value)
    assert docker.main(["toy"]) == 0
    (created,) = map(json.loads, engine.bodies("create"))
    assert created["Env"] == ["PRESET=reference", "NUM_GPUS=0", "RESUME=1"]
    assert created["HostConfig"]["Binds"] == [f"{tmp_path}/toys:/data", f"{tmp_path}/out:/results"]


@pytest.mark.usefixtures("engine")
def test_made_up_data_needs_no_download(clone):
    assert docker.main(["toy", "--preset", "tiny"]) == 0
    assert (clone / "data/toy/tiny").is_dir()


def test_only_build_needs_no_data_and_only_run_builds_nothing(engine, capfd):
    assert docker.main(["toy", "--only", "build"]) == 0
    assert engine.names() == ["build"]
    assert "docker run" not in capfd.readouterr().err
    engine.calls.clear()
    assert train("--only", "run") == 0
    assert engine.names() == ["create", "start", "stop", "remove"]
    assert "docker build" not in capfd.readouterr().err


# --- output and status ---------------------------------------------------------------------------


def test_output_comes_through_byte_for_byte(engine, capfdbinary):
    engine.frames = [
        (OUT, b":::MLLOG {}\nRES"),
        (ERR, b"50%\r\xff"),
        (OUT, RESULT[3:]),
        (OUT, b"\xfe no line end"),
    ]
    assert train() == 0
    out, err = capfdbinary.readouterr()
    assert out == b":::MLLOG {}\n" + RESULT + b"\xfe no line end"
    assert err.endswith(b"50%\r\xff")


@pytest.mark.parametrize("status", [0, 1, 2, 137])
def test_the_status_is_the_containers(engine, status):
    engine.status = status
    assert train() == status
    assert engine.names()[-1] == "remove"


def test_a_build_that_fails_names_its_step(engine, capfd):
    engine.build = [
        {"status": "Pulling from library/python", "id": "3.11"},
        {"status": "Downloading", "progressDetail": {"current": 1}, "id": "a1"},
        {"stream": "Step 1/2 : FROM scratch\n"},
        {"stream": "Step 2/2 : RUN pip install\n"},
        {"stream": "no space left\n"},
        {"error": "The command returned a non-zero code: 1"},
    ]
    assert train() == 1
    out, err = capfd.readouterr()
    assert "Pulling from library/python\n" in err
    assert "Downloading" not in err
    assert "no space left\n" in err
    assert err.splitlines()[-1] == (
        "error: toy/Dockerfile failed at Step 2/2 : RUN pip install: "
        "The command returned a non-zero code: 1; see the output above"
    )
    assert engine.names() == ["build"]
    assert out == ""


def test_hours_of_silence_are_no_error(engine, monkeypatch, capfdbinary):
    monkeypatch.setattr(docker, "ENGINE_TIMEOUT_S", 0.3)
    engine.silent_s = 0.8
    assert train() == 0
    assert capfdbinary.readouterr().out == RESULT


@pytest.mark.parametrize("goes_away", ["build", "wait stop remove"])
def test_an_engine_that_goes_away_is_one_line(engine, capfd, goes_away):
    engine.frames = []
    engine.goes_away = goes_away.split()
    assert train() == 1
    assert "error: the Docker engine: " in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("answer", "status"), [(404, 0), (500, 1)])
def test_a_container_that_stays_is_said_and_one_that_is_gone_is_well(engine, capfd, answer, status):
    engine.remove_status = answer
    assert train() == status
    assert ("it is busy" in capfd.readouterr().err) == (status == 1)


def test_a_reader_that_has_seen_enough_ends_the_container(engine, monkeypatch):
    engine.runs_on = True
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(BrokenPipeError):
            train()
        with pytest.raises(BrokenPipeError):
            stdout.close()
    assert engine.names()[-2:] == ["stop", "remove"]


# --- signals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_goes_to_the_container_and_its_end_is_awaited(engine, number):
    engine.runs_on = True
    engine.on_start = lambda: os.kill(os.getpid(), number)
    before = signal.getsignal(number)
    assert train() == 128 + number
    assert [query for _, what, query, _ in engine.calls if what == "kill"] == [
        {"signal": str(int(number))}
    ]
    assert engine.names()[-1] == "remove"
    assert signal.getsignal(number) == before


def test_an_interrupted_build_runs_nothing(engine, capfd):
    engine.on_build = lambda: os.kill(os.getpid(), signal.SIGINT)
    engine.silent_s = 0.2
    assert train() == 130
    assert engine.names() == ["build"]
    assert capfd.readouterr().err.splitlines()[-1] == "interrupted"


def test_a_container_that_ignores_the_signal_is_killed_after_the_grace(engine, monkeypatch):
    monkeypatch.setattr(container, "STOP_GRACE_S", 0.3)
    engine.runs_on = True
    engine.obeys = {"9"}
    engine.on_start = lambda: os.kill(os.getpid(), signal.SIGTERM)
    assert train() == 137
    signals = [query["signal"] for _, what, query, _ in engine.calls if what == "kill"]
    assert signals == ["15", "9"]


# --- GPUs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [((), ["PRESET=mini"]), (("--num-gpus", "2"), ["PRESET=mini", "NUM_GPUS=2"])],
)
def test_gpus_are_handed_in_where_there_are_some(
    engine, monkeypatch, capfd, arguments, environment
):
    monkeypatch.setattr(system, "gpus", lambda: [GPU, GPU])
    engine.info = NVIDIA
    assert train(*arguments) == 0
    (created,) = map(json.loads, engine.bodies("create"))
    (request,) = created["HostConfig"]["DeviceRequests"]
    assert (request["Count"], request["Capabilities"]) == (-1, [["gpu"]])
    assert created["Env"] == environment
    assert "docker run --rm --init --gpus all " in capfd.readouterr().err


def test_zero_gpus_is_the_cpu(engine, monkeypatch, capfd):
    monkeypatch.setattr(system, "gpus", lambda: [GPU])
    assert train("--num-gpus", "0") == 0
    (created,) = map(json.loads, engine.bodies("create"))
    assert not created["HostConfig"].get("DeviceRequests")
    assert "--gpus" not in capfd.readouterr().err


def test_a_gpu_that_containers_cannot_have_is_an_error_before_the_build(engine, monkeypatch, capfd):
    monkeypatch.setattr(system, "gpus", lambda: [GPU])
    assert train() == 2
    assert "install_cuda_docker.sh" in only_error(capfd)
    assert engine.names() == []


@pytest.mark.parametrize(
    "info", [NVIDIA, {"Runtimes": {}, "DiscoveredDevices": [{"ID": "nvidia.com/gpu=all"}]}]
)
def test_a_start_that_fails_for_its_gpu_is_one_line(engine, monkeypatch, capfd, info):
    monkeypatch.setattr(system, "gpus", lambda: [GPU])
    engine.info = info
    engine.start_error = (500, NO_DRIVER)
    assert train() == 2
    assert "install_cuda_docker.sh" in only_error(capfd)
    assert engine.names()[-1] == "remove"


@pytest.mark.usefixtures("engine")
def test_more_gpus_than_there_are(capfd):
    assert train("--num-gpus", "2") == 2
    assert "nvidia-smi lists 0" in only_error(capfd)


@pytest.mark.parametrize(
    ("capabilities", "lock"),
    [
        (["6.0"], "requirements.txt"),
        (["9.0"], "requirements.txt"),
        (["9.0", "10.0"], "requirements-newest.txt"),
        (["12.0"], "requirements-newest.txt"),
        (["[N/A]"], "requirements.txt"),
        ([], "requirements.txt"),
    ],
)
@pytest.mark.usefixtures("clone")
def test_the_lock_is_the_one_for_the_gpus(capabilities, lock):
    gpus = [GPU | {"compute_cap": capability} for capability in capabilities]
    assert docker.default_requirements("toy", gpus) == lock


def test_a_benchmark_without_another_lock_keeps_its_own(clone):
    (clone / "toy/requirements-newest.txt").unlink()
    assert docker.default_requirements("toy", [GPU | {"compute_cap": "12.0"}]) == "requirements.txt"


# --- wrong usage ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["toys"], ["'toys'", "choose from toy (or all)"]),
        (["toy", "--preset", "nano"], ["'nano'", "choose from reference, mini, tiny\n"]),
        (["toy"], ["data/toy/reference is missing", "toy/download_dataset.sh reference"]),
        (["toy", "--data-dir", "no ne"], ["missing", "DATA_DIR='/", "no ne' toy/download_dataset"]),
        (["toy", "--preset", "mini", "--requirements", "r.txt"], ["r.txt", "requirements-newest"]),
        (["toy", "--preset", "mini", "--results-dir", "a:b"], ["a:b", "rename"]),
        (["toy", "--only", "train"], ["only", "--help"]),
        (["all", "--data-dir", "/d"], ["--data-dir"]),
        (["all", "--target", "1"], ["--target"]),
        ([], ["--help"]),
    ],
)
def test_wrong_usage_is_one_line_before_anything_is_built(engine, capfd, arguments, parts):
    assert docker.main(arguments) == 2
    line = only_error(capfd) + "\n"
    for part in parts:
        assert part in line
    assert engine.names() == []


@pytest.mark.usefixtures("engine")
def test_an_empty_data_folder_is_as_good_as_none(clone, capfd):
    (clone / "data/toy/mini/toys.csv").unlink()
    assert train() == 2
    assert "missing or empty; run toy/download_dataset.sh mini" in only_error(capfd)


@pytest.mark.usefixtures("engine")
def test_num_gpus_of_the_environment_must_be_a_number(capfd, monkeypatch):
    monkeypatch.setenv("NUM_GPUS", "two")
    assert train() == 2
    assert "NUM_GPUS='two'" in only_error(capfd)


def test_only_run_without_an_image(engine, capfd):
    engine.create_error = (404, "No such image: mlperf/toy:latest")
    assert train("--only", "run") == 2
    assert "no image mlperf/toy" in only_error(capfd)


def test_no_engine(clone, capfd, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{clone}/none.sock")
    assert train() == 2
    assert "no Docker engine answers; start it" in only_error(capfd)


@pytest.mark.usefixtures("clone")
def test_an_engine_that_lets_nobody_in(monkeypatch):
    def refuse(**_):
        raise sdk.errors.DockerException("PermissionError(13, 'Permission denied')")

    monkeypatch.setattr(sdk, "from_env", refuse)
    with pytest.raises(UsageError, match="join the group docker"):
        docker.connect()


# --- all -----------------------------------------------------------------------------------------


def test_all_goes_on_after_a_failure_and_returns_the_worst(engine, clone, capfd):
    add_benchmark(clone, "another")
    shutil.rmtree(clone / "data/another")
    add_benchmark(clone, "zoo")
    engine.frames = [(OUT, b"no line\nRES"), (OUT, RESULT[3:-5]), (OUT, RESULT[-5:])]
    assert docker.main(["all", "--preset", "mini"]) == 2
    assert engine.names().count("build") == 2
    header, another, toy, zoo = capfd.readouterr().err.splitlines()[-4:]
    assert header.split() == ["benchmark", "status", "seconds", "end"]
    assert re.match(r"another +2 +\d+  error: .* is missing or empty; run another/down", another)
    assert re.match(rf"toy +0 +\d+  {RESULT.decode().strip()}", toy)
    assert re.match(r"zoo +0 +\d+  RESULT,", zoo)


@pytest.mark.usefixtures("engine")
def test_all_of_one_has_its_summary_and_one_by_name_has_none(capfd):
    assert docker.main(["all", "--preset", "mini"]) == train() == 0
    assert capfd.readouterr().err.count("benchmark  status  seconds  end") == 1


def test_an_interrupted_all_trains_none_of_the_others(engine, clone, capfd):
    """Even where the signal came too late for the one that ran."""
    add_benchmark(clone, "zoo")
    engine.runs_on = True
    engine.signalled_status = 0
    engine.on_start = lambda: os.kill(os.getpid(), signal.SIGINT)
    assert docker.main(["all", "--preset", "mini"]) == 130
    assert engine.names().count("build") == 1
    assert re.match(r"toy +0 .*RESULT", capfd.readouterr().err.splitlines()[-1])


# --- a real engine -------------------------------------------------------------------------------

TOY_DOCKERFILE = f"""FROM {BASE_IMAGE}
ARG REQUIREMENTS=requirements.txt
COPY harness /mlperf/harness
COPY toy-PID /mlperf/toy
ARG GIT_COMMIT=unknown
ENV GIT_COMMIT=${{GIT_COMMIT}}
USER 1000:1000
ENTRYPOINT ["/mlperf/toy/run_and_time.sh"]
"""
TOY_RUN = r"""#!/bin/bash
echo "arguments $*, preset $PRESET, commit $GIT_COMMIT, user $(id -u), resume $RESUME"
ls /mlperf/toy /data
touch /data/prepared "/results/log of $1" || exit 3
printf '50%%\r\377' >&2
[[ $1 == 1 ]] || { trap 'echo closed; exit 143' TERM; echo ready; sleep 60 & wait; }
printf '%s' "RESULT,toy,$1"
exit 1
"""


@pytest.fixture
def real_clone(tmp_path):
    """A copy of the harness with a toy benchmark, whose image is removed at the end."""
    try:
        client = sdk.from_env()
        client.images.get(BASE_IMAGE)
    except sdk.errors.ImageNotFound:
        pytest.skip(f"the Docker engine has no {BASE_IMAGE}")
    except sdk.errors.DockerException as error:
        pytest.skip(f"no Docker engine answers: {error}")
    root, name = tmp_path / "a clone", f"toy-{os.getpid()}"
    shutil.copytree(ROOT / "harness", root / "harness")
    shutil.copy(ROOT / ".dockerignore", root)
    add_benchmark(root, name)
    (root / name / "Dockerfile").write_text(TOY_DOCKERFILE.replace("toy-PID", name))
    (root / name / "run_and_time.sh").write_text(TOY_RUN)
    (root / name / "run_and_time.sh").chmod(0o755)
    (root / name / "tests").mkdir()
    yield root, name, client
    with_image = {"ancestor": f"mlperf/{name}"}
    assert client.containers.list(all=True, filters=with_image) == []
    client.images.remove(f"mlperf/{name}", force=True)


def command(root, name, *arguments):
    environment = os.environ | {"GIT_COMMIT": "abc1234", "PYTHONPATH": str(root)}
    for variable in ("PRESET", "DATA_DIR", "RESULTS_DIR", "NUM_GPUS", "RESUME"):
        environment.pop(variable, None)
    line = [sys.executable, "-m", "harness", "docker", name, "--preset", "mini", "--num-gpus", "0"]
    return {"args": [*line, *arguments], "cwd": root, "env": environment}


@pytest.mark.slow
def test_real_run_equals_the_printed_commands(real_clone):
    root, name, _ = real_clone
    ours = subprocess.run(**command(root, name), capture_output=True, timeout=300)
    assert ours.returncode == 1, ours.stderr
    assert ours.stdout.decode().splitlines() == [
        f"arguments 1, preset mini, commit abc1234, user {os.getuid()}, resume ",
        "/data:",
        "toys.csv",
        "",
        "/mlperf/toy:",
        *("Dockerfile", "download_dataset.sh", "requirements-newest.txt", "requirements.txt"),
        "run_and_time.sh",
        "RESULT,toy,1",
    ]
    assert ours.stderr.endswith(b"50%\r\xff")
    for made in (root / "data" / name / "mini/prepared", root / "results/log of 1"):
        assert made.stat().st_uid == os.getuid()
        made.unlink()
    if not shutil.which("docker"):
        pytest.skip("there is no docker command line to compare with")
    _, *lines = ours.stderr.decode(errors="replace").splitlines()[:4]
    for line in lines:
        theirs = subprocess.run(shlex.split(line), cwd=root, capture_output=True, timeout=300)
    assert (theirs.returncode, theirs.stdout) == (ours.returncode, ours.stdout)
    assert theirs.stderr == b"50%\r\xff"


def without_empty(value):
    """Without what stands for nothing: the SDK leaves out what the command line sends empty.

    In one order: the command line sends the folders in any.
    """
    if isinstance(value, list):
        return sorted((without_empty(item) for item in value), key=repr) or None
    if isinstance(value, dict):
        return {name: kept for name, item in value.items() if (kept := without_empty(item))} or None
    return value


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("docker"), reason="there is no docker command line")
def test_real_container_equals_that_of_the_printed_command(real_clone):
    root, name, client = real_clone
    plan = container.ContainerPlan(
        benchmark=name,
        build_arguments={},
        environment={"PRESET": "mini", "NUM_GPUS": "2"},
        data_dir=root / "data",
        results_dir=root / "results",
        user="1:2",
        has_gpus=True,
        arguments=("1", "0.2"),
    )
    container.build(client, plan, root)
    ours = client.containers.create(**plan.run_options())
    create = ["docker", "create", *plan.run_command()[2:]]
    done = subprocess.run(create, capture_output=True, text=True, check=True)
    theirs = client.containers.get(done.stdout.strip())
    differences = {
        name
        for part in ("Config", "HostConfig")
        for name in ours.attrs[part].keys() | theirs.attrs[part].keys()
        if without_empty(ours.attrs[part].get(name)) != without_empty(theirs.attrs[part].get(name))
    }
    for made in (ours, theirs):
        made.remove()
    # An empty restart policy is "no", and the SDK's caller removes the container.
    assert differences == {"AutoRemove", "Hostname", "RestartPolicy"}


@pytest.mark.slow
def test_real_signal_lets_the_container_close_its_log(real_clone):
    root, name, _ = real_clone
    with subprocess.Popen(
        **command(root, name, "--seed", "2"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        for line in process.stdout:
            if line == b"ready\n":
                break
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (143, b"closed\n"), err
    assert b"SIGTERM goes to the container" in err
