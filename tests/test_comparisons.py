"""The frame of comparisons/: pairs, arithmetic, environments, tables; and RecBole's work is ours.

The frame is tried with small programs in place of trainings, the environments with a lock of one
empty package.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from comparisons import comparison, environments, our_run, pairs, recommendation, report
from comparisons import recommendation_peer as recbole_run
from comparisons.pairs import OURS, Measure, PairOptions, Program
from harness import system
from harness.errors import UsageError
from harness.options import REPOSITORY, parse_command_line
from recommendation.config import PRESETS
from recommendation.model import NeuMF
from recommendation.prepare import RATINGS_FILES
from recommendation.tests.conftest import recbole_wheel  # noqa: F401  a fixture
from recommendation.tests.test_model import Counts, recbole_neumf  # noqa: F401
from tests.test_layout import ALL_BENCHMARKS, direct_needs

PEER, OTHER_PEER = "peer", "other-peer"
NAMES = {OURS: "ours", PEER: "Other 1.0", OTHER_PEER: "Third 2.0"}
SPEED = Measure("speed", "speed, examples/s", True, 1.5)
SECONDS = Measure("seconds", "time, s", False, 3)
MEASURES = (SPEED, SECONDS)
VARIABLES = (*pairs.THREAD_VARIABLES, "GOMP_SPINCOUNT", "CUDA_VISIBLE_DEVICES", "PYTHONPATH")
Pair = tuple[float | None, float | None]

PROGRAM = """
import json, os, sys
seed = int(sys.argv[sys.argv.index("--seed") + 1])
with open({journal!r}, "a") as journal:
    journal.write({name!r} + f" {{seed}}\\n")
print("something else before it")
facts = {facts!r}
facts["cores"] = sorted(os.sched_getaffinity(0))
facts |= {{name: value for name, value in os.environ.items() if name in {variables!r}}}
result = {{"measures": {measures!r}, "facts": facts, "details": {{"folder": os.getcwd()}}}}
print(json.dumps(result), flush=True)
{extra}
"""


class Bench:
    """Programs, at first two, that note when they ran, and where their record goes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = folder / "journal.txt"
        self.path = folder / "results" / "record.json"
        self.programs: dict[str, Program] = {}
        self.set(OURS)
        self.set(PEER)

    def set(
        self,
        side: str,
        speed: float | None = 100.0,
        seconds: float | None = 2.0,
        batch_size: int = 8,
        extra: str = "",
    ) -> None:
        script = self.folder / f"{side}.py"
        script.write_text(
            PROGRAM.format(
                journal=str(self.journal),
                name=side,
                facts={"batch_size": batch_size},
                measures={"speed": speed, "seconds": seconds},
                variables=VARIABLES,
                extra=extra,
            )
        )
        self.programs[side] = Program(NAMES[side], (sys.executable, str(script)))

    def run(self, num_pairs: int) -> dict[str, Any]:
        """On one core, with seeds from 5 on."""
        record: dict[str, Any] = {}
        options = PairOptions(num_pairs=num_pairs, num_threads=1, first_seed=5)
        cores = pairs.choose_cores(1)
        pairs.run_pairs(self.programs, MEASURES, options, cores, record, self.path)
        return record


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# --- pairs ----------------------------------------------------------------------------------------


def test_ours_and_the_peer_alternate_with_a_seed_for_each_pair(bench: Bench) -> None:
    record = bench.run(3)
    expected = ["ours 5", "peer 5", "peer 6", "ours 6", "ours 7", "peer 7"]
    assert bench.journal.read_text().splitlines() == expected
    assert [f"{run['side']} {run['seed']}" for run in record["runs"]] == expected
    assert [run["pair"] for run in record["runs"]] == [1, 1, 2, 2, 3, 3]
    assert json.loads(bench.path.read_text()) == record


def test_several_peers_and_ours_take_turns_at_each_place(bench: Bench) -> None:
    bench.set(OTHER_PEER)
    record = bench.run(2)
    runs = [(run["pair"], run["side"]) for run in record["runs"]]
    forward = [OURS, PEER, OTHER_PEER]
    assert runs == [(1, side) for side in forward] + [(2, side) for side in forward[::-1]]
    assert report.num_whole_pairs(record | {"peers": [{"key": PEER}, {"key": OTHER_PEER}]}) == 2

    orders = [pairs.order(pair, "ABC") for pair in range(7)]
    assert len(set(orders[:6])) == 6  # every order once, before any comes again
    assert orders[6] == orders[0]
    for pair in (0, 2, 4):  # what drifts from run to run cancels in two pairs
        assert orders[pair + 1] == orders[pair][::-1]
    for place in zip(*orders[:6], strict=True):
        assert sorted(place) == list("AABBCC")


def test_both_get_the_same_cores_and_threads(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "7")
    before = os.sched_getaffinity(0)
    record = bench.run(1)
    (ours, peer) = (run["facts"] for run in record["runs"])
    assert ours == peer
    assert ours["cores"] == record["cores"] == [min(before)]
    assert record["threads"] == {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "TF_NUM_INTRAOP_THREADS": "1",
        "GOMP_SPINCOUNT": "1000",
    }
    given = {name: value for name, value in ours.items() if name in VARIABLES}
    assert given == {**record["threads"], "CUDA_VISIBLE_DEVICES": ""}
    assert os.sched_getaffinity(0) == before


def test_each_run_has_a_folder_of_its_own_that_goes_away(bench: Bench) -> None:
    folders = [run["details"]["folder"] for run in bench.run(1)["runs"]]
    assert len(set(folders)) == 2
    assert not any(Path(folder).exists() for folder in folders)


def test_the_work_of_others_is_seen(bench: Bench) -> None:
    bench.set(OURS, extra="import time\ntime.sleep(1)")
    other_work = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        run = bench.run(1)["runs"][0]
    finally:
        other_work.kill()
        other_work.wait()
    assert run["elapsed_s"] >= 1
    assert run["load_average_before"] >= 0
    assert run["busy_cores_of_others"] > 0.25


def test_own_work_is_not_the_work_of_others(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    of_machine, of_run = iter([10.0, 13.0]), iter([1.0, 3.5])  # CPU seconds before and after
    monkeypatch.setattr(pairs, "_busy_cpu_s", lambda: next(of_machine))
    monkeypatch.setattr(pairs, "_children_cpu_s", lambda: next(of_run))
    run = pairs.run_once(bench.programs[OURS], 1, MEASURES, {}, bench.folder / "log.txt")
    assert run["busy_cores_of_others"] == pytest.approx(0.5 / run["elapsed_s"])


class FakeStat:
    """Stands for Path: what the kernel says of all cores, further on at each reading."""

    def __init__(self, *cells: str) -> None:
        self.lines = iter(f"cpu  {line}\ncpu0 1 1 1 1 1 1 1 1 0 0\n" for line in cells)

    def __call__(self, path: str) -> FakeStat:
        assert path == "/proc/stat"
        return self

    def read_text(self) -> str:
        return next(self.lines)


def test_idle_and_waiting_cores_are_not_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ticks of user, nice, system, idle, iowait, irq, softirq, steal; guest is within user."""
    monkeypatch.setattr(pairs, "Path", FakeStat("1 2 4 1000 2000 8 16 32 5000 6000"))
    assert pairs._busy_cpu_s() == 63 / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(("busy_s", "warned"), [(2, True), (0.2, False)])
def test_other_work_on_the_cores_is_warned_of(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    busy_s: float,
    warned: bool,
) -> None:
    """Beside each run of 1 s other work takes so many CPU seconds."""
    ticks = [round(n * busy_s * os.sysconf("SC_CLK_TCK")) for n in (0, 1, 1, 2)]
    readings = FakeStat(*(f"{busy} 0 0 0 0 0 0 0 0 0" for busy in ticks))
    # Path stands where files are made too, so only the reading of /proc/stat is replaced.
    real_path = Path
    monkeypatch.setattr(
        pairs, "Path", lambda path: readings if path == "/proc/stat" else real_path(path)
    )
    clock = iter([0.0, 1.0, 1.0, 2.0])
    monkeypatch.setattr(pairs, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(pairs, "_children_cpu_s", lambda: 0.0)
    record = bench.run(1)
    assert [run["busy_cores_of_others"] for run in record["runs"]] == pytest.approx([busy_s] * 2)
    error = capsys.readouterr().err
    assert error.count(f"warning: other work took {busy_s:.1f} cores meanwhile") == 2 * warned
    assert error.count("warning") == 2 * warned


def test_a_run_that_fails_is_named_in_one_line_and_costs_no_earlier_one(bench: Bench) -> None:
    bench.set(PEER, extra="sys.exit('no such file') if seed == 7 else None")
    with pytest.raises(UsageError) as caught:
        bench.run(4)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("Other 1.0 failed with status 1: no such file; see ")
    assert Path(message.rpartition("see ")[2]).read_text() == "no such file\n"
    kept = json.loads(bench.path.read_text())
    assert [(run["pair"], run["side"]) for run in kept["runs"]] == [
        (1, OURS),
        (1, PEER),
        (2, PEER),
        (2, OURS),
        (3, OURS),
    ]
    assert report.num_whole_pairs(kept | {"peers": [{"key": PEER}]}) == 2


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"extra": "print('the last line')"}, "Expecting value"),
        ({"extra": "print('[1, 2]')"}, "list indices"),
        ({"extra": "print(json.dumps({'measures': {}, 'facts': {}}))"}, "its measures are none"),
        ({"extra": "result['facts'] = {}\nprint(json.dumps(result))"}, "it states no facts"),
        ({"extra": "print(json.dumps({**result, 'measures': {'speed': 1}}))"}, "are speed"),
        (
            {"extra": "print(json.dumps(result | {'measures': {'speed': 'x', 'seconds': 1}}))"},
            "real",
        ),
        ({"extra": "del result['details']\nprint(json.dumps(result))"}, "'details'"),
        ({"speed": 0.0}, "speed is 0.0"),
        ({"speed": -1.0}, "speed is -1.0"),
        ({"extra": "print(json.dumps(result).replace('100.0', 'NaN'))"}, "speed is nan"),
        ({"extra": "print(json.dumps(result).replace('100.0', 'Infinity'))"}, "speed is inf"),
    ],
)
def test_a_result_that_cannot_be_read_is_refused(
    bench: Bench, change: dict[str, Any], cause: str
) -> None:
    bench.set(PEER, **change)
    with pytest.raises(UsageError, match=re.escape(cause)) as caught:
        bench.run(1)
    message = str(caught.value)
    assert message.startswith("Other 1.0 printed no result that can be read (")
    assert "\n" not in message
    assert Path(message.rpartition("; see ")[2]) == bench.path.with_suffix("") / "01-peer.txt"
    assert [run["side"] for run in json.loads(bench.path.read_text())["runs"]] == [OURS]


def test_unlike_work_is_refused(bench: Bench) -> None:
    bench.set(PEER, batch_size=9)
    with pytest.raises(UsageError, match=r"batch_size is 8 in ours and 9 in Other 1\.0") as caught:
        bench.run(2)
    assert "\n" not in str(caught.value)
    assert len(bench.journal.read_text().splitlines()) == 2  # the second pair is not begun


def test_unlike_work_of_any_peer_is_refused(bench: Bench) -> None:
    bench.set(OTHER_PEER, batch_size=9)
    with pytest.raises(UsageError, match=r"batch_size is 8 in ours and 9 in Third 2\.0"):
        bench.run(2)


def test_work_may_differ_from_seed_to_seed(bench: Bench) -> None:
    for side in (OURS, PEER):
        bench.set(side, extra="facts['objects'] = sys.argv[-1]\nprint(json.dumps(result))")
    bench.run(2)
    runs = json.loads(bench.path.read_text())["runs"]
    assert [run["facts"]["objects"] for run in runs] == ["5", "5", "6", "6"]


def test_a_fact_that_ours_does_not_state_is_refused(bench: Bench) -> None:
    bench.set(PEER, extra="facts['layers'] = 3\nprint(json.dumps(result))")
    with pytest.raises(UsageError, match=r"layers is not stated in ours and 3 in Other 1\.0"):
        bench.run(1)


@pytest.mark.parametrize("num_threads", [-1, 10_000])
def test_threads_beyond_the_cores_are_refused(num_threads: int) -> None:
    with pytest.raises(UsageError, match=f"--num-threads {num_threads}"):
        pairs.choose_cores(num_threads)


def test_an_interruption_ends_what_a_run_has_started(bench: Bench) -> None:
    """After SIGTERM the run's own child is gone too."""
    process_file = bench.folder / "process.txt"
    child = f"""
import subprocess, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(process_file)!r}, "w").write(f"{{child.pid}} ")
time.sleep(60)
"""
    bench.set(OURS, extra=child)
    command = f"""
import signal
from pathlib import Path
from comparisons import pairs
signal.signal(signal.SIGTERM, signal.default_int_handler)
program = pairs.Program("ours", {bench.programs[OURS].command!r})
pairs.run_once(program, 1, [], {{}}, Path({str(bench.folder / "log.txt")!r}))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", command], cwd=REPOSITORY, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: process_file.exists() and process_file.read_text().endswith(" "))
    child_number = int(process_file.read_text())
    assert is_running(child_number)
    process.terminate()
    process.wait(timeout=20)
    wait_until(lambda: not is_running(child_number), timeout_s=10)


def wait_until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(0.05)


def is_running(process_number: int) -> bool:
    """Whether there is such a process that is no zombie."""
    try:
        state = Path(f"/proc/{process_number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


# --- arithmetic -----------------------------------------------------------------------------------


def runs_of(
    values: Sequence[Sequence[float | None]],
    key: str = "speed",
    sides: Sequence[str] = (OURS, PEER),
) -> list[Any]:
    """Runs of pairs whose sides measured these values, as a record has them."""
    noise = {"busy_cores_of_others": 0.1, "load_average_before": 1.2}
    return [
        {"pair": pair, "side": side, "seed": pair, "measures": {key: value}, **noise}
        for pair, measured in enumerate(values, 1)
        for side, value in zip(sides, measured, strict=True)
    ]


def test_ratios_are_taken_within_pairs() -> None:
    summary = pairs.summarise(runs_of([(30, 10), (20, 20), (90, 20)]), SPEED, PEER)
    assert summary.ratios == (3, 1, 4.5)
    assert (summary.ours, summary.peer, summary.ratio) == (30, 20, 3)  # not 30 / 20


def test_of_seconds_fewer_are_better() -> None:
    summary = pairs.summarise(runs_of([(1, 2), (1, 4)], "seconds"), SECONDS, PEER)
    assert summary.ratios == (2, 4)
    assert (summary.ours, summary.peer, summary.ratio) == (1, 3, 3)


def test_a_pair_without_a_value_has_no_ratio() -> None:
    values: list[Pair] = [(1, 2), (None, 4), (3, None), (1, 3)]
    summary = pairs.summarise(runs_of(values, "seconds"), SECONDS, PEER)
    assert summary.ratios == (2, 3)
    assert (summary.ours, summary.peer) == (1, 3)


def test_half_a_pair_does_not_count() -> None:
    summary = pairs.summarise(runs_of([(6, 2), (8, 2)])[:-1], SPEED, PEER)
    assert (summary.ratios, summary.ours) == ((3,), 6)


def test_without_any_value_there_is_no_ratio() -> None:
    summary = pairs.summarise(runs_of([(None, 2)]), SPEED, PEER)
    assert (summary.ours, summary.peer, summary.ratio) == (None, 2, None)


def test_each_peer_has_its_own_ratio() -> None:
    runs = runs_of([(30, 10, 60), (20, 20, 40)], sides=(OURS, PEER, OTHER_PEER))
    assert pairs.summarise(runs, SPEED, PEER).ratios == (3, 1)
    assert pairs.summarise(runs, SPEED, OTHER_PEER).ratios == (0.5, 0.5)


# --- tables ---------------------------------------------------------------------------------------


def record_of(
    values: Sequence[Sequence[float | None]], peers: Sequence[str] = (PEER,)
) -> dict[str, Any]:
    machine = {
        "cpu": "Some CPU",
        "num_cores": 4,
        "memory_bytes": 8 * 2**30,
        "gpus": [],
        "python": "3.11.9",
        "packages": {"torch": "2.7.1"},
        "git_commit": "abc1234",
    }
    return {
        "benchmark": "sums",
        "start_utc": "2026-11-24T09:00:00Z",
        "peers": [
            {"key": peer, "name": NAMES[peer], "packages": {"torch": "2.7.1"}} for peer in peers
        ],
        "measures": [
            {"key": "speed", "title": "sums/s", "higher_is_better": True, "hoped_ratio": 1.5}
        ],
        "system": machine,
        "cores": [0, 1],
        "runs": runs_of(values, sides=(OURS, *peers)),
    }


SEVEN: list[Pair] = [(1000.0 * n, 1000.0) for n in range(1, 8)]


def test_the_table_has_medians_ratios_and_conditions() -> None:
    text = report.table(record_of(SEVEN))
    assert "| sums/s | 4,000 | 1,000 | 4.00 (1.00 to 7.00) | 1.5 |" in text
    assert "Pairs of runs: 7, in alternating order, seeds 1 to 7; each run on 2 cores" in text
    assert "at most 0.10 cores during a run (load average before a run: at most 1.2)" in text
    assert "Some CPU, 4 cores, 8 GiB, no GPU; python 3.11.9, torch 2.7.1 on both sides" in text
    assert "Too few" not in text


def test_the_table_has_columns_for_each_peer() -> None:
    values = [(1000.0 * n, 1000.0, 4000.0) for n in range(1, 8)]
    record = record_of([*values, (1.0, 1.0, 1.0)], (PEER, OTHER_PEER))
    del record["runs"][-1]  # of a pair that is not whole nothing counts
    times_as_fast = "times as fast: median of the pairs (lowest to highest)"
    text = report.table(record)
    assert (
        f"| | ours | Other 1.0 | {times_as_fast} | Third 2.0 | {times_as_fast} | hoped for |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
        "| sums/s | 4,000 | 1,000 | 4.00 (1.00 to 7.00) | 4,000 | 1.00 (0.25 to 1.75) | 1.5 |\n"
    ) in text
    assert "Pairs of runs: 7 with each peer, in alternating order" in text
    assert "torch 2.7.1 on all sides" in text
    record["peers"][1]["packages"] = {"keras": "3.0"}
    assert "torch 2.7.1 beside torch 2.7.1 beside keras 3.0; commit" in report.table(record)


def test_what_only_ours_measures_has_no_ratio() -> None:
    record = record_of([(4.0, None)] * 7)
    record["measures"][0] |= {"hoped_ratio": None, "hoped_value": 5}
    lines = report.table(record).splitlines()
    assert lines[2] == "| sums/s | 4 | none | none | below 5 |"
    assert lines[4].startswith("Pairs of runs: 7")  # no note that values are missing


def test_an_early_record_has_the_same_table() -> None:
    """Its one peer has no key, and stands in other fields."""
    record = record_of(SEVEN)
    (peer,) = record["peers"]
    early = {name: value for name, value in record.items() if name != "peers"}
    early |= {"peer": peer["name"], "peer_packages": peer["packages"]}
    assert report.table(early) == report.table(record)


def test_missing_values_are_counted() -> None:
    text = report.table(record_of([(None, 1), *SEVEN]))
    assert "sums/s: 7 runs of ours, 8 runs of Other 1.0 have a value, 7 pairs count." in text


def test_too_few_pairs_are_labelled_and_written_nowhere(tmp_path: Path) -> None:
    record = record_of(SEVEN[:6])
    assert "**Too few pairs for a claim: 6, and 7 are needed.**" in report.table(record)
    readme = tmp_path / "README.md"
    readme.write_text("<!-- sums: made by python -m comparisons.report -->\n<!-- end of sums -->")
    before = readme.read_text()
    half_a_pair_less = record | {"runs": runs_of(SEVEN)[:-1]}
    for too_few in (record, half_a_pair_less):
        with pytest.raises(UsageError, match="6 whole pairs, too few"):
            report.write_readme(too_few, readme)
    assert readme.read_text() == before


def test_the_readme_gets_its_own_table_only(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    other = "<!-- other: made by python -m comparisons.report -->\nold\n<!-- end of other -->"
    own = "<!-- sums: made by python -m comparisons.report -->\n{}\n<!-- end of sums -->"
    readme.write_text(f"before\n{other}\n{own.format('old')}\nafter\n")
    record = record_of(SEVEN)
    for _ in range(2):
        report.write_readme(record, readme)
        expected = f"before\n{other}\n{own.format(report.table(record))}\nafter\n"
        assert readme.read_text() == expected
    readme.write_text(other)
    with pytest.raises(UsageError, match="lacks the comments"):
        report.write_readme(record, readme)


def test_the_command_writes_the_readme_of_enough_pairs_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme, path = tmp_path / "README.md", tmp_path / "record.json"
    begin, end = report.BEGIN.format("sums"), report.END.format("sums")
    empty = f"before\n{begin}\nNot measured yet.\n{end}\nafter\n"
    readme.write_text(empty)
    monkeypatch.setattr(report, "README", readme)
    path.write_text(json.dumps(record_of(SEVEN[:6])))
    assert report.main([str(path), "--write-readme"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the record of sums has 6 whole pairs, too few for a claim")
    assert error.count("\n") == 1
    assert readme.read_text() == empty
    path.write_text(json.dumps(record_of(SEVEN)))
    assert report.main([str(path), "--write-readme"]) == 0
    table = report.table(record_of(SEVEN))
    assert readme.read_text() == f"before\n{begin}\n{table}\n{end}\nafter\n"
    assert report.main([str(tmp_path / "none.json")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_the_report_takes_the_newest_record_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    assert report.main([]) == 2
    assert capsys.readouterr().err.startswith("error: no record below ")
    for benchmark, start in (("sums", "20260101"), ("sums", "20260102"), ("others", "20260101")):
        path = tmp_path / "comparisons" / benchmark / f"{start}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record_of(SEVEN) | {"benchmark": f"{benchmark} {start}"}))
    assert report.main([]) == 0
    headings = re.findall("^# (.+)$", capsys.readouterr().out, re.MULTILINE)
    assert headings == ["others 20260101", "sums 20260102"]


def test_the_readme_has_the_place_of_every_comparison() -> None:
    text = report.README.read_text()
    for benchmark in COMPARED:
        assert text.count(report.BEGIN.format(benchmark)) == 1
        assert text.count(report.END.format(benchmark)) == 1


# --- environments ---------------------------------------------------------------------------------


class Locks:
    """Environments and locks in a folder of their own, and a package that pip takes from there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = folder / "environments" / "name"
        self.path = folder / "name.txt"

    def write(self, version: str, digest: str = "") -> None:
        """A wheel of this version, which asks for a package that there is not, and its lock."""
        information = f"model-{version}.dist-info"
        needs = "Name: model\nRequires-Dist: no-such-package"
        files = {
            "model.py": "",
            f"{information}/METADATA": f"Metadata-Version: 2.1\n{needs}\nVersion: {version}\n",
            f"{information}/WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any\n",
        }
        record = f"{information}/RECORD"
        files[record] = "".join(f"{name},,\n" for name in (*files, record))
        wheel = self.folder / f"model-{version}-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        digest = digest or hashlib.sha256(wheel.read_bytes()).hexdigest()
        self.path.write_text(f"model=={version} --hash=sha256:{digest}\n")


@pytest.fixture
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Locks:
    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path / "environments")
    monkeypatch.setattr(environments, "LOCKS", tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return Locks(tmp_path)


@pytest.mark.slow
def test_an_environment_is_made_once_and_anew_when_its_lock_changes(locks: Locks) -> None:
    locks.write("1.0")
    python = environments.make("name")
    assert environments.packages(python)["model"] == "1.0"
    mark = locks.environment / "mark"
    mark.touch()
    assert environments.make("name") == python
    assert mark.exists()

    locks.write("1.1")
    assert environments.make("name") == python
    assert environments.packages(python)["model"] == "1.1"
    assert not mark.exists()

    mark.touch()
    (locks.environment / "made-from.txt").unlink()  # as when pip was killed
    environments.make("name")
    assert not mark.exists()


def test_an_environment_is_made_anew_for_another_python(
    locks: Locks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock without packages, and no venv or pip: only what is asked of them counts."""
    made: list[str] = []

    def note(_command: list[str], folder: Path, program: str, **_variables: str) -> None:
        made.append(program)
        folder.mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(environments, "_run", note)
    locks.path.write_text("")
    environments.make("name")
    environments.make("name")
    assert made == ["venv", "pip"]
    monkeypatch.setattr(environments.platform, "python_version", lambda: "3.11.99")
    environments.make("name")
    environments.make("name")
    assert made == ["venv", "pip"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("lock", ["another digest", "none"])
def test_a_package_without_its_digest_is_refused_in_one_line(locks: Locks, lock: str) -> None:
    locks.write("1.0", digest="0" * 64)
    if lock == "none":
        locks.path.write_text("model==1.0\n")
    with pytest.raises(UsageError) as caught:
        environments.make("name")
    message = str(caught.value)
    assert "\n" not in message
    assert re.match("pip could not make .*: ERROR: .*hash", message, re.IGNORECASE)
    assert Path(re.findall("; see ([^,]+),", message)[0]).exists()
    assert not (locks.environment / "made-from.txt").exists()


def test_a_missing_lock_and_a_python_that_is_too_new_are_named(locks: Locks) -> None:
    with pytest.raises(UsageError, match=r"other\.txt cannot be read"):
        environments.make("other")
    with pytest.raises(UsageError, match=r"with Python up to 3\.10, and this is 3"):
        environments.make("name", (3, 10))
    assert not locks.environment.exists()


FOLDER = REPOSITORY / "comparisons"
LOCKS = sorted(FOLDER.glob("*.txt"))
COMPARED = sorted(name for name in ALL_BENCHMARKS if (FOLDER / f"{name}.py").exists())
PIN = re.compile(r"([a-z0-9][a-z0-9.-]*)==[^ ]+(?: ; [^\\]*)? \\")
DIGEST = re.compile(r"    --hash=sha256:[0-9a-f]{64}(?: \\)?")


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_peers_lock_has_digests_and_names_no_address(lock: Path) -> None:
    text = lock.read_text()
    assert text.splitlines()[1] == "#    tools/lock.sh"
    assert "://" not in text
    assert "/tmp" not in text
    lines = [line for line in text.splitlines() if line.strip()[:1] not in {"", "#"}]
    assert [line for line in lines if not (PIN.fullmatch(line) or DIGEST.fullmatch(line))] == []
    followers = [after for line, after in pairwise(lines) if PIN.match(line)]
    assert all(DIGEST.fullmatch(line) for line in followers)
    excludes = lock.with_suffix(".excludes")
    excluded = set(excludes.read_text().split("\n")) if excludes.exists() else set()
    assert not excluded & {match[1] for line in lines if (match := PIN.fullmatch(line))}


def test_every_request_has_its_lock_and_holds_what_is_asked_for() -> None:
    assert LOCKS
    assert [path.with_suffix(".txt") for path in sorted(FOLDER.glob("*.in"))] == LOCKS
    for lock in LOCKS:
        pinned = set(re.findall(r"^([a-z0-9][a-z0-9.-]*)==", lock.read_text(), re.MULTILINE))
        assert direct_needs(lock.with_suffix(".in")) <= pinned, lock.name


def test_every_lock_and_peer_script_belongs_to_a_comparison() -> None:
    assert COMPARED
    peers = [peer for benchmark in COMPARED for peer in comparison_of(benchmark).peers]
    assert [path.stem for path in LOCKS] == sorted(p.environment for p in peers if p.environment)
    scripts = sorted(path.name for path in FOLDER.glob("*_peer.py"))
    assert scripts == sorted(peer.script for peer in peers)


def comparison_of(benchmark: str) -> comparison.Comparison:
    found = importlib.import_module(f"comparisons.{benchmark}").COMPARISON
    assert isinstance(found, comparison.Comparison)
    return found


@pytest.mark.parametrize("benchmark", COMPARED)
def test_a_comparison_names_what_is_there(benchmark: str) -> None:
    named = comparison_of(benchmark)
    assert named.benchmark == benchmark
    assert (REPOSITORY / benchmark / "train.py").is_file()
    assert importlib.util.find_spec(named.our_command[0])
    pythons = {peer.key: f"python of {peer.key}" for peer in named.peers}
    ours, *programs = comparison._programs(named, pythons).values()
    assert ours.command == (sys.executable, "-m", *named.our_command)
    for peer, program in zip(named.peers, programs, strict=True):
        assert (program.name, program.command[0]) == (peer.name, pythons[peer.key])
        assert Path(program.command[1]).is_file()
        assert (program.python_path is None) == bool(peer.environment)
        assert set(peer.packages) <= system.describe()["packages"].keys()
    for command in named.preparation:
        assert command[0] == sys.executable or (REPOSITORY / command[0]).is_file()


def test_recbole_gets_the_pytorch_that_ours_has() -> None:
    ours = (REPOSITORY / "recommendation/requirements.txt").read_text()
    peers = (REPOSITORY / "comparisons/recommendation-peer.txt").read_text()
    versions = [re.findall(r"^torch==(\S+)", text, re.MULTILINE) for text in (ours, peers)]
    assert versions[0] == versions[1] != []
    assert "torch" in recommendation.COMPARISON.peers[0].packages


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def small(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> comparison.Comparison:
    """A comparison of the two small programs, in this environment on both sides."""
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path / "results"))
    monkeypatch.setattr(environments, "make", lambda *_: Path(sys.executable))
    monkeypatch.setattr(environments, "digest", lambda _: "0" * 64)
    monkeypatch.setattr(comparison, "_programs", lambda *_: bench.programs)
    return comparison.Comparison(
        benchmark="sums",
        our_command=(),
        peers=(
            comparison.Peer(
                key=PEER,
                name="Other 1.0",
                script="sums_peer.py",
                arguments=(),
                packages=("pytest",),
                environment="sums-peer",
            ),
        ),
        measures=MEASURES,
        preparation=((sys.executable, "-c", "print('prepared')"),),
    )


def test_the_command_measures_and_prints_its_table(
    bench: Bench,
    small: comparison.Comparison,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    bench.set(OURS, speed=300.0, seconds=None)
    bench.set(PEER, speed=200.0)
    assert comparison.main(small, ["--num-pairs", "2", "--num-threads", "1"]) == 0
    output, error = capfd.readouterr()
    assert "prepared\n" in error
    assert "| speed, examples/s | 300 | 200 | 1.50 (1.50 to 1.50) | 1.5 |" in output
    assert "| time, s | none | 2 | none | 3 |" in output
    assert "Too few pairs for a claim: 2" in output
    (path,) = (tmp_path / "results" / "comparisons" / "sums").glob("*.json")
    record = json.loads(path.read_text())
    assert len(record["runs"]) == 4
    (peer,) = record["peers"]
    assert peer["packages"]["pytest"] == pytest.__version__
    assert (peer["key"], peer["name"], peer["lock_sha256"]) == (PEER, "Other 1.0", "0" * 64)
    assert record["system"]["num_cores"] >= 1


def test_packages_that_must_agree_are_compared(
    small: comparison.Comparison,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(environments, "packages", lambda _: {"pytest": "1.0"})
    assert comparison.main(small, ["--num-pairs", "1"]) == 2
    error = capsys.readouterr().err
    assert f"pytest is {pytest.__version__} here and 1.0 in the peer's environment" in error
    assert error.count("\n") == 1


def test_a_peer_without_a_lock_runs_in_our_environment(
    small: comparison.Comparison,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("no environment is made and no lock is read")

    monkeypatch.setattr(environments, "make", refuse)
    monkeypatch.setattr(environments, "digest", refuse)
    peer = dataclasses.replace(small.peers[0], environment="")
    record = comparison.measure(
        dataclasses.replace(small, peers=(peer,)), PairOptions(num_pairs=1, num_threads=1)
    )
    assert record["peers"][0]["packages"] == record["system"]["packages"]
    peer = dataclasses.replace(peer, packages=("no-such-package",))
    assert comparison.main(dataclasses.replace(small, peers=(peer,)), []) == 2
    needed = "no-such-package is not installed here; run this in an environment of requirements-dev"
    assert needed in capfd.readouterr().err


def test_a_file_that_a_person_must_bring_is_named(
    small: comparison.Comparison, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = dataclasses.replace(small, needs=((tmp_path / "photos", "bring them"),))
    assert comparison.main(missing, ["--num-pairs", "1"]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'photos'} is not there; bring them\n"
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("arguments", [["--num-pairs", "0"], ["--num-pairs", "x"], ["--pairs"]])
def test_wrong_usage_is_one_line(
    small: comparison.Comparison, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert comparison.main(small, arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


# --- our side -------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run of three epochs of 10, 2 and 3 s and evaluations of 1, 1, 5 and 2 s."""
    records: list[tuple[str, Any, int]] = [("train_samples", 100, 0), ("eval_samples", 7, 0)]
    durations_ms = [1000, 10_000, 1000, 2000, 5000, 3000, 2000]
    now_ms = 0
    for number, duration_ms in enumerate(durations_ms):
        name = ("eval", "epoch")[number % 2]
        records += [(f"{name}_start", None, now_ms), (f"{name}_stop", None, now_ms + duration_ms)]
        now_ms += duration_ms + 50
    lines = [
        ":::MLLOG " + json.dumps({"key": key, "value": value, "time_ms": time_ms})
        for key, value, time_ms in records
    ]
    (tmp_path / "log.txt").write_text("\n".join(lines) + "\n")
    config = {"config": {"batch_size": 10}, "derived": {"steps_per_epoch": 10}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_status(tmp_path, "reached")
    return tmp_path


def write_status(folder: Path, status: str) -> None:
    run = {
        "benchmark": "sums",
        "status": status,
        "targets": {"accuracy": 0.9},
        "run_seconds": 24.5,
        "phase_seconds": {},
        "evaluations": [],
    }
    (folder / "run.json").write_text(json.dumps(run))


def test_measures_and_facts_are_read_off_the_run(run_folder: Path) -> None:
    result = our_run.read_run(run_folder)
    assert result["measures"] == {
        "train_examples_per_s": 100 * 2 / 5,  # without the first epoch
        "evaluation_s": 1.5,
        "time_to_target_s": 24.5,
    }
    assert result["facts"] == {
        "batch_size": 10,
        "steps_per_epoch": 10,
        "target_accuracy": 0.9,
        "train_samples": 100,
        "eval_samples": 7,
    }


def test_a_run_that_missed_its_target_has_no_time_to_it(run_folder: Path) -> None:
    write_status(run_folder, "missed")
    assert our_run.read_run(run_folder)["measures"]["time_to_target_s"] is None
    write_status(run_folder, "non-finite")
    with pytest.raises(UsageError, match="ended as non-finite"):
        our_run.read_run(run_folder)


@pytest.mark.slow
def test_our_side_trains_through_its_command_line(tmp_path: Path) -> None:
    measures = comparison.three_measures(1, 1, 1)
    module = (sys.executable, "-m", "comparisons.our_run", "recommendation", "tiny")
    program = Program("ours", module, REPOSITORY)
    threads = {"OMP_NUM_THREADS": "1"}
    run = pairs.run_once(program, 2, measures, threads, tmp_path / "log.txt")
    assert all(value > 0 for value in run["measures"].values())
    assert run["measures"]["time_to_target_s"] < run["elapsed_s"]
    assert run["facts"]["num_parameters"] == 17_481
    assert len(run["details"]["evaluations_s"]) == len(run["details"]["epochs_s"]) + 1


# --- RecBole --------------------------------------------------------------------------------------


def test_recbole_is_told_to_do_what_ours_does(recbole_neumf: Any) -> None:  # noqa: F811
    """Parameters of its own network, and the numbers of its settings, beside our configuration."""
    config, _ = parse_command_line("recommendation", PRESETS, list(recommendation.OUR_ARGUMENTS))
    settings = recbole_run.SETTINGS
    fields = {
        "USER_ID_FIELD": "user",
        "ITEM_ID_FIELD": "item",
        "LABEL_FIELD": "label",
        "NEG_PREFIX": "negative_",
        "device": "cpu",
        "mf_train": True,
        "mlp_train": True,
        "use_pretrain": False,
        "mf_pretrain_path": None,
        "mlp_pretrain_path": None,
    }
    network = recbole_neumf({**settings, **fields}, Counts(943, 1_682))
    ours = NeuMF(943, 1_682, config.num_factors, config.mlp_layers)
    num_ours = sum(weights.numel() for weights in ours.parameters())
    assert num_ours == 611_073
    padding = 2 * (64 + 128)
    assert sum(weights.numel() for weights in network.parameters()) == num_ours + padding

    num_negatives = settings["train_neg_sample_args"]["sample_num"]
    group = 1 + num_negatives  # a positive and its negatives, which RecBole keeps together
    assert settings["train_batch_size"] // group * group == config.batch_size == 2045
    assert num_negatives == config.num_train_negatives
    assert settings["eval_args"]["mode"] == f"uni{config.num_eval_negatives}"
    assert settings["learning_rate"] == config.learning_rate
    assert settings["epochs"] == config.max_epochs
    assert settings["topk"] == [config.top_k]
    assert config.quality_targets[0].value == recbole_run.TARGET
    assert settings["dropout_prob"] == 0


FACTS = {
    "device": "cpu",
    "num_threads": 1,
    "num_users": 943,
    "num_items": 1682,
    "num_parameters": 611_073,
    "num_factors": 64,
    "mlp_layers": [256, 256, 128, 64],
    "batch_size": 2045,
    "steps_per_epoch": 243,
    "train_samples": 495_285,
    "num_train_negatives": 4,
    "learning_rate": 0.0005,
    "max_epochs": 1,
    "eval_samples": 943,
    "num_eval_negatives": 999,
    "top_k": 10,
    "target_hr_at_10": 0.2,
}
"""What both sides state of one epoch."""
THREADS = {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "1000"}


@pytest.fixture
def ratings() -> Path:
    path = recommendation.DATA_DIR / RATINGS_FILES["ml-100k"]
    if not path.exists():
        pytest.skip(f"{path} is missing; run recommendation/download_dataset.sh mini")
    return path


@pytest.mark.exhaustive
def test_recbole_states_the_facts_of_its_work(ratings: Path, tmp_path: Path) -> None:
    """One epoch of RecBole itself, in its own environment: what it did, and that it learns."""
    folder = environments.ENVIRONMENTS / "recommendation-peer"
    if not (folder / "made-from.txt").exists():
        pytest.skip(f"{folder} is not there: python -m comparisons.recommendation makes it")
    one_epoch = (
        f"import sys; sys.path.append({str(FOLDER)!r}); "
        "import recommendation_peer as peer; peer.SETTINGS['epochs'] = 1; peer.main()"
    )
    python = str(folder / "bin" / "python")
    program = Program("RecBole", (python, "-c", one_epoch, "--ratings", str(ratings)))
    measures = recommendation.COMPARISON.measures
    run = pairs.run_once(program, 1, measures, THREADS, tmp_path / "log.txt")
    assert run["facts"] == FACTS
    assert run["measures"]["time_to_target_s"] is None
    assert run["measures"]["train_examples_per_s"] is None  # the only epoch is the warm-up
    assert run["measures"]["evaluation_s"] > 0
    (quality,) = run["details"]["qualities"]
    assert 0.05 < quality < 0.2


@pytest.mark.slow
@pytest.mark.usefixtures("ratings")
def test_ours_states_the_same_facts(tmp_path: Path) -> None:
    """One epoch of ours as the comparison runs it: the frame must find the same work in it."""
    prepared = recommendation.COMPARISON.preparation[-1]
    subprocess.run(prepared, cwd=REPOSITORY, check=True, capture_output=True)
    command = (sys.executable, "-m", *recommendation.COMPARISON.our_command, "--max-epochs", "1")
    program = Program("ours", command, REPOSITORY)
    measures = recommendation.COMPARISON.measures
    with pairs._on_cores(pairs.choose_cores(1)):  # ours takes as many threads as cores
        run = pairs.run_once(program, 1, measures, THREADS, tmp_path / "log.txt")
    runs = [
        {"side": OURS, "seed": 1, "facts": run["facts"]},
        {"side": PEER, "seed": 1, "facts": FACTS},
    ]
    pairs.check_same_work(runs, {OURS: program, PEER: Program("RecBole", ())})
    assert run["measures"]["time_to_target_s"] is None
    assert run["measures"]["train_examples_per_s"] is None


def test_a_training_that_fails_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert our_run.main(["recommendation", "no-such-preset"]) == 2
    output, error = capfd.readouterr()
    assert output == ""
    assert error.splitlines()[-1] == "error: recommendation.train ended with status 2"
