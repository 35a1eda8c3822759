"""SIGTERM and SIGINT: what processes that a run forked have to do with them."""

import os
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = textwrap.dedent(
    """
    import os, signal, sys, time
    from harness.signals import StopSignal
    stop = StopSignal(lambda number: 99)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"x")
        time.sleep(20)
        os._exit(0)
    os.read(reader, 1)
    print(child, flush=True)
    sys.stdin.readline()
    time.sleep(0.5)  # the listening thread needs a moment
    # The child is still there, and has not spoken for this process.
    print(os.waitpid(child, os.WNOHANG)[0], stop.received, flush=True)
    os.kill(child, signal.SIGKILL)
    """
)


@pytest.fixture
def run():
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    yield process
    process.kill()
    process.communicate()


def answer(run):
    run.stdin.write("\n")
    run.stdin.flush()
    assert select.select([run.stdout], [], [], 20)[0]
    return run.stdout.readline().split()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_a_child_is_none_to_the_run(run, number):
    child = int(run.stdout.readline())
    os.kill(child, number)
    assert answer(run) == ["0", "None"]


def test_a_signal_to_the_group_reaches_the_run_once(run):
    """A second one would end it at once, without a checkpoint."""
    run.stdout.readline()
    os.killpg(run.pid, signal.SIGTERM)
    assert answer(run) == ["0", "15"]
    assert run.wait(20) == 0


def test_a_signal_to_a_child_at_its_birth_is_none_to_the_run():
    """It comes into the world with the run's handlers, and in its group."""
    at_birth = "os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("stop = ", f"{at_birth}\nstop = ")],
        cwd=ROOT,
        input="\n",
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1:] == ["0", "None"]
