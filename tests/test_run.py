"""The life cycle of a run without any framework: a small fake benchmark trains by arithmetic."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.options import RunOptions
from harness.run import Run
from harness.run_log import SEAL_KEY, seal_value
from harness.stop_rule import QualityTarget


@dataclass(frozen=True)
class Config:
    """Just what the harness reads."""

    preset: str = "fake"
    quality_targets: tuple[QualityTarget, ...] = (QualityTarget("accuracy", 0.9),)
    max_epochs: int = 3
    epochs_to_target: float = 2
    checkpoint_interval_s: float = 1000
    learning_rate: float = 0.1


def train(results, config=None, qualities=(0.1, 0.5, 0.9, 0.95), loss=0.5, **options):
    """One run of a fake benchmark: four steps an epoch; returns the Run."""
    config = config or Config()
    with Run("fake", config, RunOptions(results_dir=results, **options)) as run:
        run.describe({"num_parameters": 1})
        first_epoch, num_done = 1, 0
        if run.resume_from:
            first_epoch = run.resume_from.position["epoch"]
            num_done = run.resume_from.position["step_in_epoch"]
        run.start()
        for epoch in range(first_epoch, config.max_epochs + 1):
            if not num_done:
                run.epoch_start(epoch)
            for step in range(num_done, 4):
                run.record_losses([loss / (run.step + 1)], 10)
                if run.stop_requested:
                    with run.checkpoint(epoch, step + 1, "bin") as file:
                        file.write(b"state")
                run.obey(run.stop_requested)
            num_done = 0
            run.epoch_stop(epoch)
            run.eval_start(epoch)
            if run.eval_stop(epoch, {"accuracy": qualities[epoch]}):
                break
            with run.checkpoint(epoch + 1, 0, "bin") as file:
                file.write(b"state")
    return run


def records(run):
    """The parsed lines of a run's log."""
    lines = (run.folder / "log.txt").read_text().splitlines()
    return [json.loads(line.removeprefix(":::MLLOG ")) for line in lines]


def keys(run):
    return [record["key"] for record in records(run)]


def test_reached(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("USER", "ada")
    run = train(tmp_path)
    assert run.exit_status == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("STARTING TIMING RUN AT ")
    assert out[-2].startswith("ENDING TIMING RUN AT ")
    start = out[0].removeprefix("STARTING TIMING RUN AT ")
    assert out[-1] == f"RESULT,fake,1,0,ada,{start}"
    assert out[1:-2] == (run.folder / "log.txt").read_text().splitlines()
    found = keys(run)
    order = ["init_start", "seed", "init_stop", "run_start", "epoch_start", "run_stop", SEAL_KEY]
    assert [found.index(key) for key in order] == sorted(found.index(key) for key in order)
    assert found[-1] == SEAL_KEY
    stop = next(record for record in records(run) if record["key"] == "run_stop")
    assert stop["metadata"]["status"] == "success"
    record = json.loads((run.folder / "run.json").read_text())
    assert record["status"] == "reached"
    assert record["evaluations"][-1]["quality"] == {"accuracy": 0.9}
    seconds = record["phase_seconds"]
    assert sum(seconds.values()) - seconds["init"] == pytest.approx(record["run_seconds"], abs=1e-3)


def test_seal_covers_every_line_before_it(tmp_path):
    run = train(tmp_path)
    lines = (run.folder / "log.txt").read_text().splitlines()
    assert records(run)[-1]["value"] == seal_value(lines[:-1])
    assert seal_value(lines[:-1]) != seal_value(lines[:-2])


def test_user_without_a_name_is_the_uid(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("USER", raising=False)
    train(tmp_path)
    assert capsys.readouterr().out.splitlines()[-1].split(",")[4] == str(os.getuid())


def test_missed(tmp_path, capsys):
    run = train(tmp_path, qualities=(0.1, 0.5, 0.8, 0.7))
    assert (run.exit_status, run.status) == (1, "missed")
    assert capsys.readouterr().out.splitlines()[-1] == "ABORTED,fake,1,0,0.8,0.9"
    stop = next(record for record in records(run) if record["key"] == "run_stop")
    assert stop["metadata"]["status"] == "aborted"


def test_nan_quality_does_not_end_the_run(tmp_path, capsys):
    run = train(tmp_path, qualities=(0, math.nan, math.nan, math.nan))
    assert run.status == "missed"
    assert capsys.readouterr().out.splitlines()[-1] == "ABORTED,fake,1,0,nan,0.9"
    json.loads((run.folder / "log.txt").read_text().splitlines()[-1].removeprefix(":::MLLOG "))


def test_two_targets_must_be_met_together(tmp_path, capsys):
    targets = (QualityTarget("bbox", 0.377), QualityTarget("segm", 0.339))
    config = Config(quality_targets=targets)
    with Run("fake", config, RunOptions(results_dir=tmp_path)) as run:
        run.start()
        for epoch, pair in enumerate([(0.4, 0.3), (0.3, 0.4), (0.377, 0.339)]):
            run.eval_start(epoch)
            reached = run.eval_stop(epoch, dict(zip(("bbox", "segm"), pair, strict=True)))
            assert reached == (epoch == 2)
    accuracies = [record for record in records(run) if record["key"] == "eval_accuracy"]
    assert [record["metadata"]["metric"] for record in accuracies] == ["bbox", "segm"] * 3
    assert capsys.readouterr().out.splitlines()[-1].startswith("RESULT,")


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_non_finite_loss_stops_at_its_step(tmp_path, capsys, loss):
    run = train(tmp_path, loss=loss)
    assert (run.exit_status, run.status, run.step) == (1, "non-finite", 1)
    captured = capsys.readouterr()
    assert f"the loss of step 1 is {loss}" in captured.err
    assert "Traceback" not in captured.err
    assert captured.out.splitlines()[-1] == "ABORTED,fake,1,0,none,0.9"


def test_a_crash_is_aborted_with_its_traceback(tmp_path, capsys):
    run = train(tmp_path, qualities=())
    assert (run.exit_status, run.status) == (1, "crashed")
    captured = capsys.readouterr()
    assert "Traceback" in captured.err
    assert captured.out.splitlines()[-1].startswith("ABORTED,fake,1,")
    assert keys(run)[-1] == SEAL_KEY


def test_num_steps_ends_with_neither_result_nor_aborted(tmp_path, capsys):
    run = train(tmp_path, num_steps=6)
    assert (run.exit_status, run.status, run.step) == (0, "num_steps", 6)
    out = capsys.readouterr().out
    assert "RESULT" not in out
    assert "ABORTED" not in out


def test_usage_error_before_start_leaves_nothing(tmp_path, capsys):
    with pytest.raises(UsageError), Run("fake", Config(), RunOptions(results_dir=tmp_path)):
        raise UsageError("the data is missing; download it")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_unwritable_results_folder_is_a_usage_error(tmp_path):
    (tmp_path / "results").write_text("a file, not a folder")
    with pytest.raises(UsageError, match=r"cannot write to .*results"):
        train(tmp_path / "results")


def test_seconds_are_floored_from_run_start(tmp_path, capsys):
    with Run("fake", Config(), RunOptions(results_dir=tmp_path)) as run:
        run.start()
        run.clock._run_start_s -= 2.9
        run.eval_start(0)
        run.eval_stop(0, {"accuracy": 1.0})
        run.clock._run_start_s -= 10  # what comes after run_stop does not count
    assert capsys.readouterr().out.splitlines()[-1].split(",")[3] == "2"


def test_runs_never_share_a_folder(tmp_path):
    folders = {train(tmp_path).folder for _ in range(3)}
    assert len(folders) == 3
    assert {folder.parent for folder in folders} == {tmp_path / "fake" / "fake" / "seed-1"}


def interrupt(results, **options):
    """A run that gets SIGTERM in its sixth step."""
    original = Run.record_losses

    def record_losses(self, losses, num_examples):
        original(self, losses, num_examples)
        if self.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
            while not self.stop_requested:
                pass

    Run.record_losses = record_losses
    try:
        run = train(results, **options)
    finally:
        Run.record_losses = original
    return run


def test_interrupted_and_resumed(tmp_path, capsys):
    whole = train(tmp_path / "whole")
    capsys.readouterr()
    first = interrupt(tmp_path)
    assert first.exit_status == 128 + signal.SIGTERM
    out = capsys.readouterr().out
    assert "RESULT" not in out
    assert "ABORTED" not in out
    assert keys(first)[-2:] == ["interrupted", SEAL_KEY]
    assert "run_stop" not in keys(first)

    second = train(tmp_path, resume=True)
    assert second.folder == first.folder
    assert second.exit_status == 0
    found = keys(second)
    for key in ("run_start", "run_stop", "init_start", "resumed"):
        assert found.count(key) == 1
    assert "interrupted" not in found
    assert "interrupted" in (second.folder / "log.tail-1.txt").read_text()
    assert (second.folder / "losses.csv").read_text() == (whole.folder / "losses.csv").read_text()
    # The captured stdout of the resumed attempt is a whole log by itself.
    out = capsys.readouterr().out.splitlines()
    assert out[1:-2] == (second.folder / "log.txt").read_text().splitlines()
    record = json.loads((second.folder / "run.json").read_text())
    assert record["num_resumes"] == 1
    assert record["phase_seconds"]["downtime"] > 0
    means = [r["value"]["train_loss"] for r in records(second) if "train_loss" in str(r["value"])]
    expected = [r["value"]["train_loss"] for r in records(whole) if "train_loss" in str(r["value"])]
    assert means == expected


def test_resume_names_the_field_that_differs(tmp_path):
    interrupt(tmp_path)
    with pytest.raises(UsageError, match=r"learning_rate was 0\.1 and is 0\.2"):
        train(tmp_path, Config(learning_rate=0.2), resume=True)
    with pytest.raises(UsageError, match="precision was fp32 and is bf16"):
        train(tmp_path, resume=True, precision="bf16")


def test_resume_clears_away_what_a_kill_left(tmp_path):
    first = interrupt(tmp_path)
    part = first.folder / "checkpoints" / "step-000000009.bin.tmp"
    part.write_bytes(b"half")
    assert train(tmp_path, resume=True).folder == first.folder
    assert not part.exists()


def test_resume_without_an_unfinished_run_starts_anew(tmp_path, capsys):
    assert train(tmp_path, resume=True).exit_status == 0
    assert "no unfinished run" in capsys.readouterr().err
    done = train(tmp_path, resume=True)  # a finished run is not gone on with
    assert done.resume_from is None


def test_resume_without_a_checkpoint_starts_anew(tmp_path, capsys):
    first = interrupt(tmp_path)
    for path in (first.folder / "checkpoints").iterdir():
        path.unlink()
    second = train(tmp_path, resume=True)
    assert second.folder != first.folder
    assert "no whole checkpoint: starting anew" in capsys.readouterr().err
    assert second.exit_status == 0


def test_a_run_that_is_still_going_on_is_not_resumed(tmp_path):
    with Run("fake", Config(), RunOptions(results_dir=tmp_path)) as run:
        run.describe({})
        run.start()
        with pytest.raises(UsageError, match="still running"):
            train(tmp_path, resume=True)
        run.eval_start(0)
        run.eval_stop(0, {"accuracy": 1.0})


def test_only_the_first_process_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with Run("fake", Config(), RunOptions(results_dir=tmp_path)) as run:
        run.describe({})
        run.start()
        run.record_losses([0.5], 10)
        run.eval_start(0)
        assert run.eval_stop(0, {"accuracy": 1.0})
    assert run.exit_status == 0
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
    assert list(tmp_path.iterdir()) == []


def test_pace_leaves_out_what_came_before_the_steps(tmp_path, capsys, monkeypatch):
    """Loading took 100 s, then each step 0.01 s."""
    now_s = 0.0
    monkeypatch.setattr("harness.run.time.monotonic", lambda: now_s)
    with Run("fake", Config(), RunOptions(results_dir=tmp_path, num_steps=5)) as run:
        run.start()
        now_s += 100
        run.record_losses([0.5], 10)
        for _ in range(2):
            now_s += 0.02
            run.record_losses([0.5, 0.5], 20)
        run.report_speed(steps_per_epoch=100, evaluation_s=1.0)
        run.obey(stop=False)
    assert "1,000 examples/s, 10.00 ms a step" in capsys.readouterr().err
    speed = json.loads((run.folder / "run.json").read_text())["speed"]
    assert speed["examples_per_s"] == pytest.approx(1000)
    assert speed["step_s"] == pytest.approx(0.01)
    assert speed["epoch_s"] == pytest.approx(100 * 0.01 + 1.0)
    assert speed["seconds_to_target"] == pytest.approx(2 * 2.0)


def test_a_reached_target_survives_a_deadline(tmp_path, capsys):
    """The signal's time runs out while the last checkpoint is being written."""
    with Run("fake", Config(), RunOptions(results_dir=tmp_path)) as run:
        run.start()
        run.eval_start(0)
        assert run.eval_stop(0, {"accuracy": 1.0})
        assert run._close_on_deadline(15) == 0
        out = capsys.readouterr().out
        assert "RESULT,fake,1," in out
        assert keys(run)[-1] == SEAL_KEY
        assert "interrupted" not in keys(run)


def test_a_deadline_before_the_start_leaves_nothing(tmp_path):
    run = Run("fake", Config(), RunOptions(results_dir=tmp_path))
    run.__enter__()
    assert run._close_on_deadline(15) == 128 + 15
    run.stop_signal.close()
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_file_system_keeps_its_traceback(tmp_path, capsys):
    """Only a full disk is explained by one line."""
    with Run("fake", Config(), RunOptions(results_dir=tmp_path)) as run:
        run.start()
        (tmp_path / "never made").read_text()
    assert run.status == "crashed"
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_long_step_is_ended_at_the_deadline(tmp_path, number):
    """One operation that takes a minute: the log is closed and names the checkpoint's step."""
    script = textwrap.dedent(
        """
        import hashlib, os, signal, sys, threading
        sys.path[:0] = ["tests", "."]
        import harness.signals
        harness.signals.StopSignal.__init__.__defaults__ = (0.5,)
        from pathlib import Path
        from test_run import Config, Run, RunOptions
        with Run("fake", Config(), RunOptions(results_dir=Path(sys.argv[1]))) as run:
            run.describe({})
            run.start()
            run.record_losses([0.5], 1)
            with run.checkpoint(1, 1, "bin") as file:
                file.write(b"state")
            run.record_losses([0.5], 1)
            threading.Timer(0.3, os.kill, (os.getpid(), int(sys.argv[2]))).start()
            hashlib.pbkdf2_hmac("sha256", b"", b"", 60_000_000)  # one long call without the GIL
        """
    )
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-c", script, str(tmp_path), str(int(number))]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=30)
    assert done.returncode == 128 + number, done.stderr
    assert "step 1 is saved" in done.stderr
    (log,) = tmp_path.glob("**/log.txt")
    last = [json.loads(line.removeprefix(":::MLLOG ")) for line in log.read_text().splitlines()]
    assert [record["key"] for record in last[-2:]] == ["interrupted", SEAL_KEY]
    assert last[-2]["metadata"]["checkpoint_step"] == 1
