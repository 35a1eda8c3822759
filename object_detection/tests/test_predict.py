"""Predictions: what is printed and drawn, and that it is what was evaluated."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from harness.options import RunOptions
from harness.plot import newest_run
from object_detection import data, evaluate, masks, predict, train
from object_detection.config import PRESETS, TINY

NAMES = {"disc", "box", "triangle", "star"}


def train_here(results, *arguments):
    """Train in this process; returns the run's folder."""
    options = ["--device", "cpu", "--results-dir", str(results), "--checkpoint-interval-s", "0"]
    assert train.main([*arguments, *options]) in (0, 1)
    return newest_run(results)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A model that has seen a few batches, and of other sizes than its preset."""
    folder = tmp_path_factory.mktemp("results")
    sizes = ["--min-size", "48", "--max-size", "56", "--stem-channels", "12", "--nms-iou", "0.4"]
    sizes += ["--num-blocks", "1", "2", "1", "1", "--anchor-sizes", "8", "14", "20", "28", "56"]
    num_threads = torch.get_num_threads()
    train_here(folder, "tiny", "--num-steps", "24", *sizes, "--canonical-size", "32")
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(num_threads)
    return folder


@pytest.fixture
def run_predict(tmp_path, monkeypatch, capsys):
    """Call the command; returns status, stdout and stderr."""

    def call(*arguments, results=None):
        monkeypatch.setenv("RESULTS_DIR", str(results or tmp_path))
        capsys.readouterr()  # what a training before it said
        status = predict.main([*map(str, arguments), "--output", str(tmp_path / "found.png")])
        output = capsys.readouterr()
        return status, output.out, output.err

    return call


def assert_usage_error(done, *words):
    status, out, err = done
    assert (status, out) == (2, ""), err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert all(word in err for word in words), err


def lines_of(out):
    """Score, name and corners of each line."""
    form = r"([\d.]+)  (.+): left (\d+), top (\d+), right (\d+), bottom (\d+)"
    matches = [re.fullmatch(form, line).groups() for line in out.splitlines()]
    return [(float(score), name, tuple(map(int, box))) for score, name, *box in matches]


def test_an_image_of_the_validation_set(results, run_predict, tmp_path):
    status, out, err = run_predict("tiny", "--min-score", "0.06", results=results)
    assert status == 0, err
    assert [line.partition(":")[0] for line in err.splitlines()[-2:]] == ["model", "picture"]
    found = lines_of(out)
    assert found and {name for _, name, _ in found} <= NAMES
    scores = [score for score, _, _ in found]
    assert scores == sorted(scores, reverse=True) and 0.06 <= scores[-1] < scores[0] < 1
    for _, _, (left, top, right, bottom) in found:
        assert 0 <= left <= right <= 56 and 0 <= top <= bottom <= 56
    with Image.open(tmp_path / "found.png") as picture:
        assert picture.format == "PNG" and picture.size == (56 * 12, 56 * 12)


def test_it_agrees_with_the_evaluation(results):
    """Every detection of the image with its mask, with the trained sizes and limits."""
    model, config = predict.load_model(newest_run(results), TINY)
    assert (config.min_size, config.max_size, config.nms_iou) == (48, 56, 0.4)
    assert (config.num_blocks, config.anchor_sizes) == ((1, 2, 1, 1), (8, 14, 20, 28, 56))
    assert not model.training
    images = data.load(config, RunOptions())[1]
    config = dataclasses.replace(config, eval_batch_size=1)
    rows = evaluate.detect_objects(model, images, config, torch.device("cpu"), 0)
    model.eval()
    annotations = images.annotations
    names = dict(enumerate(annotations.category_names, start=1))
    num_found = 0
    for index in (0, 7):
        expected = [row for row in rows if row["image_id"] == annotations.image_ids[index]]
        image = images.read(index)
        found = predict.find(model, config, image, names, config.min_score)
        assert len(found) == len(expected)
        num_found += len(found)
        for mine, row in zip(found, expected, strict=True):
            assert mine.score == pytest.approx(row["score"], abs=1e-5)
            left, top, width, height = row["bbox"]
            edges = numpy.clip([left, top, left + width, top + height], 0, 56)
            assert mine.corners == pytest.approx(edges, abs=1e-2)
            assert annotations.category_ids[mine.label - 1] == row["category_id"]
            assert mine.name == annotations.category_names[mine.label - 1]
            assert masks.encode(mine.mask, 56, 56) == row["segmentation"]
            assert coco_mask.area(row["segmentation"]) == mine.mask.bitmap.sum()
    assert num_found > 4
    sure = predict.find(model, config, images.read(0), names, found[0].score)
    assert len(sure) < len(expected)


def test_a_file_of_ones_own(results, run_predict, tmp_path):
    """The same whatever its form; corners are in its own pixels."""
    image = data.load(TINY, RunOptions())[1].read(0)
    image.save(tmp_path / "one.png")
    image.convert("RGBA").save(tmp_path / "an other.jpeg", "PNG")
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6  # to be seen turned to the right
    turned.save(tmp_path / "turned.png", exif=exif)
    enlarged = image.resize((128, 192), Image.Resampling.NEAREST)
    enlarged.save(tmp_path / "large.png")
    outputs = []
    for name in ("one.png", "an other.jpeg", "turned.png", "large.png"):
        arguments = ("tiny", "--image", tmp_path / name, "--min-score", "0.06")
        status, out, err = run_predict(*arguments, results=results)
        assert status == 0, err
        outputs.append(lines_of(out))
    assert outputs[0] == outputs[1] == outputs[2] != []
    assert max(right for _, _, (_, _, right, _) in outputs[3]) > 64
    with Image.open(tmp_path / "found.png") as picture:
        assert picture.size == (128 * 4, 192 * 4)


NO_MASK = masks.Patch(0, 0, numpy.zeros((0, 0), bool))


def test_corners_are_within_an_image_that_is_smaller_than_what_the_network_sees(results):
    """Where v0.5's one pixel more is a pixel of the enlarged image."""
    model, config = predict.load_model(newest_run(results), TINY)
    image = data.load(TINY, RunOptions())[1].read(0).resize((16, 20))
    found = predict.find(model, config, image, {}, config.min_score)
    corners = numpy.array([each.corners for each in found])
    assert (corners >= 0).all() and (corners.max(axis=0)[2:] == (16, 20)).all()


def test_boxes_are_drawn_where_they_are(tmp_path):
    """In a large image, not enlarged: lines at the corners, nothing within, a colour for each."""
    image = Image.new("RGB", (800, 700), (10, 20, 30))
    boxes = [(100.0, 200.0, 300.0, 400.0), (500.0, 0.0, 800.0, 650.0)]
    objects = [
        predict.Found(0.9, 1, "person", boxes[0], NO_MASK),
        predict.Found(0.4, 2, "bicycle", boxes[1], NO_MASK),
    ]
    path = tmp_path / "drawn.png"
    predict.draw(image, objects, path)
    assert image.getpixel((100, 200)) == (10, 20, 30)  # the image itself stays as it was
    with Image.open(path) as file:
        pixels = numpy.asarray(file.convert("RGB")).astype(int)
    assert pixels.shape == (700, 800, 3)
    is_drawn = (pixels != (10, 20, 30)).any(axis=2)
    assert is_drawn[200:401, [100, 300]].all() and is_drawn[[200, 400], 100:301].all()
    assert is_drawn[0:651, 500].all() and is_drawn[650, 500:800].all()
    assert not is_drawn[210:390, 110:290].any() and not is_drawn[410:, :490].any()
    assert is_drawn[180:198, 102:140].all()  # the name stands above the box
    assert is_drawn[2:14, 502:540].all()  # and within it where there is no room above
    assert (pixels[300, 100] != pixels[300, 500]).any()


def test_masks_are_drawn_half_transparent_in_the_colour_of_the_box(tmp_path):
    """Their pixels alone, the surest above the others, all below boxes and names."""
    image = Image.new("RGB", (700, 800), (10, 20, 30))
    bitmap = numpy.zeros((200, 100), bool)
    bitmap[50:, 20:] = True
    wide = numpy.ones((300, 100), bool)
    small, large = (100.0, 200.0, 200.0, 400.0), (100.0, 200.0, 300.0, 500.0)
    objects = [
        predict.Found(0.9, 1, "person", small, masks.Patch(100, 200, bitmap)),
        predict.Found(0.4, 2, "bicycle", large, masks.Patch(150, 200, wide)),
    ]
    path = tmp_path / "drawn.png"
    predict.draw(image, objects, path)
    with Image.open(path) as file:
        pixels = numpy.asarray(file.convert("RGB")).astype(float)
    background = numpy.array([10, 20, 30])
    colours = [numpy.array(predict.colour_of(label)) for label in (1, 2)]
    assert (pixels[320, 100] == colours[0]).all() and (pixels[480, 300] == colours[1]).all()
    halves = [(background + colour) / 2 for colour in colours]
    assert abs(pixels[255:390, 125:145] - halves[0]).max() <= 2
    assert abs(pixels[410:490, 155:245] - halves[1]).max() <= 2
    assert abs(pixels[260:390, 155:190] - (halves[1] + colours[0]) / 2).max() <= 2
    assert (pixels[210:245, 105:145] == background).all()
    assert (pixels[410:490, 110:145] == background).all()


def test_small_images_are_enlarged_with_their_boxes_and_masks(tmp_path):
    path = tmp_path / "drawn.png"
    bitmap = numpy.zeros((30, 20), bool)
    bitmap[10:, :] = True
    box = (10.0, 20.0, 70.0, 80.0)
    objects = [predict.Found(0.9, 1, "cup", box, masks.Patch(30, 40, bitmap))]
    predict.draw(Image.new("RGB", (100, 90)), objects, path)
    with Image.open(path) as file:
        is_drawn = numpy.asarray(file).any(axis=2)
    assert is_drawn.shape == (630, 700)
    assert is_drawn[140:560, [70, 490]].all() and is_drawn[[140, 560], 70:490].all()
    assert is_drawn[350:490, 210:350].all()
    is_drawn[350:490, 210:350] = False
    assert not is_drawn[150:550, 80:480].any()


def test_nothing_found_is_said(results, run_predict, tmp_path):
    status, out, err = run_predict("tiny", "--min-score", "0.9999", results=results)
    assert (status, out) == (0, "")
    assert "nothing has a score above 0.9999" in err
    assert (tmp_path / "found.png").exists()


def test_classes_have_names_as_long_as_the_annotations_are_there(results, shared_coco, tmp_path):
    reference = PRESETS["reference"][1]
    images = predict.read_validation(reference, RunOptions(data_dir=shared_coco))
    names = images.annotations.category_names
    assert len(names) == 80
    assert (names[0], names[11], names[79]) == ("person", "stop sign", "toothbrush")
    with Image.open(shared_coco / "val2017" / images.annotations.file_names[0]) as file:
        assert predict.first_image(images).size == file.size
    assert predict.read_validation(reference, RunOptions(data_dir=tmp_path)) is None
    model, config = predict.load_model(newest_run(results), TINY)
    image = data.load(TINY, RunOptions())[1].read(0)
    found = predict.find(model, config, image, {}, config.min_score)
    assert {each.name for each in found} <= {f"class {label}" for label in range(1, 5)}


def test_without_a_data_set_an_image_of_ones_own_has_numbered_classes(
    results, run_predict, tmp_path, monkeypatch
):
    shapes = dataclasses.replace(TINY, dataset="shapes128")
    monkeypatch.setitem(predict.PRESETS, "tiny", ("", shapes))
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "nothing"))
    data.load(TINY, RunOptions())[1].read(0).save(tmp_path / "one.png")
    arguments = ("tiny", "--image", tmp_path / "one.png", "--min-score", "0.06")
    status, out, err = run_predict(*arguments, results=results)
    assert status == 0, err
    assert {name for _, name, _ in lines_of(out)} <= {f"class {label}" for label in range(1, 5)}
    assert out


# --- wrong use ------------------------------------------------------------------------------------


def test_no_run_and_no_checkpoint(results, run_predict, tmp_path):
    assert_usage_error(run_predict("tiny", results=tmp_path / "none"), "no run below", "train")
    run = newest_run(results)
    bare = tmp_path / "bare" / run.name
    (bare / "checkpoints").mkdir(parents=True)
    for name in ("run.json", "config.json"):
        (bare / name).write_bytes((run / name).read_bytes())
    (bare / "checkpoints" / "step-000000001.json").write_text("{}")
    status, out, err = run_predict("tiny", "--run", bare)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: ") and "has no checkpoint; train first" in err


def test_another_presets_run_and_made_up_data(run_predict, results, tmp_path):
    run = newest_run(results)
    assert_usage_error(run_predict("mini", "--run", run), "is a run of tiny; give that preset")
    made_up = tmp_path / "made-up" / run.name
    made_up.parent.mkdir()
    made_up.symlink_to(tmp_path / "copy", target_is_directory=True)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "checkpoints").symlink_to(run / "checkpoints")
    (tmp_path / "copy" / "run.json").write_bytes((run / "run.json").read_bytes())
    stored = json.loads((run / "config.json").read_text())
    stored["options"]["synthetic_data"] = True
    (tmp_path / "copy" / "config.json").write_text(json.dumps(stored))
    assert_usage_error(run_predict("tiny", "--run", tmp_path / "copy"), "trained on made-up data")


def test_a_data_set_that_is_not_there(results, run_predict, tmp_path, monkeypatch):
    """Without a file of one's own an image of it is asked for."""
    run = newest_run(results)
    stored = json.loads((run / "config.json").read_text())
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "checkpoints").symlink_to(run / "checkpoints")
    (copy / "run.json").write_bytes((run / "run.json").read_bytes())
    (copy / "config.json").write_text(json.dumps(stored))
    shapes = dataclasses.replace(TINY, dataset="shapes128")
    monkeypatch.setitem(predict.PRESETS, "tiny", ("", shapes))
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "nothing"))
    assert_usage_error(run_predict("tiny", "--run", copy), "object_detection.prepare")


def test_what_is_no_image(run_predict, results, tmp_path):
    missing, text = tmp_path / "missing.jpg", tmp_path / "text.jpg"
    text.write_text("no image")
    broken, cut = tmp_path / "broken.jpg", tmp_path / "cut.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0" + bytes(20))
    Image.effect_noise((200, 200), 50).save(cut)
    cut.write_bytes(cut.read_bytes()[:2000])
    bomb = tmp_path / "bomb.png"
    Image.new("1", (10_000, 10_000)).save(bomb)
    for path in (missing, text, broken, cut, bomb, tmp_path):
        done = run_predict("tiny", "--image", path, results=results)
        assert_usage_error(done, f"{path} is no image", "name another with --image")
    assert not (tmp_path / "found.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["teeny"], ["teeny", "tiny"]),
        (["tiny", "--min-score", "1"], ["--min-score is 1.0"]),
        (["tiny", "--min-score", "-0.1"], ["--min-score is -0.1"]),
        (["tiny", "--min-scor", "0.1"], ["--min-scor"]),
    ],
)
def test_wrong_options(run_predict, results, arguments, words):
    assert_usage_error(run_predict(*arguments, results=results), *words)


@pytest.mark.parametrize("name", ["no folder/found.png", "found.nothing"])
def test_a_picture_that_cannot_be_written(results, tmp_path, monkeypatch, capsys, name):
    monkeypatch.setenv("RESULTS_DIR", str(results))
    picture = tmp_path / name
    assert predict.main(["tiny", "--output", str(picture), "--min-score", "0.9999"]) == 2
    *rest, error = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in rest[:1]] == ["model"]
    assert error.startswith(f"error: cannot write {picture}: ") and "--output" in error
