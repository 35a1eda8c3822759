"""One run of a benchmark through its public command line, and what its log says was measured.

    .venv/bin/python -m comparisons.our_run recommendation mini --seed 1

Whatever follows the benchmark goes to its train module. Measures: training examples per second
over whole epochs, input included, the first one left out; seconds of an evaluation; seconds from
run_start to the evaluation that met the target.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.options import exit_with
from harness.run_log import PREFIX

Record = Mapping[str, Any]


def main(arguments: Sequence[str]) -> int:
    """Train once and print the result as one line of JSON; returns the exit status."""
    try:
        benchmark, *options = arguments
        with tempfile.TemporaryDirectory() as results_dir:
            command = [sys.executable, "-m", f"{benchmark}.train", *options]
            done = subprocess.run(
                [*command, "--device", "cpu", "--results-dir", results_dir],
                stdout=subprocess.DEVNULL,
            )
            if done.returncode not in (0, 1):  # 1: the target was missed
                raise UsageError(f"{benchmark}.train ended with status {done.returncode}")
            (folder,) = (path.parent for path in Path(results_dir).glob("**/run.json"))
            print(json.dumps(read_run(folder)))
    except UsageError as error:
        return exit_with(error)
    return 0


def read_run(folder: Path) -> dict[str, Any]:
    """Measures, facts and details out of a run's folder. UsageError where it did not end well."""
    run = json.loads((folder / "run.json").read_text())
    if run["status"] not in ("reached", "missed"):
        raise UsageError(f"the run of {run['benchmark']} ended as {run['status']}")
    config = json.loads((folder / "config.json").read_text())
    lines = (folder / "log.txt").read_text().splitlines()
    records = [json.loads(line.removeprefix(PREFIX)) for line in lines]
    once = {record["key"]: record["value"] for record in records}
    epochs_s = list(durations_s(records, "epoch"))
    evaluations_s = list(durations_s(records, "eval"))
    trained = epochs_s[1:]  # the first one warms up
    targets = run["targets"]
    return {
        "measures": {
            "train_examples_per_s": once["train_samples"] * len(trained) / sum(trained)
            if trained
            else None,
            "evaluation_s": statistics.median(evaluations_s),
            "time_to_target_s": run["run_seconds"] if run["status"] == "reached" else None,
        },
        "facts": {
            **config["config"],
            **config["derived"],
            **{f"target_{name}": value for name, value in targets.items()},
            "train_samples": once["train_samples"],
            "eval_samples": once["eval_samples"],
        },
        "details": {
            "epochs_s": epochs_s,
            "evaluations_s": evaluations_s,
            "phase_seconds": run["phase_seconds"],
            "qualities": [evaluation["quality"] for evaluation in run["evaluations"]],
        },
    }


def durations_s(records: Sequence[Record], name: str) -> Iterator[float]:
    """Seconds between each `<name>_start` and the `<name>_stop` that follows it."""
    start_ms = 0
    for record in records:
        if record["key"] == f"{name}_start":
            start_ms = record["time_ms"]
        elif record["key"] == f"{name}_stop":
            yield (record["time_ms"] - start_ms) / 1000


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
