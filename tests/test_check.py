"""harness/check.py against real logs, and against every way of spoiling them by one line.

The logs are made once, by training the tiny preset. A spoilt log is judged as it is, where the
seal must show, and with its seal made anew, where the other rules must.
"""

import copy
import importlib
import inspect
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tomllib
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlperf_logging.compliance_checker import mlp_parser

from harness import __main__ as harness_main
from harness import check, convergence
from harness.log_file import KINDS, Violation
from harness.run import RESULT_TIME_FORMAT
from harness.run_log import PREFIX, SEAL_KEY, seal_value

ROOT = Path(__file__).parent.parent
DAY_MS = 86_400_000
SEALED_ONLY = {
    "*.metadata.file",  # where in the code a record was written
    "*.metadata.lineno",
    "init_start.time_ms",  # back in time: nothing lies before it
    "seed.value",  # a captured stdout has it twice
    "tracked_stats.value.train_loss",
    "tracked_stats.value.train_examples_per_s",
    "tracked_stats.value.ndcg_at_10",  # a quality without a target
    "phase_seconds.value.init",  # before the clock runs
}
"""Values that no other value contradicts: only the seal shows that they were edited. So it is with
a time_ms that stays between those of its neighbours."""

Edited = tuple[str, int, list[str]]
"""What was edited, the number of its line, and the lines of the log with it."""


# --- Real logs ------------------------------------------------------------------------------


def start(results: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "recommendation.train", "tiny", "--device", "cpu", *options]
    env = {**os.environ, "RESULTS_DIR": str(results), "USER": "ada", **environment}
    env.pop("RESUME", None)
    return subprocess.Popen(
        command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(run: subprocess.Popen[str], status: int, head: str = "") -> str:
    output, errors = run.communicate(timeout=120)
    assert run.returncode == status, errors
    return head + output


@pytest.fixture(scope="module")
def stdouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Stdout of a run of each kind; each has its log.txt below the folder of its name."""
    folder = tmp_path_factory.mktemp("logs")
    # An epoch of 32 examples a step takes a second: long enough for a signal within the first.
    slow = ("--batch-size", "32")
    interrupted = start(folder / "interrupted", *slow)
    success = start(folder / "success", TZ="Asia/Kolkata")  # five and a half hours from UTC
    assert interrupted.stdout
    head = ""
    while '"epoch_start"' not in head:
        head += (line := interrupted.stdout.readline())
        assert line, head
    interrupted.send_signal(signal.SIGTERM)
    found = {
        "interrupted": finish(interrupted, 128 + signal.SIGTERM, head),
        "success": finish(success, 0),
    }
    shutil.copytree(folder / "interrupted", folder / "resumed")
    aborted = start(folder / "aborted", "--target", "0.99", "--max-epochs", "1", "--seed", "2")
    resumed = start(folder / "resumed", *slow, "--resume")
    found["aborted"] = finish(aborted, 1)
    num_steps = start(folder / "num_steps", "--num-steps", "5", TZ="America/New_York")
    found["resumed"] = finish(resumed, 0)
    found["num_steps"] = finish(num_steps, 0)
    return found


KIND_NAMES = ("success", "aborted", "num_steps", "interrupted", "resumed")


@pytest.fixture(scope="module")
def logs(stdouts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The log.txt of each kind of run."""
    folder = tmp_path_factory.getbasetemp() / "logs0"
    return {name: next((folder / name).rglob("log.txt")) for name in stdouts}


@pytest.fixture(scope="module")
def lines(logs: dict[str, Path]) -> list[str]:
    """The lines of the successful run's log."""
    return logs["success"].read_text().splitlines()


def judge(lines: list[str]) -> list[Violation]:
    return check.judge("".join(line + "\n" for line in lines).encode())[0]


def load(line: str) -> dict[str, typing.Any]:
    return json.loads(line.removeprefix(PREFIX))


def dump(record: dict[str, typing.Any]) -> str:
    return PREFIX + json.dumps(record)


def sealed(lines: list[str], seal: str) -> list[str]:
    """The lines of a log and its last record, made anew."""
    record = load(seal)
    record["value"] = seal_value(lines)
    return [*lines, dump(record)]


def rewrite(log: Path, edit: Callable[[list[dict[str, typing.Any]]], None]) -> list[str]:
    """A log whose records `edit` has changed, with a good seal."""
    lines = log.read_text().splitlines()
    records = [load(line) for line in lines[:-1]]
    edit(records)
    return sealed([dump(record) for record in records], lines[-1])


def of(records: list[dict[str, typing.Any]], key: str) -> list[dict[str, typing.Any]]:
    return [record for record in records if record["key"] == key]


def rules_broken(violations: list[Violation]) -> set[str]:
    return {violation.rule for violation in violations}


@pytest.mark.parametrize("name", KIND_NAMES)
def test_real_logs_are_right(name, logs, stdouts, tmp_path, capsys):
    captured = tmp_path / "stdout.txt"
    captured.write_text(stdouts[name])
    log = logs[name]
    assert check.main([str(log), str(log.parent), str(captured)]) == 0
    ending = {
        "resumed": "success, resumed once, modified: batch_size",
        "interrupted": "interrupted, modified: batch_size",
        "aborted": "aborted, modified: quality_targets, max_epochs",
        "num_steps": "num_steps, modified: num_steps",
    }.get(name, name)
    num_records = len(log.read_text().splitlines())
    assert capsys.readouterr().out.splitlines() == [
        f"OK: {path}: {num_records} records, {ending}" for path in (log, log, captured)
    ]


@pytest.mark.parametrize("name", KIND_NAMES)
def test_the_official_parser_reads_every_log(name, logs, stdouts, tmp_path):
    captured = tmp_path / "stdout.txt"
    captured.write_text(stdouts[name])
    keys = [load(line)["key"] for line in logs[name].read_text().splitlines()]
    # Every version that reads records as JSON: all but 0.6.0.
    source = inspect.getsource(mlp_parser.parse_file)
    versions = [text for text in source.split("'") if text.count(".") == 2 and text > "0.6.0"]
    assert len(versions) > 10
    for version in versions:
        for path in (logs[name], captured):
            parsed, failed = mlp_parser.parse_file(str(path), ruleset=version)
            assert failed == []
            assert [line.key for line in parsed] == keys


# --- Every line of a log, spoilt ------------------------------------------------------------


def assert_named(violations: list[Violation], rule: str, number: int, text: str = "") -> None:
    """A violation of `rule` names this line, and says `text`."""
    named = [violation for violation in violations if violation.rule == rule]
    assert any(
        violation.line == number and text in violation.expected + violation.found
        for violation in named
    ), (rule, number, text, violations)


def test_a_dropped_line_is_named(lines):
    for index, line in enumerate(lines):
        key = load(line)["key"]
        rest = lines[:index] + lines[index + 1 :]
        if key == SEAL_KEY:
            assert_named(judge(rest), "seal", len(rest), "not whole")
            assert_named(judge(rest), "order", len(rest), key)
            continue
        assert_named(judge(rest), "seal", index + 1, f"line {index + 1} of the log")
        violations = judge(sealed(rest[:-1], lines[-1]))
        assert_named(violations, "order", index + 1, key)
        assert "seal" not in rules_broken(violations)


def test_a_doubled_line_is_named(lines):
    for index, line in enumerate(lines):
        key = load(line)["key"]
        doubled = [*lines[: index + 1], *lines[index:]]
        assert_named(judge(doubled), "order", index + 2, key)
        if key == SEAL_KEY:
            assert_named(judge(doubled), "seal", index + 1)
            continue
        assert_named(judge(doubled), "seal", index + 2, "doubled")
        violations = judge(sealed(doubled[:-1], lines[-1]))
        assert_named(violations, "order", index + 2, key)
        assert "seal" not in rules_broken(violations)


def test_swapped_lines_are_named(lines):
    for index in range(len(lines) - 1):
        first, second = lines[index : index + 2]
        swapped = [*lines[:index], second, first, *lines[index + 2 :]]
        found = {violation.line for violation in judge(swapped) if violation.rule == "seal"}
        assert found & {index + 1, index + 2}, index
        if index + 1 == len(lines) - 1:
            continue  # the seal itself was moved
        violations = judge(sealed(swapped[:-1], lines[-1]))
        assert "seal" not in rules_broken(violations)
        found = {violation.line for violation in violations if violation.rule == "order"}
        assert found & {index + 1, index + 2, index + 3}, index


def leaves(value: typing.Any, name: str) -> Iterator[tuple[str, list[typing.Any]]]:
    """Each place within a value, with what it may be edited to."""
    if isinstance(value, dict):
        for key in value:
            yield f"{name}.-{key}", [{other: value[other] for other in value if other != key}]
            for place, edits in leaves(value[key], f"{name}.{key}"):
                yield place, [{**value, key: edit} for edit in edits]
    elif isinstance(value, list):
        yield name, [[*value, "x"], value[:-1]] if value else [["x"]]
        for index, item in enumerate(value):
            for place, edits in leaves(item, f"{name}.{index}"):
                yield place, [[*value[:index], edit, *value[index + 1 :]] for edit in edits]
    elif value is None:
        yield name, [0]
    elif isinstance(value, bool):
        yield name, [not value]
    elif isinstance(value, str):
        yield name, [value + "x", "", None]
    elif isinstance(value, int):
        yield name, [value + 1, -1 - value, str(value), float(value)]
    else:
        yield name, [value + 0.01, -0.01 - value, str(value)]


def edits(lines: list[str]) -> Iterator[Edited]:
    """Every value of every record, edited."""
    for index, line in enumerate(lines):
        record = load(line)
        for field, value in record.items():
            if field == "time_ms":
                changes = [("time_ms", [value - DAY_MS]), ("time_ms+", [value + DAY_MS])]
            elif record["key"] == SEAL_KEY and field == "value":
                changes = [(name, new) for name, new in leaves(value, field) if "." in name]
            else:
                changes = list(leaves(value, field))
            for name, values in changes:
                for edit in values:
                    edited = dump({**record, field: edit})
                    if edited == line:
                        continue
                    place = f"{record['key']}.{name}"
                    yield place, index + 1, [*lines[:index], edited, *lines[index + 1 :]]


def test_an_edited_value_breaks_the_seal(lines):
    own = {f"{SEAL_KEY}.metadata.file", f"{SEAL_KEY}.metadata.lineno"}  # all that it cannot cover
    num_edits = 0
    for place, number, edited in edits(lines):
        violations = judge(edited)
        if number < len(lines):
            assert_named(violations, "seal", number, "edited")
        elif place in own and not violations:
            own_value = load(edited[-1])["metadata"]
            assert own_value["file"] and own_value["lineno"] >= 0
        else:
            assert any(violation.line == number for violation in violations), place
        num_edits += 1
    assert num_edits > 20 * len(lines)


def test_an_edited_value_contradicts_another(lines):
    """With the seal made anew, all but a few values are still held by some other rule."""
    unseen = set()
    for place, number, edited in edits(lines):
        if number == len(lines):
            continue  # the seal's own values: above
        violations = judge(sealed(edited[:-1], lines[-1]))
        assert "seal" not in rules_broken(violations)
        if violations:
            near = min(abs(violation.line - number) for violation in violations)
            assert near <= 1, (place, violations)
        else:
            key, _, rest = place.partition(".")
            unseen.add(f"*.{rest}" if rest.startswith("metadata.") else f"{key}.{rest}")
    assert unseen == SEALED_ONLY


@pytest.mark.parametrize("preset", ["mini", "reference", "ml-1m"])
def test_another_preset_does_not_fit(preset, logs):
    lines = rewrite(logs["success"], lambda r: of(r, "preset")[0].update(value=preset))
    assert "preset" in rules_broken(judge(lines))


@pytest.mark.parametrize("name", ["aborted", "num_steps", "interrupted", "resumed"])
def test_a_line_dropped_from_any_log_is_named(name, logs):
    lines = logs[name].read_text().splitlines()
    for index in range(len(lines)):
        rest = lines[:index] + lines[index + 1 :]
        assert judge(rest), load(lines[index])["key"]


# --- Rules that one line does not show ------------------------------------------------------


def set_quality(records: list[dict[str, typing.Any]], evaluation: int, value: object) -> None:
    """Give one evaluation another quality, in all its records."""
    accuracy = of(records, "eval_accuracy")[evaluation]
    accuracy["value"] = value
    records[records.index(accuracy) + 1]["value"]["hr_at_10"] = value


@pytest.mark.parametrize("value", [0.1999, "nan"])
def test_success_below_the_target(value, logs):
    lines = rewrite(logs["success"], lambda records: set_quality(records, -1, value))
    (violation,) = judge(lines)
    assert violation.rule == "stop rule"
    assert load(lines[violation.line - 1])["key"] == "run_stop"


def test_training_on_after_the_target(logs):
    lines = rewrite(logs["success"], lambda records: set_quality(records, 0, 0.2))
    (violation,) = judge(lines)
    assert violation.rule == "stop rule" and "epoch 0" in violation.expected
    record = load(lines[violation.line - 1])
    assert record["key"] == "eval_start" and record["metadata"]["epoch_num"] == 1


@pytest.mark.parametrize("value", [0.99, 1.0])
def test_aborted_at_the_target(value, logs):
    lines = rewrite(logs["aborted"], lambda records: set_quality(records, -1, value))
    (violation,) = judge(lines)
    assert violation.rule == "stop rule" and violation.found == "aborted"


def test_a_quality_beyond_its_range(logs):
    lines = rewrite(logs["aborted"], lambda records: set_quality(records, 0, -0.1))
    assert rules_broken(judge(lines)) == {"quality"}


def test_a_lower_target_must_be_named(logs):
    def lower(records):
        of(records, "quality_target")[0]["value"] = {"hr_at_10": 0.19}

    def lower_and_name(records):
        lower(records)
        of(records, "modified")[0]["value"] = ["quality_targets"]

    assert rules_broken(judge(rewrite(logs["success"], lower))) == {"preset"}
    assert judge(rewrite(logs["success"], lower_and_name)) == []


@pytest.mark.parametrize(
    "names", [["learning_rate"], ["no_such_field"], ["max_epochs", "max_epochs"]]
)
def test_modified_names_what_is_so(names, logs):
    lines = rewrite(logs["success"], lambda r: of(r, "modified")[0].update(value=names))
    assert rules_broken(judge(lines)) == {"modified"}


def test_made_up_data_may_have_another_size(logs):
    def edit(records):
        of(records, "eval_samples")[0]["value"] = 300

    def edit_and_name(records):
        edit(records)
        of(records, "modified")[0]["value"] = ["synthetic_data"]

    assert rules_broken(judge(rewrite(logs["success"], edit))) == {"preset"}
    assert judge(rewrite(logs["success"], edit_and_name)) == []


def test_a_whole_epoch_is_missing(logs):
    def drop(records):
        records[:] = [r for r in records if r["metadata"].get("epoch_num") != 1]

    (violation,) = [v for v in judge(rewrite(logs["success"], drop)) if v.rule == "order"]
    assert violation.expected.startswith("epoch_start of epoch 1, tracked_stats of epoch 1")
    assert violation.found == "epoch_start of epoch 2"


def test_more_epochs_than_the_preset_allows(logs):
    def add(records):
        last = [r for r in records if r["metadata"].get("epoch_num") == 1]
        at = records.index(last[-1]) + 1
        for epoch in range(11, 1, -1):
            more = copy.deepcopy(last)
            for record in more:
                record["metadata"]["epoch_num"] = epoch
                if "step_num" in record["metadata"]:
                    record["metadata"]["step_num"] *= epoch
                record["time_ms"] = last[-1]["time_ms"]
            records[at:at] = more
        of(records, "run_stop")[0]["metadata"]["step_num"] *= 11

    assert judge(rewrite(logs["aborted"], add)) == []

    def add_unnamed(records):
        add(records)
        of(records, "modified")[0]["value"] = ["quality_targets"]

    (violation,) = judge(rewrite(logs["aborted"], add_unnamed))
    assert violation.rule == "epochs" and violation.found == "11"


def test_a_resumed_run(logs):
    def judged(**metadata: object) -> set[str]:
        def edit(records):
            of(records, "resumed")[0]["metadata"].update(metadata)

        return rules_broken(judge(rewrite(logs["resumed"], edit)))

    assert judged() == set()
    assert judged(valid=False) == {"resumed"}
    assert judged(downtime_s=-1.0) == {"resumed", "phases"}
    assert judged(downtime_s=1e6) == {"resumed", "phases"}
    lines = rewrite(logs["resumed"], lambda r: of(r, "resumed")[0].update(value=10**6))
    assert rules_broken(judge(lines)) == {"steps"}


def test_a_resumed_run_reads_its_data_anew(logs):
    def drop(records):
        records.remove(of(records, "eval_samples")[1])

    (violation,) = judge(rewrite(logs["resumed"], drop))
    assert violation.rule == "order" and violation.expected == "eval_samples"


def test_an_end_at_any_record(logs):
    """What a signal or a crash cuts short is right; what lacks its last records is not."""
    lines = logs["success"].read_text().splitlines()
    keys = [load(line)["key"] for line in lines]
    interrupted = load(logs["interrupted"].read_text().splitlines()[-2])
    aborted = load(lines[keys.index("run_stop")])
    del aborted["metadata"]["epoch_num"]
    aborted["metadata"]["status"] = "aborted"
    first, last = keys.index("run_start") + 1, len(keys) - 1 - keys[::-1].index("eval_accuracy")
    for end in range(first, last):
        step = max(load(line)["metadata"].get("step_num", 0) for line in lines[:end])
        interrupted["metadata"]["step_num"] = step
        interrupted["time_ms"] = load(lines[end - 1])["time_ms"]
        assert judge(sealed([*lines[:end], dump(interrupted)], lines[-1])) == [], keys[end]
        assert judge(lines[:end]), keys[end]
        aborted["metadata"]["step_num"] = step
        tail = [dump(aborted), *lines[keys.index("run_stop") + 1 : -1]]
        assert judge(sealed([*lines[:end], *tail], lines[-1])) == [], keys[end]


def test_an_end_after_resuming(logs):
    """A second attempt that ends before its data is read, and one that goes back in steps."""
    resumed = [load(line) for line in logs["resumed"].read_text().splitlines()]
    (index,) = [i for i, record in enumerate(resumed) if record["key"] == "resumed"]

    def end_early(records):
        records[-1:-1] = [{**resumed[index], "time_ms": records[-1]["time_ms"]}]
        records[-2]["metadata"]["downtime_s"] = 0.0

    def go_back(records):
        end_early(records)
        step = records[-1]["metadata"]["step_num"]
        records[-2]["value"] = step + 1
        later = [{**record, "time_ms": records[-1]["time_ms"]} for record in resumed]
        records[-1:-1] = later[index + 1 : index + 3]

    assert judge(rewrite(logs["interrupted"], end_early)) == []
    (violation,) = judge(rewrite(logs["interrupted"], go_back))
    assert violation.rule == "steps"


def test_no_start(logs):
    """Ends that nothing comes before; and resuming what was not started."""

    def only_the_end(records):
        del records[:-1]

    def no_run(records):
        keys = [record["key"] for record in records]
        del records[keys.index("init_stop") : keys.index("run_stop")]

    def resume_first(records):
        keys = [record["key"] for record in records]
        moved = [records.pop(keys.index("resumed")) for _ in range(3)]
        for record in moved:
            record["time_ms"] = records[5]["time_ms"]
        records[6:6] = moved

    for name, edit in [
        ("interrupted", only_the_end),
        ("aborted", no_run),
        ("resumed", resume_first),
    ]:
        assert "order" in rules_broken(judge(rewrite(logs[name], edit))), name


def test_a_wrong_epoch_is_one_violation(logs):
    def edit(records):
        of(records, "epoch_stop")[0]["metadata"]["epoch_num"] = 9

    (violation,) = judge(rewrite(logs["success"], edit))
    assert violation.rule == "order"
    assert violation.expected == "epoch_stop of epoch 1"
    assert violation.found == "epoch_stop of epoch 9"


def test_values_outside_what_is_allowed(logs):
    def judged(name: str, key: str, **fields: typing.Any) -> set[str]:
        def edit(records):
            metadata = fields.get("metadata", {})
            record = of(records, key)[-1]
            record.update(fields, metadata={**record["metadata"], **metadata})

        return rules_broken(judge(rewrite(logs[name], edit)))

    step = of([load(line) for line in logs["interrupted"].open()], "interrupted")[0]
    step_num = step["metadata"]["step_num"]
    assert judged("interrupted", "interrupted", value=2) == set()
    assert "value" in judged("interrupted", "interrupted", value=9)
    assert judged("interrupted", "interrupted", metadata={"checkpoint_step": step_num}) == set()
    assert judged("interrupted", "interrupted", metadata={"checkpoint_step": step_num + 1}) == {
        "steps"
    }
    assert "metadata" in judged("success", "run_stop", metadata={"status": "done"})
    assert "steps" in judged("num_steps", "run_stop", metadata={"step_num": 0})


def test_seconds_that_do_not_add_up(logs):
    def judged(**seconds: float) -> set[str]:
        def edit(records):
            phases = of(records, "phase_seconds")[0]["value"]
            for name, value in seconds.items():
                phases[name] = value + (phases[name] if name != "init" else 0)
            of(records, "run_seconds")[0]["value"] += seconds.get("evaluation", 0)

        return rules_broken(judge(rewrite(logs["success"], edit)))

    assert judged(init=1.0) == judged(evaluation=0.0) == set()
    assert judged(init=-1.0) == {"phases"}
    assert judged(evaluation=0.01) == {"seconds"}
    assert judged(checkpoint=0.01) == {"phases"}


def test_an_evaluation_is_recorded_at_one_moment(logs):
    def earlier(records):
        keys = [record["key"] for record in records]
        for record in records[keys.index("run_start") + 1 : keys.index("eval_accuracy") + 1]:
            record["time_ms"] -= 1

    def later(records):
        keys = [record["key"] for record in records]
        for record in records[keys.index("run_stop") :]:
            record["time_ms"] += 1

    for edit in (earlier, later):
        violations = judge(rewrite(logs["success"], edit))
        (violation,) = [v for v in violations if "the moment of" in v.expected]
        assert violation.rule == "time"


def test_targets_of_other_qualities(logs):
    def edit(records):
        of(records, "quality_target")[0]["value"] = {"ndcg_at_10": 0.1}
        of(records, "modified")[0]["value"] = ["quality_targets"]

    assert rules_broken(judge(rewrite(logs["success"], edit))) == {"value"}


# --- A captured stdout ----------------------------------------------------------------------


@pytest.mark.parametrize("name", KIND_NAMES)
def test_each_line_of_a_stdout_has_its_place(name, stdouts):
    lines = stdouts[name].splitlines()
    frame = [index for index, line in enumerate(lines) if not line.startswith(PREFIX)]
    assert len(frame) == {"num_steps": 2, "interrupted": 1}.get(name, 3)
    for index in frame:
        if len(frame) > 1:
            assert "stdout" in rules_broken(judge(lines[:index] + lines[index + 1 :]))
        assert "stdout" in rules_broken(judge(lines[: index + 1] + lines[index:]))
        other = index + 1 if index + 1 < len(lines) else index - 1
        swapped = list(lines)
        swapped[index], swapped[other] = lines[other], lines[index]
        assert "stdout" in rules_broken(judge(swapped))
    for index in range(len(lines) + 1):
        (violation,) = [
            violation
            for violation in judge([*lines[:index], "epoch 1: loss 0.5", *lines[index:]])
            if violation.rule != "seal"
        ]
        assert violation.rule == "foreign line" and violation.line == index + 1


@pytest.mark.parametrize("name", ["num_steps", "interrupted"])
def test_a_result_that_was_not_earned(name, stdouts):
    added = "RESULT,recommendation,1,0,ada,2026-11-24 09:00:00 AM"
    violations = judge([*stdouts[name].splitlines(), added])
    assert "stdout" in rules_broken(violations)


def edited_line(lines: list[str], index: int, old: str, new: str) -> list[str]:
    assert old in lines[index]
    return [*lines[:index], lines[index].replace(old, new, 1), *lines[index + 1 :]]


def test_the_fields_of_result(stdouts):
    lines = stdouts["success"].splitlines()
    fields = lines[-1].split(",")
    assert fields[4] == "ada"
    for index, field in enumerate(fields):
        for new in ("x", "", field + "1", field + ","):
            edited = ",".join([*fields[:index], new, *fields[index + 1 :]])
            rules = rules_broken(judge([*lines[:-1], edited]))
            if index == 4 and new in ("x", "ada1"):
                assert rules == set()  # any user
            else:
                assert rules & {"RESULT", "foreign line"}, edited
    # The seed: here it stands in another place than the record too.
    index = next(i for i, line in enumerate(lines) if '"key": "seed"' in line)
    violations = judge(edited_line(lines, index, '"value": 1', '"value": 2'))
    assert "RESULT" in rules_broken(violations)


def test_the_fields_of_aborted(stdouts):
    lines = stdouts["aborted"].splitlines()
    fields = lines[-1].split(",")
    assert fields[:3] == ["ABORTED", "recommendation", "2"] and fields[5] == "0.99"
    for index in range(1, 6):
        edited = ",".join([*fields[:index], fields[index] + "1", *fields[index + 1 :]])
        assert_named(judge([*lines[:-1], edited]), "ABORTED", len(lines), fields[index])


@pytest.mark.parametrize("evaluation", [0, 1])
def test_aborted_tells_the_best_quality(evaluation, stdouts, logs):
    lines = stdouts["aborted"].splitlines()
    records = rewrite(logs["aborted"], lambda records: set_quality(records, evaluation, 0.9))
    result = lines[-1].split(",")
    for quality in ("0.9", result[4]):
        ending = ",".join([*result[:4], quality, result[5]])
        broken = rules_broken(judge([lines[0], *records, lines[-2], ending]))
        assert broken == (set() if quality == "0.9" else {"ABORTED"})


@pytest.mark.parametrize("name", ["success", "num_steps"])
def test_starting_and_ending_are_the_moments_of_the_records(name, stdouts):
    lines = stdouts[name].splitlines()
    for kind in ("STARTING", "ENDING"):
        (index,) = [i for i, line in enumerate(lines) if line.startswith(kind)]
        seconds = lines[index][-5:-3]
        edits = [
            (f":{seconds} ", f":{(int(seconds) + 2) % 60:02d} "),
            (f":{seconds} ", f":{(int(seconds) - 2) % 60:02d} "),
            (f":{seconds} ", ": "),
            (lines[index][-3:], lines[index][-3:].lower()),
            (" AT 2", " AT 3"),
            ("-", "/"),
            (" AT ", " AT  "),
        ]
        for old, new in edits:
            violations = judge(edited_line(lines, index, old, new))
            assert kind in rules_broken(violations), (old, new)
    hour = lines[index][-11:-9]  # ENDING's: another time zone than STARTING's
    edited = edited_line(lines, index, f" {hour}:", f" {(int(hour) + 2) % 12 + 1:02d}:")
    assert rules_broken(judge(edited)) == {"ENDING"}


# --- Whatever the bytes ---------------------------------------------------------------------


def run_check(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness", "check", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)


@pytest.mark.parametrize("kind", ["missing", "empty", "folder without a log"])
def test_what_cannot_be_judged(kind, tmp_path, capsys):
    path = tmp_path / "a log.txt"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind != "missing":
        path.mkdir()
    assert check.main([str(path)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("error: ") and str(path) in line


def test_the_worst_status_of_several(logs, tmp_path, capsys):
    cut = tmp_path / "cut.txt"
    cut.write_bytes(logs["success"].read_bytes()[:-100])
    good, missing = str(logs["success"]), str(tmp_path / "missing")
    assert check.main([good, str(cut)]) == 1
    assert check.main([good, str(cut), missing, good]) == 2
    assert capsys.readouterr().out.count("OK: ") == 3


def test_how_a_violation_looks(lines, tmp_path):
    log = tmp_path / "log.txt"
    edited = [line.replace('"value": 512', '"value": 256') for line in lines]
    (number,) = [n for n, line in enumerate(edited, 1) if line != lines[n - 1]]
    log.write_text("".join(line + "\n" for line in edited))
    done = run_check(log)
    assert (done.returncode, done.stderr) == (1, "")
    preset = f"{log}:{number}: preset: expected global_batch_size 512, the preset's, found 256"
    assert preset in done.stdout.splitlines()
    assert f"{log}:{number}: seal: expected the line sealed with " in done.stdout
    assert "OK" not in done.stdout


def test_what_is_no_log(lines, tmp_path):
    whole = "".join(line + "\n" for line in lines)
    source = random.Random(1)
    contents = {
        "text": b"Dear reader,\n" * 50,
        "binary": source.randbytes(20_000),
        "zeros": bytes(1000),
        "utf-16": whole.encode("utf-16"),
        "one line": b":::MLLOG",
        "newline": b"\n",
        "not JSON": b":::MLLOG not JSON\n",
        "nested": b":::MLLOG " + b"[" * 100_000 + b"\n",
        "a number": b":::MLLOG " + b"1" * 100_000 + b"\n",
        "keys twice": lines[0].replace('"value"', '"key": "x", "value"').encode() + b"\n",
        "constants": lines[0].replace("null", "NaN").encode() + b"\n",
        "only a result": b"RESULT,recommendation,1,0,ada,2026-11-24 09:00:00 AM\n",
    }
    paths = []
    for name, content in contents.items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(content)
    done = run_check(*paths)
    assert (done.returncode, done.stderr) == (1, "")
    for path in paths:
        assert f"{path}:1: " in done.stdout or f"{path}:2: " in done.stdout, path
    assert "keys twice:1: JSON: " in done.stdout and "not JSON:1: JSON: " in done.stdout


def test_lines_that_are_not_json_are_named(lines):
    for index in range(len(lines)):
        for broken in (lines[index][:-1], f"{PREFIX}epoch 3", f"{PREFIX}[1]", f"{PREFIX}" + "{}"):
            violations = judge([*lines[:index], broken, *lines[index + 1 :]])
            assert_named(violations, "JSON", index + 1)


def test_carriage_returns_are_named_once(lines):
    data = "".join(line + "\r\n" for line in lines).encode()
    (violation,) = check.judge(data)[0]
    assert violation.rule == "line end" and violation.line == 1


def test_a_cut_log_is_never_right(logs):
    """Cut after any line and within any line: the end is missing, and that is said."""
    data = logs["resumed"].read_bytes()
    places = [place for place, byte in enumerate(data) if byte == ord("\n")][:-1]
    places += [random.Random(2).randrange(1, len(data) - 1) for _ in range(100)]
    for place in places:
        violations, _ = check.judge(data[:place])
        assert violations, place
    assert rules_broken(check.judge(data[:-1])[0]) == {"line end"}


def test_random_damage_is_found_and_never_raises(stdouts):
    source = random.Random(3)
    for name, text in stdouts.items():
        data = text.encode()
        for _ in range(100):
            damaged = bytearray(data)
            for _ in range(source.randrange(1, 4)):
                place = source.randrange(len(damaged))
                size = source.choice((0, 1, 1, 1, 200))
                damaged[place : place + size] = source.randbytes(source.choice((0, 1, 1, 30)))
            if damaged != data and b"ada" in damaged:
                assert check.judge(bytes(damaged))[0], name


ODD_NUMBERS = (-1, 0, 1e308, 2**53 - 1, 2**64 - 1, 10**400)
ODD_VALUES: tuple[object, ...] = (
    *ODD_NUMBERS,
    None,
    True,
    "",
    "\ud800",
    "nan",
    [],
    {},
    [[]],
    {"": []},
)


@pytest.mark.parametrize("name", ["resumed", "interrupted"])
def test_odd_values_never_raise(name, stdouts):
    lines = stdouts[name].splitlines()
    for index, line in enumerate(lines):
        if not line.startswith(PREFIX):
            continue
        record = load(line)
        for field in record:
            for odd in ODD_VALUES:
                judge([*lines[:index], dump({**record, field: odd}), *lines[index + 1 :]])
        for field in record["metadata"]:
            for odd in ODD_VALUES:
                metadata = {**record["metadata"], field: odd}
                edited = dump({**record, "metadata": metadata})
                judge([*lines[:index], edited, *lines[index + 1 :]])


def test_many_violations_are_counted(tmp_path, lines, capsys):
    log = tmp_path / "log.txt"
    log.write_text("".join(line + "\n" for line in ["hello"] * 100 + lines))
    assert check.main([str(log)]) == 1
    output = capsys.readouterr().out
    assert output.count(": foreign line: expected") == check.MAX_VIOLATIONS_OF_A_RULE
    assert f"{log}: foreign line: {100 - check.MAX_VIOLATIONS_OF_A_RULE} more lines" in output


def test_a_name_that_no_terminal_takes(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/log\n\xff\xe4.txt")
    Path(path).write_text("hello\n")
    for arguments in ([path], [f"{path}x"]):
        done = run_check(*arguments)
        assert done.returncode == (1 if Path(arguments[0]).exists() else 2)
        (line,) = (done.stdout + done.stderr).splitlines()
        assert r"log\n\udcff\udce4.txt" in line


def test_keys_that_no_terminal_takes(tmp_path, lines):
    records = [load(line) for line in lines]
    records[3]["key"] = "\ud800\r\nseed"
    of(records, "eval_accuracy")[0]["metadata"]["metric"] = "\x1b[2J"
    log = tmp_path / "log.txt"
    log.write_text("".join(dump(record) + "\n" for record in records))
    done = run_check(log)
    assert (done.returncode, done.stderr) == (1, "")
    assert all(line.startswith(f"{log}:") for line in done.stdout.splitlines())
    assert done.stdout.replace("\n", "").isprintable()


# --- The rules and the code that they describe ----------------------------------------------

BENCHMARKS = sorted(path.parent.name for path in ROOT.glob("*/config.py"))


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_the_rules_know_the_presets(benchmark):
    rules = tomllib.loads((ROOT / benchmark / "rules.toml").read_text())
    presets = importlib.import_module(f"{benchmark}.config").PRESETS
    assert set(rules["presets"]) == set(presets)
    fields = {key: rule["field"] for key, rule in rules["recipe"].items() if "field" in rule}
    for name, (_, config) in presets.items():
        values = rules["presets"][name]
        known = {"quality_target", "max_epochs", *rules["recipe"], *rules["data"]}
        assert set(values) == known, name
        targets = {target.name: target.value for target in config.quality_targets}
        assert values["quality_target"] == targets, name
        assert values["max_epochs"] == config.max_epochs, name
        for key, field in fields.items():
            value = getattr(config, field)
            assert values[key] == (list(value) if isinstance(value, tuple) else value), (name, key)
        for target in config.quality_targets:
            better = "higher" if target.higher_is_better else "lower"
            assert rules["quality"][target.name]["better"] == better


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_the_rules_know_what_may_be_modified(benchmark):
    rules = tomllib.loads((ROOT / benchmark / "rules.toml").read_text())
    config = next(iter(importlib.import_module(f"{benchmark}.config").PRESETS.values()))[1]
    hints = typing.get_type_hints(type(config), include_extras=True)
    options = {name for name, hint in hints.items() if not hasattr(hint, "__metadata__")}
    shown = [rule["field"] for rule in rules["recipe"].values() if "field" in rule]
    known = [*shown, *rules["modified"]["fields"]]
    assert sorted(known) == sorted(options - {"checkpoint_interval_s"})


def test_the_shared_rules_agree_with_the_code():
    rules = tomllib.loads((ROOT / "harness" / "rules.toml").read_text())
    assert rules["stdout"]["time_format"] == RESULT_TIME_FORMAT
    assert rules["order"]["run_stop"][-1] == rules["order"]["interrupted"][-1] == SEAL_KEY
    own = [tomllib.loads((ROOT / name / "rules.toml").read_text()) for name in BENCHMARKS]
    tables = [rules["keys"], *(table[name] for table in own for name in ("recipe", "data"))]
    for table in tables:
        for key, rule in table.items():
            kinds = [rule["value"], *rule.get("metadata", {}).values()]
            kinds += rule.get("optional", {}).values()
            assert all(isinstance(kind, list) or kind in KINDS for kind in kinds), key


def test_sizes_of_the_data_sets():
    """Ratings of each set, less one held out of each user, times one and four negatives."""
    presets = tomllib.loads((ROOT / "recommendation" / "rules.toml").read_text())["presets"]
    for name, num_ratings, num_users in [
        ("mini", 100_000, 943),
        ("ml-1m", 1_000_209, 6_040),
        ("reference", 20_000_263, 138_493),
    ]:
        assert presets[name]["train_samples"] == (num_ratings - num_users) * 5
        assert presets[name]["eval_samples"] == num_users


def test_image_classifications_data_and_evaluations():
    """No option changes them, so that the rules have them as numbers."""
    rules = tomllib.loads((ROOT / "image_classification" / "rules.toml").read_text())
    for name, (_, config) in importlib.import_module("image_classification.config").PRESETS.items():
        assert rules["presets"][name]["train_samples"] == config.num_train_images
        assert rules["presets"][name]["eval_samples"] == config.num_eval_images
        every = config.epochs_between_evaluations
        assert rules["evaluation"] == {"first_epoch": every, "every_epochs": every}


# --- The command ----------------------------------------------------------------------------


def test_help_and_wrong_commands(capsys):
    assert harness_main.main(["--help"]) == 0
    output = capsys.readouterr().out
    for command in harness_main.COMMANDS:
        assert f"  {command} " in output
    assert harness_main.main(["check", "--help"]) == 0
    assert "python -m harness check LOG..." in capsys.readouterr().out
    for arguments in ([], ["chekc"], ["check"], ["check", "--fast"], ["\n"]):
        assert harness_main.main(arguments) == 2, arguments
        output = capsys.readouterr()
        assert output.out == "" and len(output.err.splitlines()) == 1
        assert output.err.startswith("error: ")


def test_a_reader_that_has_seen_enough(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text(":::MLLOG {}\n" * 10)
    pipeline = '"$@" | true; exit "${PIPESTATUS[0]}"'
    command = [sys.executable, "-m", "harness", "check", *[str(log)] * 2000]
    done = subprocess.run(
        ["bash", "-c", pipeline, "bash", *command], cwd=ROOT, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, b"")


# --- Suspiciously few epochs ----------------------------------------------------------------


@pytest.fixture
def known_epochs(tmp_path, monkeypatch):
    """Gives the tiny preset known runs of these epochs."""

    def know(epochs: list[float], **changes: object) -> None:
        points = {
            "preset": "tiny",
            "targets": {"hr_at_10": 0.2},
            "batch_size": 512,
            "epochs_by_seed": {str(seed): value for seed, value in enumerate(epochs)},
            "missed_seeds": [],
            "git_commits": [],
            "machines": [],
            **changes,
        }
        path = tmp_path / "convergence.json"
        path.write_text(json.dumps([{**points, "preset": "mini"}, points]))
        monkeypatch.setattr(convergence, "path_of", lambda benchmark: path)

    return know


def test_a_run_that_needed_suspiciously_few_epochs_is_flagged(logs, known_epochs, capsys):
    path = str(logs["success"])
    known_epochs([9, 10, 11, 9, 10])
    assert check.main([path]) == 0  # a reason to look, not a broken rule
    ok, flag = capsys.readouterr().out.splitlines()
    assert ok.startswith("OK: ")
    assert flag.startswith(f"FLAG: {path}: it took 2 epochs; 5 known runs of tiny with batch 512 ")
    assert "needed 9.8 on average, and less than 7.85 is improbable" in flag
    known_epochs([2, 3, 3, 2, 4])
    assert check.main([path]) == 0
    assert "FLAG" not in capsys.readouterr().out


def test_runs_from_three_on_are_judged_together(logs, known_epochs, capsys):
    path = str(logs["success"])
    known_epochs([2, 3, 3, 3, 4])  # one run of 2 is nothing special
    assert check.main([path, path]) == 0
    assert "FLAG" not in capsys.readouterr().out
    known_epochs([2.8, 3, 3, 3.2, 4])
    assert check.main([path, path, path, path]) == 0
    (flag,) = [line for line in capsys.readouterr().out.splitlines() if "FLAG" in line]
    assert flag.count(path) == 4 and "the mean of 4 runs is 2 epochs" in flag


def test_only_like_runs_are_held_against_each_other(logs, known_epochs, tmp_path, capsys):
    for changes in ({"batch_size": 1024}, {"targets": {"hr_at_10": 0.1}}, {"preset": "mini"}):
        known_epochs([9, 10, 11, 9, 10], **changes)
        assert check.main([str(logs["success"])]) == 0
        assert "FLAG" not in capsys.readouterr().out
    known_epochs([9, 10, 11, 9])  # too few to say
    check.main([str(logs["success"])])
    assert "FLAG" not in capsys.readouterr().out

    known_epochs([9, 10, 11, 9, 10])
    # Runs that did not reach their target, of another science, and with an edited line.
    for kind in ("aborted", "num_steps", "interrupted"):
        assert check.main([str(logs[kind])]) == 0
    edited = tmp_path / "log.txt"
    edited.write_text(logs["success"].read_text().replace('"seed"', '"seeds"', 1))
    assert check.main([str(edited)]) == 1
    assert "FLAG" not in capsys.readouterr().out

    # Batch and rate may change together; the points of that batch then judge the run.
    def change(records: list[dict[str, typing.Any]], fields: list[str]) -> None:
        of(records, "modified")[0]["value"] = fields
        for field in fields:
            key = {"learning_rate": "opt_base_learning_rate", "num_factors": "model_hp_mf_dim"}
            of(records, key[field])[0]["value"] = 7

    for field, is_flagged in (("learning_rate", True), ("num_factors", False)):
        lines = rewrite(logs["success"], lambda records, field=field: change(records, [field]))
        edited.write_text("".join(line + "\n" for line in lines))
        assert check.main([str(edited)]) == 0
        assert ("FLAG" in capsys.readouterr().out) == is_flagged
