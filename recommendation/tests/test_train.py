"""The real entry points in subprocesses, on the tiny preset: contract, kill and resume, faults."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [AP]M"
KILL_AT = """
import os, signal, sys, time
from harness.run import Run
from recommendation.train import main
original, step = Run.record_losses, int(sys.argv.pop(1))
def record_losses(self, *arguments):
    original(self, *arguments)
    if self.step == step:
        print("signalled at", time.monotonic(), file=sys.stderr, flush=True)
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
Run.record_losses = record_losses
sys.exit(main(sys.argv[2:]))
"""
"""Training that gets a signal right after a step: arguments STEP SIGNAL, then the usual ones."""


def environment(**variables):
    """The environment without the variables of the contract, plus these."""
    contract = ("DATA_DIR", "RESULTS_DIR", "PRESET", "RESUME", "NUM_GPUS", "STATUS_FILE")
    clean = {name: value for name, value in os.environ.items() if name not in contract}
    return {**clean, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable, **variables}


def run(*command, cwd=ROOT, **variables):
    """Run a command to its end and capture what it prints."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment(**{name: str(value) for name, value in variables.items()}),
        capture_output=True,
        text=True,
        timeout=120,
    )


def train(results, *arguments, preset="tiny"):
    """Run `python -m recommendation.train`."""
    module = ("-m", "recommendation.train", preset)
    return run(sys.executable, *module, "--device", "cpu", "--results-dir", results, *arguments)


def only_run(results):
    """The folder of the only run below `results`."""
    (record,) = Path(results).glob("**/run.json")
    return record.parent


def final_weights(results):
    """Weights of a run's last checkpoint."""
    path = max(only_run(results).glob("checkpoints/*.pt"))
    return torch.load(path, weights_only=True)["model"]


def losses(results):
    """The file of per-step losses: equal bytes are equal floats."""
    return (only_run(results) / "losses.csv").read_bytes()


def assert_usage_error(done, *words):
    """Status 2, one line on stderr that names the cause, nothing on stdout."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A whole run of four epochs that never reaches its target, with many checkpoints."""
    results = tmp_path_factory.mktemp("unbroken")
    done = train(results, *NEVER_REACHED)
    assert done.returncode == 1, done.stderr
    return results


NEVER_REACHED = ("--target", "0.99", "--max-epochs", "4", "--checkpoint-interval-s", "0.02")


# --- contract ---------------------------------------------------------------------------------


def test_run_and_time_prints_the_contract(tmp_path):
    """From another folder, with spaces in every path."""
    elsewhere = tmp_path / "some where"
    elsewhere.mkdir()
    script = ROOT / "recommendation" / "run_and_time.sh"
    done = run(script, 3, cwd=elsewhere, PRESET="tiny", RESULTS_DIR="my results", USER="ada")
    assert done.returncode == 0, done.stderr
    first, *records, last, result = done.stdout.splitlines()
    assert re.fullmatch(f"STARTING TIMING RUN AT {TIME}", first)
    assert all(record.startswith(":::MLLOG {") for record in records)
    assert re.fullmatch(f"ENDING TIMING RUN AT {TIME}", last)
    start = first.removeprefix("STARTING TIMING RUN AT ")
    folder = only_run(elsewhere / "my results")
    seconds = json.loads((folder / "run.json").read_text())["run_seconds"]
    assert result == f"RESULT,recommendation,3,{int(seconds)},ada,{start}"
    assert folder.parent == elsewhere / "my results" / "recommendation" / "tiny" / "seed-3"
    stored = {path.name for path in folder.iterdir()}
    assert {"log.txt", "losses.csv", "config.json", "system.json", "run.json"} <= stored
    assert "epoch 1" in done.stderr
    assert "target 0.2" in done.stderr


def test_a_missed_target_is_aborted(tmp_path):
    script = ROOT / "recommendation" / "run_and_time.sh"
    done = run(script, 1, 0.999, PRESET="tiny", RESULTS_DIR=tmp_path)
    assert done.returncode == 1
    assert re.fullmatch(r"ABORTED,recommendation,1,\d+,0\.\d+,0\.999", done.stdout.splitlines()[-1])
    assert json.loads((only_run(tmp_path) / "run.json").read_text())["modified"] == [
        "quality_targets"
    ]


def test_num_steps_prints_throughput_and_an_estimate(tmp_path):
    done = train(tmp_path, "--num-steps", "30")
    assert done.returncode == 0
    assert re.search(r"[\d,]+ examples/s", done.stderr)
    assert "estimated time to the target" in done.stderr
    assert done.stdout.splitlines()[-1].startswith("ENDING")
    derived = json.loads((only_run(tmp_path) / "config.json").read_text())["derived"]
    assert derived["steps_per_epoch"] >= 31_100 // 512  # made-up data: an upper bound
    assert derived["memory_estimate_bytes"] > 16 * derived["num_parameters"]


def test_synthetic_data_needs_no_data_set(tmp_path):
    done = train(
        tmp_path, "--synthetic-data", "--num-steps", "2", "--data-dir", tmp_path, preset="mini"
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((only_run(tmp_path) / "run.json").read_text())
    assert (record["status"], record["modified"]) == ("num_steps", ["synthetic_data", "num_steps"])


@pytest.mark.parametrize("precision", ["bf16", pytest.param("compile", marks=pytest.mark.slow)])
def test_other_arithmetic_reaches_the_target_too(tmp_path, precision):
    option = ("--compile",) if precision == "compile" else ("--precision", precision)
    done = train(tmp_path, *option)
    assert done.returncode == 0, done.stderr


def test_help_needs_no_data():
    command = (sys.executable, "-m", "recommendation.train", "mini", "--help")
    done = run(*command, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0
    for option in ("--seed", "--learning-rate", "--num-steps", "--synthetic-data", "--resume"):
        assert option in done.stdout


# --- wrong use ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tiny", "--learning-rat", "1"], ["--learning-rat"]),
        (["tiny", "--seed", "one"], ["--seed", "one"]),
        (["teeny"], ["teeny", "tiny"]),
        (["tiny", "--target", "high"], ["target 'high'", "hr_at_10"]),
        (["tiny", "--target", "0.1/0.2"], ["2 values"]),
        (["tiny", "--num-steps", "0"], ["--num-steps"]),
        (["tiny", "--num-workers", "3"], ["--num-workers"]),
        (["tiny", "--batch-size", "0"], ["batch_size is 0"]),
        (["tiny", "--num-train-negatives", "0"], ["num_train_negatives is 0"]),
        (["tiny", "--mlp-layers", "33", "16"], ["mlp_layers is 33 16", "even"]),
        (["tiny", "--learning-rate", "0"], ["learning_rate"]),
        (["tiny", "--adam-beta1", "1"], ["adam_beta1"]),
        (["tiny", "--device", "cuda"], ["no GPU", "--device cpu"]),
        (["tiny", "--device", "cpu", "--precision", "fp16"], ["fp16"]),
    ],
)
def test_wrong_options_are_one_line(tmp_path, arguments, words):
    command = (sys.executable, "-m", "recommendation.train", *arguments)
    done = run(*command, RESULTS_DIR=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert_usage_error(done, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        (["one"], {}, ["seed 'one'"]),
        (["1", "0.2", "3"], {}, ["too many"]),
        (["1", "high"], {}, ["target 'high'"]),
        ([], {"PRESET": "teeny"}, ["teeny"]),
        ([], {"NUM_GPUS": "99"}, ["NUM_GPUS=99"]),
        ([], {"PATH": "GPU:" + os.environ["PATH"]}, ["no GPU that PyTorch can use", "NUM_GPUS=0"]),
        ([], {"PYTHON": "/usr/bin/env"}, ["lacks what recommendation needs"]),
    ],
)
def test_wrong_use_of_run_and_time(tmp_path, arguments, variables, words):
    variables = {"PRESET": "tiny", "RESULTS_DIR": tmp_path / "results", **variables}
    if "PATH" in variables:  # a GPU that nvidia-smi lists and PyTorch cannot use
        (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: Tesla K80'\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        variables["PATH"] = variables["PATH"].replace("GPU", str(tmp_path), 1)
        variables["CUDA_VISIBLE_DEVICES"] = ""
    if "PYTHON" in variables:  # an interpreter without the packages
        variables["PYTHON"] = tmp_path / "python"
        variables["PYTHON"].write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')
        variables["PYTHON"].chmod(0o755)
    done = run(ROOT / "recommendation" / "run_and_time.sh", *arguments, **variables)
    assert_usage_error(done, *words)
    assert not (tmp_path / "results").exists()


def test_missing_data(tmp_path):
    script = ROOT / "recommendation" / "run_and_time.sh"
    data, results = tmp_path / "data", tmp_path / "results"
    done = run(script, PRESET="mini", DATA_DIR=data, RESULTS_DIR=results)
    assert_usage_error(done, "ml-100k.inter", "download_dataset.sh")
    done = train(results, "--data-dir", data, preset="mini")
    assert_usage_error(done, "ml-100k.inter", "download_dataset.sh mini")
    assert list(tmp_path.iterdir()) == []


def test_damaged_data_is_one_line(tmp_path, small_mini):
    shutil.copytree(small_mini, tmp_path / "data")
    users = tmp_path / "data" / "prepared" / "train_users.npy"
    users.write_bytes(users.read_bytes()[:-100])
    done = train(tmp_path / "results", "--data-dir", tmp_path / "data", preset="mini")
    assert_usage_error(done, "prepared is damaged", "run recommendation.prepare again")
    assert not (tmp_path / "results").exists()


@pytest.fixture(scope="module")
def small_mini(tmp_path_factory):
    """A data folder in the format of ml-100k with 60 made-up users, prepared."""
    folder = tmp_path_factory.mktemp("small")
    draw = random.Random(0)
    with (folder / "ml-100k.inter").open("w") as file:
        file.write("user_id:token\titem_id:token\trating:float\ttimestamp:float\n")
        for user in range(1, 61):
            for item in draw.sample(range(1, 200), 25):
                file.write(f"{user}\t{item}\t5\t{draw.randrange(10**9)}\n")
    titles = "".join(f"{item}\tFilm {item}\t1999\tDrama\n" for item in range(1, 200))
    header = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    (folder / "ml-100k.item").write_text(header + titles)
    done = run(sys.executable, "-m", "recommendation.prepare", "mini", "--data-dir", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_predict_names_ten_films_that_were_not_rated(tmp_path, small_mini):
    options = ("--data-dir", small_mini, "--max-epochs", "1", "--target", "0")
    assert train(tmp_path, *options, preset="mini").returncode == 0
    command = (sys.executable, "-m", "recommendation.predict", "mini", "--user", "7")
    done = run(*command, DATA_DIR=small_mini, RESULTS_DIR=tmp_path)
    assert done.returncode == 0, done.stderr
    films = [int(number) for number in re.findall(r"Film (\d+) \(1999\)", done.stdout)]
    assert len(set(films)) == 10
    rows = (small_mini / "ml-100k.inter").read_text().splitlines()[1:]
    rated = [row.split("\t") for row in rows if row.startswith("7\t")]
    last = max(rated, key=lambda row: int(row[3]))
    assert not {int(row[1]) for row in rated if row is not last} & set(films)
    wrong = run(*command[:-1], "61", DATA_DIR=small_mini, RESULTS_DIR=tmp_path)
    assert_usage_error(wrong, "no user 61")


def test_predict_refuses_an_expanded_run(tmp_path, small_mini):
    """Its users and films are nobody's."""
    options = ("--expansion", "2", "2", "--data-dir", small_mini)
    done = run(sys.executable, "-m", "recommendation.prepare", "mini", *options)
    assert done.returncode == 0, done.stderr
    done = train(tmp_path, *options, "--max-epochs", "1", "--target", "0", preset="mini")
    assert done.returncode == 0, done.stderr
    command = (sys.executable, "-m", "recommendation.predict", "mini")
    done = run(*command, DATA_DIR=small_mini, RESULTS_DIR=tmp_path)
    assert_usage_error(done, "was trained on expanded data", "name another run")


# --- reproducibility ----------------------------------------------------------------------------


def test_the_same_seed_twice_is_bitwise_the_same(tmp_path, unbroken):
    assert train(tmp_path, *NEVER_REACHED).returncode == 1
    assert losses(tmp_path) == losses(unbroken)
    expected = final_weights(unbroken)
    for name, weights in final_weights(tmp_path).items():
        assert torch.equal(weights, expected[name]), name


def test_another_seed_is_another_run(tmp_path, unbroken):
    assert train(tmp_path, *NEVER_REACHED, "--seed", "2").returncode == 1
    assert losses(tmp_path).split(b"\n")[0] != losses(unbroken).split(b"\n")[0]


def test_killed_three_times_and_resumed_is_bitwise_the_same(tmp_path, unbroken):
    num_steps = losses(unbroken).count(b"\n")
    steps = sorted(random.Random().sample(range(2, num_steps), 3))
    print("killed after steps", steps)
    options = ("--device", "cpu", "--results-dir", tmp_path, *NEVER_REACHED, "--resume")
    for step in steps:
        done = run(sys.executable, "-c", KILL_AT, step, "SIGKILL", "tiny", *options)
        assert done.returncode == -signal.SIGKILL, done.stderr
    done = run(sys.executable, "-m", "recommendation.train", "tiny", *options)
    assert done.returncode == 1, done.stderr
    assert "going on with" in done.stderr
    # A kill before the first checkpoint leaves a run that is started anew.
    folder = max(Path(tmp_path).glob("**/run.json")).parent
    assert (folder / "losses.csv").read_bytes() == losses(unbroken)
    weights = torch.load(max(folder.glob("checkpoints/*.pt")), weights_only=True)["model"]
    expected = final_weights(unbroken)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_leaves_a_checkpoint_and_a_closed_log(tmp_path, unbroken, name):
    number = getattr(signal, name)
    options = ("--device", "cpu", "--results-dir", tmp_path, *NEVER_REACHED)
    done = run(sys.executable, "-c", KILL_AT, 50, name, "tiny", *options)
    signalled_s = float(re.findall(r"signalled at ([\d.]+)", done.stderr)[0])
    assert time.monotonic() - signalled_s < 10
    assert done.returncode == 128 + number
    folder = only_run(tmp_path)
    log = (folder / "log.txt").read_text().splitlines()
    assert '"interrupted"' in log[-2]
    assert '"log_sha256"' in log[-1]
    position = json.loads(max(folder.glob("checkpoints/*.json")).read_text())["position"]
    assert position["step"] in (50, 51)
    assert train(tmp_path, *NEVER_REACHED, "--resume").returncode == 1
    assert losses(tmp_path) == losses(unbroken)


def test_run_and_time_forwards_signals(tmp_path):
    script = ROOT / "recommendation" / "run_and_time.sh"
    variables = environment(PRESET="tiny", RESULTS_DIR=str(tmp_path))
    process = subprocess.Popen(
        [script, "1", "0.999"], env=variables, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    for line in process.stdout:
        if b"epoch_start" in line:
            break
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM


def test_a_usage_error_of_the_first_process_ends_all(tmp_path):
    """The other would wait ten minutes for it."""
    (tmp_path / "results").write_text("a file, where only the first process needs a folder")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    module = ("-m", "recommendation.train", "tiny", "--device", "cpu")
    options = ("--results-dir", tmp_path / "results")
    start_s = time.monotonic()
    done = run(sys.executable, *launcher, *module, *options, STATUS_FILE=tmp_path / "status")
    assert time.monotonic() - start_s < 60
    assert done.returncode != 0
    assert (tmp_path / "status").read_text() == "2\n"
    assert "error: cannot write to" in done.stderr
    assert done.stdout == ""


def test_two_processes_stop_together_and_go_on(tmp_path, unbroken):
    """SIGTERM reaches torchrun; both processes stop at one step, and two go on from there."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    module = ("-m", "recommendation.train", "tiny", "--device", "cpu")
    options = ("--results-dir", str(tmp_path / "results"), *NEVER_REACHED, "--resume")
    status = tmp_path / "status"
    command = [sys.executable, *launcher, *module, *options]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(STATUS_FILE=str(status)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    for line in process.stdout:
        if b'"epoch_start"' in line:
            break
    process.terminate()
    process.communicate(timeout=40)
    assert status.read_text() == "143\n"
    assert '"interrupted"' in (only_run(tmp_path / "results") / "log.txt").read_text()
    done = run(*command, STATUS_FILE=status)
    assert status.read_text() == "1\n", done.stderr
    assert "going on with" in done.stderr
    alone = [float(line.split(",")[1]) for line in losses(unbroken).decode().split()]
    together = [float(line.split(",")[1]) for line in losses(tmp_path / "results").decode().split()]
    assert together == pytest.approx(alone, abs=1e-4)  # four epochs of rounding apart


def test_two_processes_equal_one(tmp_path):
    options = ("--target", "0.99", "--max-epochs", "2")
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(one, *options).returncode == 1
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    module = ("-m", "recommendation.train", "tiny", "--device", "cpu")
    status = tmp_path / "status"
    done = run(
        *(sys.executable, *launcher, *module, "--results-dir", two, *options), STATUS_FILE=status
    )
    assert done.returncode == 0, done.stderr  # the true status lies in the file
    assert status.read_text() == "1\n"
    assert done.stdout.count("STARTING") == 1  # only the first process speaks
    alone = [float(line.split(",")[1]) for line in losses(one).decode().split()]
    together = [float(line.split(",")[1]) for line in losses(two).decode().split()]
    assert together == pytest.approx(alone, abs=1e-5)
    expected = final_weights(one)
    for name, weights in final_weights(two).items():
        assert torch.allclose(weights, expected[name], rtol=0, atol=1e-5), name
    first, second = (json.loads((only_run(r) / "run.json").read_text()) for r in (one, two))
    assert first["evaluations"][-1]["quality"] == second["evaluations"][-1]["quality"]
    assert first["num_examples"] == second["num_examples"]


# --- faults --------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 KiB."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_full_from_the_start(small_disk):
    ballast = os.open(small_disk / "ballast", os.O_CREAT | os.O_WRONLY)
    with contextlib.suppress(OSError):
        while True:
            os.write(ballast, b"x" * 1024)
    os.close(ballast)
    assert_usage_error(train(small_disk), "cannot write to", "make room there or set RESULTS_DIR")
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


def test_a_disk_that_fills_up_while_training(small_disk):
    """The third checkpoint of 210 KB does not fit beside the first."""
    done = train(small_disk, *NEVER_REACHED)
    assert done.returncode == 1
    assert "no space left on the disk" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1].startswith("ABORTED,recommendation,1,")
    assert not list(small_disk.glob("**/*.tmp"))
    kept = list(small_disk.glob("**/checkpoints/*.json"))
    assert len(kept) == len(list(small_disk.glob("**/checkpoints/*.pt"))) >= 1


def test_a_loss_that_is_not_finite_stops_at_its_step(tmp_path):
    done = train(tmp_path, "--learning-rate", "1e30")
    assert done.returncode == 1
    (step,) = re.findall(r"the loss of step (\d+) is (?:nan|inf)", done.stderr)
    assert losses(tmp_path).count(b"\n") == int(step) - 1
    assert json.loads((only_run(tmp_path) / "run.json").read_text())["status"] == "non-finite"


def test_a_damaged_checkpoint_is_refused_and_the_previous_used(tmp_path, unbroken):
    options = ("--device", "cpu", "--results-dir", tmp_path, *NEVER_REACHED)
    done = run(sys.executable, "-c", KILL_AT, 100, "SIGKILL", "tiny", *options)
    assert done.returncode == -signal.SIGKILL
    newest = max(only_run(tmp_path).glob("checkpoints/*.pt"))
    newest.write_bytes(newest.read_bytes()[:1000])
    done = train(tmp_path, *NEVER_REACHED, "--resume")
    assert done.returncode == 1
    assert f"checkpoint {newest.stem} is damaged" in done.stderr
    assert losses(tmp_path) == losses(unbroken)
