"""Tables, page, plots and convergence points come from run records, whatever lies among them."""

import csv
import json
import shutil
import subprocess

import pytest

from harness import convergence, plot, report, report_tables
from harness.run_records import PHASES

SYSTEM = {
    "cpu": "A Processor",
    "num_cores": 2,
    "memory_bytes": 24 * 2**30,
    "gpus": [],
    "python": "3.11.7",
    "packages": {"torch": "2.7.1", "numpy": "2.4.6"},
    "git_commit": "abc1234",
}


def add_run(
    folder,
    seed,
    seconds=10.0,
    epochs=3,
    status="reached",
    start=1_700_000_000,
    system=SYSTEM,
    options=(),
    config=(),
    **changes,
):
    """Write one run's records."""
    evaluations = [
        {"epoch": n, "step": n * 4, "elapsed_s": 2.0 * n, "quality": {"hr": 0.1 * n}}
        for n in range(epochs + 1)
    ]
    record = {
        "benchmark": "fake",
        "preset": "mini",
        "seed": seed,
        "status": status,
        "modified": [],
        "targets": {"hr": 0.3},
        "start_utc_s": start,
        "run_seconds": seconds,
        "phase_seconds": {name: 1.5 * number for number, name in enumerate(PHASES)},
        "evaluations": evaluations,
        "train_examples_per_s": 12345.6,
        "num_resumes": 0,
        "valid": True,
        **changes,
    }
    number = len(list(folder.glob("**/run.json")))
    path = folder / record["benchmark"] / record["preset"] / f"seed-{seed}" / f"run-{number}"
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps(record))
    (path / "system.json").write_text(json.dumps(system))
    stored = {
        "config": {"batch_size": 64, "learning_rate": 0.1, **dict(config)},
        "options": {"precision": "fp32", "compile": False, **dict(options)},
        "derived": {"device": "cuda" if system["gpus"] else "cpu", "num_processes": 1},
    }
    (path / "config.json").write_text(json.dumps(stored))
    return path


RULES = """
[recipe]
global_batch_size = { value = "count", field = "batch_size" }
opt_base_learning_rate = { value = "amount", field = "learning_rate" }

[published]
seconds = [100, 90, 120]
timed = "a model"
same_task = true
"""


@pytest.fixture(autouse=True)
def repository(tmp_path, monkeypatch):
    """A checkout with the one benchmark `fake`."""
    root = tmp_path / "repository"
    (root / "fake").mkdir(parents=True)
    (root / "fake" / "rules.toml").write_text(RULES)
    (root / "fake" / "README.md").write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for module in (report, report_tables, convergence):
        monkeypatch.setattr(module, "REPOSITORY", root)
    return root


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


def table(*folders):
    found = report_tables.sections(report.read_results(folders))
    return "\n".join(map(report_tables.markdown, found))


# --- Tables -----------------------------------------------------------------------------------


def test_what_the_runs_say_together(results):
    for seed, (seconds, epochs) in enumerate([(10, 3), (30, 5), (20, 4), (60, 6)], start=1):
        add_run(results, seed, seconds, epochs)
    add_run(results, 5, 99, 9, status="missed")
    text = table(results)
    assert (
        "| A Processor, 2 cores, fp32, torch 2.7.1 | 4 of 5 | 25.0 (10.0 to 60.0) | 25.0 "
        "| 4 (3 to 6) | 0.4500 (0.3000 to 0.6000) | 12,346 (12,346 to 12,346) |" in text
    )
    assert "| A Processor, 2 cores, fp32, torch 2.7.1 | 0.0 | 1.5 | 3.0 | 4.5 | 6.0 |" in text
    assert "| 2 | reached | 30.0 | 5 | 0.5000 | 12,346 | run-1 |" in text
    assert "| 5 | missed | 99.0 | 9 |" in text
    assert "torch 2.7.1, 24 GiB; python 3.11.7; commit abc1234; 2023-11-14." in text


def test_the_mean_leaves_out_fastest_and_slowest_from_three_runs_on(results):
    add_run(results, 1, 10)
    add_run(results, 2, 12)
    assert "| 11.0 (10.0 to 12.0) |  |" in table(results)
    add_run(results, 3, 50)
    assert "| 12.0 (10.0 to 50.0) | 12.0 |" in table(results)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"modified": ["batch_size"]}, "| 2 | batch_size |"),
        ({"num_resumes": 1}, "| 2 | resumed |"),
        ({"valid": False}, "Left out: 1 (invalid: the clock was set back between attempts)."),
        ({"status": "interrupted", "run_seconds": None}, "Left out: 1 (not finished)."),
        ({"status": "num_steps"}, "Left out: 1 (ended by --num-steps)."),
        ({"modified": ["num_steps"]}, "Left out: 1 (ended by --num-steps)."),
    ],
)
def test_other_runs_are_kept_apart(results, changes, told):
    add_run(results, 1)
    add_run(results, 2, 7777.0 if "run_seconds" not in changes else 0, **changes)
    text = table(results)
    assert "| 1 of 1 |" in text
    assert told in text


def test_the_newest_run_of_a_seed_counts(results):
    add_run(results, 1, 20.0, start=2_000_000_000)
    add_run(results, 1, 10.0, start=1_000_000_000)
    assert "| 1 of 1 | 20.0 (20.0 to 20.0) |" in table(results)
    assert "Left out: 1 (an older run of a seed)." in table(results)


def test_runs_of_unlike_settings_are_not_summed_up(results):
    gpu = {**SYSTEM, "gpus": [{"name": "A Card"}]}
    add_run(results, 1, 10.0)
    add_run(results, 1, 20.0, options={"precision": "bf16"})
    add_run(results, 1, 30.0, options={"compile": True})
    add_run(results, 1, 40.0, system=gpu)
    text = table(results)
    assert "| A Processor, 2 cores, fp32, torch 2.7.1 | 1 of 1 | 10.0" in text
    assert "| A Processor, 2 cores, bf16, torch 2.7.1 | 1 of 1 | 20.0" in text
    assert "| A Processor, 2 cores, fp32, compiled, torch 2.7.1 | 1 of 1 | 30.0" in text
    assert "| 1 x A Card, fp32, torch 2.7.1 | 1 of 1 | 40.0" in text


def test_the_time_of_2018_is_shown_with_what_was_timed(results, repository):
    add_run(results, 1, 50.0, preset="reference")
    text = table(results)
    assert "2018: 100 s (median of 3, 90 to 120) on 16 CPU cores and one P100, for a model." in text
    assert "2.00 times as fast as that." in text
    rules = (repository / "fake" / "rules.toml").read_text()
    other = repository / "other"
    other.mkdir()
    (other / "rules.toml").write_text(rules.replace("same_task = true", "same_task = false"))
    add_run(results, 1, 50.0, preset="reference", benchmark="other")
    text = table(results / "other")
    assert "That is another task, so there is no ratio." in text
    assert "times as fast" not in text
    add_run(results, 1, 50.0)
    assert "2018" not in table(results / "fake" / "mini")


def test_unreadable_folders_are_named_and_never_fatal(results, capsys):
    add_run(results, 1)
    broken = ["{", "{}", "[]", "\0", "null", '"text"']
    for seed, text in enumerate(broken, start=2):
        (add_run(results, seed) / "run.json").write_text(text)
    for name in ("system.json", "config.json"):
        (add_run(results, 9) / name).unlink()
        (add_run(results, 9) / name).write_text("[]")
    add_run(results, 10, evaluations=[])
    add_run(results, 11, evaluations=[{"epoch": 1, "elapsed_s": 1, "quality": {"other": 1}}])
    add_run(results, 12, evaluations=[{"epoch": 1, "elapsed_s": 1, "quality": {"hr": "much"}}])
    add_run(results, 13, phase_seconds={"training": 1})
    assert "| 1 of 1 |" in table(results)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(broken) + 8
    assert all("is left out: " in line for line in lines)


# --- One results folder beside another --------------------------------------------------------


def test_two_results_folders_side_by_side(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    card = {**SYSTEM, "cpu": "Another", "packages": {"torch": "2.7.1", "numpy": "2.0.0"}}
    for seed in range(1, 6):
        add_run(first, seed, 10.0 * seed, epochs=seed)
        add_run(second, seed, 5.0 * seed, epochs=seed, system=card, train_examples_per_s=24691.2)
    text = table(first, second)
    seconds = next(line for line in text.splitlines() if line.startswith("| seconds to"))
    cells = [cell.strip() for cell in seconds.split("|")[1:-1]]
    assert cells[1:4] == ["30.0 (10.0 to 50.0)", "15.0 (5.0 to 25.0)", "0.50"]
    low, high = map(float, cells[4].split(" to "))
    assert low < 0.5 < high
    assert cells[5] == "0.50 (0.50 to 0.50)"
    assert "| 2.00 | 2.00 to 2.00 | 2.00 (2.00 to 2.00) |" in text
    assert "| cpu | A Processor | Another |" in text
    assert "| packages: numpy | 2.4.6 | 2.0.0 |" in text
    assert "packages: torch" not in text
    assert table(first, second) == text


def test_few_runs_have_no_interval(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    add_run(first, 1, 10.0)
    add_run(second, 2, 5.0)
    text = table(first, second)
    assert "| 0.50 | too few runs | no seed in common |" in text
    assert "Nothing differs between the two" in text


# --- The command ------------------------------------------------------------------------------


def test_command(results, capsys):
    assert report.main([str(results)]) == 2
    assert capsys.readouterr().err.startswith("error: no run below")
    add_run(results, 1)
    assert report.main([str(results)]) == 0
    captured = capsys.readouterr()
    assert "# fake: mini" in captured.out
    assert captured.err == f"page: {results}/report/index.html\n"
    assert report.main([str(results), "--card", "other"]) == 2
    assert report.main([str(results), "--convergence", "other"]) == 2
    assert report.main(["--no-such-option"]) == 2
    blocked = results / "file"
    blocked.write_text("")
    assert report.main([str(results), "--output", str(blocked)]) == 2
    assert "--output" in capsys.readouterr().err


def test_the_page_needs_no_other_file_and_shows_what_it_is_given(results):
    add_run(results, 1)
    add_run(results, 2, quality=None, evaluations=[], status="crashed")
    add_run(results, 3, system={**SYSTEM, "cpu": "<script>alert(1)</script>"})
    (add_run(results, 4) / "run.json").write_text("{")
    add_run(results, 5, preset="other", status="running", run_seconds=None)
    assert report.main([str(results)]) == 0
    folder = results / "report"
    page = (folder / "index.html").read_text()
    assert "&lt;script&gt;alert" in page and "<script" not in page
    assert page.count('src="data:image/png;base64,') == 1 and "http" not in page
    assert "seed-4" in page and "could not be read" in page.lower()
    assert "No finished, unmodified run in one piece." in page
    assert (folder / "fake-mini.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((folder / "runs.csv").open()))
    assert [row["seed"] for row in rows] == ["1", "2", "3", "5"]
    assert rows[0]["seconds"] == "10.0" and rows[3]["why_apart"] == "not finished"
    assert len(list(csv.DictReader((folder / "evaluations.csv").open()))) == 3 * 4


def test_the_page_in_a_browser(results):
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed")
    for seed in range(1, 4):
        add_run(results, seed, 10.0 * seed)
    assert report.main([str(results)]) == 0
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    page = (results / "report" / "index.html").as_uri()
    done = subprocess.run([*command, page], capture_output=True, text=True, timeout=60, check=True)
    assert "<td>20.0 (10.0 to 30.0)</td>" in done.stdout


def test_a_card_is_rewritten_between_its_comments(results, repository):
    add_run(results, 1)
    add_run(results, 2, num_resumes=1)
    card = repository / "fake" / "README.md"
    assert report.main([str(results), "--card", "fake"]) == 0
    once = card.read_text()
    assert once.startswith(f"before\n{report.BEGIN}\n**mini**\n")
    assert once.endswith(f"\n{report.END}\nafter\n")
    assert "old" not in once and "| 1 of 1 |" in once and "resumed" not in once
    assert report.main([str(results), "--card", "fake"]) == 0
    assert card.read_text() == once
    assert not (results / "report").exists()
    card.write_text("no comments")
    assert report.main([str(results), "--card", "fake"]) == 2
    assert card.read_text() == "no comments"


# --- Convergence points -----------------------------------------------------------------------


def test_convergence_points_are_data(results, repository, capsys):
    for seed, epochs in ((1, 8), (2, 11), (3, 10)):
        add_run(results, seed, epochs=epochs, start=seed)
    add_run(results, 1, epochs=9, start=100)
    add_run(results, 4, status="missed")
    add_run(results, 5, status="crashed")
    add_run(results, 6, epochs=4, modified=["num_layers"])
    add_run(results, 7, epochs=4, modified=["learning_rate"])
    add_run(
        results, 8, epochs=20, modified=["batch_size", "learning_rate"], config={"batch_size": 9}
    )
    add_run(results, 9, epochs=12, num_resumes=1)
    assert report.main([str(results), "--convergence", "fake"]) == 0
    assert "mini with batch 64: 9, 11, 10, 12 epochs" in capsys.readouterr().err
    small, usual = json.loads((repository / "fake" / "convergence.json").read_text())
    assert small["batch_size"] == 9 and small["epochs_by_seed"] == {"8": 20}
    assert usual["epochs_by_seed"] == {"1": 9, "2": 11, "3": 10, "9": 12}
    assert usual["missed_seeds"] == [4]
    assert usual["targets"] == {"hr": 0.3} and usual["git_commits"] == ["abc1234"]

    more = results / "more"
    add_run(more, 1, epochs=7)
    assert report.main([str(more), "--convergence", "fake"]) == 0
    small, usual = json.loads((repository / "fake" / "convergence.json").read_text())
    assert small["batch_size"] == 9
    assert usual["epochs_by_seed"] == {"1": 7}

    bad = results / "bad"
    add_run(bad, 1, status="crashed")
    assert report.main([str(bad), "--convergence", "fake"]) == 2


# --- One run's picture ------------------------------------------------------------------------


def test_picture(tmp_path, capsys):
    add_run(tmp_path, 1, start=1)
    newest = add_run(tmp_path, 2, start=2)
    assert plot.main([str(tmp_path)]) == 0
    picture = newest / "quality.png"
    assert capsys.readouterr().err == f"picture: {picture}\n"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in newest.glob("*.png")] == ["quality.png"]
    assert plot.main([str(tmp_path / "nothing")]) == 2
    add_run(tmp_path, 3, evaluations=[])
    assert plot.main([str(tmp_path)]) == 2
