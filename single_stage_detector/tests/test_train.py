"""The real entry points in subprocesses, on the tiny preset: contract, kill and resume, faults."""

import json
import random
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from single_stage_detector import train
from tests import benchmark_runs
from tests.benchmark_runs import (
    TIME,
    Benchmark,
    assert_right_log,
    assert_same_torch_training,
    assert_speed,
    assert_usage_error,
    disk_of,
    fill,
    finish,
    last_run,
    loss_values,
    losses,
    only_run,
    record_of,
    run,
    start,
    torch_state,
)

DETECTOR = Benchmark("single_stage_detector")
NEVER_REACHED = ("--target", "2", "--max-epochs", "5", "--checkpoint-interval-s", "0.02")
STEPS_PER_EPOCH = 8
"""Of the tiny preset."""
NUM_STEPS = 36
"""Of a run that never reaches its target: it evaluates after steps 12 (within an epoch), 24 (at the
end of one) and 36, and then no more."""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A whole run of five epochs that never reaches its target, with many checkpoints."""
    results = tmp_path_factory.mktemp("unbroken")
    done = DETECTOR.train(results, *NEVER_REACHED)
    assert done.returncode == 1, done.stderr
    assert_right_log(only_run(results), done.stdout, results)
    return only_run(results)


# --- contract ---------------------------------------------------------------------------------


def test_run_and_time_prints_the_contract(tmp_path):
    """From another folder, with spaces in every path."""
    elsewhere = tmp_path / "some where"
    elsewhere.mkdir()
    variables = {"PRESET": "tiny", "RESULTS_DIR": "my results", "USER": "ada"}
    done = run(DETECTOR.script, 3, cwd=elsewhere, **variables)
    assert done.returncode == 0, done.stderr
    first, *records, last, result = done.stdout.splitlines()
    assert re.fullmatch(f"STARTING TIMING RUN AT {TIME}", first)
    assert all(record.startswith(":::MLLOG {") for record in records)
    assert re.fullmatch(f"ENDING TIMING RUN AT {TIME}", last)
    begin = first.removeprefix("STARTING TIMING RUN AT ")
    folder = only_run(elsewhere / "my results")
    seconds = json.loads((folder / "run.json").read_text())["run_seconds"]
    assert result == f"RESULT,single_stage_detector,3,{int(seconds)},ada,{begin}"
    assert folder.parent == elsewhere / "my results/single_stage_detector/tiny/seed-3"
    stored = {path.name for path in folder.iterdir()}
    assert {"log.txt", "losses.csv", "config.json", "system.json", "run.json"} <= stored
    assert "epoch 2" in done.stderr
    assert "ap_50" in done.stderr
    assert_right_log(folder, done.stdout, tmp_path)


def test_a_missed_target_is_aborted_after_the_last_evaluation(tmp_path):
    """Which lies within an epoch here: nothing is trained that nobody would look at."""
    options = ("--evaluation-iterations", "3", "18", "--target", "2")
    done = DETECTOR.train(tmp_path, *options)
    assert done.returncode == 1
    pattern = r"ABORTED,single_stage_detector,1,\d+,[01]\.\d+,2\.0"
    assert re.fullmatch(pattern, done.stdout.splitlines()[-1])
    record = record_of(tmp_path)
    assert record["modified"] == ["quality_targets", "evaluation_iterations"]
    assert [evaluation["step"] for evaluation in record["evaluations"]] == [4, 19]
    assert record["num_steps"] == 19
    assert_right_log(only_run(tmp_path), done.stdout, tmp_path)


def test_evaluation_can_come_after_epochs(tmp_path):
    options = ("--evaluation-epochs", "1", "3", "--decay-epochs", "2", "--target", "2")
    done = DETECTOR.train(tmp_path, *options)
    assert done.returncode == 1
    record = record_of(tmp_path)
    steps = [(evaluation["epoch"], evaluation["step"]) for evaluation in record["evaluations"]]
    assert steps == [(1, 8), (3, 24)]
    assert_right_log(only_run(tmp_path), done.stdout, tmp_path)


def test_num_steps_prints_throughput_and_an_estimate(tmp_path):
    """On its own data, and on made-up data where there is none."""
    own, synthetic = tmp_path / "own", tmp_path / "synthetic"
    done = DETECTOR.train(own, "--num-steps", "20")
    assert assert_speed(done) == STEPS_PER_EPOCH
    assert_right_log(only_run(own), done.stdout, tmp_path)
    derived = json.loads((only_run(own) / "config.json").read_text())["derived"]
    assert derived["steps_per_epoch"] == STEPS_PER_EPOCH
    assert derived["num_default_boxes"] == 336
    # Weights, gradients, two moments, and at least the stem's output of every image.
    assert derived["memory_estimate_bytes"] > 16 * derived["num_parameters"] + 8 * 8 * 32 * 32 * 4
    options = ("--synthetic-data", "--num-steps", "4", "--data-dir", tmp_path / "none")
    assert_speed(DETECTOR.train(synthetic, *options, preset="mini"))
    record = record_of(synthetic)
    assert (record["status"], record["modified"]) == ("num_steps", ["synthetic_data", "num_steps"])


@pytest.mark.parametrize(
    "precision", ["bf16", pytest.param("compile", marks=pytest.mark.exhaustive)]
)
def test_other_arithmetic_reaches_the_target_too(tmp_path, unbroken, precision):
    option = ("--compile",) if precision == "compile" else ("--precision", precision)
    done = DETECTOR.train(tmp_path, *option)
    assert done.returncode == 0, done.stderr
    first, exact = loss_values(only_run(tmp_path))[0], loss_values(unbroken)[0]
    if precision == "compile":
        assert first == pytest.approx(exact, rel=1e-5)
    else:  # 8 bits: as near as they can be, and not float32 after all
        assert first == pytest.approx(exact, rel=0.05)
        assert abs(first - exact) > 1e-5


def test_help_needs_no_data():
    module = ("-m", "single_stage_detector.train", "mini", "--help")
    done = run(sys.executable, *module, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0
    options = ("--seed", "--base-learning-rate", "--crop-trials", "--synthetic-data", "--resume")
    assert [option for option in options if option not in done.stdout] == []


# --- wrong use ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tiny", "--learning-rat", "1"], ["--learning-rat"]),
        (["tiny", "--seed", "one"], ["--seed", "one"]),
        (["teeny"], ["teeny", "tiny"]),
        ([], ["preset is missing"]),
        (["tiny", "--target", "high"], ["target 'high'", "ap_50"]),
        (["tiny", "--num-steps", "0"], ["--num-steps"]),
        (["tiny", "--num-workers", "-1"], ["--num-workers"]),
        (["tiny", "--batch-size", "0"], ["batch_size is 0"]),
        (["tiny", "--batch-size", "59"], ["a batch of 1 images"]),
        (["tiny", "--evaluation-epochs", "11"], ["evaluation_epochs", "max_epochs 9"]),
        (["tiny", "--evaluation-iterations", "5", "5"], ["evaluation_iterations is 5 5"]),
        (["tiny", "--device", "cuda"], ["no GPU", "--device cpu"]),
        (["tiny", "--device", "cpu", "--precision", "fp16"], ["fp16"]),
    ],
)
def test_wrong_options_are_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status = train.main(arguments)
    output = capsys.readouterr()
    done = subprocess.CompletedProcess(arguments, status, output.out, output.err)
    assert_usage_error(done, *words)
    assert list(tmp_path.iterdir()) == []


def test_missing_data(tmp_path):
    data, results = tmp_path / "data", tmp_path / "results"
    done = run(DETECTOR.script, PRESET="reference", DATA_DIR=data, RESULTS_DIR=results)
    assert_usage_error(done, "instances_train2017.json", "download_dataset.sh")
    done = DETECTOR.train(results, "--data-dir", data, preset="mini")
    assert_usage_error(done, "single_stage_detector.prepare mini")
    assert not results.exists()


# --- reproducibility ----------------------------------------------------------------------------


def test_the_same_seed_twice_is_bitwise_the_same(tmp_path, unbroken):
    assert DETECTOR.train(tmp_path, *NEVER_REACHED).returncode == 1
    assert_same_torch_training(only_run(tmp_path), unbroken)


def test_another_seed_is_another_run(tmp_path, unbroken):
    assert DETECTOR.train(tmp_path, "--num-steps", "1", "--seed", "2").returncode == 0
    assert loss_values(only_run(tmp_path))[0] != loss_values(unbroken)[0]


def test_killed_three_times_and_resumed_is_bitwise_the_same(tmp_path, unbroken):
    steps = sorted(random.Random().sample(range(2, NUM_STEPS), 3))
    print("killed after steps", steps)
    for step in steps:
        done = finish(DETECTOR.start_killed(step, "SIGKILL", tmp_path, *NEVER_REACHED, "--resume"))
        assert done.returncode == -signal.SIGKILL, done.stderr
    done = DETECTOR.train(tmp_path, *NEVER_REACHED, "--resume")
    assert done.returncode == 1, done.stderr
    assert "going on with" in done.stderr
    assert_same_torch_training(last_run(tmp_path), unbroken)


KILL_AFTER_THE_LAST = """
import os, signal, sys
from single_stage_detector import train
save = train.save
def save_and_die(run, *rest):
    save(run, *rest)
    if run.evaluations and run.evaluations[-1]["step"] == 36:
        os.kill(os.getpid(), signal.SIGKILL)
train.save = save_and_die
sys.exit(train.main(sys.argv[1:]))
"""


def test_killed_after_its_last_evaluation_it_trains_no_more(tmp_path, unbroken):
    options = ("tiny", "--device", "cpu", "--results-dir", tmp_path, *NEVER_REACHED)
    done = run(sys.executable, "-c", KILL_AFTER_THE_LAST, *options)
    assert done.returncode == -signal.SIGKILL, done.stderr
    done = DETECTOR.train(tmp_path, *NEVER_REACHED, "--resume")
    assert done.returncode == 1, done.stderr
    assert record_of(tmp_path)["num_steps"] == NUM_STEPS
    assert_same_torch_training(only_run(tmp_path), unbroken)


@pytest.mark.parametrize(("name", "step"), [("SIGTERM", 12), ("SIGINT", 21)])
def test_a_signal_leaves_a_checkpoint_and_a_closed_log(tmp_path, unbroken, name, step):
    """Step 12 is one of those with an evaluation: it is made up for by the run that goes on."""
    results = tmp_path / "results"
    process = DETECTOR.start_killed(step, name, results, *NEVER_REACHED)
    process.wait(timeout=180)
    ended_s = time.monotonic()
    done = finish(process)
    assert done.returncode == 128 + getattr(signal, name)
    assert benchmark_runs.seconds_to_react(done, ended_s) < 10
    folder = only_run(results)
    log = (folder / "log.txt").read_text().splitlines()
    assert '"interrupted"' in log[-2]
    assert '"log_sha256"' in log[-1]
    assert_right_log(folder, done.stdout, tmp_path)
    position = json.loads(max(folder.glob("checkpoints/*.json")).read_text())["position"]
    assert position["step"] in (step, step + 1)
    done = DETECTOR.train(results, *NEVER_REACHED, "--resume")
    assert done.returncode == 1
    assert_same_torch_training(folder, unbroken)
    assert_right_log(folder, done.stdout, tmp_path)


def test_run_and_time_forwards_signals(tmp_path):
    process = start(DETECTOR.script, "1", "2", PRESET="tiny", RESULTS_DIR=tmp_path)
    for line in process.stdout:
        if '"epoch_start"' in line:
            break
    process.terminate()
    assert finish(process).returncode == 128 + signal.SIGTERM


# --- two processes --------------------------------------------------------------------------------

HALVES = """
import sys, torch
from single_stage_detector import model, train
class Halves(torch.nn.Module):
    '''A batch as two processes see it: batch normalisation of each half, statistics of the first.
    '''
    def __init__(self, network):
        super().__init__()
        self.network = network
    def take(self, images, momentum):
        for module in self.network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = momentum
        return self.network(images)
    def __call__(self, images):
        middle = len(images) // 2
        halves = self.take(images[:middle], 0.1), self.take(images[middle:], 0.0)
        return tuple(torch.cat(pair) for pair in zip(*halves))
real = train.parallel_and_compiled
train.parallel_and_compiled = lambda network, *rest: Halves(real(network, *rest))
sys.exit(train.main(sys.argv[1:]))
"""


def test_two_processes_equal_one_that_takes_halves(tmp_path):
    """Losses, weights and running statistics within 1e-5, and evaluations within 1e-2.

    That the processes' detections are gathered whole is a test of test_evaluate.py.
    """
    one, two, status = tmp_path / "one", tmp_path / "two", tmp_path / "status"
    # Adam would make large steps of rounding, where a gradient is next to nothing.
    options = ("--target", "2", "--max-epochs", "2", "--optimizer", "sgd")
    options += ("--base-learning-rate", "1e-3")
    process = DETECTOR.start_parallel(2, two, status, *options)
    alone = ("tiny", "--device", "cpu", "--results-dir", one)
    done_alone = run(sys.executable, "-c", HALVES, *alone, *options)
    done = finish(process)
    assert done_alone.returncode == 1, done_alone.stderr
    assert done.returncode == 0, done.stderr  # the true status lies in the file
    assert status.read_text() == "1\n"
    assert done.stdout.count("STARTING") == 1  # only the first process speaks
    assert loss_values(only_run(two)) == pytest.approx(loss_values(only_run(one)), abs=1e-5)
    expected = torch_state(only_run(one))
    for name, value in torch_state(only_run(two)).items():
        if name.endswith("num_batches_tracked"):  # which the halves count twice
            continue
        assert torch.allclose(value.double(), expected[name].double(), rtol=0, atol=1e-5), name
    first, second = record_of(one), record_of(two)
    assert len(first["evaluations"]) == len(second["evaluations"]) == 1
    (quality,), (other) = (
        [evaluation["quality"] for evaluation in record["evaluations"]]
        for record in (first, second)
    )
    assert other[0] == pytest.approx(quality, abs=1e-2)
    assert first["num_examples"] == second["num_examples"] == 60 + 4 * 8
    assert_right_log(only_run(two), done.stdout, tmp_path)


def test_two_processes_stop_together_and_go_on(tmp_path):
    """SIGTERM reaches torchrun; both processes stop at one step, and two go on from there."""
    results, status = tmp_path / "results", tmp_path / "status"
    process = DETECTOR.start_parallel(2, results, status, *NEVER_REACHED, "--resume")
    for line in process.stdout:
        if '"epoch_start"' in line:
            break
    process.terminate()
    finish(process)
    assert status.read_text() == "143\n"
    assert '"interrupted"' in (only_run(results) / "log.txt").read_text()
    done = finish(DETECTOR.start_parallel(2, results, status, *NEVER_REACHED, "--resume"))
    assert status.read_text() == "1\n", done.stderr
    assert "going on with" in done.stderr
    assert record_of(results)["num_steps"] == NUM_STEPS


# --- faults --------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    with disk_of("1m", tmp_path) as folder:
        yield folder


def test_a_disk_full_from_the_start(small_disk):
    fill(small_disk, 0)
    done = DETECTOR.train(small_disk)
    assert_usage_error(done, "cannot write to", "make room there or set RESULTS_DIR")
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


def test_a_disk_that_fills_up_while_training(small_disk):
    """There is room for one checkpoint of 370 KB, not for two."""
    fill(small_disk, 600_000)
    done = DETECTOR.train(small_disk, *NEVER_REACHED)
    assert done.returncode == 1
    assert "no space left on the disk" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1].startswith("ABORTED,single_stage_detector,1,")
    assert not list(small_disk.glob("**/*.tmp"))
    assert len(list(small_disk.glob("**/checkpoints/*.pt"))) == 1


def test_a_loss_that_is_not_finite_stops_at_its_step(tmp_path):
    done = DETECTOR.train(tmp_path, "--base-learning-rate", "1e30")
    assert done.returncode == 1
    (step,) = re.findall(r"the loss of step (\d+) is (?:nan|inf)", done.stderr)
    assert losses(only_run(tmp_path)).count(b"\n") == int(step) - 1
    assert record_of(tmp_path)["status"] == "non-finite"


def test_a_damaged_checkpoint_is_refused_and_the_previous_used(tmp_path, unbroken):
    done = finish(DETECTOR.start_killed(30, "SIGKILL", tmp_path, *NEVER_REACHED))
    assert done.returncode == -signal.SIGKILL
    newest = max(only_run(tmp_path).glob("checkpoints/*.pt"))
    newest.write_bytes(newest.read_bytes()[:1000])
    done = DETECTOR.train(tmp_path, *NEVER_REACHED, "--resume")
    assert done.returncode == 1
    assert f"checkpoint {newest.stem} is damaged" in done.stderr
    assert_same_torch_training(only_run(tmp_path), unbroken)
