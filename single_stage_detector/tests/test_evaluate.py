"""The metric: beside pycocotools, over any batches and processes, on real data."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import subprocess
import sys
from unittest import mock

import numpy
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from harness.options import REPOSITORY
from single_stage_detector import coco, data, evaluate, loss, shapes
from single_stage_detector.config import MINI, TINY
from single_stage_detector.default_boxes import DefaultBoxes
from single_stage_detector.tests.checks import as_process

CPU = torch.device("cpu")
CROWDED = shapes.Recipe(
    400, 300, 1, 6, min_radius=8, max_radius=120, occlusion=True, crowd_one_in=3, flat_one_in=4
)
"""Objects of all three sizes that the metric knows; crowds, boxes without width, empty images."""


@pytest.fixture(scope="module")
def crowded():
    """An instances file of 60 generated images."""
    recipe = dataclasses.replace(CROWDED, empty_one_in=10)
    pictures = [shapes.draw_picture(recipe, 3, number) for number in range(60)]
    return shapes.make_instances(recipe, (each.annotations for each in pictures), ".png")


def made_up_detections(ground_truth, seed):
    """Rows [D, 7]: near objects, within crowds, doubles, wrong classes, and at no object."""
    stream = numpy.random.default_rng(seed)
    kinds = [category["id"] for category in ground_truth["categories"]]
    rows = []
    for annotation in ground_truth["annotations"]:
        left, top, width, height = annotation["bbox"]
        for _ in range(int(stream.integers(0, 5)) + 6 * annotation["iscrowd"]):
            size = max(width, 1), max(height, 1)
            shift = 0.12 * stream.standard_normal(4) * numpy.tile(size, 2)
            box = numpy.array([left, top, *size]) + shift
            box[2:] = numpy.maximum(box[2:], 0.5)
            if annotation["iscrowd"]:
                box[2:] /= 3
            kind = annotation["category_id"] if stream.integers(5) else int(stream.choice(kinds))
            # Scores of two digits, so that many are equal.
            score = round(float(stream.uniform(0.05, 1)), 2)
            rows.append([annotation["image_id"], *box, score, kind])
    for image in ground_truth["images"]:
        for _ in range(int(stream.integers(0, 4))):
            box = stream.uniform(-10, 100, 2).tolist() + stream.uniform(1, 100, 2).tolist()
            score = float(stream.uniform(0.05, 1))
            rows.append([image["id"], *box, score, int(stream.choice(kinds))])
    return numpy.array(rows)


def assert_equal_to_pycocotools(ground_truth, detections):
    ours = evaluate.coco_statistics(ground_truth, detections)
    original = evaluate.coco_statistics(ground_truth, detections, "pycocotools")
    assert list(ours) == list(original) == list(evaluate.STATISTICS)
    for name in ours:
        assert abs(ours[name] - original[name]) < 1e-9, name
    return ours


def test_the_twelve_numbers_are_pycocotools_own(crowded):
    """In the same order, with crowds, of results given as a list, as its documentation has it."""
    assert sum(annotation["iscrowd"] for annotation in crowded["annotations"]) > 10
    detections = made_up_detections(crowded, 1)
    truth = COCO()
    truth.dataset = copy.deepcopy(crowded)
    truth.createIndex()
    results = [
        {"image_id": int(row[0]), "bbox": row[1:5].tolist(), "score": row[5],
         "category_id": int(row[6])}
        for row in detections
    ]  # fmt: skip
    original = COCOeval(truth, truth.loadRes(results), "bbox")
    original.evaluate()
    original.accumulate()
    original.summarize()
    ours = evaluate.coco_statistics(crowded, detections)
    numpy.testing.assert_allclose(list(ours.values()), original.stats, rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_numbers_equal_pycocotools_with_crowds(crowded, seed):
    found = assert_equal_to_pycocotools(crowded, made_up_detections(crowded, seed))
    assert all(0.02 < value < 0.95 for value in found.values()), found


def test_numbers_equal_pycocotools_on_real_annotations(shared_coco):
    for split, num_crowds in (("train2017", 6), ("val2017", 11)):
        path = data.instances_file(shared_coco, split)
        ground_truth = json.loads(path.read_text())
        annotations = ground_truth["annotations"]
        assert sum(annotation["iscrowd"] for annotation in annotations) == num_crowds
        found = assert_equal_to_pycocotools(ground_truth, made_up_detections(ground_truth, 5))
        assert all(0.02 < value < 0.95 for value in found.values()), found


def test_equal_scores_and_the_order_of_detections_change_nothing_between_images(crowded):
    """The metric goes through images by id: which process found what leaves no trace."""
    detections = made_up_detections(crowded, 6)
    others = detections[numpy.argsort(-detections[:, 0], kind="stable")]
    assert evaluate.coco_statistics(crowded, detections) == evaluate.coco_statistics(
        crowded, others
    )


@pytest.mark.parametrize("backend", ["faster-coco-eval", "pycocotools"])
def test_without_any_detection_nothing_is_found(crowded, backend):
    """0 in place of v0.5's crash; -1 where there is no object of a size (spec 6.6)."""
    small = copy.deepcopy(crowded)
    small["annotations"] = [a for a in small["annotations"] if a["area"] < 32**2]
    assert small["annotations"]
    whole = copy.deepcopy(crowded)
    whole["annotations"] = whole["annotations"][:1]
    whole["annotations"][0].update(image_id=1, bbox=[0, 0, 400, 300], area=120_000, category_id=1)
    cases = ((crowded, set()), (small, {"medium", "large"}), (whole, {"small", "medium"}))
    for ground_truth, absent in cases:
        found = evaluate.coco_statistics(ground_truth, numpy.zeros((0, 7)), backend)
        truth = COCO()
        truth.dataset = copy.deepcopy(ground_truth)
        truth.createIndex()
        nothing = COCO()
        nothing.dataset = {**truth.dataset, "annotations": []}
        nothing.createIndex()
        original = COCOeval(truth, nothing, "bbox")
        original.evaluate()
        original.accumulate()
        original.summarize()
        assert list(found.values()) == original.stats.tolist()
        for name, value in found.items():
            assert value == (-1 if name.rpartition("_")[2] in absent else 0), name


def test_the_ground_truth_is_not_written_to_and_nothing_is_printed(crowded, capfd):
    before = copy.deepcopy(crowded)
    for backend in ("faster-coco-eval", "pycocotools"):
        evaluate.coco_statistics(crowded, made_up_detections(crowded, 7), backend)
    assert crowded == before
    assert not any("ignore" in annotation for annotation in crowded["annotations"])  # nor earlier
    assert capfd.readouterr() == ("", "")


# --- from the model to the numbers ----------------------------------------------------------------


class Knowing(torch.nn.Module):
    """Says what is on the images, which come in order; checks how it is called."""

    def __init__(self, images, config):
        super().__init__()
        self.images, self.config = images, config
        self.default_boxes = DefaultBoxes(config)
        self.num_seen = 0

    def forward(self, pixels):
        assert not self.training and not torch.is_grad_enabled()
        assert pixels.dtype == torch.float32 and pixels.shape[2:] == (self.config.input_size,) * 2
        deltas, logits = [], []
        for _ in range(len(pixels)):
            boxes, labels = map(torch.from_numpy, self.images.annotations.boxes_of(self.num_seen))
            self.num_seen += 1
            found = loss.encode_targets(self.default_boxes, boxes[None], labels[None])
            deltas.append(found[0])
            hot = torch.nn.functional.one_hot(found[1], self.config.num_classes)
            logits.append(20 * hot.transpose(1, 2).float())
        return torch.cat(deltas), torch.cat(logits)


class Seeing(torch.nn.Module):
    """Deltas and logits that are a function of each image's pixels alone, to the last bit."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.num_boxes = len(DefaultBoxes(config).corners)

    def forward(self, pixels):
        values = pixels[:, 0].flatten(1)[:, : self.num_boxes].repeat(1, 6)[:, : self.num_boxes]
        steps = torch.arange(1, self.config.num_classes + 1)[None, :, None]
        logits = 6 * torch.sin(values[:, None] * steps)
        return torch.stack([values] * 4, dim=1), logits


def stretched(images, factors=(3, 2)):
    """The same images under annotations of other sizes in pixels, as if they had been reduced."""
    ground_truth = copy.deepcopy(images.ground_truth)
    ground_truth["categories"] = [
        {**category, "id": 7 * category["id"]} for category in ground_truth["categories"]
    ]
    for image in ground_truth["images"]:
        image["id"] *= 1000
        image["width"] *= factors[0]
        image["height"] *= factors[1]
    for annotation in ground_truth["annotations"]:
        annotation["image_id"] *= 1000
        annotation["category_id"] *= 7
        left, top, width, height = annotation["bbox"]
        x, y = factors
        annotation["bbox"] = [left * x, top * y, width * x, height * y]
        annotation["area"] *= x * y
    annotations = coco.parse(ground_truth, TINY.num_classes, "made-up data")
    return dataclasses.replace(images, annotations=annotations, ground_truth=ground_truth)


def test_a_model_that_knows_everything_gets_everything():
    """Boxes in pixels of the original image, whose width and height the JSON has; its own ids."""
    images = stretched(data.make_up(TINY, "val2017"))
    assert set(images.annotations.category_ids) == {7, 21, 42, 70}
    model = Knowing(images, TINY).train()
    found = evaluate.evaluate(model, images, TINY, CPU, num_workers=0)
    assert found["ap"] == pytest.approx(1, abs=1e-12)
    assert found["ar_100"] == 1
    assert model.training and model.num_seen == images.num_images


def test_boxes_are_left_top_width_height_and_are_not_clipped():
    images = data.make_up(TINY, "val2017")
    annotations = dataclasses.replace(
        images.annotations,
        boxes=images.annotations.boxes + numpy.float32(0.3),  # many reach out of the image
        sizes=numpy.tile([200, 100], (images.num_images, 1)),
    )
    moved = dataclasses.replace(images, annotations=annotations)
    rows = evaluate.detect_objects(Knowing(moved, TINY), moved, TINY, CPU, num_workers=0)
    for index in range(images.num_images):
        boxes, labels = annotations.boxes_of(index)
        mine = rows[rows[:, 0] == annotations.image_ids[index]]
        for (left, top, right, bottom), label in zip(boxes, labels, strict=True):
            expected = [200 * left, 100 * top, 200 * (right - left), 100 * (bottom - top)]
            same = numpy.abs(mine[:, 1:5] - expected).max(axis=1) < 1e-3
            kinds = mine[same, 6].tolist()
            assert annotations.category_ids[label - 1] in kinds
            assert mine[same, 5].min() > 0.99
    assert (rows[:, 1] + rows[:, 3]).max() > 220 and (rows[:, 2] + rows[:, 4]).max() > 110


def test_images_without_an_object_count():
    """What is found there is wrong; the model is not asked, but the metric's list has them all."""
    images = data.make_up(TINY, "val2017")
    detections = evaluate.detect_objects(Knowing(images, TINY), images, TINY, CPU, 0)
    ground_truth = copy.deepcopy(images.ground_truth)
    kind = ground_truth["annotations"][0]["category_id"]
    ground_truth["images"].append({"id": 999, "width": 64, "height": 64, "file_name": "-"})
    annotations = coco.parse(ground_truth, TINY.num_classes, "made-up data")
    assert 999 not in annotations.image_ids
    assert evaluate.coco_statistics(ground_truth, detections)["ap"] > 0.999
    wrong = numpy.vstack([detections, [[999, 1, 1, 20, 20, 2.0, kind]]])
    assert evaluate.coco_statistics(ground_truth, wrong)["ap"] < 0.99


def test_each_image_counts_once_over_any_batches_and_processes(monkeypatch):
    images, model = data.make_up(TINY, "val2017"), Seeing(TINY)
    alone = evaluate.detect_objects(model, images, TINY, CPU, num_workers=0)
    assert set(alone[:, 0]) == set(images.annotations.image_ids)
    assert len(alone) > 5 * images.num_images
    for batch_size in (1, 2, 3):  # of training; evaluation's are some times as large
        config = dataclasses.replace(TINY, batch_size=batch_size)
        rows = evaluate.detect_objects(model, images, config, CPU, num_workers=0)
        assert numpy.array_equal(rows, alone)
    assert numpy.array_equal(evaluate.detect_objects(model, images, TINY, CPU, 2), alone)
    for num_processes in (2, 3, 23):  # one process of 23 at least has no image
        parts = []
        for rank in range(num_processes):
            with as_process(rank, num_processes):
                parts.append(evaluate.detect_objects(model, images, TINY, CPU, 0))
        assert max(map(len, parts)) < len(alone)

        def gather_object(mine, into, parts=parts):
            assert mine is parts[0]
            into[:] = parts

        with as_process(0, num_processes):
            monkeypatch.setattr(torch.distributed, "gather_object", gather_object)
            assert numpy.array_equal(evaluate.gather(parts[0]), alone)


GATHER = """
import os, sys
from pathlib import Path
import numpy
from torch import distributed
from harness import torch_support
from single_stage_detector import data, evaluate
from single_stage_detector.config import TINY
from single_stage_detector.tests.test_evaluate import CPU, Seeing
torch_support.set_up(CPU, 1)
images, model = data.make_up(TINY, "val2017"), Seeing(TINY)
mine = evaluate.detect_objects(model, images, TINY, CPU, 0)
both = evaluate.gather(mine)
data.share = lambda start, size: (start, start + size)
alone = evaluate.detect_objects(model, images, TINY, CPU, 0)
assert 0 < len(mine) < len(alone)
if torch_support.rank() == 0:
    assert numpy.array_equal(both, alone)
    Path(sys.argv[1]).write_text(str(len(both)))
distributed.barrier()
os._exit(0)  # taking the group down by hand can deadlock on Python's lock (PyTorch 2.7)
"""


def test_two_real_processes_find_the_same(tmp_path):
    """Over gloo, as training does."""
    script, count = tmp_path / "gather.py", tmp_path / "count.txt"
    script.write_text(GATHER)
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *launcher, script, count]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert int(count.read_text()) > 5 * data.make_up(TINY, "val2017").num_images


def test_an_error_while_looking_is_no_missing_object():
    images = data.make_up(TINY, "val2017")

    class Failing(Knowing):
        def forward(self, _):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate.evaluate(Failing(images, TINY), images, TINY, CPU, 0)


def test_only_the_first_process_computes_and_all_return_its_numbers(monkeypatch):
    images = data.make_up(TINY, "val2017")
    monkeypatch.setattr(torch.distributed, "gather_object", lambda mine, into: None)
    monkeypatch.setattr(torch.distributed, "broadcast", lambda buffer, source: None)

    def broadcast_object_list(box):
        assert box == [{}]
        box[0] = {"ap": 0.25}

    with (
        as_process(1, 2),
        mock.patch.object(evaluate, "coco_statistics", side_effect=AssertionError),
    ):
        monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast_object_list)
        assert evaluate.evaluate(Seeing(TINY), images, TINY, CPU, 0) == {"ap": 0.25}


def test_some_images_are_enough_for_timing():
    images = data.make_up(TINY, "val2017")
    rows = evaluate.detect_objects(Seeing(TINY), images, TINY, CPU, 0, max_images=7)
    assert set(rows[:, 0]) == set(images.annotations.image_ids[:7])
    model = Knowing(images, TINY)
    found = evaluate.evaluate(model, images, TINY, CPU, 0, max_images=7)
    assert model.num_seen == 7 and 0 < found["ar_100"] < 0.7


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_box_that_is_no_number_finds_nothing(broken):
    """Though its score is high: pycocotools would take it for a hit."""
    images = data.make_up(TINY, "val2017")

    class Broken(Knowing):
        def forward(self, pixels):
            deltas, logits = super().forward(pixels)
            return deltas + broken, logits

    rows = evaluate.detect_objects(Broken(images, TINY), images, TINY, CPU, 0)
    assert rows.shape == (0, 7)
    found = evaluate.evaluate(Broken(images, TINY), images, TINY, CPU, 0)
    assert set(found.values()) <= {0, -1}


def test_a_model_of_no_numbers_finds_nothing():
    images = data.make_up(TINY, "val2017")

    class NoNumbers(Knowing):
        def forward(self, pixels):
            return tuple(torch.full_like(part, torch.nan) for part in super().forward(pixels))

    assert evaluate.evaluate(NoNumbers(images, TINY), images, TINY, CPU, 0)["ap"] == 0


def test_real_photos_with_crowds(shared_coco):
    """A model that knows all annotations, crowds included, of real files, beside pycocotools."""
    path = data.instances_file(shared_coco, "val2017")
    content = coco.read_instances(path)
    annotations = coco.parse(content, 81, str(path))
    images = data.Images(annotations, shared_coco / "val2017", ground_truth=content)
    config = dataclasses.replace(MINI, num_classes=81)
    rows = evaluate.detect_objects(Knowing(images, config), images, config, CPU, 0)
    assert set(rows[:, 0]) <= set(annotations.image_ids)
    found = assert_equal_to_pycocotools(content, rows)
    assert found["ap"] > 0.5  # at most one of two objects that claim the same default box is found
