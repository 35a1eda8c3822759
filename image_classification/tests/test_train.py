"""The real entry points in subprocesses, on the tiny preset: contract, kill and resume, faults.

TensorFlow's import takes seconds, so one run serves several tests where it can, and runs that do
not need each other go at once.
"""

import contextlib
import dataclasses
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy
import pytest
from mlperf_logging.compliance_checker import mlp_parser

from harness.options import RunOptions
from harness.seeds import derive_seed
from image_classification import data, train
from image_classification.config import TINY
from image_classification.tests import checks, training

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "image_classification" / "run_and_time.sh"
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [AP]M"
KILL_AT = """
import os, signal, sys, time
from harness.run import Run
original = Run.record_losses
def record_losses(self, *arguments):
    original(self, *arguments)
    if self.step == {step}:
        print("signalled at", time.monotonic(), file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.{name})
Run.record_losses = record_losses
"""
"""Makes a training get a signal right after a step."""
MAIN = """
import sys
from image_classification.train import main
sys.exit(main(sys.argv[1:]))
"""


def environment(**variables):
    """The environment without the variables of the contract, plus these."""
    contract = ("DATA_DIR", "RESULTS_DIR", "PRESET", "RESUME", "NUM_GPUS", "TF_CONFIG")
    clean = {name: value for name, value in os.environ.items() if name not in contract}
    paths = {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable}
    return {**clean, **paths, **{name: str(value) for name, value in variables.items()}}


def start(*command, cwd=ROOT, **variables):
    """Start a command whose output is captured."""
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=cwd,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """Wait for a command, and return what became of it."""
    output, errors = process.communicate(timeout=180)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def run(*command, **options):
    """Run a command to its end."""
    return finish(start(*command, **options))


def start_training(results, *arguments, preset="tiny"):
    """Start `python -m image_classification.train`."""
    module = ("-m", "image_classification.train", preset)
    return start(sys.executable, *module, "--device", "cpu", "--results-dir", results, *arguments)


def train_tiny(results, *arguments):
    """Run it to its end."""
    return finish(start_training(results, *arguments))


def start_killed(step, name, results, *arguments):
    """Start a training that gets a signal after `step`."""
    options = ("tiny", "--device", "cpu", "--results-dir", results, *arguments)
    return start(sys.executable, "-c", KILL_AT.format(step=step, name=name) + MAIN, *options)


def only_run(results):
    """The folder of the only run below `results`."""
    (record,) = Path(results).glob("**/run.json")
    return record.parent


def last_run(results):
    """The folder of the run started last: a kill before the first checkpoint leaves another."""
    return max(Path(results).glob("**/run.json")).parent


def record_of(results):
    return json.loads((only_run(results) / "run.json").read_text())


def state(folder):
    """Variables of a run's last checkpoint: the network's, then the optimiser's."""
    with numpy.load(max(folder.glob("checkpoints/*.npz"))) as arrays:
        return [arrays[name] for name in sorted(arrays.files)]


def losses(folder):
    """The file of per-step losses: equal bytes are equal floats."""
    return (folder / "losses.csv").read_bytes()


def loss_values(folder):
    return [float(line.split(",")[1]) for line in losses(folder).decode().split()]


def assert_same_training(folder, expected):
    """Losses and last state, bit for bit."""
    assert losses(folder) == losses(expected)
    ours, others = state(folder), state(expected)
    assert len(ours) == len(others) > 20
    assert all(numpy.array_equal(one, other) for one, other in zip(ours, others, strict=True))


def assert_usage_error(done, *words):
    """Status 2, one line on stderr that names the cause, nothing on stdout."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


def assert_right_log(folder, stdout, tmp_path):
    """The harness's check and the official parser take the log and the captured stdout."""
    captured = tmp_path / "stdout.txt"
    captured.write_text(stdout)
    done = run(sys.executable, "-m", "harness", "check", folder / "log.txt", captured)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("OK: ") == 2
    for path in (folder / "log.txt", captured):
        parsed, failed = mlp_parser.parse_file(str(path), ruleset="5.1.0")
        assert failed == []
        assert len(parsed) == len((folder / "log.txt").read_text().splitlines())


NEVER_REACHED = ("--target", "2", "--max-epochs", "4", "--checkpoint-interval-s", "0.02")


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """Two whole runs of four epochs that never reach their target, with many checkpoints."""
    folders = [tmp_path_factory.mktemp("unbroken") for _ in range(2)]
    for process in [start_training(folder, *NEVER_REACHED) for folder in folders]:
        done = finish(process)
        assert done.returncode == 1, done.stderr
    return [only_run(folder) for folder in folders]


@pytest.fixture(scope="module")
def unbroken(twice):
    return twice[0]


# --- contract ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """run_and_time.sh, called from another folder, with spaces in every path."""
    folder = tmp_path_factory.mktemp("some where")
    done = run(SCRIPT, 3, cwd=folder, PRESET="tiny", RESULTS_DIR="my results", USER="ada")
    assert done.returncode == 0, done.stderr
    return folder, done


def test_run_and_time_prints_the_contract(elsewhere, tmp_path):
    folder, done = elsewhere
    first, *records, last, result = done.stdout.splitlines()
    assert re.fullmatch(f"STARTING TIMING RUN AT {TIME}", first)
    assert all(record.startswith(":::MLLOG {") for record in records)
    assert re.fullmatch(f"ENDING TIMING RUN AT {TIME}", last)
    begin = first.removeprefix("STARTING TIMING RUN AT ")
    results = only_run(folder / "my results")
    seconds = json.loads((results / "run.json").read_text())["run_seconds"]
    assert result == f"RESULT,image_classification,3,{int(seconds)},ada,{begin}"
    assert results.parent == folder / "my results" / "image_classification" / "tiny" / "seed-3"
    stored = {path.name for path in results.iterdir()}
    assert {"log.txt", "losses.csv", "config.json", "system.json", "run.json"} <= stored
    assert_right_log(results, done.stdout, tmp_path)


def test_stderr_is_the_runs_own(elsewhere):
    """TensorFlow's start-up notes would hide what a person looks for."""
    lines = elsewhere[1].stderr.splitlines()
    assert lines[0] == "image_classification: preset tiny"
    described = [line for line in lines[1:] if line.startswith("  ")]
    assert any(line.split() == ["device", "cpu"] for line in described)
    *rest, last = lines[1 + len(described) :]
    assert rest == []
    assert re.fullmatch(r"epoch 4: loss [\d.]+, top_1 [\d.]+ \(target 0.9\), [\d.]+ s", last)


def test_another_seed_is_another_run(elsewhere, unbroken):
    others = losses(only_run(elsewhere[0] / "my results")).splitlines()
    assert not set(others) & set(losses(unbroken).splitlines())


def test_a_missed_target_is_aborted(tmp_path):
    done = run(SCRIPT, 1, 2, PRESET="tiny", RESULTS_DIR=tmp_path)
    assert done.returncode == 1
    pattern = r"ABORTED,image_classification,1,\d+,[01]\.\d+,2\.0"
    assert re.fullmatch(pattern, done.stdout.splitlines()[-1])
    assert record_of(tmp_path)["modified"] == ["quality_targets"]
    assert record_of(tmp_path)["num_steps"] == 8 * 13
    assert_right_log(only_run(tmp_path), done.stdout, tmp_path)


def assert_speed(done):
    """Pace of the steps and of the input pipeline, and an estimate that follows from them."""
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("ENDING")
    pace, epoch, estimate = done.stderr.splitlines()[-3:]
    number = r"([\d,.]+)"
    found = re.fullmatch(
        f"{number} examples/s, {number} ms a step; the input pipeline alone {number} examples/s",
        pace,
    )
    assert found
    examples_per_s, step_ms, input_per_s = (float(x.replace(",", "")) for x in found.groups())
    assert input_per_s > examples_per_s > 0
    found = re.fullmatch(
        f"an epoch: {number} steps and an evaluation of {number} s, together {number} s", epoch
    )
    assert found
    num_steps, evaluation_s, epoch_s = (float(x.replace(",", "")) for x in found.groups())
    assert epoch_s == pytest.approx(num_steps * step_ms / 1000 + evaluation_s, abs=0.2)
    assert re.fullmatch(rf"estimated time to the target: {number} s \(\d+ epochs\)", estimate)
    return num_steps


def test_num_steps_prints_throughput_and_an_estimate(tmp_path):
    """On the data set, and on made-up data where there is none."""
    own, synthetic = tmp_path / "own", tmp_path / "synthetic"
    options = ("--synthetic-data", "--num-steps", "6", "--data-dir", tmp_path / "none")
    processes = [
        start_training(own, "--num-steps", "30"),
        start_training(synthetic, *options, preset="mini"),
    ]
    done, done_synthetic = map(finish, processes)
    assert assert_speed(done) == 13
    assert record_of(own)["num_examples"] == 200 + 200 + 4 * 16
    record = record_of(own)
    # The measurements at the end are no part of the pace of training.
    assert record["train_examples_per_s"] > 0.2 * record["speed"]["examples_per_s"]
    assert record["phase_seconds"]["evaluation"] > 3
    assert_right_log(only_run(own), done.stdout, tmp_path)
    derived = json.loads((only_run(own) / "config.json").read_text())["derived"]
    assert derived["steps_per_epoch"] == 13
    assert derived["num_parameters"] == 2_281
    # Weights, gradients and accumulators, and at least the stem's output of every image.
    assert derived["memory_estimate_bytes"] > 12 * 2_281 + 16 * 16 * 16 * 4 * 4
    assert assert_speed(done_synthetic) == 63
    record = record_of(synthetic)
    assert (record["status"], record["modified"]) == ("num_steps", ["synthetic_data", "num_steps"])


def test_other_arithmetic_reaches_the_target_too(tmp_path, unbroken):
    processes = {
        "compile": start_training(tmp_path / "compile", "--compile"),
        "bf16": start_training(tmp_path / "bf16", "--precision", "bf16"),
    }
    exact = loss_values(unbroken)[0]
    for name, process in processes.items():
        done = finish(process)
        assert done.returncode == 0, done.stderr
        (first, *_), folder = loss_values(only_run(tmp_path / name)), only_run(tmp_path / name)
        if name == "compile":
            assert first == pytest.approx(exact, rel=1e-5)
        else:  # 8 bits: as near as they can be, and not float32 after all
            assert first == pytest.approx(exact, rel=0.05)
            assert abs(first - exact) > 1e-5
        assert {array.dtype.name for array in state(folder)} == {"float32", "int64"}


def test_help_needs_no_data():
    done = run(sys.executable, "-m", "image_classification.train", "mini", "--help")
    assert done.returncode == 0
    for option in ("--seed", "--base-learning-rate", "--num-steps", "--synthetic-data", "--resume"):
        assert option in done.stdout
    assert done.stderr == ""


# --- wrong use ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tiny", "--learning-rat", "1"], ["--learning-rat"]),
        (["tiny", "--seed", "one"], ["--seed", "one"]),
        (["teeny"], ["teeny", "tiny"]),
        ([], ["preset is missing"]),
        (["tiny", "--target", "high"], ["target 'high'", "top_1"]),
        (["tiny", "--target", "0.1/0.2"], ["2 values"]),
        (["tiny", "--num-steps", "0"], ["--num-steps"]),
        (["tiny", "--batch-size", "0"], ["batch_size is 0", "--batch-size"]),
        (["tiny", "--num-filters", "0"], ["num_filters is 0"]),
        (["tiny", "--num-blocks", "1", "0"], ["num_blocks", "each stage"]),
        (["tiny", "--eval-resize", "8"], ["eval_resize", "8 and 16"]),
        (["tiny", "--min-crop-area", "0"], ["a crop needs"]),
        (["tiny", "--base-learning-rate", "0"], ["base_learning_rate"]),
        (["tiny", "--momentum", "1"], ["momentum"]),
        (["tiny", "--max-epochs", "6"], ["max_epochs is 6", "multiple of 4"]),
        (["tiny", "--device", "cuda"], ["0 GPUs", "--device cpu"]),
        (["tiny", "--device", "cpu", "--precision", "fp16"], ["fp16", "bf16"]),
    ],
)
def test_wrong_options_are_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    status = train.main(arguments)
    output = capsys.readouterr()
    done = subprocess.CompletedProcess(arguments, status, output.out, output.err)
    assert_usage_error(done, *words)
    assert list(tmp_path.iterdir()) == []


CHIEF = (
    '{"cluster": {"chief": ["localhost:1"], "worker": ["localhost:2"]}, '
    '"task": {"type": "worker", "index": 1}}'
)
"""TensorFlow allows a chief beside the workers; as a worker of one, there is no second."""


def test_wrong_use_of_run_and_time(tmp_path):
    """In one of the cases nvidia-smi lists a GPU that TensorFlow cannot use.

    In another the interpreter has what the harness needs, and not TensorFlow.
    """
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "tyro.py").touch()
    (tmp_path / "python").write_text(
        f'#!/bin/sh\nPYTHONPATH="{tmp_path}/packages" exec {sys.executable} -S "$@"\n'
    )
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: Tesla K80'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    unusable = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": ""}
    cases = [
        (["one"], {}, ["seed 'one'"]),
        (["1", "0.2", "3"], {}, ["too many"]),
        (["1", "high"], {}, ["target 'high'"]),
        ([], {"PRESET": "teeny"}, ["teeny"]),
        ([], {"NUM_GPUS": "99"}, ["NUM_GPUS=99"]),
        ([], unusable, ["can use 0 GPUs", "NUM_GPUS=0"]),
        ([], {"TF_CONFIG": "{}"}, ["TF_CONFIG names no cluster"]),
        ([], {"TF_CONFIG": CHIEF}, ["TF_CONFIG names no cluster of workers alone"]),
        ([], {"TF_CONFIG": CHIEF.replace("chief", "worker")}, ["TF_CONFIG names no cluster"]),
        ([], {"PYTHON": tmp_path / "python"}, ["lacks what image_classification needs"]),
    ]
    usual = {"PRESET": "tiny", "RESULTS_DIR": tmp_path / "results"}
    processes = [start(SCRIPT, *arguments, **usual | own) for arguments, own, _ in cases]
    for process, (_, _, words) in zip(processes, cases, strict=True):
        assert_usage_error(finish(process), *words)
    assert not (tmp_path / "results").exists()


def test_missing_data(tmp_path, capsys):
    folder, results = tmp_path / "data", tmp_path / "results"
    done = run(SCRIPT, PRESET="mini", DATA_DIR=folder, RESULTS_DIR=results)
    assert_usage_error(done, "mnist_5k.csv.gz", "download_dataset.sh mini")
    status = train.main(["mini", "--data-dir", str(folder), "--results-dir", str(results)])
    output = capsys.readouterr()
    done = subprocess.CompletedProcess([], status, output.out, output.err)
    assert_usage_error(done, "mnist_5k.csv.gz", "download_dataset.sh mini")
    assert list(tmp_path.iterdir()) == []


# --- reproducibility ----------------------------------------------------------------------------


def test_the_same_seed_twice_is_bitwise_the_same(twice):
    assert_same_training(*twice)


def test_killed_three_times_and_resumed_is_bitwise_the_same(tmp_path, unbroken):
    steps = sorted(random.Random().sample(range(2, 4 * 13), 3))
    print("killed after steps", steps)
    for step in steps:
        done = finish(start_killed(step, "SIGKILL", tmp_path, *NEVER_REACHED, "--resume"))
        assert done.returncode == -signal.SIGKILL, done.stderr
    done = train_tiny(tmp_path, *NEVER_REACHED, "--resume")
    assert done.returncode == 1, done.stderr
    assert "going on with" in done.stderr
    assert_same_training(last_run(tmp_path), unbroken)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Runs that get SIGTERM after step 30 and SIGINT after step 1: folders, and how it went."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("SIGTERM", "SIGINT")}
    steps = {"SIGTERM": 30, "SIGINT": 1}
    processes = {
        name: start_killed(steps[name], name, folder, *NEVER_REACHED)
        for name, folder in folders.items()
    }
    for name, process in processes.items():
        process.wait(timeout=180)
        ended_s = time.monotonic()
        done = finish(process)
        signalled_s = float(re.findall(r"signalled at ([\d.]+)", done.stderr)[0])
        processes[name] = folders[name], steps[name], done, ended_s - signalled_s
    return processes


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_leaves_a_checkpoint_and_a_closed_log(stopped, tmp_path, name):
    results, step, done, waited_s = stopped[name]
    number = getattr(signal, name)
    assert done.returncode == 128 + number
    assert waited_s < 10
    assert f"interrupted by signal {number:d} after step" in done.stderr
    folder = only_run(results)
    log = (folder / "log.txt").read_text().splitlines()
    assert '"interrupted"' in log[-2]
    assert '"log_sha256"' in log[-1]
    assert_right_log(folder, done.stdout, tmp_path)
    position = json.loads(max(folder.glob("checkpoints/*.json")).read_text())["position"]
    assert step <= position["step"] <= step + 2


def test_a_damaged_checkpoint_is_refused_and_the_previous_used(stopped, tmp_path, unbroken):
    results = tmp_path / "results"
    shutil.copytree(stopped["SIGTERM"][0], results)
    newest = max(only_run(results).glob("checkpoints/*.npz"))
    newest.write_bytes(newest.read_bytes()[:1000])
    done = train_tiny(results, *NEVER_REACHED, "--resume")
    assert done.returncode == 1
    assert f"checkpoint {newest.stem} is damaged" in done.stderr
    assert "going on with" in done.stderr
    assert_same_training(only_run(results), unbroken)
    assert_right_log(only_run(results), done.stdout, tmp_path)


def test_run_and_time_forwards_signals(tmp_path):
    process = start(SCRIPT, "1", "2", PRESET="tiny", RESULTS_DIR=tmp_path)
    for line in process.stdout:
        if '"epoch_start"' in line:
            break
    process.terminate()
    assert finish(process).returncode == 128 + signal.SIGTERM


# --- several replicas ---------------------------------------------------------------------------

HALVES = {
    "num_train_images": 31,
    "num_eval_images": 200,
    "max_epochs": 4,
    "base_learning_rate": 0.2,
}
"""Two steps an epoch, of 16 and of 15 images: the second replica gets 8 of them, the first 7."""
WITH_HALVES = f"""
import dataclasses
from image_classification import config
config.PRESETS["tiny"] = ("", dataclasses.replace(config.TINY, **{HALVES}))
"""
MIRRORED = """
import tensorflow as tf
from harness import tensorflow_support
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
set_up = tensorflow_support.set_up
def two_replicas(options):
    set_up(options)
    return tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
tensorflow_support.set_up = two_replicas

from image_classification import train
make_eval_step = train.make_eval_step
def make_checked_eval_step(model, strategy):
    eval_step = make_eval_step(model, strategy)
    def checked(*batch):
        for variable in model.non_trainable_variables:
            first, second = (values.numpy() for values in variable.value.values)
            assert (first == second).all(), variable.path
        return eval_step(*batch)
    return checked
train.make_eval_step = make_checked_eval_step
"""
"""Two replicas in one process, as on a machine with two GPUs; both are to be evaluated with the
statistics of the first."""


def on_halves(results, *arguments, before=""):
    """A command that trains with these facts, to a target that is never reached."""
    options = ("tiny", "--device", "cpu", "--target", "2", "--results-dir", results)
    return ("-c", before + WITH_HALVES + MAIN, *options, *arguments)


def start_workers(first, second):
    """Two processes on this machine, which find each other through TF_CONFIG; their commands."""
    with socket.socket() as one, socket.socket() as other:
        for listener in (one, other):
            listener.bind(("127.0.0.1", 0))
        workers = [f"127.0.0.1:{listener.getsockname()[1]}" for listener in (one, other)]
    return [
        start(
            sys.executable,
            *command,
            TF_CONFIG=json.dumps(
                {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
            ),
        )
        for index, command in enumerate((first, second))
    ]


@dataclass
class Expected:
    """What training on halves must come to, by the independent loop."""

    losses: list[float]
    trained: training.Weights
    statistics: training.Weights
    top_1: float


@pytest.fixture(scope="module")
def halves():
    """One process that adds up the gradients of both halves of each batch, in PyTorch.

    Batch normalisation takes each half by itself; its running statistics are the first half's.
    """
    config = dataclasses.replace(TINY, **HALVES)
    network = checks.make_network(config, derive_seed(1, "tensorflow", bits=32))
    trained, statistics = training.ordered(network)
    plain = training.PlainTraining(
        config, [training.as_torch(v) for v in trained], [training.as_torch(v) for v in statistics]
    )
    train_images, eval_images = data.load(config, RunOptions())
    steps = [
        plain.step(batch.numpy(), labels.numpy(), num_parts=2)
        for epoch in range(1, config.max_epochs + 1)
        for batch, labels in data.train_batches(train_images, config, 1, epoch, 0)
    ]
    hits = [
        plain.hits(batch.numpy(), labels.numpy())
        for batch, labels in data.eval_batches(eval_images, config)
    ]
    losses = [step.loss for step in steps]
    return Expected(losses, steps[-1].trained, steps[-1].statistics, sum(hits) / 200)


def assert_equal_halves(folder, halves):
    """Losses, weights, statistics and quality of a run, to 1e-5."""
    config = dataclasses.replace(TINY, **HALVES)
    assert loss_values(folder) == pytest.approx(halves.losses, rel=1e-5)
    network = checks.make_network(config)
    for variable, array in zip(network.variables, state(folder), strict=False):
        variable.assign(array)
    trained, statistics = training.ordered(network)
    expected = [*halves.trained, *halves.statistics]
    for variable, other in zip([*trained, *statistics], expected, strict=True):
        ours = training.as_torch(variable)
        assert abs(ours - other).max() <= 1e-5 * max(1, abs(other).max()), variable.path
    record = json.loads((folder / "run.json").read_text())
    top_1 = record["evaluations"][-1]["quality"]["top_1"]
    assert abs(top_1 - halves.top_1) <= 1 / 200 and 0.7 < halves.top_1 < 0.8
    assert record["num_examples"] == 4 * 31


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    """A whole run of two workers."""
    results = tmp_path_factory.mktemp("two workers")
    first, second = map(finish, start_workers(*[on_halves(results)] * 2))
    assert (first.returncode, second.returncode) == (1, 1), second.stderr
    assert second.stdout == ""  # only the first speaks
    return only_run(results)


def test_two_workers_equal_one_process_that_takes_halves(two_workers, halves):
    assert_equal_halves(two_workers, halves)


def test_two_replicas_of_one_process_equal_it_too(tmp_path, halves):
    done = run(sys.executable, *on_halves(tmp_path, before=MIRRORED))
    assert done.returncode == 1, done.stderr
    derived = json.loads((only_run(tmp_path) / "config.json").read_text())["derived"]
    assert (derived["num_replicas"], derived["num_processes"]) == (2, 1)
    assert_equal_halves(only_run(tmp_path), halves)


def test_two_workers_stop_together_and_go_on(tmp_path, two_workers):
    """A signal to one ends both at one step, and two go on as if nothing had been."""
    killed = on_halves(tmp_path, before=KILL_AT.format(step=3, name="SIGTERM"))
    first, second = map(finish, start_workers(on_halves(tmp_path), killed))
    assert second.returncode == 128 + signal.SIGTERM, second.stderr
    # The first got no signal of its own: it ends as if by the one that a keyboard sends.
    assert first.returncode == 128 + signal.SIGINT, first.stderr
    folder = only_run(tmp_path)
    log = (folder / "log.txt").read_text().splitlines()
    assert '"interrupted"' in log[-2]
    step = json.loads(log[-2].removeprefix(":::MLLOG "))["metadata"]["step_num"]
    assert 3 <= step < 8
    assert len(loss_values(folder)) == step
    again = map(finish, start_workers(*[on_halves(tmp_path, "--resume")] * 2))
    assert [done.returncode for done in again] == [1, 1]
    assert_same_training(folder, two_workers)
    found, expected = (json.loads((f / "run.json").read_text()) for f in (folder, two_workers))
    assert found["evaluations"][-1]["quality"] == expected["evaluations"][-1]["quality"]


# --- faults --------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 600 KiB."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", folder], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(folder, leave_bytes):
    """Leave only so much room."""
    usage = shutil.disk_usage(folder)
    with (folder / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        ballast.write(b"x" * max(0, usage.free - leave_bytes))


def test_a_disk_full_from_the_start(small_disk):
    fill(small_disk, 0)
    words = ("cannot write to", "make room there or set RESULTS_DIR")
    assert_usage_error(train_tiny(small_disk), *words)
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


def test_a_disk_that_fills_up_while_training(small_disk):
    """Half of a network of 40 KB fits, and not its checkpoints."""
    fill(small_disk, 150_000)
    done = train_tiny(small_disk, *NEVER_REACHED, "--num-filters", "8")
    assert done.returncode == 1
    assert "no space left on the disk" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1].startswith("ABORTED,image_classification,1,")
    assert not list(small_disk.glob("**/*.tmp"))
    kept = list(small_disk.glob("**/checkpoints/*.json"))
    assert len(kept) == len(list(small_disk.glob("**/checkpoints/*.npz")))


def test_a_loss_that_is_not_finite_stops_at_its_step(tmp_path):
    done = train_tiny(tmp_path, "--base-learning-rate", "1e30")
    assert done.returncode == 1
    (step,) = re.findall(r"the loss of step (\d+) is (?:nan|inf)", done.stderr)
    assert losses(only_run(tmp_path)).count(b"\n") == int(step) - 1
    assert record_of(tmp_path)["status"] == "non-finite"
