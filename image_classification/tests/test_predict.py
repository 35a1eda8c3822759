"""Predictions: what is printed and drawn, and that it is what was evaluated."""

from __future__ import annotations

import io
import json
import re

import numpy
import pytest
from PIL import Image

from harness.options import RunOptions
from harness.plot import newest_run
from image_classification import data, predict, train
from image_classification.config import TINY


def train_here(results, *arguments, status=1):
    """Train in this process; returns the run's folder."""
    options = ["--device", "cpu", "--results-dir", str(results), "--checkpoint-interval-s", "0"]
    assert train.main([*arguments, *options]) == status
    return newest_run(results)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A model that is right for some of the made-up images, and of another size than its preset."""
    folder = tmp_path_factory.mktemp("results")
    options = ("--base-learning-rate", "0.003", "--max-epochs", "4", "--train-size", "14")
    train_here(folder, "tiny", *options)
    return folder


@pytest.fixture
def run_predict(tmp_path, monkeypatch, capsys):
    """Call the command; returns status, stdout and stderr."""

    def call(*arguments, results=None):
        monkeypatch.setenv("RESULTS_DIR", str(results or tmp_path))
        capsys.readouterr()  # what a training before it said
        status = predict.main([*map(str, arguments), "--picture", str(tmp_path / "found.png")])
        output = capsys.readouterr()
        return status, output.out, output.err

    return call


def assert_usage_error(done, *words):
    status, out, err = done
    assert (status, out) == (2, ""), err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert all(word in err for word in words), err


def blocks_of(out):
    """What is printed: by image the classes with their probabilities, and what it is."""
    found = {}
    for block in re.split(r"^(.+):\n", out, flags=re.MULTILINE)[1:]:
        if "\n" not in block:
            name = block
            continue
        lines = block.splitlines()
        truth = lines.pop().removeprefix("it is ") if lines[-1].startswith("it is ") else None
        classes = [re.fullmatch(r" *([\d.]+)%  (.+)", line).groups() for line in lines]
        found[name] = [(label, float(percent)) for percent, label in classes], truth
    return found


def test_images_of_the_validation_set(results, run_predict, tmp_path):
    status, out, err = run_predict("tiny", "--num-classes", "3", results=results)
    assert status == 0, err
    assert [line.partition(":")[0] for line in err.splitlines()[-2:]] == ["model", "picture"]
    found = blocks_of(out)
    assert list(found) == [f"image {number}" for number in range(1, 10)]
    for number, (classes, truth) in enumerate(found.values()):
        assert truth == f"class {1 + number % 4}"
        assert len({label for label, _ in classes}) == len(classes) == 3
        percents = [percent for _, percent in classes]
        assert percents == sorted(percents, reverse=True)
        assert 100 / 5 <= percents[0] <= 100 and sum(percents) <= 100.2
    with Image.open(tmp_path / "found.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 500


def test_it_agrees_with_the_evaluation(results):
    run = newest_run(results)
    model, config = predict.load_model(run, TINY)
    assert config.train_size == 14
    images = predict.some_of(data.load(config, RunOptions())[1], 50)
    assert len(images) == 50
    scores = predict.probabilities(model, images, config)
    numpy.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)
    hits = sum(int(row.argmax()) == image.label for row, image in zip(scores, images, strict=True))
    quality = json.loads((run / "run.json").read_text())["evaluations"][-1]["quality"]
    assert hits / 50 == quality["top_1"]
    assert 0.2 < quality["top_1"] < 0.9  # so that another model would be seen


def test_files_of_ones_own(results, run_predict, tmp_path):
    """A JPEG, and the same as a PNG with an alpha channel under the name of a JPEG."""
    encoded = predict.some_of(data.load(TINY, RunOptions())[1], 1)[0].encoded
    (tmp_path / "one.jpg").write_bytes(encoded)
    with Image.open(io.BytesIO(encoded)) as image:
        image.convert("RGBA").save(tmp_path / "an other.jpeg", "PNG")
    files = (tmp_path / "one.jpg", tmp_path / "an other.jpeg")
    status, out, err = run_predict("tiny", *files, results=results)
    assert status == 0, err
    found = blocks_of(out)
    assert list(found) == ["one.jpg", "an other.jpeg"]
    (first, nothing), (second, also_nothing) = found.values()
    assert nothing is None and also_nothing is None
    assert len(first) == 5 and sum(percent for _, percent in first) == pytest.approx(100, abs=0.3)
    for (label, percent), (other_label, other_percent) in zip(first, second, strict=True):
        assert label == other_label and percent == pytest.approx(other_percent, abs=3)
    assert (tmp_path / "found.png").exists()


def test_classes_have_names_as_long_as_the_data_set_is_there(
    mini_data, run_predict, tmp_path, monkeypatch
):
    monkeypatch.setenv("DATA_DIR", str(mini_data))
    train_here(tmp_path, "mini", "--num-steps", "2", "--num-filters", "4", status=0)
    status, out, err = run_predict("mini", "--num-classes", "10", results=tmp_path)
    assert status == 0, err
    rows = [line.split("\t") for line in (mini_data / "prepared" / "classes.tsv").open()]
    names = {name.strip() for _, _, name in rows}
    assert len(names) == 10
    for classes, truth in blocks_of(out).values():
        assert truth in names
        assert {label for label, _ in classes} <= names | {"class 0"}
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "nothing"))
    assert_usage_error(run_predict("mini", results=tmp_path), "download_dataset.sh mini")


# --- wrong use ----------------------------------------------------------------------------------


def test_no_run_and_no_checkpoint(run_predict, tmp_path):
    assert_usage_error(run_predict("tiny", results=tmp_path / "none"), "no run below", "train")
    train_here(tmp_path / "damaged", "tiny", "--num-steps", "1", status=0)
    (weights,) = tmp_path.glob("damaged/**/*.npz")
    weights.write_bytes(weights.read_bytes()[:-1])
    status, out, err = run_predict("tiny", results=tmp_path / "damaged")
    *damaged, error = err.splitlines()
    assert (status, out, len(damaged)) == (2, "", 1) and "damaged" in damaged[0]
    assert error.startswith("error: ") and "has no checkpoint; train first" in error


def test_another_presets_run(run_predict, results):
    run = newest_run(results)
    assert_usage_error(run_predict("mini", "--run", run), "is a run of tiny; give that preset")


def test_what_is_no_image(run_predict, results, tmp_path):
    missing, text = tmp_path / "missing.jpg", tmp_path / "text.jpg"
    text.write_text("no image")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0" + bytes(20))
    bomb = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(bomb)
    for path in (missing, text, broken, bomb, tmp_path):
        done = run_predict("tiny", path, results=results)
        assert_usage_error(done, f"{path} is no image", "name others")
    assert not (tmp_path / "found.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["teeny"], ["teeny", "tiny"]),
        (["tiny", "--num-classes", "0"], ["--num-classes is 0"]),
        (["tiny", "--num-clases", "1"], ["--num-clases"]),
    ],
)
def test_wrong_options(run_predict, results, arguments, words):
    assert_usage_error(run_predict(*arguments, results=results), *words)


def test_a_picture_that_cannot_be_written(results, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RESULTS_DIR", str(results))
    picture = tmp_path / "no folder" / "found.png"
    assert predict.main(["tiny", "--picture", str(picture)]) == 2
    *rest, error = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in rest] == ["model"]
    assert error.startswith(f"error: cannot write {picture}: No such file or directory; ")
