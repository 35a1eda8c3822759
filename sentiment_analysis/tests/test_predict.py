"""predict.py on a model that this test trains: sentences in, sentiment and windows out."""

import io
import subprocess
import sys

import numpy
import pytest
import torch

from sentiment_analysis import predict
from sentiment_analysis.data import make_windows
from sentiment_analysis.model import SequenceCNN
from tests.benchmark_runs import Benchmark, assert_usage_error, run

IDS_OF = {str(number).encode(): number for number in range(399)} | {b"<unk>": 399}
POSITIVE_WORDS = "358 360 362 364 366 368"
NEGATIVE_WORDS = "359 361 363 365 367 369"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A run of the tiny preset: its words are numbers, and the last but one tell the label."""
    folder = tmp_path_factory.mktemp("results")
    done = Benchmark("sentiment_analysis").train(folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_sentences_as_arguments(results):
    command = (sys.executable, "-m", "sentiment_analysis.predict", "tiny")
    texts = (POSITIVE_WORDS, NEGATIVE_WORDS, "Zebra 1 2", "!!!")
    done = run(*command, *texts, RESULTS_DIR=results)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    (good,) = (line for line in lines if line.endswith(f"  {POSITIVE_WORDS}"))
    (bad,) = (line for line in lines if line.endswith(f"  {NEGATIVE_WORDS}"))
    assert good.startswith("positive  ")
    assert bad.startswith("negative  ")
    assert lines[lines.index(good) + 1].startswith("    +")
    assert lines[lines.index(bad) + 1].startswith("    -")
    assert "    not in the vocabulary: zebra" in lines
    assert lines[-1] == "no words  -  !!!"
    assert "model: " in done.stderr


def test_lines_of_stdin(results, monkeypatch, capsys):
    monkeypatch.setenv("RESULTS_DIR", str(results))
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{POSITIVE_WORDS}\n{NEGATIVE_WORDS}\n"))
    assert predict.main(["tiny", "--num-windows", "0"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert (first.split()[0], second.split()[0]) == ("positive", "negative")


def test_windows_share_out_the_whole_decision():
    """Their weights add up to the difference of the logits, less that of the biases."""
    torch.manual_seed(0)
    model = SequenceCNN(400, 8, 6, (3, 4)).eval()
    with torch.no_grad():
        model.output.bias.copy_(torch.tensor([0.3, -0.2]))
        for bias in model.filter_biases:
            bias.normal_()
    for words in (["1"], ["7", "7", "7"], ["5", "6", "7", "8", "none", "5", "6"]):
        encoded = [word.encode() for word in words]
        finding = predict.explain(model, encoded, IDS_OF)
        ids = numpy.array([399 if word == "none" else int(word) for word in words])
        known, places = numpy.unique(ids, return_inverse=True)
        groups = make_windows(places, [len(ids)], len(known), (3, 4), torch.device("cpu"))
        with torch.no_grad():
            logits = model(torch.from_numpy(known), groups)[0]
        total = sum(weight for weight, _, _ in finding.windows)
        assert total + 0.5 == pytest.approx(float(logits[0] - logits[1]), abs=1e-5)
        assert finding.positive_probability == pytest.approx(float(logits.softmax(0)[0]))
        assert all(0 <= first < stop <= len(words) for _, first, stop in finding.windows)
        assert max(stop - first for _, first, stop in finding.windows) <= 4
        weights = [abs(weight) for weight, _, _ in finding.windows]
        assert weights == sorted(weights, reverse=True)
        assert finding.unknown == [place for place, word in enumerate(words) if word == "none"]


def test_a_window_is_named_by_the_words_that_won():
    """A filter that answers to the pair "3 4" alone puts its weight on a window with that pair."""
    model = SequenceCNN(6, 6, 1, (4,)).eval()
    with torch.no_grad():
        model.embedding.copy_(torch.eye(6))
        model.filters[0].zero_()
        model.filters[0][2, 0, 3] = 1.0  # the word itself; the filter begins two words before it
        model.filters[0][3, 0, 4] = 1.0
        model.output.weight.copy_(torch.tensor([[2.0], [0.0]]))
    ids_of = {b"0": 0, b"1": 1, b"2": 2, b"3": 3, b"4": 4, b"<unk>": 5}
    finding = predict.explain(model, [b"0", b"1", b"2", b"3", b"4", b"0"], ids_of)
    assert finding.windows == [(pytest.approx(4.0), 1, 5)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mini", "good"], ["no run below", "train first"]),
        (["huge", "good"], ["huge"]),
        (["tiny", "--num-windows", "-1", "good"], ["--num-windows is -1"]),
        (["tiny", "--num-window", "1"], ["--num-window"]),
    ],
)
def test_wrong_use_is_one_line(results, monkeypatch, capsys, arguments, words):
    monkeypatch.setenv("RESULTS_DIR", str(results))
    status = predict.main(arguments)
    output = capsys.readouterr()
    done = subprocess.CompletedProcess(arguments, status, output.out, output.err)
    assert_usage_error(done, *words)


def test_a_run_of_another_preset_or_of_made_up_data_is_refused(results, monkeypatch, capsys):
    monkeypatch.setenv("RESULTS_DIR", str(results))
    assert predict.main(["mini", "good", "--run", str(results)]) == 2
    assert "is a run of tiny; give that preset" in capsys.readouterr().err
