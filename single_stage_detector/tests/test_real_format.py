"""Real photos of COCO 2017 with their real annotations: reading, transforms, batches."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from torchvision.transforms import functional

from harness.options import RunOptions
from single_stage_detector import augmentation, count_images, data
from single_stage_detector.coco import parse, read_instances
from single_stage_detector.config import REFERENCE
from single_stage_detector.default_boxes import DefaultBoxes
from single_stage_detector.evaluate import evaluate
from single_stage_detector.loss import encode_targets, image_losses
from single_stage_detector.model import SSD, normalize_pixels
from single_stage_detector.tests import data_checks

pytestmark = pytest.mark.usefixtures("torch_state")

COUNTS = {"train2017": (80, 705, 6), "val2017": (80, 815, 11)}
"""Photos, objects, crowds among them."""
PHOTOS = dataclasses.replace(
    REFERENCE, num_train_images=80, num_eval_images=80, pretrained_backbone=False
)


@pytest.mark.parametrize("split", COUNTS)
def test_annotations_are_those_that_pycocotools_reads(shared_coco, split):
    path = data.instances_file(shared_coco, split)
    ours = parse(read_instances(path), 81, str(path))
    theirs = COCO(str(path))
    num_images, num_objects, num_crowds = COUNTS[split]
    assert count_images.count_images(path) == (num_images, num_images)
    assert ours.num_images == num_images
    assert len(ours.boxes) == num_objects
    assert sum(a["iscrowd"] for a in theirs.anns.values()) == num_crowds
    assert ours.category_ids == tuple(theirs.getCatIds())
    assert len(ours.category_ids) == 80
    assert max(ours.category_ids) == 90
    assert ours.category_names[:3] == ("person", "bicycle", "car")
    for index, image_id in enumerate(ours.image_ids.tolist()):
        image = theirs.imgs[image_id]
        assert ours.file_names[index] == image["file_name"]
        assert ours.sizes[index].tolist() == [image["width"], image["height"]]
        boxes, labels = ours.boxes_of(index)
        expected = theirs.imgToAnns[image_id]
        assert [ours.category_ids[label - 1] for label in labels] == [
            a["category_id"] for a in expected
        ]
        for box, annotation in zip(boxes.tolist(), expected, strict=True):
            left, top, width, height = annotation["bbox"]
            relative = [left / image["width"], top / image["height"]]
            relative += [(left + width) / image["width"], (top + height) / image["height"]]
            assert numpy.allclose(box, relative, rtol=0, atol=1e-6)


def test_photos_are_read_and_become_batches(shared_coco):
    options = RunOptions(data_dir=shared_coco)
    data.check_files(PHOTOS, options)
    train_images, eval_images = data.load(PHOTOS, options)
    batches = list(data.train_batches(train_images, PHOTOS, 1, [1], 0, 1))
    assert [len(batch.images) for batch in batches] == [32, 32, 16]
    for batch in batches:
        assert batch.images.shape[1:] == (3, 300, 300)
        assert (batch.images.double().std(dim=(1, 2, 3)) > 5).all()
        assert (batch.labels > 0).any(dim=1).all()
        real = batch.boxes[batch.labels > 0]
        assert real.min() >= 0
        assert real.max() <= 1 + 1e-3  # a few of COCO's boxes end just outside their photo
        assert (real[:, 2:] >= real[:, :2]).all()
    numbers = [n for some, _ in data.eval_batches(eval_images, PHOTOS, 1) for n in some.tolist()]
    assert numbers == list(range(80))
    assert eval_images.ground_truth == json.loads(
        data.instances_file(shared_coco, "val2017").read_text()
    )


def test_transforms_of_photos_are_torchvisions(shared_coco):
    images, _ = data.load(PHOTOS, RunOptions(data_dir=shared_coco))
    for index in range(12):
        image = images.read(index)
        with Image.open(shared_coco / "train2017" / images.annotations.file_names[index]) as file:
            assert numpy.array_equal(image, file.convert("RGB"))
        small = functional.resize(image, [300, 300])
        found = augmentation.prepare_for_evaluation(image, REFERENCE)
        assert numpy.array_equal(found, numpy.asarray(small).transpose(2, 0, 1))
        jittered = augmentation.jitter_colours(small, data_checks.generator(index))
        expected = data_checks.plain_jitter(small, data_checks.generator(index))
        assert numpy.array_equal(jittered, expected)


def test_crops_of_photos_keep_what_the_rule_keeps(shared_coco):
    images, _ = data.load(PHOTOS, RunOptions(data_dir=shared_coco))
    num_crops = 0
    for index in range(80):
        boxes, labels = images.annotations.boxes_of(index)
        crop = augmentation.choose_crop(boxes, 1, data_checks.generator(index))
        if crop is None:
            continue
        num_crops += 1
        image, _, kept = augmentation.cut_out(images.read(index), boxes, labels, crop)
        inside = [data_checks.plain_centre_is_inside(box, crop) for box in boxes.tolist()]
        assert kept.tolist() == labels[inside].tolist()
        width, height = images.annotations.sizes[index].tolist()
        edges = zip(crop, (width, height) * 2, strict=True)
        left, top, right, bottom = (math.floor(part * size) for part, size in edges)
        assert image.size == (right - left, bottom - top)
    assert 15 < num_crops < 70


def photos_of_few_large_objects(content, num_photos):
    """An instances file of the first photos that have up to three objects, all of them large."""
    of_photo = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        of_photo[annotation["image_id"]].append(annotation)

    def is_easy(image):
        areas = [a["bbox"][2] * a["bbox"][3] for a in of_photo[image["id"]]]
        return 0 < len(areas) <= 3 and min(areas) > 0.05 * image["width"] * image["height"]

    chosen = [image for image in content["images"] if is_easy(image)][:num_photos]
    annotations = [a for image in chosen for a in of_photo[image["id"]]]
    return {**content, "images": chosen, "annotations": annotations}


@pytest.mark.exhaustive
def test_the_whole_network_learns_two_photos_by_heart(shared_coco):
    """From random weights, in 45 steps: loss, targets, detections and metric fit together."""
    path = data.instances_file(shared_coco, "val2017")
    content = photos_of_few_large_objects(json.loads(path.read_text()), 2)
    annotations = parse(content, 81, str(path))
    images = data.Images(annotations, shared_coco / "val2017", ground_truth=content)
    examples = []
    for index in range(2):
        pixels = augmentation.prepare_for_evaluation(images.read(index), PHOTOS)
        examples.append((pixels, *annotations.boxes_of(index)))
    batch = data.collate(examples)
    torch.manual_seed(1)
    model = SSD(PHOTOS)
    targets = encode_targets(DefaultBoxes(PHOTOS), batch.boxes, batch.labels)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4)
    for _ in range(45):
        outputs = model(normalize_pixels(batch.images))
        optimizer.zero_grad()
        image_losses(*outputs, *targets).mean().backward()
        optimizer.step()
    values = evaluate(model, images, PHOTOS, torch.device("cpu"), 0)
    assert values["ap_50"] > 0.95
    assert values["ap"] > 0.5
