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

from sentiment_analysis import train
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

BENCHMARK = Benchmark("sentiment_analysis")
NEVER_REACHED = ("--target", "100", "--max-epochs", "3", "--checkpoint-interval-s", "0.02")
STEPS_PER_EPOCH = 32
"""Of the tiny preset."""
NUM_STEPS = 96
"""Of a run that never reaches its target."""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A whole run of three epochs that never reaches its target, with many checkpoints."""
    results = tmp_path_factory.mktemp("unbroken")
    done = BENCHMARK.train(results, *NEVER_REACHED)
    assert done.returncode == 1, done.stderr
    assert_right_log(only_run(results), done.stdout, results)
    return only_run(results)


# --- contract ---------------------------------------------------------------------------------


def test_run_and_time_prints_the_contract(tmp_path):
    """From another folder, with spaces in every path."""
    elsewhere = tmp_path / "some where"
    elsewhere.mkdir()
    variables = {"PRESET": "tiny", "RESULTS_DIR": "my results", "USER": "ada"}
    done = run(BENCHMARK.script, 3, cwd=elsewhere, **variables)
    assert done.returncode == 0, done.stderr
    first, *records, last, result = done.stdout.splitlines()
    assert re.fullmatch(f"STARTING TIMING RUN AT {TIME}", first)
    assert all(record.startswith(":::MLLOG {") for record in records)
    assert re.fullmatch(f"ENDING TIMING RUN AT {TIME}", last)
    begin = first.removeprefix("STARTING TIMING RUN AT ")
    folder = only_run(elsewhere / "my results")
    seconds = json.loads((folder / "run.json").read_text())["run_seconds"]
    assert result == f"RESULT,sentiment_analysis,3,{int(seconds)},ada,{begin}"
    assert folder.parent == elsewhere / "my results/sentiment_analysis/tiny/seed-3"
    stored = {path.name for path in folder.iterdir()}
    assert {"log.txt", "losses.csv", "config.json", "system.json", "run.json"} <= stored
    assert "epoch 2" in done.stderr
    assert "accuracy" in done.stderr
    assert_right_log(folder, done.stdout, tmp_path)


def test_a_missed_target_is_aborted(tmp_path):
    done = BENCHMARK.train(tmp_path, "--target", "100", "--max-epochs", "1")
    assert done.returncode == 1
    pattern = r"ABORTED,sentiment_analysis,1,\d+,\d\d\.\d+,100\.0"
    assert re.fullmatch(pattern, done.stdout.splitlines()[-1])
    record = record_of(tmp_path)
    assert record["modified"] == ["quality_targets", "max_epochs"]
    assert set(record["evaluations"][0]["quality"]) == {"accuracy", "exact_accuracy"}
    assert_right_log(only_run(tmp_path), done.stdout, tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        ("--batching", "shuffled"),
        ("--dropout", "0.5"),
        ("--initialization", "paddle_shared_stream"),
        ("--filter-widths", "1", "2", "5"),
    ],
)
def test_options_of_the_science_train_too(tmp_path, unbroken, options):
    done = BENCHMARK.train(tmp_path, *options, "--max-epochs", "4", "--target", "85")
    assert done.returncode == 0, done.stderr
    assert record_of(tmp_path)["modified"][-1] == "max_epochs"
    assert loss_values(only_run(tmp_path)) != loss_values(unbroken)
    assert_right_log(only_run(tmp_path), done.stdout, tmp_path)


def test_dropout_is_the_same_after_a_resumption(tmp_path):
    options = ("--dropout", "0.5", "--target", "100", "--max-epochs", "1")
    options += ("--checkpoint-interval-s", "0.02")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert BENCHMARK.train(whole, *options).returncode == 1
    done = finish(BENCHMARK.start_killed(13, "SIGKILL", broken, *options))
    assert done.returncode == -signal.SIGKILL
    assert BENCHMARK.train(broken, *options, "--resume").returncode == 1
    assert_same_torch_training(last_run(broken), only_run(whole))


def test_num_steps_prints_throughput_and_an_estimate(tmp_path):
    """On its own data, and on made-up data where there is none."""
    own, synthetic = tmp_path / "own", tmp_path / "synthetic"
    done = BENCHMARK.train(own, "--num-steps", "20")
    assert assert_speed(done) == STEPS_PER_EPOCH
    assert_right_log(only_run(own), done.stdout, tmp_path)
    derived = json.loads((only_run(own) / "config.json").read_text())["derived"]
    assert derived["steps_per_epoch"] == STEPS_PER_EPOCH
    assert (derived["num_words"], derived["num_parameters"]) == (400, 8_290)
    assert derived["memory_estimate_bytes"] > 16 * derived["num_parameters"]
    options = ("--synthetic-data", "--num-steps", "4", "--data-dir", tmp_path / "none")
    assert_speed(BENCHMARK.train(synthetic, *options, preset="mini"))
    record = record_of(synthetic)
    assert (record["status"], record["modified"]) == ("num_steps", ["synthetic_data", "num_steps"])


@pytest.mark.parametrize(
    "precision", ["bf16", pytest.param("compile", marks=pytest.mark.exhaustive)]
)
def test_other_arithmetic_reaches_the_target_too(tmp_path, unbroken, precision):
    option = ("--compile",) if precision == "compile" else ("--precision", precision)
    done = BENCHMARK.train(tmp_path, *option)
    assert done.returncode == 0, done.stderr
    first, exact = loss_values(only_run(tmp_path))[0], loss_values(unbroken)[0]
    if precision == "compile":
        assert first == pytest.approx(exact, rel=1e-5)
    else:  # 8 bits: as near as they can be, and not float32 after all
        assert first == pytest.approx(exact, rel=0.05)
        assert abs(first - exact) > 1e-7


def test_help_needs_no_data():
    module = ("-m", "sentiment_analysis.train", "mini", "--help")
    done = run(sys.executable, *module, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0
    options = ("--seed", "--learning-rate", "--batching", "--synthetic-data", "--resume")
    assert [option for option in options if option not in done.stdout] == []


# --- wrong use ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tiny", "--learning-rat", "1"], ["--learning-rat"]),
        (["tiny", "--seed", "one"], ["--seed", "one"]),
        (["teeny"], ["teeny", "tiny"]),
        ([], ["preset is missing"]),
        (["tiny", "--target", "high"], ["target 'high'", "accuracy"]),
        (["tiny", "--num-steps", "0"], ["--num-steps"]),
        (["tiny", "--num-workers", "-1"], ["--num-workers"]),
        (["tiny", "--batch-size", "0"], ["batch_size is 0"]),
        (["tiny", "--filter-widths", "3", "0"], ["filter_widths is 3 0"]),
        (["tiny", "--dropout", "1"], ["dropout is 1"]),
        (["tiny", "--num-workers", "2"], ["leave --num-workers at 0"]),
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
    done = run(BENCHMARK.script, PRESET="reference", DATA_DIR=data, RESULTS_DIR=results)
    assert_usage_error(done, "aclImdb_v1.tar.gz", "download_dataset.sh")
    done = BENCHMARK.train(results, "--data-dir", data, preset="mini")
    assert_usage_error(done, "hutto_ICWSM_2014.tar.gz is missing", "download_dataset.sh mini")
    assert not results.exists()


# --- reproducibility ----------------------------------------------------------------------------


def test_the_same_seed_twice_is_bitwise_the_same(tmp_path, unbroken):
    assert BENCHMARK.train(tmp_path, *NEVER_REACHED).returncode == 1
    assert_same_torch_training(only_run(tmp_path), unbroken)


def test_another_seed_is_another_run(tmp_path, unbroken):
    assert BENCHMARK.train(tmp_path, "--num-steps", "1", "--seed", "2").returncode == 0
    assert loss_values(only_run(tmp_path))[0] != loss_values(unbroken)[0]


def test_killed_three_times_and_resumed_is_bitwise_the_same(tmp_path, unbroken):
    steps = sorted(random.Random().sample(range(2, NUM_STEPS), 3))
    print("killed after steps", steps)
    for step in steps:
        done = finish(BENCHMARK.start_killed(step, "SIGKILL", tmp_path, *NEVER_REACHED, "--resume"))
        assert done.returncode == -signal.SIGKILL, done.stderr
    done = BENCHMARK.train(tmp_path, *NEVER_REACHED, "--resume")
    assert done.returncode == 1, done.stderr
    assert "going on with" in done.stderr
    assert_same_torch_training(last_run(tmp_path), unbroken)


@pytest.mark.parametrize(("name", "step"), [("SIGTERM", 12), ("SIGINT", 50)])
def test_a_signal_leaves_a_checkpoint_and_a_closed_log(tmp_path, unbroken, name, step):
    results = tmp_path / "results"
    process = BENCHMARK.start_killed(step, name, results, *NEVER_REACHED)
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
    done = BENCHMARK.train(results, *NEVER_REACHED, "--resume")
    assert done.returncode == 1
    assert_same_torch_training(folder, unbroken)
    assert_right_log(folder, done.stdout, tmp_path)


def test_run_and_time_forwards_signals(tmp_path):
    process = start(BENCHMARK.script, "1", "100", PRESET="tiny", RESULTS_DIR=tmp_path)
    for line in process.stdout:
        if '"epoch_start"' in line:
            break
    process.terminate()
    assert finish(process).returncode == 128 + signal.SIGTERM


# --- two processes --------------------------------------------------------------------------------

HALVES = """
import sys, torch
from sentiment_analysis import data, train
def batches(reviews, config, seed, epoch, first_step, device):
    '''Both processes' batches of each step, one after the other.'''
    order = data.epoch_order(reviews.lengths, config, seed, epoch)
    for start in range(first_step * config.batch_size, len(order), config.batch_size):
        step = order[start : start + config.batch_size]
        whole = data.make_batch(reviews, step, config.filter_widths, device)
        halves = [data.make_batch(reviews, half, config.filter_widths, device)
                  for half in (step[: len(step) // 2], step[len(step) // 2 :])]
        labels = torch.cat([half.labels for half in halves])
        yield data.Batch(halves[0].words, halves, labels, whole.reviews, whole.step_words)
data.train_batches = batches
real = train.parallel_and_compiled
def parallel_and_compiled(network, *rest):
    real(network, *rest)
    return lambda _, halves: torch.cat([network(half.words, half.groups) for half in halves])
train.parallel_and_compiled = parallel_and_compiled
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("halves", [True, False])
def test_two_processes_equal_one(tmp_path, halves):
    """One that adds up the gradients of two halves, and one that takes the plain global batch."""
    one, two, status = tmp_path / "one", tmp_path / "two", tmp_path / "status"
    options = ("--target", "100", "--max-epochs", "2", "--adam-epsilon", "1e-4")
    process = BENCHMARK.start_parallel(2, two, status, *options)
    alone = ("tiny", "--device", "cpu", "--results-dir", one, *options)
    code = ("-c", HALVES) if halves else ("-m", "sentiment_analysis.train")
    done_alone = run(sys.executable, *code, *alone)
    done = finish(process)
    assert done_alone.returncode == 1, done_alone.stderr
    assert done.returncode == 0, done.stderr  # the true status lies in the file
    assert status.read_text() == "1\n"
    assert done.stdout.count("STARTING") == 1  # only the first process speaks
    assert loss_values(only_run(two)) == pytest.approx(loss_values(only_run(one)), abs=1e-5)
    expected = torch_state(only_run(one))
    for name, value in torch_state(only_run(two)).items():
        assert torch.allclose(value, expected[name], rtol=0, atol=1e-5), name
    first, second = record_of(one), record_of(two)
    assert [e["quality"] for e in first["evaluations"]] == [
        e["quality"] for e in second["evaluations"]
    ]
    assert first["num_examples"] == second["num_examples"] == 2 * 1_000
    assert_right_log(only_run(two), done.stdout, tmp_path)


def test_two_processes_stop_together_and_go_on(tmp_path):
    """SIGTERM reaches torchrun; both processes stop at one step, and two go on from there."""
    results, status = tmp_path / "results", tmp_path / "status"
    process = BENCHMARK.start_parallel(2, results, status, *NEVER_REACHED, "--resume")
    for line in process.stdout:
        if '"epoch_start"' in line:
            break
    process.terminate()
    finish(process)
    assert status.read_text() == "143\n"
    assert '"interrupted"' in (only_run(results) / "log.txt").read_text()
    done = finish(BENCHMARK.start_parallel(2, results, status, *NEVER_REACHED, "--resume"))
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
    done = BENCHMARK.train(small_disk)
    assert_usage_error(done, "cannot write to", "make room there or set RESULTS_DIR")
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


def test_a_disk_that_fills_up_while_training(small_disk):
    """There is room for one checkpoint of 110 KB, not for two."""
    fill(small_disk, 200_000)
    done = BENCHMARK.train(small_disk, *NEVER_REACHED)
    assert done.returncode == 1
    assert "no space left on the disk" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1].startswith("ABORTED,sentiment_analysis,1,")
    assert not list(small_disk.glob("**/*.tmp"))
    assert len(list(small_disk.glob("**/checkpoints/*.pt"))) == 1


def test_a_loss_that_is_not_finite_stops_at_its_step(tmp_path):
    done = BENCHMARK.train(tmp_path, "--learning-rate", "1e30")
    assert done.returncode == 1
    (step,) = re.findall(r"the loss of step (\d+) is (?:nan|inf)", done.stderr)
    assert losses(only_run(tmp_path)).count(b"\n") == int(step) - 1
    assert record_of(tmp_path)["status"] == "non-finite"


def test_a_damaged_checkpoint_is_refused_and_the_previous_used(tmp_path, unbroken):
    done = finish(BENCHMARK.start_killed(60, "SIGKILL", tmp_path, *NEVER_REACHED))
    assert done.returncode == -signal.SIGKILL
    newest = max(only_run(tmp_path).glob("checkpoints/*.pt"))
    newest.write_bytes(newest.read_bytes()[:1000])
    done = BENCHMARK.train(tmp_path, *NEVER_REACHED, "--resume")
    assert done.returncode == 1
    assert f"checkpoint {newest.stem} is damaged" in done.stderr
    assert_same_torch_training(only_run(tmp_path), unbroken)
