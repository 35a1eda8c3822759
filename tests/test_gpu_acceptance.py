"""gpu_acceptance.sh and its parts: on a small benchmark without a framework, and a pretended GPU.

The benchmark trains by arithmetic through the real harness. What it does on its GPU, and what
nvidia-smi says of it, is set by the tests.
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from harness import acceptance_checks, loss_parity
from harness.acceptance_checks import (
    FailedError,
    NotDoneError,
    RefusedError,
    Trial,
    check_memory,
    check_parity,
    get_data,
    gpu_memory_mib,
    measure_throughput,
    train_record,
)
from harness.child import StoppedError, StopRequest, peak_memory_mib, run_child
from harness.run_records import read_records

ROOT = Path(__file__).parent.parent

# --- losses ---------------------------------------------------------------------------------------


def over(first, second, noise=None):
    """First step at which two rows of losses disagree, with no noise or this one."""
    differences = loss_parity.relative_differences(first, second)
    return loss_parity.first_over(
        differences, loss_parity.tolerances(noise or [0.0] * len(differences))
    )


def test_the_first_step_is_held_to_1e_5():
    assert over([1.0], [1.0 + 0.9e-5]) is None
    assert over([1.0], [1.0 - 1.1e-5]) == 1
    assert over([-1.0], [1.0]) == 1
    # Its weights are identical: however noisy later steps are, it stays tight.
    assert over([1.0, 1.0], [1.0 + 1.1e-5, 1.0], noise=[0.1, 0.1]) == 1


def test_without_noise_the_tolerance_grows_by_1e_5_a_step():
    assert over([1.0] * 20, [1.0 + 0.9e-5 * step for step in range(1, 21)]) is None
    assert over([1.0] * 20, [1.0] * 19 + [1.0 + 2.1e-4]) == 20


def test_noise_widens_the_tolerance_of_its_step_and_all_after():
    noise = [0.0, 1e-4, 0.0, 0.0]
    assert over([1.0] * 4, [1.0, 1.0009, 1.0009, 1.0009], noise) is None
    assert over([1.0] * 4, [1.0, 1.0, 1.0, 1.0011], noise) == 4
    assert loss_parity.num_judged(loss_parity.tolerances([0.0, 1e-4, 0.1, 0.0])) == 2


def test_losses_are_compared_relatively_and_zero_equals_zero():
    assert loss_parity.relative_differences([0.0, 200.0], [0.0, 100.0]) == [0.0, 0.5]
    assert loss_parity.relative_differences([0.0], [1e-9]) == [1.0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_never_agrees(value):
    with pytest.raises(ValueError, match="losses of step 2"):
        loss_parity.relative_differences([1.0, value], [1.0, value])


@pytest.mark.parametrize(("first", "second"), [([1.0], [1.0, 1.0]), ([], [])])
def test_different_numbers_of_steps_never_agree(first, second):
    with pytest.raises(ValueError, match=f"{len(first)} and {len(second)} steps"):
        loss_parity.relative_differences(first, second)


def test_losses_are_read_without_a_gap(tmp_path):
    path = tmp_path / "losses.csv"
    path.write_text("1,0.5\n2,0.25\n")
    assert loss_parity.read_losses(path) == [0.5, 0.25]
    path.write_text("1,0.5\n3,0.25\n")
    with pytest.raises(ValueError, match="count from 1"):
        loss_parity.read_losses(path)


# --- children -------------------------------------------------------------------------------------


def run_python(tmp_path, code, limit_s=30.0, stop=None, measure=None):
    return run_child(
        [sys.executable, "-c", textwrap.dedent(code)],
        tmp_path / "output.txt",
        os.environ,
        tmp_path,
        limit_s,
        stop or StopRequest(),
        measure,
    )


# A grandchild that outlives its parent and does not heed SIGTERM; its id is in `grandchild`.
STUBBORN = """
    import subprocess, sys, time
    code = '''if True:
        import signal, time, pathlib, os
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        pathlib.Path("new").write_text(str(os.getpid()))
        os.rename("new", "grandchild")
        time.sleep(60)
    '''
    subprocess.run([sys.executable, "-c", code])
"""


def wait_for(path):
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def is_running(process_id):
    try:
        # The state follows the name in brackets; a zombie has ended, only nobody has asked yet.
        stat = Path(f"/proc/{process_id}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def assert_ended(process_id):
    deadline = time.monotonic() + 10
    while is_running(process_id):
        assert time.monotonic() < deadline, f"{process_id} is still running"
        time.sleep(0.01)


def test_how_a_child_ended(tmp_path):
    ended = run_python(tmp_path, "print('error: a; b'); print('more'); raise SystemExit(2)")
    assert (ended.status, ended.cause) == (2, "a; b")
    assert run_python(tmp_path, "print('last')").cause == "last"
    assert run_python(tmp_path, "import os; os.kill(os.getpid(), 9)").status == -9


def test_the_largest_value_while_it_ran_is_kept(tmp_path):
    values = iter([None, 3, 7, 5])
    ended = run_python(
        tmp_path, "import time; time.sleep(1)", measure=lambda process_id: next(values, None)
    )
    assert ended.peak == 7


def test_peak_resident_memory_is_that_of_the_process(tmp_path):
    code = "import time; block = b'1' * (300 << 20); del block; time.sleep(1)"
    ended = run_python(tmp_path, code, measure=peak_memory_mib)
    assert 300 <= ended.peak < 400
    assert peak_memory_mib(2**22 + 1) is None  # above every process id


def test_the_time_limit_ends_a_child_with_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.child.GRACE_S", 0.2)
    ended = run_python(tmp_path, STUBBORN, limit_s=2.0)
    assert ended.status is None
    assert "stopped after 2 s" in ended.cause
    assert_ended(int((tmp_path / "grandchild").read_text()))


def test_a_signal_ends_a_child_with_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.child.GRACE_S", 0.2)

    def interrupt(_process_id):
        if (tmp_path / "grandchild").exists():
            os.kill(os.getpid(), signal.SIGINT)

    with StopRequest() as stop, pytest.raises(StoppedError):
        run_python(tmp_path, STUBBORN, stop=stop, measure=interrupt)
    assert stop.number == signal.SIGINT
    assert_ended(int((tmp_path / "grandchild").read_text()))


def test_signals_are_as_before_after_a_stop_request():
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGTERM
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert signal.getsignal(signal.SIGTERM) is before


# --- a checkout with one small benchmark ----------------------------------------------------------

TRAIN = '''
"""Trains by arithmetic. What happens on the pretended GPU is in FAKE_*."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError
from harness.options import exit_with, leave, parse_command_line
from harness.run import Run
from harness.stop_rule import QualityTarget


@dataclass(frozen=True)
class Config:
    preset: str = "mini"
    quality_targets: tuple[QualityTarget, ...] = (QualityTarget("accuracy", 0.9),)
    max_epochs: int = 3
    epochs_to_target: float = 2
    checkpoint_interval_s: float = 1000
    batch_size: int = 4


PRESETS = {"mini": ("small", Config()), "reference": ("large", Config("reference", max_epochs=9))}


def train(config, options):
    on_gpu = options.device == "cuda"
    if options.precision == ("bf16" if on_gpu else "fp16") or (on_gpu and options.compile):
        raise UsageError(f"no {options.precision}|{options.compile} here; leave it out")
    if os.environ.get("FAKE_REFUSE") == options.device:
        raise UsageError("this device is not to be used; take another")
    if not options.synthetic_data and not (options.data_dir / "prepared").exists():
        raise UsageError("no data; fetch it")
    with Run("fake", config, options) as run:
        run.log.event("global_batch_size", config.batch_size)
        run.describe({"device": options.device, "num_processes": 1})
        run.start()
        run.log.event("train_samples", 100)
        run.log.event("eval_samples", 10)
        error = 1.0
        if on_gpu:
            if options.num_steps == 20 and os.environ.get("NVIDIA_TF32_OVERRIDE") != "0":
                error += 1e-3
            if options.num_steps == 40 and "TF_FORCE_GPU_ALLOW_GROWTH" not in os.environ:
                os.environ["FAKE_PEAK_MIB"] = "99999"
            error += float(os.environ.get("FAKE_GPU_ERROR", "1e-6"))
            Path(os.environ["FAKE_MEMORY"]).write_text(os.environ.get("FAKE_PEAK_MIB", "9000"))
            time.sleep(0.8 if options.num_steps == 40 else 0)
        if os.environ.get("ONEDNN_MAX_CPU_ISA"):
            error += 1e-7
        for epoch in range(1, config.max_epochs + 1):
            run.epoch_start(epoch)
            for step in range(25):
                time.sleep(1e-4)
                seed = 0 if os.environ.get("FAKE_NO_SEED") else options.seed
                run.record_losses([(1 + seed / 100) / (run.step + 1) * error], 4)
                if run.step == options.num_steps:
                    run.report_speed(25, 0.01)
                run.obey(run.stop_requested)
            run.epoch_stop(epoch)
            run.eval_start(epoch)
            if run.eval_stop(epoch, {"accuracy": 0.45 * epoch * (config.preset == "mini")}):
                break
    if on_gpu:
        Path(os.environ["FAKE_MEMORY"]).write_text("100")
    return run.exit_status


try:
    leave(train(*parse_command_line("fake", PRESETS)))
except UsageError as problem:
    sys.exit(exit_with(problem))
'''

RULES = """
[recipe]
global_batch_size = { value = "count", field = "batch_size" }
[data]
train_samples = { value = "count", fields = ["synthetic_data"] }
eval_samples = { value = "count", fields = ["synthetic_data"] }
[training]
steps_per_epoch = { samples = "train_samples", batch = "global_batch_size", rounding = "up" }
[quality]
accuracy = { minimum = 0, maximum = 1, better = "higher" }
[evaluation]
first_epoch = 1
every_epochs = 1
[modified]
fields = ["max_epochs"]
[presets.mini]
quality_target = { accuracy = 0.9 }
max_epochs = 3
global_batch_size = 4
train_samples = 100
eval_samples = 10
"""

SMI = """#!/bin/sh
case "$*" in
  *--id=7*) exit 6 ;;
  *--list-gpus*) echo "GPU 0: Pretended P100 (UUID: GPU-0)" ;;
  *memory.used*) cat "$FAKE_MEMORY" ;;
  *query-gpu=name,*,*,*) echo "Pretended P100, 1.0, 1 MiB, 6.0" ;;
  *query-gpu=name*) echo "Pretended P100" ;;
  *query-gpu=driver_version*) echo 1.0 ;;
  *query-gpu=compute_cap*) echo 6.0 ;;
esac
"""


def write_script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A copy of the suite with the one benchmark `fake`; no GPU is pretended yet."""
    root = tmp_path / "a clone"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "harness", root / "harness", ignore=ignore)
    shutil.copytree(ROOT / "tools", root / "tools", ignore=ignore)
    shutil.copy2(ROOT / "gpu_acceptance.sh", root)
    write_script(
        root / "fake/download_dataset.sh",
        '#!/bin/sh\n[ -z "$FAKE_OFFLINE" ] || { echo "error: no network; go on-line"; exit 1; }\n'
        'mkdir -p "$(dirname "$0")/../data/fake/mini/prepared"\n',
    )
    write_script(root / "fake/verify_dataset.sh", "#!/bin/sh\necho OK: 1 files\n")
    shutil.copy2(ROOT / "recommendation/run_and_time.sh", root / "fake")
    script = root / "fake/run_and_time.sh"
    script.write_text(script.read_text().replace("recommendation", "fake"))
    (root / "fake/train.py").write_text(TRAIN)
    (root / "fake/rules.toml").write_text(RULES)
    (tmp_path / "memory").write_text("100")
    write_script(tmp_path / "bin/nvidia-smi", "#!/bin/sh\nexit 9\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_MEMORY", str(tmp_path / "memory"))
    monkeypatch.setenv("PYTHON", sys.executable)
    for name in ("RESULTS_DIR", "DATA_DIR", "NUM_GPUS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(acceptance_checks, "REPOSITORY", root)
    return root


@pytest.fixture
def with_gpu(clone, tmp_path):
    write_script(tmp_path / "bin/nvidia-smi", SMI)
    return clone


def trial(root, gpu="0"):
    return Trial("fake", root / "results/acceptance/now", root / "results", gpu, StopRequest())


def accept(root, *arguments, **environment):
    return subprocess.run(
        [root / "gpu_acceptance.sh", *arguments],
        env=os.environ | environment,
        cwd=root.parent,
        capture_output=True,
        text=True,
        timeout=1200,
    )


def only_record(root):
    (path,) = root.glob("results/acceptance/*/acceptance.json")
    return json.loads(path.read_text())


def test_children_see_the_one_gpu_and_no_unfinished_run(with_gpu, monkeypatch):
    monkeypatch.setenv("RESUME", "1")
    monkeypatch.setenv("PRESET", "reference")
    one = trial(with_gpu, gpu="3")
    script = "import json, os; print(json.dumps(dict(os.environ)))"
    environment = json.loads(one.call("any", (sys.executable, "-c", script), 30).output.read_text())
    assert environment["CUDA_VISIBLE_DEVICES"] == "3"
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert (environment["NUM_GPUS"], environment["PRESET"]) == ("1", "mini")
    assert "RESUME" not in environment


# --- parity ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_parity_passes_with_rounding_differences(with_gpu):
    check = check_parity(trial(with_gpu), made_up=True)
    assert check.result == "PASS", check.text
    assert check.figures["largest_relative_difference"] == pytest.approx(1e-6, rel=1e-3)
    assert check.figures["cpu_noise"] == pytest.approx([1e-7] * 20, rel=1e-3)
    assert check.figures["allowed"][0] == 1e-5
    assert check.figures["other_seed_seen_at_step"] == 1
    assert "made-up data" in check.text
    assert "20 steps have a tolerance that tells" in check.text


@pytest.mark.slow
def test_parity_fails_where_the_gpu_loses_otherwise(with_gpu, monkeypatch):
    monkeypatch.setenv("FAKE_GPU_ERROR", "3e-5")  # less than a hundredth of another seed's
    check = check_parity(trial(with_gpu), made_up=True)
    assert check.result == "FAIL"
    assert "step 1 differs by 3.0e-05, more than allowed" in check.text


@pytest.mark.slow
def test_parity_fails_where_another_seed_would_pass(with_gpu, monkeypatch):
    monkeypatch.setenv("FAKE_NO_SEED", "1")
    check = check_parity(trial(with_gpu), made_up=True)
    assert check.result == "FAIL"
    assert "ANOTHER SEED PASSES" in check.text


def test_parity_fails_where_the_device_is_refused(with_gpu, monkeypatch):
    monkeypatch.setenv("FAKE_REFUSE", "cpu")
    with pytest.raises(FailedError, match="this device is not to be used"):
        check_parity(trial(with_gpu), made_up=True)


@pytest.mark.slow
def test_a_self_test_asks_for_bitwise_equal_losses(clone):
    check = check_parity(trial(clone, gpu=None), made_up=True)
    assert check.result == "PASS"
    assert check.figures["allowed"] == [0.0] * 20
    train = clone / "fake/train.py"
    train.write_text(TRAIN.replace("error = 1.0", "error = 1 + 1e-15 * (time.time_ns() % 1000)"))
    again = trial(clone, gpu=None)
    again.folder = again.folder.with_name("again")
    assert check_parity(again, made_up=True).result == "FAIL"


# --- memory and throughput ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peak_mib", "result", "text"),
    [(16_380, "PASS", "0 MiB left"), (16_381, "FAIL", "1 MiB too much")],
)
def test_peak_memory_is_judged_without_what_was_in_use_before(
    with_gpu, monkeypatch, peak_mib, result, text
):
    monkeypatch.setenv("FAKE_PEAK_MIB", str(peak_mib))
    check = check_memory(trial(with_gpu))
    assert (check.result, text in check.text) == (result, True), check.text
    assert check.figures == {
        "peak_mib": peak_mib - 100,
        "before_mib": 100,
        "limit_mib": 16_280,
    }
    (config,) = with_gpu.glob("results/**/memory/**/config.json")
    assert "/reference/" in str(config)


def test_peak_memory_is_not_judged_where_nvidia_smi_does_not_tell(with_gpu, tmp_path):
    assert gpu_memory_mib("0") == 100
    (tmp_path / "memory").write_text("[N/A]")
    assert gpu_memory_mib("0") is None
    with pytest.raises(NotDoneError, match=r"memory\.used"):
        check_memory(trial(with_gpu))


def test_peak_memory_of_a_cpu_is_not_judged(clone):
    check = check_memory(trial(clone, gpu=None))
    assert check.result == "self-test"
    assert check.figures["peak_resident_mib"] > 10


def test_throughput_is_the_pace_that_num_steps_measures(with_gpu):
    check = measure_throughput(trial(with_gpu), "fp32")
    assert check.result == "measured"
    (record,) = with_gpu.glob("results/**/throughput-fp32/**/run.json")
    record = json.loads(record.read_text())
    assert check.figures == record["speed"]
    assert record["num_steps"] == 100
    assert record["preset"] == "reference"


def test_what_training_refuses_is_listed(with_gpu):
    check = measure_throughput(trial(with_gpu), "bf16", "--compile")
    assert (check.result, check.text) == ("refused", "no bf16|True here; leave it out")


def test_float32_may_not_be_refused(with_gpu, monkeypatch):
    monkeypatch.setenv("FAKE_REFUSE", "cuda")
    with pytest.raises(RefusedError):
        measure_throughput(trial(with_gpu), "fp32")


# --- data and record ------------------------------------------------------------------------------


def test_a_record_passes_the_checker_and_stands_in_the_report(with_gpu):
    one = trial(with_gpu)
    data = get_data(one)
    check = train_record(one, data, None)
    assert check.result == "PASS", check.text
    assert "accuracy 0.9000" in check.text
    (record,), unreadable = read_records(with_gpu / "results")
    assert (record.status, unreadable) == ("reached", [])
    assert (one.folder / "records/fake/run.json").is_file()
    (record,), _ = read_records(one.folder / "records")
    assert record.status == "reached"


def test_a_record_fails_with_the_target(with_gpu):
    train = with_gpu / "fake/train.py"
    train.write_text(TRAIN.replace("0.45 * epoch", "0.1 * epoch"))
    one = trial(with_gpu)
    with pytest.raises(FailedError, match="ABORTED,fake"):
        train_record(one, get_data(one), None)


def test_a_record_fails_with_a_log_that_breaks_the_rules(with_gpu):
    rules = with_gpu / "fake/rules.toml"
    rules.write_text(RULES.replace("train_samples = 100", "train_samples = 99"))
    one = trial(with_gpu)
    with pytest.raises(FailedError, match=r"the log breaks the rules: .*train_samples"):
        train_record(one, get_data(one), None)


# --- the whole ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_gpu_is_accepted(with_gpu):
    run = accept(with_gpu)
    assert run.returncode == 0, run.stderr + run.stdout
    assert run.stdout.endswith("ACCEPTED on Pretended P100, driver 1.0, compute capability 6.0.\n")
    assert "[10/10] fake, record" in run.stderr
    record = only_record(with_gpu)
    results = {check["name"]: check["result"] for check in record["benchmarks"]["fake"]}
    assert results == {
        "data": "PASS",
        "parity": "PASS",
        "memory": "PASS",
        "throughput fp32": "measured",
        "throughput fp32 --compile": "refused",
        "throughput bf16": "refused",
        "throughput bf16 --compile": "refused",
        "throughput fp16": "measured",
        "throughput fp16 --compile": "refused",
        "record": "PASS",
    }
    assert record["passed"]
    assert not record["is_self_test"]
    assert record["system"]["gpus"][0]["name"] == "Pretended P100"
    (summary,) = with_gpu.glob("results/acceptance/*/summary.md")
    assert summary.read_text() == run.stdout
    assert r"no bf16\|False here" in run.stdout  # a cell of the table
    # Only the record counts as a run of this machine.
    assert len(read_records(with_gpu / "results")[0]) == 1


@pytest.mark.slow
def test_without_network_a_self_test_is_not_complete(clone):
    run = accept(clone, FAKE_OFFLINE="1")
    assert run.returncode == 1
    assert "SELF-TEST did not pass: 0 failed, 2 not done, 0 not reached." in run.stdout
    checks = {check["name"]: check for check in only_record(clone)["benchmarks"]["fake"]}
    assert checks["data"]["text"] == "download: no network; go on-line"
    assert checks["parity"]["result"] == "PASS"
    assert checks["parity"]["figures"]["made_up_data"]
    assert checks["record"]["result"] == "not done"


@pytest.mark.slow
def test_one_failed_check_fails_the_whole_and_the_rest_goes_on(with_gpu):
    run = accept(with_gpu, "fake", FAKE_PEAK_MIB="20000")
    assert run.returncode == 1
    assert run.stdout.endswith("NOT ACCEPTED: 1 failed, 0 not done, 0 not reached.\n")


@pytest.mark.slow
def test_num_gpus_0_makes_a_self_test_of_a_gpu_machine(with_gpu):
    run = accept(with_gpu, "all", NUM_GPUS="0")
    assert run.returncode == 0, run.stderr
    assert "SELF-TEST passed. No GPU was tested" in run.stdout
    assert (with_gpu.parent / "memory").read_text() == "100"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_and_leaves_what_was_found(with_gpu, number):
    train = with_gpu / "fake/train.py"
    train.write_text(
        TRAIN.replace(
            "        for epoch in",
            '        Path("pid").write_text(str(os.getpid()))\n        for epoch in',
        ).replace("time.sleep(1e-4)", "time.sleep(1)")
    )
    process = subprocess.Popen(
        [with_gpu / "gpu_acceptance.sh"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    wait_for(with_gpu / "pid")
    process.send_signal(number)
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 128 + number
    assert f"STOPPED by signal {int(number)}: 0 failed, 0 not done, 9 not reached." in output
    assert_ended(int((with_gpu / "pid").read_text()))
    assert [check["name"] for check in only_record(with_gpu)["benchmarks"]["fake"]] == ["data"]


@pytest.mark.parametrize(
    ("arguments", "environment", "parts"),
    [
        (["harness"], {}, ['"harness"', "choose from: fake"]),
        (["--steps"], {}, ['"--steps"', "choose from: fake"]),
        ([], {"CUDA_VISIBLE_DEVICES": "7"}, ["no GPU '7'", "CUDA_VISIBLE_DEVICES"]),
        ([], {"RESULTS_DIR": "/dev/null"}, ["cannot make /dev/null/acceptance/", "RESULTS_DIR"]),
    ],
)
def test_wrong_usage_is_one_line(with_gpu, arguments, environment, parts):
    run = accept(with_gpu, *arguments, **environment)
    assert (run.returncode, run.stdout) == (2, "")
    line = run.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    assert "; " in line
    assert all(part in line for part in parts), line
    assert not (with_gpu / "results").exists()


def test_the_python_side_refuses_an_unknown_benchmark_too(clone):
    """As in an image, where no shell script stands before it."""
    run = subprocess.run(
        [sys.executable, "-m", "harness", "acceptance", "nosuch"],
        cwd=clone,
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == 'error: there is no benchmark "nosuch" here; choose from: fake\n'


def test_help_is_the_scripts_header(clone):
    run = accept(clone, "--help")
    assert run.returncode == 0
    assert run.stdout.startswith("Accepts the suite on this machine's GPU")
    assert "set -e" not in run.stdout


# --- a real benchmark -----------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_self_test_of_recommendation(tmp_path):
    """Everything for real but the GPU, on this machine's CPU."""
    environment = {"NUM_GPUS": "0", "RESULTS_DIR": str(tmp_path), "PYTHON": sys.executable}
    run = accept(ROOT, "recommendation", **environment)
    assert run.returncode == 0, run.stderr + run.stdout
    assert "SELF-TEST passed" in run.stdout
