"""The report as a page: index.html with its plots inside, the plots as PNG, the numbers as CSV."""

from __future__ import annotations

import base64
import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from harness.checkpoint import write_atomically
from harness.report_tables import Results, Section
from harness.run_records import PHASES, RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def write_page(results: Sequence[Results], found: Sequence[Section], folder: Path) -> Path:
    """Write all files of the report; returns the page. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, list[tuple[str, str]]] = {}
    for section in found:
        pictures[section.title] = []
        if section.series:
            path = folder / f"{section.benchmark}-{section.preset}.png"
            draw_section(section, path)
            encoded = base64.b64encode(path.read_bytes()).decode()
            pictures[section.title].append(("quality and seconds", encoded))
    _write_csv(results, folder)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("report.html").render(
        labels=[one.label for one in results],
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        sections=found,
        pictures=pictures,
        unreadable=[line for one in results for line in one.unreadable],
    )
    write_atomically(folder / "index.html", page.encode())
    return folder / "index.html"


# --- Plots ------------------------------------------------------------------------------------


def draw_section(section: Section, path: Path) -> None:
    """Quality over seconds and over epochs by seed, and where the seconds went."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(section.series[0].runs[0].targets)
    figure, rows = pyplot.subplots(
        len(names), 3, figsize=(12.5, 3.8 * len(names)), squeeze=False, layout="constrained"
    )
    for axes, name in zip(rows, names, strict=True):
        axes[1].sharey(axes[0])
        _draw_quality(axes[0], section, name, "seconds since run_start", by_epoch=False)
        _draw_quality(axes[1], section, name, "epochs", by_epoch=True)
        axes[0].legend(loc="lower right", fontsize="small")
    _draw_phases(rows[0][2], section)
    for axes in rows[1:]:
        axes[2].set_visible(False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _draw_quality(axes: Axes, section: Section, name: str, label: str, *, by_epoch: bool) -> None:
    """One line for each run: a colour for each seed, or for each series where there are several."""
    for number, one in enumerate(section.series):
        for place, run in enumerate(one.runs):
            several = len(section.series) > 1
            colour = f"C{number % 10}" if several else f"C{place % 10}"
            text = one.name if several else f"seed {run.seed}"
            x = [e.epoch if by_epoch else e.elapsed_s for e in run.evaluations]
            y = [e.quality[name] for e in run.evaluations]
            label_once = text if not several or place == 0 else None
            axes.plot(x, y, f"{colour}.-", label=label_once, linewidth=1, alpha=0.8)
    target = section.series[0].runs[0].targets[name]
    axes.axhline(target, color="black", linestyle="--", linewidth=1, label=f"target {target:g}")
    axes.set_xlabel(label)
    axes.set_ylabel(name)
    axes.grid(alpha=0.3)


def _draw_phases(axes: Axes, section: Section) -> None:
    """A bar for each run, cut by phase; init, which is before the clock, is left out."""
    runs = [run for one in section.series for run in one.runs]
    several = len(section.series) > 1
    labels = [
        f"{one.name}: seed {run.seed}" if several else f"seed {run.seed}"
        for one in section.series
        for run in one.runs
    ]
    left = [0.0] * len(runs)
    for phase in PHASES[1:]:
        seconds = [run.phase_seconds[phase] for run in runs]
        if any(seconds):
            axes.barh(range(len(runs)), seconds, left=left, label=phase)
        left = [done + more for done, more in zip(left, seconds, strict=True)]
    axes.set_yticks(range(len(runs)), labels, fontsize="small")
    axes.invert_yaxis()
    axes.set_xlabel("seconds by phase")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=5, fontsize="x-small")


# --- Spreadsheets -----------------------------------------------------------------------------


def _write_csv(results: Sequence[Results], folder: Path) -> None:
    """runs.csv: a row for each run of whatever kind; evaluations.csv: for each evaluation."""
    labelled = [(one.label, run) for one in results for run in one.records]
    with (folder / "runs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        facts = [_facts(label, run) for label, run in labelled]
        writer.writerow(facts[0])
        writer.writerows(fact.values() for fact in facts)
    with (folder / "evaluations.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["folder", "epoch", "seconds", "quality", "value"])
        for _, run in labelled:
            for one in run.evaluations:
                for name, value in one.quality.items():
                    writer.writerow([run.folder, one.epoch, one.elapsed_s, name, value])


def _facts(label: str, run: RunRecord) -> dict[str, Any]:
    return {
        "results": label,
        "benchmark": run.benchmark,
        "preset": run.preset,
        "seed": run.seed,
        "start": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(run.start_utc_s)),
        "end": run.status,
        "why_apart": run.why_apart,
        "setting": run.setting,
        "git_commit": run.system["git_commit"],
        "seconds": run.run_seconds if run.is_finished else "",
        **{f"{phase}_s": run.phase_seconds[phase] for phase in PHASES},
        "epochs": run.epochs,
        "quality": run.quality,
        "train_examples_per_s": run.train_examples_per_s,
        "num_resumes": run.num_resumes,
        "folder": run.folder,
    }
