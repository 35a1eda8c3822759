"""The metric: beside pycocotools, over any batches and processes, on real data."""

from __future__ import annotations

import contextlib
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
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.models.detection.roi_heads import paste_masks_in_image

from harness.options import REPOSITORY
from object_detection import coco, data, evaluate, masks, shapes, transforms
from object_detection.anchors import make_anchors
from object_detection.boxes import Boxes
from object_detection.config import REFERENCE, TINY

CPU = torch.device("cpu")
MASK_SIZE = 28
NOT = -20.0
"""A logit of what is not there."""
CROWDED = shapes.Recipe(
    400, 300, 1, 6, min_radius=8, max_radius=120, occlusion=True, crowd_one_in=3, flat_one_in=4,
    empty_one_in=10,
)  # fmt: skip
"""Objects of all three sizes that the metric knows; crowds, boxes without width, empty images."""


def runs_of(bitmap):
    """COCO's compressed runs."""
    return coco_mask.encode(numpy.asfortranarray(bitmap.astype(numpy.uint8)))


def bitmap_of(segmentation, image):
    """A polygon list, or runs of either form, as a bitmap."""
    size = image["height"], image["width"]
    runs = segmentation
    if isinstance(segmentation, list):
        runs = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
    elif isinstance(segmentation["counts"], list):
        runs = coco_mask.frPyObjects(segmentation, *size)
    return coco_mask.decode(runs).astype(bool)


@pytest.fixture(scope="module")
def crowded():
    """An instances file of 60 generated images; runs of pixels, and polygons of several parts."""
    pictures = []
    for number in range(60):
        recipe = dataclasses.replace(CROWDED, occlusion=number % 2 == 0)
        annotations = shapes.draw_picture(recipe, 3, number).annotations
        polygons = [one for one in annotations if isinstance(one["segmentation"], list)]
        if len(polygons) > 2:  # the first two are one object of two parts
            first, second, *_ = polygons
            both = first["segmentation"] + second["segmentation"]
            runs = runs_of(bitmap_of(both, {"height": 300, "width": 400}))
            box = [float(side) for side in coco_mask.toBbox(runs)]
            joined = {"segmentation": both, "bbox": box, "area": float(coco_mask.area(runs))}
            rest = [one for one in annotations if one is not first and one is not second]
            annotations = ({**first, **joined}, *rest)
        pictures.append(annotations)
    return shapes.make_instances(CROWDED, pictures, ".png")


def made_up_results(ground_truth, seed):
    """Results near objects, within crowds, doubles, wrong classes, and at no object."""
    stream = numpy.random.default_rng(seed)
    kinds = [category["id"] for category in ground_truth["categories"]]
    images = {image["id"]: image for image in ground_truth["images"]}
    results = []

    def add(image, box, bitmap, kind):
        # Scores of two digits, so that many are equal.
        score = round(float(stream.uniform(0.05, 1)), 2)
        results.append(
            {"image_id": image["id"], "category_id": kind, "score": score,
             "bbox": [float(side) for side in box], "segmentation": runs_of(bitmap)}
        )  # fmt: skip

    for annotation in ground_truth["annotations"]:
        image = images[annotation["image_id"]]
        left, top, width, height = annotation["bbox"]
        size = numpy.maximum([width, height], 1)
        bitmap = bitmap_of(annotation["segmentation"], image)
        for _ in range(int(stream.integers(0, 5)) + 6 * annotation["iscrowd"]):
            shift = 0.12 * stream.standard_normal(4) * numpy.tile(size, 2)
            box = numpy.array([left, top, *size]) + shift
            box[2:] = numpy.maximum(box[2:], 0.5)
            moved = numpy.roll(bitmap, (0.5 * shift[1::-1]).round().astype(int), axis=(0, 1))
            if annotation["iscrowd"]:
                box[2:] /= 3
                moved[:, int(left + width / 3) :] = False
            kind = annotation["category_id"] if stream.integers(5) else int(stream.choice(kinds))
            add(image, box, moved, kind)
    for image in images.values():
        for _ in range(int(stream.integers(0, 4))):
            box = [*stream.uniform(-10, 100, 2), *stream.uniform(1, 100, 2)]
            bitmap = numpy.zeros((image["height"], image["width"]), bool)
            left, top = (max(0, int(side)) for side in box[:2])
            bitmap[top : int(box[1] + box[3]), left : int(box[0] + box[2])] = True
            add(image, box, bitmap, int(stream.choice(kinds)))
    return results


def assert_equal_to_pycocotools(ground_truth, results):
    """The 24 numbers of both evaluators; returns them."""
    numbers = {}
    for kind in evaluate.KINDS:
        ours = evaluate.coco_statistics(ground_truth, results, kind)
        original = evaluate.coco_statistics(ground_truth, results, kind, "pycocotools")
        assert list(ours) == list(original) == list(evaluate.STATISTICS)
        for name in ours:
            assert abs(ours[name] - original[name]) < 1e-9, (kind, name)
            numbers[f"{kind}_{name}"] = ours[name]
    assert len(numbers) == 24
    return numbers


def original_statistics(ground_truth, results, kind):
    """What pycocotools says, its own way, of results as its documentation has them, or of none."""
    truth = COCO()
    truth.dataset = copy.deepcopy(ground_truth)
    truth.createIndex()
    if results:
        found = truth.loadRes(copy.deepcopy(results))
    else:
        found = COCO()
        found.dataset = {**truth.dataset, "annotations": []}
        found.createIndex()
    original = COCOeval(truth, found, evaluate.KINDS[kind])
    original.evaluate()
    original.accumulate()
    original.summarize()
    return original.stats.tolist()


def test_the_fixture_has_all_kinds_of_objects(crowded):
    annotations = crowded["annotations"]
    assert sum(annotation["iscrowd"] for annotation in annotations) > 10
    outlines = [one["segmentation"] for one in annotations if not one["iscrowd"]]
    assert sum(isinstance(one, list) and len(one) > 1 for one in outlines) > 5
    assert sum(isinstance(one, dict) for one in outlines) > 20
    assert len({one["image_id"] for one in annotations}) < len(crowded["images"])
    assert any(one["area"] == 0 for one in annotations)


@pytest.mark.parametrize("kind", evaluate.KINDS)
def test_the_twelve_numbers_are_pycocotools_own(crowded, kind):
    """In the same order, with crowds; masks are judged without a look at the results' boxes."""
    results = made_up_results(crowded, 1)
    judged = [
        {name: value for name, value in result.items() if kind == "box" or name != "bbox"}
        for result in results
    ]
    expected = original_statistics(crowded, judged, kind)
    ours = evaluate.coco_statistics(crowded, results, kind)
    numpy.testing.assert_allclose(list(ours.values()), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", [2, 3])
def test_numbers_equal_pycocotools_with_crowds(crowded, seed):
    found = assert_equal_to_pycocotools(crowded, made_up_results(crowded, seed))
    assert all(0.02 < value < 0.97 for value in found.values()), found
    assert found["box_ap"] != found["mask_ap"]


def test_numbers_equal_pycocotools_on_real_annotations(shared_coco):
    for split, num_crowds in (("train2017", 6), ("val2017", 11)):
        ground_truth = json.loads(data.instances_file(shared_coco, split).read_text())
        annotations = ground_truth["annotations"]
        assert sum(annotation["iscrowd"] for annotation in annotations) == num_crowds
        found = assert_equal_to_pycocotools(ground_truth, made_up_results(ground_truth, 5))
        assert all(0.02 < value < 0.97 for value in found.values()), found


@pytest.mark.parametrize("kind", evaluate.KINDS)
def test_equal_scores_and_the_order_of_results_change_nothing_between_images(crowded, kind):
    """The metric goes through images by id: which process found what leaves no trace."""
    results = made_up_results(crowded, 6)
    others = sorted(results, key=lambda result: -result["image_id"])
    assert others != results
    numbers = [evaluate.coco_statistics(crowded, some, kind) for some in (results, others)]
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("backend", ["faster-coco-eval", "pycocotools"])
@pytest.mark.parametrize("kind", evaluate.KINDS)
def test_without_any_detection_nothing_is_found(crowded, kind, backend):
    """0 in place of v0.5's crash; -1 where there is no object of a size."""
    small = copy.deepcopy(crowded)
    small["annotations"] = [a for a in small["annotations"] if a["area"] < 32**2]
    assert small["annotations"]
    whole = copy.deepcopy(crowded)
    whole["annotations"] = whole["annotations"][:1]
    everywhere = {"size": [300, 400], "counts": [0, 120_000]}
    whole["annotations"][0].update(
        image_id=1, bbox=[0, 0, 400, 300], area=120_000, category_id=1, segmentation=everywhere
    )
    cases = ((crowded, set()), (small, {"medium", "large"}), (whole, {"small", "medium"}))
    for ground_truth, absent in cases:
        found = evaluate.coco_statistics(ground_truth, [], kind, backend)
        assert list(found.values()) == original_statistics(ground_truth, [], kind)
        for name, value in found.items():
            assert value == (-1 if name.rpartition("_")[2] in absent else 0), name


def test_nothing_is_written_to_and_nothing_is_printed(crowded, capfd):
    results = made_up_results(crowded, 7)
    truth_before, results_before = copy.deepcopy(crowded), copy.deepcopy(results)
    capfd.readouterr()
    for backend in ("faster-coco-eval", "pycocotools"):
        for kind in evaluate.KINDS:
            evaluate.coco_statistics(crowded, results, kind, backend)
    assert crowded == truth_before and results == results_before
    assert not any("ignore" in annotation for annotation in crowded["annotations"])  # nor earlier
    assert capfd.readouterr() == ("", "")


def test_boxes_are_judged_without_outlines(crowded):
    """They are most of an instances file: nobody copies or reads them."""
    results = made_up_results(crowded, 8)
    bare = copy.deepcopy(crowded)
    for annotation in bare["annotations"]:
        del annotation["segmentation"]
    expected = evaluate.coco_statistics(crowded, results, "box")
    for result in results:
        del result["segmentation"]
    assert evaluate.coco_statistics(bare, results, "box") == expected


# --- from the model to the numbers ----------------------------------------------------------------


@contextlib.contextmanager
def as_process(rank, num_processes):
    """This process plays one of several."""
    environment = {"RANK": str(rank), "WORLD_SIZE": str(num_processes)}
    with mock.patch.dict(os.environ, environment):
        yield


def knowing(config):
    """Nothing is suppressed, so that each image has as many proposals, and all objects are kept."""
    return dataclasses.replace(config, rpn_nms_iou=1.0, nms_iou=1.0, min_score=0.05)


class Knowing(torch.nn.Module):
    """Says what is on the images, which come in order; checks how it is called."""

    def __init__(self, images, config, probabilities):
        """probabilities: what the mask head shall say of an annotation, by its id [28, 28]."""
        super().__init__()
        self.images, self.config, self.probabilities = images, config, probabilities
        self.annotations = {image["id"]: [] for image in images.ground_truth["images"]}
        for annotation in images.ground_truth["annotations"]:
            if not annotation["iscrowd"]:
                self.annotations[annotation["image_id"]].append(annotation)
        ids = sorted(category["id"] for category in images.ground_truth["categories"])
        self.label_of = {kind: label for label, kind in enumerate(ids, start=1)}
        self.num_seen = 0

    def forward(self, pixels):
        assert not self.training and not torch.is_grad_enabled()
        assert pixels.dtype == torch.float32
        height, width = pixels.shape[2:]
        maps = [
            torch.zeros(len(pixels), 1, -(-height // stride), -(-width // stride))
            for stride in self.config.strides
        ]
        anchors = make_anchors(self.config, maps)
        objectness = [torch.full((len(pixels), len(some)), -200.0) for some in anchors]
        deltas = [torch.zeros(len(pixels), len(some), 4) for some in anchors]
        self.objects = []
        for place in range(len(pixels)):
            objects = self.annotations[int(self.images.annotations.image_ids[self.num_seen])]
            boxes = self.boxes_as_seen(objects)
            count = len(objects)
            objectness[0][place, :count] = 8 - 0.1 * torch.arange(count)
            coordinates = Boxes(self.config.legacy_coords)
            deltas[0][place, :count] = coordinates.encode(boxes, anchors[0][:count], (1, 1, 1, 1))
            self.objects.append(objects)
            self.num_seen += 1
        return maps, objectness, deltas

    def boxes_as_seen(self, objects):
        """Corners of an image's objects in pixels of what the network sees [M, 4]."""
        seen = transforms.resized(*self.images.read(self.num_seen).size, self.config)
        ratio = torch.tensor(seen) / torch.from_numpy(self.images.annotations.sizes[self.num_seen])
        boxes = torch.tensor([one["bbox"] for one in objects]).double().reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2] - int(self.config.legacy_coords)
        return (boxes * ratio.repeat(2)).float()

    def box_head(self, features):
        num_proposals = len(features) // len(self.objects)
        logits = torch.full((len(self.objects), num_proposals, self.config.num_classes), NOT)
        logits[..., 0] = 0
        for place, objects in enumerate(self.objects):
            for number, one in enumerate(objects):
                logits[place, number, self.label_of[one["category_id"]]] = 6 - 0.02 * number
        deltas = torch.zeros(len(features), self.config.num_classes, 4)
        return logits.flatten(0, 1), deltas

    def mask_head(self, features):
        logits = torch.full((len(features), self.config.num_classes, MASK_SIZE, MASK_SIZE), NOT)
        together = [one for objects in self.objects for one in objects]
        for place, one in zip(logits, together, strict=True):
            place[self.label_of[one["category_id"]]] = self.probabilities[one["id"]].logit()
        return logits


class Seeing(torch.nn.Module):
    """Outputs that are a function of each image's pixels alone, to the last bit."""

    def __init__(self, config):
        super().__init__()
        self.config = config

    def forward(self, pixels):
        maps = [pixels[:, :1, ::stride, ::stride] for stride in self.config.strides]
        num_ratios = len(self.config.aspect_ratios)
        values = [some.flatten(1).repeat_interleave(num_ratios, dim=1) for some in maps]
        steps = torch.arange(1, 5)
        return maps, values, [0.3 * torch.sin(some[..., None] * steps) for some in values]

    def box_head(self, features):
        steps = torch.arange(1, self.config.num_classes + 1)
        logits = 4 * torch.sin(features[:, 0, 0, :1] * steps)
        return logits, torch.sin(features[:, 0, 1, :1] * steps)[..., None].repeat(1, 1, 4)

    def mask_head(self, features):
        large = features.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        return large.repeat(1, self.config.num_classes, 1, 1) / 20


def made_up(factors=(1, 1), legacy=True):
    """Images whose objects are blobs that a mask of 28 x 28 cells shows without a fault, and those
    masks by annotation.

    With factors the annotations are of other sizes in pixels, as if the images had been reduced,
    and have other ids.
    """
    images = data.make_up(TINY, "val2017")
    ground_truth = copy.deepcopy(images.ground_truth)
    for category in ground_truth["categories"]:
        category["id"] *= 7
    for image in ground_truth["images"]:
        image["id"] *= 1000
        image["width"] *= factors[0]
        image["height"] *= factors[1]
    generator = torch.Generator().manual_seed(9)
    probabilities = {}
    for annotation in ground_truth["annotations"]:
        coarse = torch.rand(1, 1, 6, 6, generator=generator)
        probability = torch.nn.functional.interpolate(coarse, (MASK_SIZE,) * 2, mode="bilinear")
        box = torch.tensor(annotation["bbox"]) * torch.tensor([*factors, *factors])
        box = box.double() + torch.tensor([0.3, 0.3, -0.7, -0.7])  # no edge is cut either way
        corners = torch.cat([box[:2], box[:2] + box[2:] - int(legacy)])
        size = 64 * factors[1], 64 * factors[0]
        pasted = paste_masks_in_image(probability, corners[None].float(), size)[0, 0] > 0.5
        runs = runs_of(pasted.numpy())
        annotation.update(
            image_id=1000 * annotation["image_id"],
            category_id=7 * annotation["category_id"],
            bbox=box.tolist(),
            area=float(coco_mask.area(runs)),
            segmentation={**runs, "counts": runs["counts"].decode()},
        )
        probabilities[annotation["id"]] = probability[0, 0]
    parsed = coco.parse(ground_truth, TINY.num_classes, "made-up data", is_training=False)
    images = dataclasses.replace(images, annotations=parsed, ground_truth=ground_truth)
    return images, probabilities


@pytest.mark.parametrize("legacy", [True, False])
def test_a_model_that_knows_everything_gets_everything(legacy):
    """Boxes and masks in pixels of the original image, whose size the JSON has; its own ids."""
    images, probabilities = made_up((3, 2), legacy)
    assert set(images.annotations.category_ids) == {7, 21, 42, 70}
    config = dataclasses.replace(knowing(TINY), legacy_coords=legacy)
    model = Knowing(images, config, probabilities).train()
    found = evaluate.evaluate(model, images, config, CPU, num_workers=0)
    names = [f"{kind}_{name}" for kind in ("box", "mask") for name in evaluate.STATISTICS]
    assert list(found) == names
    for kind in ("box", "mask"):
        assert found[f"{kind}_ap"] == pytest.approx(1, abs=1e-12)
        assert found[f"{kind}_ar_100"] == 1
    assert model.training and model.num_seen == images.num_images


def test_results_are_what_was_found_in_cocos_form():
    """Left, top, width, height with v0.5's one pixel more; runs as pycocotools encodes them."""
    images, probabilities = made_up((3, 2))
    config = knowing(TINY)
    results = evaluate.detect_objects(
        Knowing(images, config, probabilities), images, config, CPU, 0
    )
    annotations = images.ground_truth["annotations"]
    assert len(results) == len(annotations)
    for result, annotation in zip(results, annotations, strict=True):
        assert list(result) == ["image_id", "category_id", "score", "bbox", "segmentation"]
        assert result["image_id"] == annotation["image_id"]
        assert result["category_id"] == annotation["category_id"]
        assert 0.99 < result["score"] < 1
        assert result["bbox"] == pytest.approx(annotation["bbox"], abs=1e-3)
        counts = annotation["segmentation"]["counts"].encode()
        assert result["segmentation"] == {"size": [128, 192], "counts": counts}
    json.dumps([{**result, "segmentation": None} for result in results])  # plain numbers all


def test_a_wrong_mask_costs_masks_alone_and_a_wrong_box_boxes():
    images, probabilities = made_up()
    config = knowing(TINY)
    inverted = {number: 1 - mask for number, mask in probabilities.items()}
    found = evaluate.evaluate(Knowing(images, config, inverted), images, config, CPU, 0)
    assert found["box_ap"] > 0.999 and found["mask_ap"] < 0.2
    moved = copy.deepcopy(images.ground_truth)
    for annotation in moved["annotations"]:
        annotation["bbox"][0] += 30
    others = dataclasses.replace(images, ground_truth=moved)
    found = evaluate.evaluate(Knowing(images, config, probabilities), others, config, CPU, 0)
    assert found["box_ap"] < 0.2 and found["mask_ap"] > 0.999


def test_images_without_an_object_count():
    """What is found there is wrong."""
    images, probabilities = made_up()
    config = knowing(TINY)
    ground_truth = copy.deepcopy(images.ground_truth)
    first = ground_truth["images"][0]["id"]
    others = [one for one in ground_truth["annotations"] if one["image_id"] != first]
    ground_truth["annotations"] = others
    results = evaluate.detect_objects(
        Knowing(images, config, probabilities), images, config, CPU, 0
    )
    assert first in {result["image_id"] for result in results}
    right = [result for result in results if result["image_id"] != first]
    for kind in evaluate.KINDS:
        assert evaluate.coco_statistics(ground_truth, right, kind)["ap"] > 0.999
        assert evaluate.coco_statistics(ground_truth, results, kind)["ap"] < 0.99


def test_each_image_counts_once_over_any_batches_and_processes(monkeypatch):
    images, model = data.make_up(TINY, "val2017"), Seeing(TINY)
    alone = evaluate.detect_objects(model, images, TINY, CPU, num_workers=0)
    ids = images.annotations.image_ids.tolist()
    assert list(dict.fromkeys(result["image_id"] for result in alone)) == ids
    assert len(alone) > 5 * images.num_images
    assert len({result["segmentation"]["counts"] for result in alone}) > 0.8 * len(alone)
    for size in (1, 3, 20):
        config = dataclasses.replace(TINY, eval_batch_size=size)
        assert evaluate.detect_objects(model, images, config, CPU, num_workers=0) == alone
    assert evaluate.detect_objects(model, images, TINY, CPU, num_workers=2) == alone
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
            assert evaluate.gather(parts[0]) == alone


@pytest.mark.parametrize("num_threads", [1, 2])
def test_the_number_of_threads_changes_nothing(num_threads):
    images = data.make_up(TINY, "val2017")
    expected = evaluate.detect_objects(Seeing(TINY), images, TINY, CPU, 0)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        assert evaluate.detect_objects(Seeing(TINY), images, TINY, CPU, 0) == expected
    finally:
        torch.set_num_threads(before)


GATHER = """
import os, sys
from pathlib import Path
from torch import distributed
from harness import torch_support
from object_detection import data, evaluate
from object_detection.config import TINY
from object_detection.tests.test_evaluate import CPU, Seeing
torch_support.set_up(CPU, 1)
images, model = data.make_up(TINY, "val2017"), Seeing(TINY)
mine = evaluate.detect_objects(model, images, TINY, CPU, 0)
both = evaluate.gather(mine)
found = evaluate.evaluate(model, images, TINY, CPU, 0)
data.share = lambda start, size: (start, start + size)
alone = evaluate.detect_objects(model, images, TINY, CPU, 0)
assert 0 < len(mine) < len(alone)
for kind in ("box", "mask"):
    expected = evaluate.coco_statistics(images.ground_truth, alone, kind)
    assert {name: found[f"{kind}_{name}"] for name in expected} == expected  # in both processes
if torch_support.rank() == 0:
    assert both == alone
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
    images, probabilities = made_up()

    class Failing(Knowing):
        def mask_head(self, _):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate.evaluate(Failing(images, TINY, probabilities), images, knowing(TINY), CPU, 0)


def test_only_the_first_process_computes_and_all_return_its_numbers(monkeypatch):
    images = data.make_up(TINY, "val2017")
    monkeypatch.setattr(torch.distributed, "gather_object", lambda mine, into: None)

    def broadcast_object_list(box):
        assert box == [{}]
        box[0] = {"box_ap": 0.25}

    with (
        as_process(1, 2),
        mock.patch.object(evaluate, "coco_statistics", side_effect=AssertionError),
    ):
        monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast_object_list)
        assert evaluate.evaluate(Seeing(TINY), images, TINY, CPU, 0) == {"box_ap": 0.25}


def test_some_images_are_enough_for_timing():
    images, probabilities = made_up()
    config = knowing(TINY)
    model = Knowing(images, config, probabilities)
    results = evaluate.detect_objects(model, images, config, CPU, 0, max_images=7)
    ids = images.annotations.image_ids[:7].tolist()
    assert {result["image_id"] for result in results} == set(ids) and model.num_seen == 7
    model = Knowing(images, config, probabilities)
    found = evaluate.evaluate(model, images, config, CPU, 0, max_images=7)
    assert 0 < found["box_ar_100"] < 0.7 and 0 < found["mask_ar_100"] < 0.7


@pytest.mark.parametrize("part", ["boxes", "maps", "everything"])
def test_a_model_of_no_numbers_finds_nothing(part):
    """Though its scores are high: pycocotools would take a box that is no number for a hit."""
    images, probabilities = made_up()
    config = knowing(TINY)

    class NoNumbers(Knowing):
        def forward(self, pixels):
            maps, objectness, deltas = super().forward(pixels)
            deltas[0] *= torch.nan
            if part == "everything":
                objectness = [some * torch.nan for some in objectness]
            return maps, objectness, deltas

        def box_head(self, features):
            logits, deltas = super().box_head(features)
            return (logits if part == "boxes" else logits * torch.nan), deltas * torch.nan

        def mask_head(self, features):
            assert not len(features)
            return torch.zeros(0, self.config.num_classes, MASK_SIZE, MASK_SIZE)

    model = NoNumbers(images, config, probabilities)
    found = evaluate.evaluate(model, images, config, CPU, 0)
    assert len(found) == 24 and set(found.values()) <= {0, -1}
    assert found["box_ap"] == found["mask_ap"] == 0


def test_real_photos_with_crowds(shared_coco):
    """A model that knows all objects of real files, as masks of 28 x 28 cells, beside pycocotools.

    Crowds it leaves out: they are no objects.
    """
    path = data.instances_file(shared_coco, "val2017")
    content = coco.read_instances(path)
    annotations = coco.parse(content, 81, str(path), is_training=False)
    images = data.Images(annotations, shared_coco / "val2017", ground_truth=content)
    config = dataclasses.replace(knowing(REFERENCE), min_size=100, max_size=166, eval_batch_size=8)
    probabilities = {}
    for one in content["annotations"]:
        if not one["iscrowd"]:
            left, top, width, height = one["bbox"]
            region = torch.tensor([[left, top, left + width, top + height]])
            outlines = masks.outlines_of([one["segmentation"]])
            target = masks.mask_targets(outlines, torch.tensor([0]), region, MASK_SIZE)[0]
            probabilities[one["id"]] = target.float().clamp(0.01, 0.99)
    results = evaluate.detect_objects(
        Knowing(images, config, probabilities), images, config, CPU, 0
    )
    found = assert_equal_to_pycocotools(content, results)
    assert found["box_ap"] > 0.99
    assert found["mask_ap_50"] > 0.97 and found["mask_ap"] > 0.7, found
