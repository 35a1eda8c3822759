"""Which record stands where: the seal, and the order that the rules give.

Both compare what should be there with what is there, and name the lines where they differ.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from harness.log_facts import evaluation_steps, steps_per_epoch
from harness.log_file import Log, Record, Rules, Violation, is_integer, shorten, show
from harness.run_log import SEAL_KEY, seal_value

END = "the end of the log"


def differences(
    expected: Sequence[str], found: Sequence[str]
) -> Iterator[tuple[int, int, int, int]]:
    """Where two sequences differ: (a, b, c, d), found[c:d] standing for expected[a:b].

    Of an item that stands there twice the later one is the one too many.
    """
    matcher = SequenceMatcher(None, expected, found, autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        while tag == "insert" and found[c : c + 1] == found[d : d + 1] == expected[b : b + 1]:
            a, b, c, d = a + 1, b + 1, c + 1, d + 1
        if tag != "equal":
            yield a, b, c, d


def judge_seal(log: Log, _: Rules) -> Iterator[Violation]:
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
    num_expected, num_found = Counter(expected_heads), Counter(heads)
    for a, b, c, d in differences(expected_heads, heads):
        num_edited = min(b - a, d - c)
        for index in range(c, d):
            head = heads[index]
            if index < c + num_edited and head not in num_expected:
                expected = f"the line sealed with {shorten(expected_heads[a + index - c])}"
                found = f"an edited one, {head}"
            else:
                doubled = num_found[head] > num_expected[head] > 0
                moved = head in num_expected
                what = "a doubled" if doubled else "a moved" if moved else "an added"
                expected, found = "no such line here", f"{what} one, {head}"
            yield Violation(numbers[index], "seal", expected, found)
        for index in range(a + num_edited, b):
            head = expected_heads[index]
            if head not in num_found:  # else it was moved, and is named where it is now
                expected = f"line {index + 1} of the log, sealed with {shorten(head)}, before this"
                yield Violation(numbers[d], "seal", expected, "it was dropped")


# --- Order of the records -------------------------------------------------------------------


def judge_order(log: Log, rules: Rules) -> Iterator[Violation]:
    """Every record in its place, exactly once; epochs without a gap from 1."""
    kept: list[Record] = []
    for item in _without_resumptions(log, rules):
        if isinstance(item, Record):
            kept.append(item)
        else:
            yield item
    found = [_token(record) for record in kept]
    start, body, end = _expected(log, rules)
    expected = start + body + end
    # A run that did not reach its target may have ended at any record after run_start; one that
    # a signal ended, before it too.
    earliest = 1 if log.status == "interrupted" else start.index("run_start") + 1
    truncated = range(earliest, len(start + body) + 1)
    lines = [record.line for record in kept] + [log.num_lines]
    for a, b, c, d in differences(expected, found):
        missing = expected[a:b]
        if log.status != "success" and b == truncated[-1] and a in truncated:
            missing = []
        for index in range(c, d):
            instead = missing[index - c] if index - c < len(missing) else after(expected, b)
            yield Violation(lines[index], "order", instead, found[index])
        if missing := missing[d - c :]:
            shown = shorten(", ".join(missing))
            yield Violation(lines[d], "order", shown, found[d] if d < len(found) else END)


def after(expected: Sequence[str], index: int) -> str:
    """What stands at this place of a sequence, or its end."""
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
        within, at_its_end = _evaluations_of(epoch, log, rules)
        evaluation = [
            f"{name} of epoch {epoch}"
            for key in order["evaluation"]
            for name in (
                [f"{key} {metric}" for metric in rules.targets] if key == "eval_accuracy" else [key]
            )
        ]
        if epoch > 0:
            first, *rest = (f"{key} of epoch {epoch}" for key in order["epoch"])
            body += [first, *evaluation * within]
            # A run ends at the evaluation that meets its target, within an epoch too.
            body += [] if is_whole and epoch == last_epoch and within and not at_its_end else rest
        # --num-steps leaves the first evaluation out.
        if at_its_end and (epoch > 0 or is_whole or epoch in support):
            body += evaluation
    end = order["interrupted" if log.status == "interrupted" else "run_stop"]
    return start, body, end


def _evaluations_of(epoch: int, log: Log, rules: Rules) -> tuple[int, bool]:
    """How many evaluations come within an epoch, and whether one comes after it."""
    rule = rules.own["evaluation"]
    if "steps" not in rule:
        first, every = int(rule["first_epoch"]), int(rule["every_epochs"])
        return 0, epoch >= first and (epoch - first) % every == 0
    size = steps_per_epoch(log, rules)
    steps = evaluation_steps(epoch, log, rules)
    within = [step for step in steps if size and step % size and step <= _last_step(log)]
    return len(within), len(steps) > 0 and size is not None and steps[-1] % size == 0


def _last_step(log: Log) -> int:
    """Where a successful run ended; none is beyond that of another."""
    stop = log.one("run_stop")
    return int(stop.metadata["step_num"]) if stop and log.status == "success" else sys.maxsize


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
