"""Pairs of runs of ours and of a peer, alternating, on the same cores: every comparison's frame.

It starts commands, keeps what they measured, and does the arithmetic. With several peers a pair is
a round: one run of each program. A run is a process of its own that prints, as its last line on
stdout, one JSON object:

    {"measures": {"evaluation_s": 0.7}, "facts": {"batch_size": 2045}, "details": {}}

`measures` has a positive number, or null where there is none, for each measure of the comparison.
`facts` say what was done: ours and a peer must state the same value wherever both name a fact, and
a peer names none that ours does not, so that unlike work is never compared. `details` are kept.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import system
from harness.checkpoint import write_json
from harness.errors import UsageError

MIN_PAIRS = 7
"""Fewer pairs than this support no claim: the report says so, and no document takes them."""
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
)
OURS = "ours"
BUSY_CORES = 0.25
"""Cores that other work may use during a run before a warning says that it spoils the times."""


@dataclass(frozen=True)
class Measure:
    """Something that every program measures in each run."""

    key: str
    title: str
    """As the table names it, unit included."""
    higher_is_better: bool
    hoped_ratio: float | None
    """How many times as good as each peer we hope to be; nothing depends on it."""
    hoped_value: float | None = None
    """What only ours measures has no ratio, and this is what we hope that it stays below."""

    def ratio(self, ours: float, peer: float) -> float:
        """How many times as good ours is: above 1, ours is better."""
        return ours / peer if self.higher_is_better else peer / ours


@dataclass(frozen=True)
class Program:
    """One side of a comparison."""

    name: str
    """As tables and messages name it."""
    command: tuple[str, ...]
    """Runs it once. `--seed N` is appended."""
    python_path: Path | None = None
    """Folder that it imports its own modules from, if any."""


@dataclass(frozen=True)
class PairOptions:
    """How to measure."""

    num_pairs: int = MIN_PAIRS
    """Pairs of runs; fewer than 7 are only for a first look, and are labelled so."""
    num_threads: int = 0
    """Threads and cores of every run, the same for all; 0 takes every core there is."""
    first_seed: int = 1
    """Seed of all runs of the first pair; each pair has the next one."""


def order(pair: int, sides: Sequence[str]) -> tuple[str, ...]:
    """Who runs when in pair number `pair`, from 0: A B, B A, A B, ... so that drift cancels.

    With three: A B C, C B A, A C B, B C A, B A C, C A B, and again.
    """
    orders = [
        order
        for order in itertools.permutations(sides)
        if sides.index(order[0]) < sides.index(order[-1])  # the others are these, turned round
    ]
    forward = orders[pair // 2 % len(orders)]
    return forward if pair % 2 == 0 else forward[::-1]


def run_pairs(
    programs: Mapping[str, Program],
    measures: Sequence[Measure],
    options: PairOptions,
    cores: Sequence[int],
    record: dict[str, Any],
    path: Path,
) -> None:
    """Run all pairs on these cores; `record` gets what they said and is written to `path`.

    It is written after each run, so that a run that fails costs no earlier one. What the programs
    say on stderr goes to the folder named like `path`. Raises UsageError, in one line, where a
    program fails, does not print what it should, or did other work than the other one.
    """
    record["threads"] = {name: str(len(cores)) for name in THREAD_VARIABLES}
    # The harness sets this for ours (its __init__ says why); the peer must not be without it.
    record["threads"]["GOMP_SPINCOUNT"] = "1000"
    record["cores"] = list(cores)
    record["num_pairs"] = options.num_pairs
    record["runs"] = []
    with _on_cores(cores):
        for pair in range(options.num_pairs):
            for side in order(pair, list(programs)):
                seed = options.first_seed + pair
                folder = path.with_suffix("")
                folder.mkdir(parents=True, exist_ok=True)
                log = folder / f"{pair + 1:02}-{side}.txt"
                run = {"pair": pair + 1, "side": side, "seed": seed}
                run |= run_once(programs[side], seed, measures, record["threads"], log)
                _say_run(run, programs[side], measures, options.num_pairs)
                record["runs"].append(run)
                write_json(path, record)
                check_same_work(record["runs"], programs)


def run_once(
    program: Program,
    seed: int,
    measures: Sequence[Measure],
    threads: Mapping[str, str],
    log: Path,
) -> dict[str, Any]:
    """One run in an empty folder, which is removed again; returns what it said, and the noise."""
    load_average = os.getloadavg()[0]
    environment = {**os.environ, **threads, "CUDA_VISIBLE_DEVICES": "", "PYTHONSAFEPATH": "1"}
    environment.pop("PYTHONPATH", None)
    if program.python_path:
        environment["PYTHONPATH"] = str(program.python_path)
    start_s, start_cpu_s, start_busy_s = time.monotonic(), _children_cpu_s(), _busy_cpu_s()
    with tempfile.TemporaryDirectory() as folder:
        environment["TMPDIR"] = folder
        status, stdout = _run([*program.command, "--seed", str(seed)], folder, environment, log)
    elapsed_s = time.monotonic() - start_s
    others_s = _busy_cpu_s() - start_busy_s - (_children_cpu_s() - start_cpu_s)
    if status:
        last_line = (log.read_text().strip().splitlines() or ["it said nothing"])[-1]
        cause = f"{program.name} failed with status {status}: {last_line}"
        raise UsageError(f"{cause}; see {log}")
    return {
        **read_result(stdout, program, measures, log),
        "elapsed_s": elapsed_s,
        "load_average_before": load_average,
        "busy_cores_of_others": max(0.0, others_s / elapsed_s),
    }


def _run(
    command: Sequence[str], folder: str, environment: Mapping[str, str], log: Path
) -> tuple[int, str]:
    """Exit status and stdout of a command, stderr in `log`; an interruption ends all it started."""
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        try:
            stdout, _ = process.communicate()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, stdout


def read_result(
    stdout: str, program: Program, measures: Sequence[Measure], log: Path
) -> dict[str, Any]:
    """The JSON object on the last line of `stdout`. Raises UsageError where it is not there."""
    try:
        result = json.loads(stdout.strip().rpartition("\n")[2])
        values, facts = result["measures"], result["facts"]
        if set(values) != {measure.key for measure in measures}:
            raise ValueError(f"its measures are {', '.join(values) or 'none'}")
        for key, value in values.items():
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{key} is {value}")
        if not facts:
            raise ValueError("it states no facts")
        return {"measures": values, "facts": facts, "details": result["details"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        cause = f"{program.name} printed no result that can be read ({error})"
        needed = "its last line on stdout must be the JSON object"
        raise UsageError(f"{cause}; {needed}; see {log}") from error


def check_same_work(runs: Sequence[Mapping[str, Any]], programs: Mapping[str, Program]) -> None:
    """Raises UsageError where runs of ours and of a peer from the last seed state unlike facts."""
    last = {run["side"]: run["facts"] for run in runs if run["seed"] == runs[-1]["seed"]}
    ours = last.pop(OURS, None)
    for side, facts in last.items() if ours else ():
        for name, value in facts.items():
            our_value = ours.get(name, "not stated")
            if our_value != value:
                raise UsageError(
                    f"not the same work: {name} is {our_value} in {programs[OURS].name} and "
                    f"{value} in {programs[side].name}; make them equal"
                )


# --- arithmetic -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """One measure over all pairs of ours and one peer."""

    ours: float | None
    """Median of our runs that have a value."""
    peer: float | None
    ratios: tuple[float, ...]
    """Of each pair in which both have a value, in order."""

    @property
    def ratio(self) -> float | None:
        """Median of the pairs' ratios."""
        return statistics.median(self.ratios) if self.ratios else None


def summarise(runs: Sequence[Mapping[str, Any]], measure: Measure, peer: str) -> Summary:
    """Medians, and the ratio within each pair in which both sides have run."""
    by_pair: dict[int, dict[str, float | None]] = {}
    for run in runs:
        by_pair.setdefault(run["pair"], {})[run["side"]] = run["measures"][measure.key]
    pairs = [(sides[OURS], sides[peer]) for sides in by_pair.values() if {OURS, peer} <= set(sides)]
    ours = [value for value, _ in pairs if value is not None]
    peers = [value for _, value in pairs if value is not None]
    return Summary(
        statistics.median(ours) if ours else None,
        statistics.median(peers) if peers else None,
        tuple(measure.ratio(a, b) for a, b in pairs if a is not None and b is not None),
    )


# --- cores and noise ------------------------------------------------------------------------------


def choose_cores(num_threads: int) -> list[int]:
    """The cores that every run is held to: the first of those that this process may use.

    Raises UsageError where there are fewer than `num_threads`; 0 takes all.
    """
    num_cores = system.num_cores()
    if not 0 <= num_threads <= num_cores:
        cause = f"--num-threads {num_threads}: there are {num_cores} cores"
        raise UsageError(f"{cause}; give 0 for all of them, or fewer")
    return sorted(os.sched_getaffinity(0))[: num_threads or num_cores]


@contextlib.contextmanager
def _on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Hold this process, and with it what it starts, to these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _children_cpu_s() -> float:
    """CPU seconds of all processes that this one has started and seen end."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _busy_cpu_s() -> float:
    """CPU seconds that all cores of the machine have worked for anyone, stolen time included."""
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    ticks = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    spent = dict(zip(names, map(int, ticks), strict=False))
    busy = sum(spent.values()) - spent["idle"] - spent["iowait"]
    return busy / os.sysconf("SC_CLK_TCK")


def _say_run(
    run: Mapping[str, Any], program: Program, measures: Sequence[Measure], num_pairs: int
) -> None:
    """One line on stderr for a run, and one more where other work spoiled it."""
    shown = [f"{measure.title} {show(run['measures'][measure.key])}" for measure in measures]
    where = f"pair {run['pair']} of {num_pairs}, {program.name}"
    print(f"{where}: {', '.join(shown)} ({run['elapsed_s']:.0f} s in all)", file=sys.stderr)
    busy = run["busy_cores_of_others"]
    if busy > BUSY_CORES:
        print(
            f"warning: other work took {busy:.1f} cores meanwhile (load average before it: "
            f"{run['load_average_before']:.1f}); measure on a quiet machine",
            file=sys.stderr,
        )


def show(value: float | None) -> str:
    """A number with three or four digits, as a table has it."""
    if value is None:
        return "none"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
