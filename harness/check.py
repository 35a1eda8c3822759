"""Judge logs offline, by the rules in rules.toml and <benchmark>/rules.toml.

    python -m harness check LOG...

LOG is a log.txt, a run's folder, or a captured stdout. Each line that breaks a rule is named on
stdout: file and line, rule, what was expected and what was found. Logs that are as they should be
are held against the benchmark's known runs (convergence.json): one that needed suspiciously few
epochs is flagged. That is a reason to look, not a broken rule: of honest runs one in twenty is.

Exit status: 0 where every log is as it should be, 1 where a rule is broken, 2 where a file cannot
be read or is empty.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from harness import convergence, log_facts, log_order, log_stdout
from harness.log_file import (
    Log,
    Violation,
    find_rules,
    judge_values,
    load_shared_rules,
    read_log,
)

USAGE = "give one or more logs: python -m harness check LOG..."
MAX_VIOLATIONS_OF_A_RULE = 20
"""Of one rule in one file; how many more there are is said."""
RULES = (
    log_order.judge_seal,
    log_order.judge_order,
    log_facts.judge_time,
    log_facts.judge_seconds,
    log_facts.judge_resumptions,
    log_facts.judge_preset,
    log_facts.judge_modified,
    log_facts.judge_steps,
    log_facts.judge_epochs,
    log_facts.judge_throughput,
    log_facts.judge_quality,
    log_facts.judge_stop,
    log_stdout.judge_layout,
    log_stdout.judge_result,
    log_stdout.judge_moments,
)


def main(arguments: list[str]) -> int:
    """Judge each log; returns the worst exit status."""
    if arguments in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    if not arguments or any(argument.startswith("-") for argument in arguments):
        wrong = f"{arguments[0]} is no log" if arguments else "no log is given"
        return _refuse(f"{wrong}; {USAGE}")
    whole: list[tuple[Path, Log]] = []
    status = max([check(Path(argument), whole) for argument in arguments])
    for flag in convergence.judge(whole):
        _say(f"FLAG: {', '.join(map(str, flag.paths))}: {flag.text}")
    return status


def check(path: Path, whole: list[tuple[Path, Log]]) -> int:
    """Judge one log and say so on stdout; returns the exit status.

    A log that breaks no rule joins `whole`.
    """
    path = path / "log.txt" if path.is_dir() else path
    try:
        data = path.read_bytes()
    except OSError as error:
        return _refuse(f"cannot read {path}: {error.strerror}; name a log.txt or a run's folder")
    if not data:
        return _refuse(f"{path} is empty; the run wrote nothing, look at its stderr")
    violations, log = judge(data)
    shown = Counter[str]()
    for violation in violations:
        shown[violation.rule] += 1
        if shown[violation.rule] <= MAX_VIOLATIONS_OF_A_RULE:
            text = f"expected {violation.expected}, found {violation.found}"
            _say(f"{path}:{violation.line}: {violation.rule}: {text}")
    for rule, number in shown.items():
        if (more := number - MAX_VIOLATIONS_OF_A_RULE) > 0:
            _say(f"{path}: {rule}: {more} more lines")
    if not violations:
        _say(f"OK: {path}: {len(log.records)} records, {describe(log)}")
        whole.append((path, log))
    return 1 if violations else 0


def judge(data: bytes) -> tuple[list[Violation], Log]:
    """All violations of a log's bytes in the order of lines, and the log taken apart."""
    shared = load_shared_rules()
    log, violations = read_log(data, shared)
    if not log.records:
        text = f"none in {log.num_lines} lines"
        nothing = Violation(1, "records", "records of a run (:::MLLOG ...)", text)
        return [nothing, *(broken for broken in violations if broken.rule == "JSON")], log
    rules, unknown = find_rules(log, shared)
    violations += unknown
    for record in log.records:
        broken = list(judge_values(record, rules))
        record.is_sound = not broken
        violations += broken
    for rule in RULES:
        violations += rule(log, rules)
    return sorted(violations, key=lambda violation: violation.line), log


def describe(log: Log) -> str:
    """How the run ended, and what sets it apart from a plain run of its preset."""
    parts = [log.status]
    if num_resumes := len(log.all("resumed")):
        parts.append(f"resumed {num_resumes} times" if num_resumes > 1 else "resumed once")
    if log.modified:
        parts.append(f"modified: {', '.join(log.modified)}")
    return ", ".join(parts)


def _say(text: str) -> None:
    print(_printable(text, sys.stdout.encoding))


def _refuse(text: str) -> int:
    print(f"error: {_printable(text, sys.stderr.encoding)}", file=sys.stderr)
    return 2


def _printable(text: str, encoding: str | None) -> str:
    """`text` in one line that the stream can take, whatever a file's name or a record may hold."""
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    encoding = encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
