"""harness/check.py against logs of a benchmark that evaluates after given steps, within epochs.

Made by training single_stage_detector's tiny preset, of 8 steps an epoch, which evaluates after
step 12, within its second epoch, and after step 24, the end of its third. A spoilt log gets a good
seal, so that the other rules must show what is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlperf_logging.compliance_checker import mlp_parser

from harness import check
from harness.run_log import PREFIX, SEAL_KEY, seal_value
from tests.benchmark_runs import Benchmark, finish, only_run

Records = list[dict[str, Any]]
OPTIONS = {
    "reached within an epoch": ("--target", "0"),
    "reached before another evaluation of the epoch": (
        *("--target", "0"),
        *("--evaluation-iterations", "9", "13"),
    ),
    "missed": ("--target", "2", "--max-epochs", "4"),
    "missed, the last evaluation within an epoch": (
        *("--target", "2"),
        *("--evaluation-iterations", "3", "18"),
    ),
    "num_steps": ("--num-steps", "14"),
    "after epochs": ("--target", "2", "--evaluation-epochs", "1", "2", "--max-epochs", "2"),
    "another batch": ("--target", "2", "--batch-size", "12", "--max-epochs", "4"),
}
STATUS = {
    "reached within an epoch": 0,
    "reached before another evaluation of the epoch": 0,
    "num_steps": 0,
}


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A log.txt of each kind."""
    found = {}
    for kind, options in OPTIONS.items():
        results = tmp_path_factory.mktemp("results")
        done = finish(Benchmark("single_stage_detector").start(results, *options))
        assert done.returncode == STATUS.get(kind, 1), done.stderr
        found[kind] = only_run(results) / "log.txt"
    return found


def records_of(log: Path) -> Records:
    return [json.loads(line.removeprefix(PREFIX)) for line in log.read_text().splitlines()]


def violations(records: Records) -> list[tuple[str, str, str]]:
    """Rule, expected and found of each violation of these records under a good seal."""
    assert records[-1]["key"] == SEAL_KEY
    lines = [PREFIX + json.dumps(record) for record in records[:-1]]
    seal = {**records[-1], "value": seal_value(lines)}
    data = "".join(f"{line}\n" for line in [*lines, PREFIX + json.dumps(seal)]).encode()
    return [(found.rule, found.expected, found.found) for found in check.judge(data)[0]]


def place(records: Records, key: str, number: int = 0) -> int:
    """Where the `number`-th record of this key stands."""
    return [index for index, record in enumerate(records) if record["key"] == key][number]


@pytest.mark.parametrize("kind", OPTIONS)
def test_real_logs_are_right(kind, logs):
    assert violations(records_of(logs[kind])) == []
    parsed, failed = mlp_parser.parse_file(str(logs[kind]), ruleset="5.1.0")
    assert failed == []
    assert len(parsed) == len(logs[kind].read_text().splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("step", [10, 12, 14])
def test_the_log_of_a_resumed_run_is_right(step, tmp_path):
    """Killed before, at and after the evaluation within the second epoch."""
    benchmark, options = Benchmark("single_stage_detector"), ("--target", "2", "--max-epochs", "4")
    killed = finish(benchmark.start_killed(step, "SIGTERM", tmp_path, *options))
    assert killed.returncode == 143, killed.stderr
    done = finish(benchmark.start(tmp_path, *options, "--resume"))
    assert done.returncode == 1, done.stderr
    records = records_of(only_run(tmp_path) / "log.txt")
    assert "resumed" in [record["key"] for record in records]
    evaluated = [r["metadata"]["step_num"] for r in records if r["key"] == "eval_stop"]
    assert evaluated == [12, 24]
    assert violations(records) == []


def test_the_logs_are_what_they_are_called(logs):
    keys = [record["key"] for record in records_of(logs["reached within an epoch"])]
    assert keys.count("epoch_start") == keys.count("epoch_stop") + 1 == 2
    steps = {
        kind: [r["metadata"]["step_num"] for r in records_of(log) if r["key"] == "eval_stop"]
        for kind, log in logs.items()
    }
    assert steps == {
        "reached within an epoch": [12],
        "reached before another evaluation of the epoch": [10],
        "missed": [12, 24],
        "missed, the last evaluation within an epoch": [4, 19],
        "num_steps": [12],
        "after epochs": [8, 16],
        "another batch": [8, 16],
    }


def evaluation(records: Records, number: int) -> Records:
    """Take the `number`-th evaluation out of the records."""
    first, last = place(records, "eval_start", number), place(records, "eval_stop", number) + 1
    taken = records[first:last]
    del records[first:last]
    return taken


def move_behind_the_epoch(records: Records) -> None:
    taken = evaluation(records, 0)
    after = place(records, "epoch_stop", 1) + 1
    records[after:after] = taken


def move_before_the_end_of_the_epoch(records: Records) -> None:
    taken = evaluation(records, 1)
    before = place(records, "tracked_stats", 3)
    assert records[before]["metadata"]["step_num"] == 24
    records[before:before] = taken


def leave_out(records: Records) -> None:
    evaluation(records, 0)


def evaluate_twice(records: Records) -> None:
    taken = evaluation(records, 0)
    first = place(records, "epoch_start", 1) + 1
    records[first:first] = [*taken, *taken]


def change(key: str, number: int, name: str, value: Any) -> Callable[[Records], None]:
    def edit(records: Records) -> None:
        records[place(records, key, number)]["metadata"][name] = value

    return edit


def list_another_step(records: Records) -> None:
    records[place(records, "evaluation_steps")]["value"][0] = 13


def modify_the_steps_alone(records: Records) -> None:
    records[place(records, "modified")]["value"].append("evaluation_iterations")
    records[place(records, "evaluation_steps")]["value"][0] = 13


def drop_the_end_of_an_epoch(records: Records) -> None:
    del records[place(records, "epoch_stop", 1)]


def invent_a_field(records: Records) -> None:
    records[place(records, "modified")]["value"].append("evaluation_steps")


FAULTS = {
    "an evaluation after its epoch": (move_behind_the_epoch, "order"),
    "an evaluation before the end of its epoch": (move_before_the_end_of_the_epoch, "order"),
    "no evaluation": (leave_out, "order"),
    "an evaluation twice": (evaluate_twice, "order"),
    "another step": (change("eval_stop", 0, "step_num", 13), "steps"),
    "another epoch": (change("eval_start", 0, "epoch_num", 3), "order"),
    "a step of another epoch": (change("eval_accuracy", 0, "step_num", 24), "steps"),
    "other steps than the list's": (modify_the_steps_alone, "steps"),
    "no end of an epoch": (drop_the_end_of_an_epoch, "order"),
    "a record in place of a field": (invent_a_field, "modified"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named(name, logs):
    edit, rule = FAULTS[name]
    records = records_of(logs["missed"])
    edit(records)
    assert rule in [found[0] for found in violations(records)]


def test_the_steps_are_the_presets(logs):
    records = records_of(logs["reached within an epoch"])
    list_another_step(records)
    assert "preset" in [found[0] for found in violations(records)]


def test_a_target_met_within_an_epoch_ends_the_run_there(logs):
    records = records_of(logs["reached within an epoch"])
    end = place(records, "run_stop")
    missed = records_of(logs["missed"])
    first = place(missed, "tracked_stats", 2)  # of the second epoch
    more = [{**record, "time_ms": records[end]["time_ms"]} for record in missed[first : first + 2]]
    assert [record["key"] for record in more] == ["tracked_stats", "epoch_stop"]
    records[end:end] = more
    assert {rule for rule, _, _ in violations(records)} == {"order", "steps"}


def test_a_listed_step_is_of_its_epoch(logs):
    records = records_of(logs["reached within an epoch"])
    for record in records[place(records, "eval_start") + 1 :]:
        if "step_num" in record["metadata"]:
            record["metadata"]["step_num"] = 24
    expected = "one of the steps [12] (evaluation_steps of its epoch)"
    assert ("steps", expected, "24") in violations(records)


def test_success_needs_its_evaluation(logs):
    records = records_of(logs["reached within an epoch"])
    evaluation(records, 0)
    found = violations(records)
    assert {"order", "stop rule"} <= {rule for rule, _, _ in found}


def test_the_target_is_the_presets(logs):
    """Another quality of the benchmark, which another preset has a target for, is none here."""
    records = records_of(logs["missed"])
    target = records[place(records, "quality_target")]
    target["value"] = {"ap": 2.0}
    assert ("value", 'targets for ["ap_50"]', '["ap"]') in violations(records)
