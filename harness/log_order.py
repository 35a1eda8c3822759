"""Which line stands where: the seal, the order of the records, the frame of a captured stdout.

Each compares what should be there with what is there, line by line, and names where they differ.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from harness.log_file import Log, Record, Rules, Violation, is_integer, shorten, show
from harness.run_log import PREFIX, SEAL_KEY, seal_value

END = "the end of the log"


def differences(
    expected: Sequence[str], found: Sequence[str]
) -> Iterator[tuple[int, int, int, int]]:
    """Where two sequences differ: (a, b, c, d), found[c:d] standing for expected[a:b]."""
    matcher = SequenceMatcher(None, expected, found, autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag != "equal":
            yield a, b, c, d


def judge_seal(log: Log, rules: Rules) -> Iterator[Violation]:
    """The last record's digests against the lines before it."""
    seals = log.all(SEAL_KEY)
    if not seals:
        expected = f"{SEAL_KEY} as the last record"
        yield Violation(log.num_lines, "seal", expected, "none: the log is not whole")
        return
    seal = seals[-1]
    sealed = [line for line in log.lines if line.number < seal.line]
    actual = seal_value([line.text for line in sealed])
    if seal.value == actual:
        return
    expected_heads, heads = seal.value["line_sha256"], actual["line_sha256"]
    if seal.value["sha256"] == actual["sha256"] or expected_heads == heads:
        yield Violation(seal.line, "seal", f"{SEAL_KEY} {show(actual)}", show(seal.value))
        return
    numbers = [line.number for line in sealed] + [seal.line]
    for a, b, c, d in differences(expected_heads, heads):
        num_edited = min(b - a, d - c)
        for index in range(c, d):
            head = heads[index]
            if index < c + num_edited and head not in expected_heads:
                expected = f"the line sealed with {shorten(expected_heads[a + index - c])}"
                found = f"an edited one, {head}"
            else:
                doubled = heads.count(head) > expected_heads.count(head) > 0
                moved = head in expected_heads
                what = "a doubled" if doubled else "a moved" if moved else "an added"
                expected, found = "no such line here", f"{what} one, {head}"
            yield Violation(numbers[index], "seal", expected, found)
        for index in range(a + num_edited, b):
            head = expected_heads[index]
            if head not in heads:  # else it was moved, and is named where it is now
                expected = f"line {index + 1} of the log, sealed with {shorten(head)}, before this"
                yield Violation(numbers[d], "seal", expected, "it was dropped")


# --- Order of the records -------------------------------------------------------------------


def judge_order(log: Log, rules: Rules) -> Iterator[Violation]:
    """Every record in its place, exactly once; epochs without a gap from 1."""
    records = list(_without_resumptions(log, rules))
    place_violations = [item for item in records if isinstance(item, Violation)]
    yield from place_violations
    kept = [item for item in records if isinstance(item, Record)]
    found = [_token(record) for record in kept]
    start, body, end = _expected(log, rules)
    expected = start + body + end
    # A run that did not reach its target may have ended at any record after run_start.
    truncated = range(start.index("run_start") + 1, len(start + body) + 1)
    lines = [record.line for record in kept] + [log.num_lines]
    for a, b, c, d in differences(expected, found):
        missing = expected[a:b]
        if log.status != "success" and b == truncated[-1] and a in truncated:
            missing = []
        for index in range(c, d):
            instead = missing[index - c] if index - c < len(missing) else _after(expected, b)
            yield Violation(lines[index], "order", instead, f"{found[index]}")
        if missing := missing[d - c :]:
            shown = shorten(", ".join(missing))
            yield Violation(lines[d], "order", shown, found[d] if d < len(found) else END)


def _after(expected: list[str], index: int) -> str:
    return expected[index] if index < len(expected) else END


def _token(record: Record) -> str:
    """The record's place in the order: key, epoch, metric."""
    if record.key == "run_stop" or "epoch_num" not in record.metadata:
        return record.key
    metric = record.metadata.get("metric") if record.key == "eval_accuracy" else None
    name = record.key if metric is None else f"{record.key} {shorten(str(metric))}"
    return f"{name} of epoch {show(record.metadata['epoch_num'])}"


def _expected(log: Log, rules: Rules) -> tuple[list[str], list[str], list[str]]:
    """Tokens of a log like this one: up to the data, of its epochs and evaluations, of its end."""
    order = rules.shared["order"]
    start = _filled(order["start"], rules)
    epochs = [
        epoch
        for record in log.records
        if (epoch := record.metadata.get("epoch_num")) is not None and is_integer(epoch)
    ]
    # An epoch that a single record of a whole log names is a slip of that record.
    support = Counter(epochs)
    is_whole = log.status == "success"
    named = [epoch for epoch in epochs if support[epoch] > 1 or not is_whole]
    last_epoch = min(max(named, default=0), len(log.records))
    body = []
    for epoch in range(last_epoch + 1):
        if epoch > 0:
            body += [f"{key} of epoch {epoch}" for key in order["epoch"]]
        # --num-steps leaves the first evaluation out.
        if _is_evaluated(epoch, rules) and (epoch > 0 or is_whole or epoch in support):
            body += [
                f"{name} of epoch {epoch}"
                for key in order["evaluation"]
                for name in (
                    [f"{key} {metric}" for metric in rules.targets]
                    if key == "eval_accuracy"
                    else [key]
                )
            ]
    end = order["interrupted" if log.status == "interrupted" else "run_stop"]
    return start, body, end


def _is_evaluated(epoch: int, rules: Rules) -> bool:
    schedule = rules.own["evaluation"]
    past = epoch - schedule["first_epoch"]
    return past >= 0 and past % schedule["every_epochs"] == 0


def _filled(keys: list[str], rules: Rules) -> list[str]:
    """`keys` with the benchmark's own in place of `recipe` and `data`."""
    tables = {name: list(rules.own[name]) for name in ("recipe", "data")}
    return [name for key in keys for name in tables.get(key, [key])]


def _without_resumptions(log: Log, rules: Rules) -> Iterator[Record | Violation]:
    """The records without each later attempt's own, which may begin anywhere after the data."""
    first, *data = _filled(rules.shared["order"]["resumed"], rules)
    ends = {key for name in ("run_stop", "interrupted") for key in rules.shared["order"][name]}
    has_started, pending = False, list[str]()
    for record in log.records:
        if record.key == "run_start":
            has_started = True
        if record.key == first and has_started and not pending:
            pending = list(data)
        elif pending and record.key == pending[0]:
            pending.pop(0)
        else:
            if pending and record.key not in ends:  # a crash may come before the data is read
                yield Violation(record.line, "order", ", ".join(pending), _token(record))
            pending = []
            yield record


# --- The frame of a captured stdout ---------------------------------------------------------


def judge_frame(log: Log, rules: Rules) -> Iterator[Violation]:
    """STARTING, the records, ENDING, RESULT or ABORTED: each once, in this order."""
    if not log.frame:
        return
    layouts = rules.shared["stdout"]["lines"]
    expected = layouts.get(log.status, layouts["interrupted"])
    places = [(line.number, kind) for kind, line in log.frame]
    places += [(line.number, "records") for line in log.lines if line.text.startswith(PREFIX)]
    merged: list[tuple[int, str]] = []
    for number, kind in sorted(places):
        if not (merged and kind == "records" == merged[-1][1]):
            merged.append((number, kind))
    found = [kind for _, kind in merged]
    lines = [number for number, _ in merged] + [log.num_lines]
    for a, b, c, d in differences(expected, found):
        instead = ", then ".join(expected[a:b]) or _after(expected, b)
        for index in range(c, d):
            yield Violation(lines[index], "stdout", instead, found[index])
        if c == d:
            yield Violation(lines[c], "stdout", instead, _after(found, d))


def line_digest(text: str) -> str:
    """Head of a line's SHA-256, as the seal holds it."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]
