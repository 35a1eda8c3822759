"""A log taken apart: its records, the other lines of a captured stdout, and its rules.

Nothing that a file may contain makes this raise: what is not as it should be becomes a Violation,
and a record whose values are not of their kind is kept, but not `sound`, so that only the rules
about the order of records look at it.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

from harness.run_log import PREFIX

REPOSITORY = Path(__file__).resolve().parent.parent
FIELDS = ["namespace", "time_ms", "event_type", "key", "value", "metadata"]
"""Fields of a record as mllog writes them."""
MAX_NESTING = 100
"""Brackets that a record may open: one has at most ten."""
MAX_SHOWN = 150
"""Characters of an expected or found value that a violation shows."""


@dataclass(frozen=True)
class Violation:
    """A line that breaks a rule."""

    line: int
    """Number of the line in its file, from 1."""
    rule: str
    expected: str
    found: str


@dataclass(frozen=True)
class Line:
    """A line of the file, without its end."""

    number: int
    text: str


@dataclass
class Record:
    """A line that holds an mllog record."""

    line: int
    time_ms: int
    event_type: str
    key: str
    value: Any
    metadata: dict[str, Any]
    is_sound: bool = True
    """Whether value and metadata are of the kinds that the rules name."""


@dataclass(frozen=True)
class Rules:
    """The rules that a log falls under: harness/rules.toml and the benchmark's own."""

    shared: dict[str, Any]
    own: dict[str, Any]
    preset: dict[str, Any]
    """Values of the preset; empty where there is no such preset."""

    @property
    def targets(self) -> list[str]:
        """Qualities that have a target, in order: the preset's, or all that may have one."""
        all_of_them = [name for name, rule in self.own["quality"].items() if "better" in rule]
        return list(self.preset.get("quality_target", all_of_them))

    @property
    def recipe_fields(self) -> dict[str, list[str]]:
        """The fields of Config that a recipe record's value follows from, by its key."""
        fields = {}
        for key, rule in self.own["recipe"].items():
            fields[key] = [rule["field"]] if "field" in rule else rule.get("fields", [])
        return fields

    @property
    def tolerance_ms(self) -> float:
        """How far two readings of one moment may lie apart."""
        return float(self.shared["tolerance"]["clock_ms"])

    def key(self, key: str) -> dict[str, Any] | None:
        """What a record of this key holds, or None where no record has this key."""
        for table in (self.shared["keys"], self.own["recipe"], self.own["data"]):
            if key in table:
                return cast(dict[str, Any], table[key])
        return None


@dataclass
class Log:
    """A log in parts. `frame`: the lines of a captured stdout around the records, by kind."""

    lines: list[Line] = field(default_factory=list)
    """Every line but those of the frame."""
    records: list[Record] = field(default_factory=list)
    frame: list[tuple[str, Line]] = field(default_factory=list)
    num_lines: int = 0

    def all(self, key: str) -> list[Record]:
        """Sound records of this key."""
        return [record for record in self.records if record.key == key and record.is_sound]

    def one(self, key: str) -> Record | None:
        """The first sound record of this key."""
        return next(iter(self.all(key)), None)

    @property
    def status(self) -> str:
        """How the run ended: what run_stop says, `interrupted`, or `unfinished`."""
        if stop := self.one("run_stop"):
            return str(stop.metadata["status"])
        return "interrupted" if self.one("interrupted") else "unfinished"

    @property
    def modified(self) -> list[str]:
        """Fields in which the run differs from its preset, as the log says."""
        record = self.one("modified")
        return record.value if record else []


# --- Kinds of value -------------------------------------------------------------------------


def is_integer(value: Any) -> bool:
    """A whole number of a size that arithmetic with floats takes."""
    return type(value) is int and abs(value) < 2**64


def is_number(value: Any) -> bool:
    """A finite number."""
    return is_integer(value) or (type(value) is float and math.isfinite(value))


def _is_amount(value: Any) -> bool:
    return is_number(value) and value >= 0


def _is_duration(value: Any) -> bool:
    return _is_amount(value) and value < 2**53  # in seconds; a date still comes of it


def _is_count(value: Any) -> bool:
    return is_integer(value) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_quality(value: Any) -> bool:
    """What is not finite is written as text."""
    return is_number(value) or value in ("nan", "inf", "-inf")


def _is_mapping(is_kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(is_kind, value.values()))


def _is_list(is_kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_kind, value))


def _is_seal(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and list(value) == ["sha256", "line_sha256"]
        and _is_text(value["sha256"])
        and _is_list(_is_text)(value["line_sha256"])
    )


KINDS: dict[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "flag": lambda value: isinstance(value, bool),
    "text": _is_text,
    "texts": _is_list(_is_text),
    "integer": is_integer,
    "count": _is_count,
    "counts": _is_list(_is_count),
    "number": is_number,
    "numbers": _is_mapping(is_number),
    "amount": _is_amount,
    "duration": _is_duration,
    "quality": _is_quality,
    "qualities": _is_mapping(_is_quality),
    "seal": _is_seal,
}
"""Kinds of value that rules name; counts, amounts and durations are not negative."""


def _is_of_kind(value: Any, kind: str | list[Any]) -> bool:
    if isinstance(kind, str):
        return KINDS[kind](value)
    return any(type(value) is type(allowed) and value == allowed for allowed in kind)


def _name(kind: str | list[Any]) -> str:
    return kind if isinstance(kind, str) else " or ".join(map(show, kind))


# --- From bytes to a Log --------------------------------------------------------------------


def read_log(data: bytes, shared: dict[str, Any]) -> tuple[Log, list[Violation]]:
    """Take a file apart; the violations name lines that are neither record nor frame."""
    log, violations = Log(), []
    texts = data.split(b"\n")
    log.num_lines = len(texts)
    if texts[-1] == b"":
        log.num_lines -= 1
    else:
        violations.append(
            Violation(log.num_lines, "line end", "a newline after the last line", "none")
        )
    returns = [number for number, text in enumerate(texts, start=1) if text.endswith(b"\r")]
    if returns:
        found = f"\\r\\n on {len(returns)} lines"
        violations.append(Violation(returns[0], "line end", "\\n", found))
    for number, raw in enumerate(texts[: log.num_lines], start=1):
        line = Line(number, raw.removesuffix(b"\r").decode("utf-8", "backslashreplace"))
        if kind := _frame_kind(line.text, shared):
            log.frame.append((kind, line))
            continue
        log.lines.append(line)
        if line.text.startswith(PREFIX):
            record, violation = _parse(line)
        else:
            expected = f"a line that starts with {PREFIX.strip()}"
            record, violation = None, Violation(number, "foreign line", expected, show(line.text))
        if record:
            log.records.append(record)
        if violation:
            violations.append(violation)
    return log, violations


def _frame_kind(text: str, shared: dict[str, Any]) -> str | None:
    for kind, prefix in shared["stdout"]["prefixes"].items():
        if text.startswith(prefix):
            return str(kind)
    return None


def _parse(line: Line) -> tuple[Record | None, Violation | None]:
    """The record on a line, where there is one, and what is wrong with its form."""
    text = line.text[len(PREFIX) :]

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        if text.count("[") + text.count("{") > MAX_NESTING:
            raise ValueError("nested too deeply")
        fields = json.loads(text, parse_constant=refuse)
    except ValueError as error:
        return None, Violation(line.number, "JSON", "a JSON record", f"{error}: {show(text)}")
    if not isinstance(fields, dict) or list(fields) != FIELDS:
        found = list(fields) if isinstance(fields, dict) else fields
        return None, Violation(line.number, "JSON", f"the fields {show(FIELDS)}", show(found))
    for name, kind in {"time_ms": "count", "event_type": "text", "key": "text"}.items():
        if not _is_of_kind(fields[name], kind):
            found = f"{name} {show(fields[name])}"
            return None, Violation(line.number, "JSON", f"{name} as {kind}", found)
    if not isinstance(fields["metadata"], dict):
        found = f"metadata {show(fields['metadata'])}"
        return None, Violation(line.number, "JSON", "metadata as mapping", found)
    violation = None
    if (canonical := json.dumps(fields)) != text or fields["namespace"] != "":
        # Keys that come twice, other spacing, numbers in another notation.
        expected = json.dumps({**fields, "namespace": ""}) if canonical == text else canonical
        violation = Violation(line.number, "JSON", shorten(expected), show(text))
    del fields["namespace"]
    return Record(line.number, **fields), violation


def judge_values(record: Record, rules: Rules) -> Iterator[Violation]:
    """Event type, value and metadata of one record against its key's rule."""
    rule = rules.key(record.key)
    if rule is None:
        return  # the order of records names it
    event_type = rule.get("event_type", "POINT_IN_TIME")
    if record.event_type != event_type:
        yield Violation(record.line, "event type", event_type, show(record.event_type))
    if not _is_of_kind(record.value, rule["value"]):
        expected = f"{record.key} as {_name(rule['value'])}"
        yield Violation(record.line, "value", expected, show(record.value))
    needed = {"file": "text", "lineno": "count", **rule.get("metadata", {})}
    kinds = {**needed, **rule.get("optional", {})}
    for name in [*needed, *(name for name in record.metadata if name not in needed)]:
        if name not in record.metadata:
            yield Violation(record.line, "metadata", f"{name} as {_name(kinds[name])}", "none")
        elif name not in kinds:
            yield Violation(record.line, "metadata", f"no {show(name)} in {record.key}", "one")
        elif not _is_of_kind(record.metadata[name], kinds[name]):
            expected = f"{name} as {_name(kinds[name])}"
            yield Violation(record.line, "metadata", expected, show(record.metadata[name]))


# --- Rules, and values as a violation shows them --------------------------------------------


@cache
def load(path: Path) -> dict[str, Any]:
    """Read a file of rules."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def load_shared_rules() -> dict[str, Any]:
    """The rules that all benchmarks share."""
    return load(Path(__file__).with_name("rules.toml"))


def find_rules(log: Log, shared: dict[str, Any]) -> tuple[Rules, list[Violation]]:
    """The rules of the log's benchmark and preset.

    Where the log does not name a benchmark that is here, the one whose keys are most like its
    own, so that the other lines can be judged all the same.
    """
    violations = []
    benchmarks = {path.parent.name: load(path) for path in REPOSITORY.glob("*/rules.toml")}
    del benchmarks["harness"]
    keys = {record.key for record in log.records}
    likely = max(sorted(benchmarks), key=lambda name: len(keys & {*benchmarks[name]["recipe"]}))
    for record in log.records:
        if record.key == "submission_benchmark" and _is_text(record.value):
            if record.value in benchmarks:
                likely = record.value
            else:
                expected = " or ".join(sorted(benchmarks))
                violations.append(Violation(record.line, "benchmark", expected, show(record.value)))
            break
    own = benchmarks[likely]
    preset = {}
    for record in log.records:
        if record.key == "preset" and _is_text(record.value):
            preset = own["presets"].get(record.value, {})
            if not preset:
                expected = " or ".join(own["presets"])
                violations.append(Violation(record.line, "preset", expected, show(record.value)))
            break
    return Rules(shared, own, preset), violations


def show(value: Any) -> str:
    """A value as JSON, which is ASCII, cut to a readable length."""
    return shorten(json.dumps(value))


def shorten(text: str) -> str:
    """The head of a long text."""
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... ({len(text)} characters)"
