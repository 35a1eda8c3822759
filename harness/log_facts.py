"""What a log's records say, held against each other and against the preset's values.

Only records whose values are of their kind are asked; the others have been named already.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from harness.clock import PHASES
from harness.log_file import Log, Record, Rules, Violation, is_number, show
from harness.stop_rule import QualityTarget, all_met


@dataclass
class Evaluation:
    """One evaluation as the log tells it."""

    start: Record
    accuracies: list[Record] = field(default_factory=list)
    stats: Record | None = None
    stop: Record | None = None

    @property
    def epoch(self) -> Any:
        """The epoch after which it was made."""
        return self.start.metadata.get("epoch_num")

    @property
    def quality(self) -> dict[str, float]:
        """Name to value; what is not finite was written as text."""
        return {record.metadata["metric"]: _number(record.value) for record in self.accuracies}

    def has_all(self, rules: Rules) -> bool:
        """Whether every quality with a target is there: the last evaluation may be cut short."""
        return set(rules.targets) <= set(self.quality)


def evaluations(log: Log) -> list[Evaluation]:
    """The evaluations of a log, in order."""
    found: list[Evaluation] = []
    is_open = False
    for record in log.records:
        if record.key == "eval_start":
            found.append(Evaluation(record))
            is_open = True
        if not (is_open and record.is_sound):
            is_open = is_open and record.key != "eval_stop"
        elif record.key == "eval_accuracy":
            found[-1].accuracies.append(record)
        elif record.key == "tracked_stats":
            found[-1].stats = record
        elif record.key == "eval_stop":
            found[-1].stop = record
            is_open = False
    return found


def _number(value: Any) -> float:
    return float(value) if isinstance(value, str) else value


def targets_of(log: Log, rules: Rules) -> list[QualityTarget]:
    """What the run had to reach; empty where the log does not say so properly."""
    record = log.one("quality_target")
    if record is None or list(record.value) != rules.targets:
        return []
    return [
        QualityTarget(name, value, rules.own["quality"][name]["better"] == "higher")
        for name, value in record.value.items()
    ]


# --- Time -----------------------------------------------------------------------------------


def judge_time(log: Log, rules: Rules) -> Iterator[Violation]:
    """Time never falls, and the records that close the log follow at once."""
    records = log.records
    for index in range(1, len(records)):
        before, now = records[index - 1], records[index]
        if now.time_ms >= before.time_ms:
            continue
        # Which of the two is out of line shows the record before them.
        is_before = index > 1 and records[index - 2].time_ms <= now.time_ms
        if is_before:
            expected = f"time_ms from {records[index - 2].time_ms} to {now.time_ms}"
            yield Violation(before.line, "time", expected, str(before.time_ms))
        else:
            yield Violation(now.line, "time", f"time_ms from {before.time_ms}", str(now.time_ms))
    stop = log.one("run_stop") or log.one("interrupted")
    if stop:
        latest_ms = stop.time_ms + rules.shared["tolerance"]["closing_ms"]
        for record in records:
            if record.line > stop.line and record.time_ms > latest_ms:
                expected = f"time_ms up to {latest_ms}, right after {stop.key}"
                yield Violation(record.line, "time", expected, str(record.time_ms))
    yield from _judge_moments(log)


def _judge_moments(log: Log) -> Iterator[Violation]:
    """What an evaluation found is recorded at one moment, which may be run_stop."""
    whole = [item for item in evaluations(log) if item.stop]
    for evaluation in whole:
        records = [*evaluation.accuracies, evaluation.stats, evaluation.stop]
        if evaluation is whole[-1] and log.status == "success":
            records.append(log.one("run_stop"))
        times = Counter(record.time_ms for record in records if record)
        moment_ms = times.most_common(1)[0][0]
        for record in records:
            if record and record.time_ms != moment_ms:
                expected = f"time_ms {moment_ms}, the moment of this evaluation"
                yield Violation(record.line, "time", expected, str(record.time_ms))


def judge_seconds(log: Log, rules: Rules) -> Iterator[Violation]:
    """run_seconds, the phases, run_start and run_stop tell of the same time."""
    start, stop, total = log.one("run_start"), log.one("run_stop"), log.one("run_seconds")
    if start and stop and total:
        between_ms = stop.time_ms - start.time_ms
        if abs(between_ms - total.value * 1000) > rules.tolerance_ms:
            expected = f"{between_ms / 1000} (run_stop less run_start)"
            yield Violation(total.line, "seconds", expected, show(total.value))
    phases = log.one("phase_seconds")
    if not phases:
        return
    if list(phases.value) != list(PHASES):
        yield Violation(phases.line, "phases", show(PHASES), show(list(phases.value)))
        return
    for name, value in phases.value.items():
        if value < 0:
            yield Violation(phases.line, "phases", f"{name} of at least 0", show(value))
    counted_s = sum(value for name, value in phases.value.items() if name != "init")
    if total and abs(counted_s - total.value) * 1000 > rules.tolerance_ms:
        expected = f"{show(total.value)} as the sum without init (run_seconds)"
        yield Violation(phases.line, "phases", expected, show(counted_s))
    downtime_s = sum(record.metadata["downtime_s"] for record in log.all("resumed"))
    if abs(phases.value["downtime"] - downtime_s) * 1000 > rules.tolerance_ms:
        expected = f"downtime {show(downtime_s)} (the sum of downtime_s)"
        yield Violation(phases.line, "phases", expected, show(phases.value["downtime"]))


def judge_resumptions(log: Log, rules: Rules) -> Iterator[Violation]:
    """Later attempts: valid, and the downtime within what the records around it leave."""
    for index, record in enumerate(log.records):
        if record.key != "resumed" or not record.is_sound:
            continue
        if not record.metadata["valid"]:
            expected = "valid true (false: the clock was set back, the run does not count)"
            yield Violation(record.line, "resumed", expected, "false")
        downtime_s = record.metadata["downtime_s"]
        gap_ms = record.time_ms - log.records[index - 1].time_ms if index else 0
        if not 0 <= downtime_s * 1000 <= gap_ms + rules.tolerance_ms:
            expected = f"downtime_s from 0 to {gap_ms / 1000} (since the record before)"
            yield Violation(record.line, "resumed", expected, show(downtime_s))


# --- The preset -----------------------------------------------------------------------------


def judge_preset(log: Log, rules: Rules) -> Iterator[Violation]:
    """A value equals its preset's exactly where `modified` does not name its field."""
    fields = {**rules.recipe_fields, "quality_target": ["quality_targets"]}
    for key, value in rules.preset.items():
        may_differ = fields.get(key) or rules.own["data"].get(key, {}).get("fields", [])
        is_modified = bool(set(may_differ) & set(log.modified))
        must_differ = is_modified and key in fields and len(may_differ) == 1
        for record in log.all(key):
            if record.value == value and must_differ:
                expected = f"{key} other than the preset's, as modified names {may_differ[0]}"
                yield Violation(record.line, "modified", expected, show(record.value))
            elif record.value != value and not is_modified:
                expected = f"{key} {show(value)}, the preset's"
                yield Violation(record.line, "preset", expected, show(record.value))
    target = log.one("quality_target")
    if target and list(target.value) != rules.targets:
        expected = f"targets for {show(rules.targets)}"
        yield Violation(target.line, "value", expected, show(list(target.value)))


def judge_modified(log: Log, rules: Rules) -> Iterator[Violation]:
    """`modified` names fields that there are, each once."""
    known = {"quality_targets", *rules.own["modified"]["fields"]}
    known |= {field for fields in rules.recipe_fields.values() for field in fields}
    known |= set(rules.shared["modified"]["options"])
    for record in log.all("modified"):
        for index, name in enumerate(record.value):
            if name not in known or name in record.value[:index]:
                expected = f"some of {show(sorted(known))}, each once"
                yield Violation(record.line, "modified", expected, show(name))


# --- Steps, epochs, throughput --------------------------------------------------------------


def steps_per_epoch(log: Log, rules: Rules) -> int | None:
    """Training steps of an epoch, where the benchmark's rules say how to count them."""
    rule = rules.own["training"].get("steps_per_epoch")
    if rule is None:
        return None
    samples, batch = log.one(rule["samples"]), log.one(rule["batch"])
    if samples is None or batch is None or batch.value == 0:
        return None
    rounded = {"up": -(-samples.value // batch.value), "down": samples.value // batch.value}
    return int(rounded[rule["rounding"]])


def evaluation_steps(epoch: int, log: Log, rules: Rules) -> list[int]:
    """Steps after which is evaluated within an epoch or at its end, where a record lists them."""
    size, record = steps_per_epoch(log, rules), log.one(rules.own["evaluation"]["steps"])
    if size is None or record is None:
        return []
    return [step for step in record.value if (epoch - 1) * size < step <= epoch * size]


def judge_steps(log: Log, rules: Rules) -> Iterator[Violation]:
    """Steps never fall; an evaluation has those of its epochs, an end those of a part more."""
    size = steps_per_epoch(log, rules)
    num_steps, num_started, num_stopped = 0, 0, 0
    of_evaluations = lines_at_listed_steps(log, rules)
    for record in (record for record in log.records if record.is_sound):
        num_started += record.key == "epoch_start"
        num_stopped += record.key == "epoch_stop"
        step = record.value if record.key == "resumed" else record.metadata.get("step_num")
        if step is None:
            continue
        if step < num_steps:
            yield Violation(record.line, "steps", f"step {num_steps} or later", show(step))
        num_steps = max(num_steps, step)
        if size is None:
            continue
        first, last = num_stopped * size, num_started * size
        if record.line in of_evaluations:
            steps = evaluation_steps(record.metadata["epoch_num"], log, rules)
            if step not in steps:
                expected = f"one of the steps {show(steps)} (evaluation_steps of its epoch)"
                yield Violation(record.line, "steps", expected, show(step))
            continue
        if "epoch_num" in record.metadata:
            first = last = record.metadata["epoch_num"] * size
        elif record.metadata.get("status") == "num_steps":
            first += 1
        if not first <= step <= last:
            expected = f"step {first}" if first == last else f"a step from {first} to {last}"
            yield Violation(record.line, "steps", expected, show(step))
        saved = record.metadata.get("checkpoint_step", 0)
        if saved > step:
            expected = f"checkpoint_step up to {step}"
            yield Violation(record.line, "steps", expected, show(saved))


def lines_at_listed_steps(log: Log, rules: Rules) -> set[int]:
    """Lines of records that tell of evaluations whose steps a record lists, run_stop among them."""
    if "steps" not in rules.own["evaluation"]:
        return set()
    lines = set()
    for item in evaluations(log):
        records = [*item.accuracies, item.stats, item.stop]
        lines |= {record.line for record in records if record}
    stop = log.one("run_stop")
    return lines | {stop.line} if stop and log.status == "success" else lines


def judge_epochs(log: Log, rules: Rules) -> Iterator[Violation]:
    """No more epochs than the preset allows."""
    if "max_epochs" in log.modified or "max_epochs" not in rules.preset:
        return
    for record in log.all("epoch_start"):
        if record.metadata["epoch_num"] > rules.preset["max_epochs"]:
            expected = f"at most {rules.preset['max_epochs']} epochs, the preset's"
            yield Violation(record.line, "epochs", expected, show(record.metadata["epoch_num"]))


def judge_throughput(log: Log, rules: Rules) -> Iterator[Violation]:
    """The examples of the run's steps over the seconds of input and training."""
    size, phases = steps_per_epoch(log, rules), log.one("phase_seconds")
    stop, found = log.one("run_stop"), log.one("train_examples_per_s")
    # At the step of a loss that is not finite the examples since the last look are not counted.
    if not (size and phases and stop and found) or log.status == "aborted":
        return
    rule = rules.own["training"]["steps_per_epoch"]
    samples, batch = log.one(rule["samples"]), log.one(rule["batch"])
    assert samples and batch  # steps_per_epoch found them
    num_epochs, num_more = divmod(stop.metadata["step_num"], size)
    num_examples = num_epochs * samples.value + num_more * batch.value
    busy_s = phases.value.get("input", 0) + phases.value.get("training", 0)
    expected = num_examples / busy_s if busy_s > 0 else 0.0
    if not math.isclose(found.value, expected, rel_tol=1e-9):
        shown = f"{show(expected)} ({num_examples} examples in input and training)"
        yield Violation(found.line, "throughput", shown, show(found.value))


# --- Quality and the stop rule --------------------------------------------------------------


def judge_quality(log: Log, rules: Rules) -> Iterator[Violation]:
    """Qualities in their range, the same in eval_accuracy and tracked_stats; no other stats."""
    evaluated = evaluations(log)
    of_evaluation = {item.stats.line for item in evaluated if item.stats}
    training = rules.shared["training"]["stats"]
    own = rules.own["training"].get("stats", [])
    for record in log.all("tracked_stats"):
        names = list(rules.own["quality"]) if record.line in of_evaluation else [*own, *training]
        if list(record.value) != names:
            yield Violation(record.line, "stats", show(names), show(list(record.value)))
        for name, value in record.value.items():
            yield from _judge_range(record, name, value, rules)
    for evaluation in evaluated:
        for record in evaluation.accuracies:
            name = record.metadata["metric"]
            yield from _judge_range(record, name, record.value, rules)
            told = evaluation.stats.value.get(name) if evaluation.stats else record.value
            if told != record.value:
                expected = f"{name} {show(told)}, as in tracked_stats"
                yield Violation(record.line, "quality", expected, show(record.value))


def _judge_range(record: Record, name: str, value: Any, rules: Rules) -> Iterator[Violation]:
    rule = rules.own["quality"].get(name, {})
    low, high = rule.get("minimum", -math.inf), rule.get("maximum", math.inf)
    if is_number(value) and not low <= value <= high:
        yield Violation(record.line, "quality", f"{name} from {low} to {high}", show(value))


def judge_stop(log: Log, rules: Rules) -> Iterator[Violation]:
    """The run ends with success at the first evaluation that meets every target, else never."""
    targets = targets_of(log, rules)
    whole = [item for item in evaluations(log) if item.has_all(rules)]
    if not targets:
        return
    stop = log.one("run_stop")
    met = next((item for item in whole if all_met(targets, item.quality)), None)
    if met is None:
        if stop and log.status == "success":
            best = whole[-1].quality if whole else "no evaluation"
            expected = f"status aborted: {show(best)} misses {show(_values(targets))}"
            yield Violation(stop.line, "stop rule", expected, "success")
        return
    epoch = met.epoch
    reason = f"epoch {epoch} meets {show(_values(targets))}"
    if met is not whole[-1]:
        line = whole[whole.index(met) + 1].start.line
        yield Violation(line, "stop rule", f"run_stop: {reason}", "another evaluation")
    elif log.status != "success":
        line = stop.line if stop else log.num_lines
        yield Violation(line, "stop rule", f"run_stop with success: {reason}", log.status)
    elif stop and stop.metadata.get("epoch_num") != epoch:
        found = show(stop.metadata.get("epoch_num"))
        yield Violation(stop.line, "stop rule", f"epoch_num {epoch}", found)


def _values(targets: list[QualityTarget]) -> dict[str, float]:
    return {target.name: target.value for target in targets}
