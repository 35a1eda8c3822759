"""Known runs and pictures come from run records, whatever lies among them."""

import json

import pytest

from harness import plot, report
from harness.errors import UsageError

SYSTEM = {
    "cpu": "A Processor",
    "num_cores": 2,
    "memory_bytes": 24 * 2**30,
    "gpus": [],
    "python": "3.11.7",
    "packages": {"torch": "2.7.1"},
    "git_commit": "abc1234",
}


def add_run(folder, seed, seconds=10.0, epochs=3, status="reached", start=1_700_000_000, **changes):
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
        "evaluations": evaluations,
        "train_examples_per_s": 12345.6,
        "num_resumes": 0,
        "valid": True,
        **changes,
    }
    number = len(list(folder.glob("**/run.json")))
    path = folder / "fake" / "mini" / f"seed-{seed}" / f"run-{number}"
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps(record))
    (path / "system.json").write_text(json.dumps(SYSTEM))
    return path


def table(folder):
    records, unreadable = report.read_records([folder])
    return report.tables(records)["fake"], unreadable


def test_median_range_and_places(tmp_path):
    for seed, (seconds, epochs) in enumerate([(10, 3), (30, 5), (20, 4)], start=1):
        add_run(tmp_path, seed, seconds, epochs)
    add_run(tmp_path, 4, 99, 9, status="missed")
    text, _ = table(tmp_path)
    assert "3 of 4 reached the target." in text
    assert "median 20.0 (10.0 to 30.0); epochs: median 4 (3 to 5)" in text
    assert "| 2 | reached | 30.0 | 5 | 0.5000 | 12,346 |" in text
    assert "| 4 | missed | 99.0 |" in text
    assert (
        "A Processor, 2 cores, 24 GiB, no GPU; python 3.11.7, torch 2.7.1; commit abc1234" in text
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"modified": ["batch_size"]},
        {"num_resumes": 1},
        {"valid": False},
        {"status": "interrupted", "run_seconds": None},
        {"status": "num_steps"},
    ],
)
def test_other_runs_are_kept_apart(tmp_path, changes):
    add_run(tmp_path, 1)
    add_run(tmp_path, 2, **changes)
    text, _ = table(tmp_path)
    assert "1 of 1 reached" in text
    assert "1 other runs are left out" in text


def test_the_newest_run_of_a_seed_counts(tmp_path):
    add_run(tmp_path, 1, 20.0, start=2_000_000_000)
    add_run(tmp_path, 1, 10.0, start=1_000_000_000)
    assert "median 20.0 (20.0 to 20.0)" in table(tmp_path)[0]


def test_unreadable_folders_are_named_and_never_fatal(tmp_path):
    add_run(tmp_path, 1)
    for seed, text in ((2, "{"), (3, "{}"), (4, "[]"), (5, "\0")):
        (add_run(tmp_path, seed) / "run.json").write_text(text)
    (add_run(tmp_path, 6) / "system.json").unlink()
    text, unreadable = table(tmp_path)
    assert "1 of 1 reached" in text
    assert len(unreadable) == 5
    assert all("is left out" in line for line in unreadable)


def test_a_card_is_rewritten_between_its_comments(tmp_path):
    card = tmp_path / "README.md"
    card.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write_card(card, "new")
    report.write_card(card, "newer")
    assert card.read_text() == f"before\n{report.BEGIN}\nnewer\n{report.END}\nafter\n"
    card.write_text("no comments")
    with pytest.raises(UsageError, match="lacks the comments"):
        report.write_card(card, "new")
    assert card.read_text() == "no comments"


def test_command(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: no run below")
    add_run(tmp_path, 1)
    assert report.main([str(tmp_path)]) == 0
    assert "# fake" in capsys.readouterr().out
    assert report.main([str(tmp_path), "--card", "other"]) == 2
    assert report.main(["--no-such-option"]) == 2


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
