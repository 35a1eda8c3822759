"""The command line that all benchmarks share, and the folders that it finds."""

import dataclasses
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.options import REPOSITORY, RunOptions, leave, parse_command_line
from recommendation.config import MINI, PRESETS, REFERENCE


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in ("DATA_DIR", "RESULTS_DIR", "RESUME", "STATUS_FILE", "RANK"):
        monkeypatch.delenv(name, raising=False)


def parse(*arguments):
    return parse_command_line("recommendation", PRESETS, list(arguments))


def test_a_preset_alone():
    config, options = parse("mini")
    assert config == MINI
    folders = {"data_dir": REPOSITORY / "data/recommendation/mini", "results_dir": "results"}
    assert options.data_dir == folders["data_dir"]
    assert options.results_dir == REPOSITORY / "results"
    assert options.modified == ()
    assert dataclasses.replace(options, data_dir=Path(), results_dir=Path()) == RunOptions()


def test_environment_sets_the_defaults(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA_DIR", "my data")
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path / "results"))
    monkeypatch.setenv("RESUME", "1")
    _, options = parse("mini")
    assert options.data_dir == tmp_path / "my data"
    assert options.results_dir == tmp_path / "results"
    assert options.resume
    _, options = parse("mini", "--data-dir", "/elsewhere", "--no-resume")
    assert options.data_dir == Path("/elsewhere")
    assert not options.resume


def test_every_changed_field_is_named():
    config, options = parse("reference", "--learning-rate", "1e-3", "--batch-size", "4096")
    assert (config.learning_rate, config.batch_size) == (1e-3, 4096)
    assert options.modified == ("batch_size", "learning_rate")
    assert parse("mini", "--target", "0.1")[1].modified == ("quality_targets",)
    assert parse("mini", "--synthetic-data")[1].modified == ("synthetic_data",)
    assert parse("mini", "--num-steps", "5")[1].modified == ("num_steps",)
    # How and where it runs is not the science.
    free = ("--precision", "bf16", "--compile", "--seed", "7", "--checkpoint-interval-s", "5")
    assert parse("mini", *free)[1].modified == ()


def test_target():
    config, _ = parse("mini", "--target", "0.25")
    (target,) = config.quality_targets
    assert (target.name, target.value) == ("hr_at_10", 0.25)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "reference, mini"),
        (["small"], "'small'"),
        (["mini", "--sead", "1"], "--sead"),
        (["mini", "--seed", "x"], "--seed"),
        (["mini", "--precision", "fp8"], "fp8"),
        (["mini", "--num-steps", "-1"], "-1"),
        (["mini", "--num-workers", "-1"], "-1"),
        (["mini", "mini"], "mini"),
    ],
)
def test_what_is_not_understood_is_one_line(arguments, word):
    with pytest.raises(UsageError) as error:
        parse(*arguments)
    assert word in str(error.value)
    assert "\n" not in str(error.value)
    assert "│" not in str(error.value)


def test_help_exits_with_0(capsys):
    with pytest.raises(SystemExit) as end:
        parse("mini", "--help")
    assert not end.value.code
    text = capsys.readouterr().out
    for field in dataclasses.fields(RunOptions):
        if field.name != "modified":
            assert f"--{field.name.replace('_', '-')}" in text


def test_every_field_has_a_docstring():
    """Tyro shows them as the help: a field without one would be bare."""
    for preset in PRESETS:
        with pytest.raises(SystemExit):
            parse(preset, "--help")
    source = (REPOSITORY / "recommendation" / "config.py").read_text()
    for field in dataclasses.fields(REFERENCE):
        _, _, rest = source.partition(f"    {field.name}: ")
        assert '    """' in rest.split("\n    \n")[0][:400], field.name


def test_status_file_for_torchrun(monkeypatch, tmp_path):
    with pytest.raises(SystemExit) as end:
        leave(143)
    assert end.value.code == 143
    monkeypatch.setenv("STATUS_FILE", str(tmp_path / "status"))
    with pytest.raises(SystemExit) as end:
        leave(143)
    assert end.value.code == 0
    assert (tmp_path / "status").read_text() == "143\n"
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as end:
        leave(2)
    assert end.value.code == 2  # so that torchrun ends the other processes
    assert (tmp_path / "status").read_text() == "143\n"
