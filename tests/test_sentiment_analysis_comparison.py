"""comparisons/sentiment_analysis.py: its reviews, its check, and each side at a small size."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy
import pytest

from comparisons import comparison, environments, report, sentiment_analysis
from comparisons import sentiment_analysis_work as work_module
from comparisons.comparison import Comparison
from comparisons.pairs import PairOptions
from comparisons.sentiment_analysis import COMPARISON, PADDLE, with_work, without_missing
from comparisons.sentiment_analysis_work import Batch, Work
from harness.errors import UsageError

SIZES = {"num_words": 400, "num_reviews": 1000, "longest": 300, "embedding_size": 16}
SIZES |= {"num_filters": 24, "batch_size": 16, "num_steps": 3}
ARGUMENTS = tuple(
    word for name, value in SIZES.items() for word in (f"--{name.replace('_', '-')}", str(value))
)
ONE_PAIR = PairOptions(num_pairs=1, num_threads=1)


@pytest.fixture
def small(tmp_path: Path) -> Work:
    work = Work(seed=1, folder=tmp_path, **SIZES)
    work_module.write_reviews(work)
    return work


# --- reviews, weights, check ----------------------------------------------------------------------


def test_batches_are_of_like_length_and_near_the_mean(small: Work) -> None:
    for half, count in (("train", 4), ("test", 8)):
        batches = work_module.read_batches(small, half)
        assert len(batches) == count
        for batch in batches:
            lengths = [len(text) for text in batch.texts]
            assert len(lengths) == len(batch.labels) == 16
            assert max(lengths) < 1.6 * min(lengths)
            assert 22 * 16 < batch.num_tokens < 36 * 16  # the mean is 29 words a review
            assert min(map(min, batch.texts)) >= 0 and max(map(max, batch.texts)) < 400
    texts = [text.tobytes() for batch in batches for text in batch.texts]
    assert len(set(texts)) == len(texts)


def test_typical_batches_are_the_nearest_to_the_mean() -> None:
    assert work_module.typical(numpy.array([0, 9, 100, 30, 41]), 2) == [4, 3]


def test_weights_differ_by_seed_alone(small: Work) -> None:
    one, again = work_module.draw_weights(small), work_module.draw_weights(small)
    other = work_module.draw_weights(dataclasses.replace(small, seed=2))
    assert numpy.array_equal(one.filters[1], again.filters[1])
    assert not numpy.array_equal(one.filters[1], other.filters[1])
    assert [matrix.shape for matrix in one.filters] == [(48, 24), (64, 24)]
    assert numpy.abs(one.embedding).max() <= numpy.sqrt(6 / 416)


def test_other_losses_or_logits_are_refused(small: Work) -> None:
    found = {"losses": numpy.array([0.7, 0.6]), "logit_differences": numpy.array([0.1, -0.2])}
    work_module.agree(small, found)
    work_module.agree(small, {name: values + 1e-5 for name, values in found.items()})
    for name in found:
        with pytest.raises(SystemExit, match=f"not the same work: {name}"):
            work_module.agree(small, found | {name: found[name] + [0, 0.002]})
        with pytest.raises(SystemExit, match=f"not the same work: {name}"):
            work_module.agree(small, found | {name: found[name][:1]})
    work_module.agree(dataclasses.replace(small, seed=2), {name: -x for name, x in found.items()})


def test_the_first_step_is_not_timed(small: Work, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    now_s = 0.0

    class Clock:
        @staticmethod
        def perf_counter() -> float:
            return now_s

    steps_s = iter([100.0, 4.0, 2.0, 2.0])
    answers_s = iter([50.0, 8.0])

    def step(_: Batch) -> float:
        nonlocal now_s
        now_s += next(steps_s)
        return 0.5

    def answer(batches: list[Batch]) -> numpy.ndarray:
        nonlocal now_s
        now_s += next(answers_s)
        return numpy.ones(16 * len(batches))

    monkeypatch.setattr(work_module, "time", Clock)
    work_module.measure(small, step, answer, {})
    result = work_module.json.loads(capsys.readouterr().out)
    assert result["measures"] == {"train_reviews_per_s": 6.0, "evaluation_reviews_per_s": 4.0}


# --- each side ------------------------------------------------------------------------------------


def run_small(given: Comparison, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """One pair through the frame, which refuses unlike facts."""
    monkeypatch.setenv("RESULTS_DIR", str(folder / "results"))
    work_folder = folder / "work"
    work_folder.mkdir()
    return comparison.measure(with_work(given, str(work_folder), ARGUMENTS), ONE_PAIR)


def check_same(ours: dict, theirs: dict, num_equal: int) -> None:
    """The first losses agree closely, the others as far as the command asks."""
    assert ours["facts"] == theirs["facts"]
    losses = numpy.array([run["details"]["losses"] for run in (ours, theirs)])
    assert losses.shape == (2, 4)
    assert numpy.allclose(*losses[:, :num_equal], rtol=1e-5)
    assert numpy.allclose(*losses, rtol=1e-3)
    for name in ("num_right", "num_positive"):
        assert ours["details"][name] == theirs["details"][name]


@pytest.mark.slow
def test_keras_does_the_same_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peers = tuple(peer for peer in COMPARISON.peers if peer is not PADDLE)
    record = run_small(dataclasses.replace(COMPARISON, peers=peers), tmp_path, monkeypatch)
    ours, theirs = record["runs"]
    check_same(ours, theirs, num_equal=2)  # then words of earlier steps move, in Keras alone
    expected = {"num_parameters": 400 * 16 + 7 * 16 * 24 + 2 * 24 + 48 * 2 + 2, "num_threads": 1}
    assert expected.items() <= ours["facts"].items()
    assert (ours["details"]["num_evaluated"], theirs["details"]["num_evaluated"]) == (128, 32)
    assert "| training steps, reviews/s |" in report.table(record)


@pytest.mark.slow
def test_paddle_does_the_same_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = environments.ENVIRONMENTS / PADDLE.environment
    if not (folder / "made-from.txt").exists():
        pytest.skip(f"{folder} is not there; python -m comparisons.sentiment_analysis makes it")
    given = dataclasses.replace(COMPARISON, peers=(PADDLE,))
    ours, theirs = run_small(given, tmp_path, monkeypatch)["runs"]
    check_same(ours, theirs, num_equal=4)


@pytest.mark.slow
def test_other_work_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first program finds what another network left there."""
    work_folder = tmp_path / "work"
    work_folder.mkdir()
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path / "results"))
    peers = tuple(peer for peer in COMPARISON.peers if peer is not PADDLE)
    given = with_work(dataclasses.replace(COMPARISON, peers=peers), str(work_folder), ARGUMENTS)
    found = {"losses": [0.7] * 4, "logit_differences": [0.0] * 32}
    numpy.savez(work_folder / "found-1.npz", **found)
    with pytest.raises(UsageError, match="not the same work: losses"):
        comparison.measure(given, ONE_PAIR)


def test_a_peer_whose_environment_cannot_be_made_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str, newest_python: tuple[int, int]) -> Path:
        raise UsageError(f"no {name} up to {newest_python}")

    monkeypatch.setattr(environments, "make", fail)
    assert [peer.key for peer in without_missing(COMPARISON).peers] == ["keras"]
    expected = "without PaddlePaddle: no sentiment_analysis-paddle up to (3, 12)\n"
    assert capsys.readouterr().err == expected


def test_a_wrong_option_makes_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "make", lambda *_: pytest.fail("made"))
    assert sentiment_analysis.main(["--num-pears", "1"]) == 2
