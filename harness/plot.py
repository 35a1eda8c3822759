"""A picture of one run: quality over time against its target.

python -m harness plot results/recommendation      # the newest run below a folder
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from harness.errors import UsageError
from harness.options import exit_with

USAGE = "usage: python -m harness plot FOLDER (a run's folder, or one above: its newest run)"


def newest_run(folder: Path, needs: str = "run.json") -> Path:
    """The run folder started last at or below `folder` that has a file matching `needs`.

    Raises UsageError where there is none.
    """
    runs = [path.parent for path in folder.glob("**/run.json") if any(path.parent.glob(needs))]
    if not runs:
        raise UsageError(f"no run below {folder}; train first, or name another folder")
    return max(runs, key=lambda run: (run.name, (run / "run.json").stat().st_mtime))


def draw_quality(run: Path) -> Path:
    """Draw `quality.png` into the folder of a run; returns its path.

    Raises UsageError where the run has no evaluation yet.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    record = json.loads((run / "run.json").read_text())
    evaluations = record["evaluations"]
    if not evaluations:
        raise UsageError(f"{run} has no evaluation to draw; let it run longer")
    seconds = [evaluation["elapsed_s"] for evaluation in evaluations]
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for number, (name, target) in enumerate(record["targets"].items()):
        values = [evaluation["quality"][name] for evaluation in evaluations]
        axes.plot(seconds, values, f"C{number}o-", label=name)
        axes.axhline(target, color=f"C{number}", linestyle="--", label=f"target {target:g}")
    for evaluation in evaluations:
        name = next(iter(record["targets"]))
        place = (evaluation["elapsed_s"], evaluation["quality"][name])
        axes.annotate(
            str(evaluation["epoch"]), place, (0, 6), textcoords="offset points", ha="center"
        )
    ending = {
        "reached": f"target reached after {record['run_seconds'] or 0:,.1f} s",
        "running": "still running",
    }.get(record["status"], record["status"])
    date = time.strftime("%Y-%m-%d", time.gmtime(record["start_utc_s"]))
    title = f"{record['benchmark']}, preset {record['preset']}, seed {record['seed']}, {date}"
    axes.set_title(f"{title}\n{ending}")
    axes.set_xlabel("seconds since run_start (numbers: epochs)")
    axes.set_ylabel(", ".join(record["targets"]))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    picture = run / "quality.png"
    temporary = picture.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    pyplot.close(figure)
    temporary.replace(picture)
    return picture


def main(arguments: list[str]) -> int:
    """Draw the newest run below a folder and name the picture on stderr; returns the status."""
    if arguments in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    try:
        if len(arguments) != 1:
            raise UsageError(USAGE)
        print(f"picture: {draw_quality(newest_run(Path(arguments[0])))}", file=sys.stderr)
    except UsageError as error:
        return exit_with(error)
    return 0
