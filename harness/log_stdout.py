"""A captured stdout: STARTING, the records, ENDING, then RESULT or ABORTED, and what they say."""

from __future__ import annotations

import calendar
import math
import time
from collections.abc import Iterator
from typing import Any

from harness.log_facts import evaluations, targets_of
from harness.log_file import Line, Log, Rules, Violation, show
from harness.log_order import after, differences
from harness.run_log import PREFIX
from harness.stop_rule import better
from harness.stop_rule import show as show_targets

QUARTER_HOUR_S = 900
"""Local times differ from UTC by a multiple of this, from -12 to +14 hours."""


def judge_layout(log: Log, rules: Rules) -> Iterator[Violation]:
    """Each line around the records once, in order, as the run's status asks."""
    if not log.frame:
        return  # a log.txt
    layouts = rules.shared["stdout"]["lines"]
    expected = layouts.get(log.status, layouts["interrupted"])
    places = [(line.number, kind) for kind, line in log.frame]
    places += [(line.number, "records") for line in log.lines if line.text.startswith(PREFIX)]
    merged: list[tuple[int, str]] = []
    for number, kind in sorted(places):
        if not (merged and kind == merged[-1][1] == "records"):
            merged.append((number, kind))
    found = [kind for _, kind in merged]
    lines = [number for number, _ in merged] + [log.num_lines]
    for a, b, c, d in differences(expected, found):
        instead = ", then ".join(expected[a:b]) or after(expected, b)
        for index in range(c, d):
            yield Violation(lines[index], "stdout", instead, found[index])
        if c == d:
            yield Violation(lines[c], "stdout", instead, after(found, d))


def judge_result(log: Log, rules: Rules) -> Iterator[Violation]:
    """The fields of RESULT or ABORTED against the records and STARTING."""
    total = log.one("run_seconds")
    place = {
        "benchmark": _value(log, "submission_benchmark"),
        "seed": _value(log, "seed"),
        "seconds": None if total is None else math.floor(total.value),
    }
    starting = next((_moment(line, rules) for kind, line in log.frame if kind == "STARTING"), None)
    endings: dict[str, dict[str, Any]] = {
        "RESULT": {**place, "user": None, "start": starting},
        "ABORTED": {**place, **_qualities(log, rules)},
    }
    for kind, line in log.frame:
        if kind not in endings:
            continue
        found = line.text.split(",")[1:]
        expected = endings[kind]
        if len(found) != len(expected) or "" in found:
            shown = ",".join([kind, *(f"<{name}>" for name in expected)])
            yield Violation(line.number, kind, shown, show(line.text))
            continue
        for (name, value), text in zip(expected.items(), found, strict=True):
            if value is not None and text != str(value):
                yield Violation(line.number, kind, f"{name} {value}", show(text))


def _value(log: Log, key: str) -> Any:
    record = log.one(key)
    return record.value if record else None


def _qualities(log: Log, rules: Rules) -> dict[str, str | None]:
    """What ABORTED says of the best evaluation and the targets; None where the log does not."""
    targets = targets_of(log, rules)
    if not targets:
        return {"quality": None, "target": None}
    best = None
    for evaluation in evaluations(log):
        if evaluation.has_all(rules) and (
            best is None or better(targets, evaluation.quality, best)
        ):
            best = evaluation.quality
    qualities = "/".join(repr(best[target.name]) for target in targets) if best else "none"
    return {"quality": qualities, "target": show_targets(targets)}


def judge_moments(log: Log, rules: Rules) -> Iterator[Violation]:
    """STARTING and ENDING are the local times of run_start and run_stop, to the second."""
    start, total = log.one("run_start"), log.one("run_seconds")
    offset_s = None
    for kind, line in log.frame:
        if kind not in ("STARTING", "ENDING"):
            continue
        moment = _moment(line, rules)
        local_s = _parsed(moment, rules)
        if local_s is None:
            form = rules.shared["stdout"]["time_format"]
            yield Violation(line.number, kind, f"a time as {form}", show(moment))
            continue
        if start is None or (kind == "ENDING" and total is None):
            continue
        after_s = total.value if kind == "ENDING" and total else 0.0
        moment_ms = start.time_ms + after_s * 1000
        zone_s = round((local_s - moment_ms / 1000) / QUARTER_HOUR_S) * QUARTER_HOUR_S
        late_ms = moment_ms - (local_s - zone_s) * 1000
        is_zone = -12 * 3600 <= zone_s <= 14 * 3600
        # Daylight saving time may begin or end in between.
        is_same = offset_s is None or abs(zone_s - offset_s) <= 3600
        tolerance_ms = rules.tolerance_ms
        if not (is_zone and is_same and -tolerance_ms < late_ms < 1000 + tolerance_ms):
            utc = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(moment_ms / 1000))
            yield Violation(line.number, kind, f"the local time of {utc} UTC", show(moment))
        offset_s = zone_s


def _moment(line: Line, rules: Rules) -> str:
    for prefix in rules.shared["stdout"]["prefixes"].values():
        if line.text.startswith(prefix):
            return line.text.removeprefix(prefix)
    return line.text


def _parsed(moment: str, rules: Rules) -> int | None:
    """Seconds of a local time, as if it were UTC; None where it is not in the right form."""
    form = rules.shared["stdout"]["time_format"]
    try:
        parsed = time.strptime(moment, form)
    except ValueError:
        return None
    return calendar.timegm(parsed) if time.strftime(form, parsed) == moment else None
