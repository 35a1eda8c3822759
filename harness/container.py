"""A benchmark's image and container: described once, so that command line and SDK do the same.

`ContainerPlan` gives both forms; `build` and `run` hand the SDK's to the Docker engine, stream what
comes back and pass signals on. harness/docker.py decides what is built and run.
"""

from __future__ import annotations

import contextlib
import queue
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import docker
from docker.models.containers import Container
from docker.types import DeviceRequest

from harness.errors import UsageError
from harness.signals import SIGNALS

STOP_GRACE_S = 30
"""From a signal to SIGKILL: a run closes its log within 10 s, torchrun waits for its processes."""

NO_GPU_ACCESS = (
    "the Docker engine cannot hand a GPU to a container; set up the NVIDIA container toolkit with "
    "./install_cuda_docker.sh, or train on the CPU with --num-gpus 0"
)


class BuildError(Exception):
    """A step of a Dockerfile failed: exit status 1."""


@dataclass(frozen=True)
class ContainerPlan:
    """What is built and run for one benchmark: the Docker commands of the command contract."""

    benchmark: str
    build_arguments: Mapping[str, str]
    """Values for the Dockerfile's ARG lines."""
    environment: Mapping[str, str]
    """Set in the container, beside what the image sets."""
    data_dir: Path
    """Folder on the host that becomes /data."""
    results_dir: Path
    """Folder on the host that becomes /results."""
    user: str
    """uid:gid that the container runs as."""
    has_gpus: bool
    """Whether all GPUs of the host are handed in."""
    arguments: tuple[str, ...]
    """[SEED] [TARGET] of run_and_time.sh."""

    @property
    def image(self) -> str:
        """Name of the image."""
        return f"mlperf/{self.benchmark}"

    @property
    def dockerfile(self) -> str:
        """Path from the root of the repository."""
        return f"{self.benchmark}/Dockerfile"

    @property
    def volumes(self) -> list[str]:
        """Folders of the host and their places in the container; both can be written to."""
        return [f"{self.data_dir}:/data", f"{self.results_dir}:/results"]

    def build_command(self) -> list[str]:
        """`docker build`, to be run in the root of the repository."""
        command = ["docker", "build", "-t", self.image]
        for name, value in self.build_arguments.items():
            command += ["--build-arg", f"{name}={value}"]
        return [*command, "-f", self.dockerfile, "."]

    def build_options(self) -> dict[str, Any]:
        """The same for the SDK; containers of failed steps are removed, as BuildKit leaves none."""
        return {
            "tag": self.image,
            "buildargs": dict(self.build_arguments),
            "dockerfile": self.dockerfile,
            "rm": True,
            "forcerm": True,
        }

    def run_command(self) -> list[str]:
        """`docker run`."""
        command = ["docker", "run", "--rm", "--init", *(["--gpus", "all"] if self.has_gpus else [])]
        command += ["--ipc=host", "--user", self.user]
        for name, value in self.environment.items():
            command += ["-e", f"{name}={value}"]
        for volume in self.volumes:
            command += ["-v", volume]
        return [*command, self.image, *self.arguments]

    def run_options(self) -> dict[str, Any]:
        """The same for the SDK, but for --rm: `run` removes the container itself."""
        all_gpus = DeviceRequest(count=-1, capabilities=[["gpu"]])
        return {
            "image": self.image,
            "command": list(self.arguments),
            # As process 1 a training would not see a signal that comes before its handlers are set.
            "init": True,
            "device_requests": [all_gpus] if self.has_gpus else [],
            "ipc_mode": "host",
            "user": self.user,
            "environment": dict(self.environment),
            "volumes": self.volumes,
        }


def build(client: docker.DockerClient, plan: ContainerPlan, root: Path) -> None:
    """Build the image from the repository at `root`; the engine's output goes to stderr.

    Raises BuildError, which names the step that failed. An end of this process ends the build.
    """
    step = "the first step"
    for message in client.api.build(path=str(root), decode=True, **plan.build_options()):
        if "error" in message:
            cause = " ".join(message["error"].split())
            raise BuildError(f"{plan.dockerfile} failed at {step}: {cause}; see the output above")
        text = message.get("stream", "")
        if text.startswith("Step "):
            step = text.strip()
        elif "status" in message and "progressDetail" not in message:  # a base image is fetched
            text = f"{message['status']}\n"
        sys.stderr.write(text)
        sys.stderr.flush()


class SignalRelay:
    """SIGTERM and SIGINT go on to the container; where they do not end it, SIGKILL follows.

    A thread calls the engine: a handler runs in the midst of whatever the main thread does, which
    may be a call of the same client.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        """Number of the first signal, or None."""
        self._numbers: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}

    def start(self, container: Container) -> None:
        """Pass on what has come and what will come."""
        self._thread = threading.Thread(target=self._forward, args=(container,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Signals do again what they did before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._numbers.put(None)
        if self._thread:
            self._thread.join()

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.received = self.received or number
        self._numbers.put(number)

    def _forward(self, container: Container) -> None:
        timeout_s: float | None = None
        while True:
            try:
                number = self._numbers.get(timeout=timeout_s)
                timeout_s = STOP_GRACE_S
            except queue.Empty:
                number, timeout_s = signal.SIGKILL, None
            if number is None:
                return
            print(f"{signal.Signals(number).name} goes to the container", file=sys.stderr)
            with contextlib.suppress(docker.errors.APIError, OSError):  # it, or the engine, is gone
                container.kill(number)


class LastLine:
    """Finds the contract's last line in pieces of stdout."""

    def __init__(self) -> None:
        self.result = ""
        """The RESULT or ABORTED line, once it was there."""
        self._rest = b""

    def read(self, piece: bytes) -> None:
        """Take the next piece, which may begin and end anywhere."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            if line.startswith((b"RESULT,", b"ABORTED,")):
                self.result = line.decode(errors="replace")


@contextlib.contextmanager
def _created(client: docker.DockerClient, plan: ContainerPlan) -> Iterator[Container]:
    """A container that is stopped, if it still runs, and removed at the end in every case."""
    try:
        container = client.containers.create(**plan.run_options())
    except docker.errors.ImageNotFound as error:
        cause = f"there is no image {plan.image}"
        raise UsageError(f"{cause}; build it: leave --only run out") from error
    try:
        yield container
    finally:
        with contextlib.suppress(docker.errors.NotFound):  # somebody else has removed it
            container.stop(timeout=STOP_GRACE_S)
            container.remove(force=True)


def _start(container: Container, plan: ContainerPlan) -> None:
    try:
        container.start()
    except docker.errors.APIError as error:
        if plan.has_gpus and re.search("gpu|nvidia", str(error.explanation), re.IGNORECASE):
            raise UsageError(NO_GPU_ACCESS) from error
        raise


def run(client: docker.DockerClient, plan: ContainerPlan) -> tuple[int, str, int | None]:
    """Run the container to its end; its stdout and stderr become ours, byte for byte.

    Returns its status, its RESULT or ABORTED line (or nothing), and the signal that interrupted it.
    """
    last_line = LastLine()
    relay = SignalRelay()
    try:
        with (
            _created(client, plan) as container,
            # Attached before it starts, so that no byte is missed.
            contextlib.closing(
                container.attach(stream=True, demux=True, stdout=True, stderr=True)
            ) as output,
        ):
            _start(container, plan)
            relay.start(container)
            for out, err in output:
                for stream, piece in ((sys.stdout, out), (sys.stderr, err)):
                    if piece:
                        stream.buffer.write(piece)
                        stream.flush()
                last_line.read(out or b"")
            return container.wait()["StatusCode"], last_line.result, relay.received
    finally:
        relay.close()
