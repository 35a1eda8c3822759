"""Real photos of COCO 2017 with their real annotations: reading, batches, masks, learning."""

from __future__ import annotations

import dataclasses
import json

import numpy
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from harness.options import RunOptions
from object_detection import count_images, data
from object_detection.coco import parse, read_instances
from object_detection.config import MINI, REFERENCE
from object_detection.evaluate import evaluate
from object_detection.masks import mask_targets
from object_detection.model import MaskRCNN
from object_detection.training_losses import TrainingLosses
from object_detection.transforms import resized

pytestmark = pytest.mark.usefixtures("torch_state")

COUNTS = {"train2017": (80, 699), "val2017": (80, 804)}
"""Photos, and objects that are no crowds."""
PHOTOS = dataclasses.replace(
    REFERENCE, num_train_images=80, num_eval_images=80, pretrained_backbone="none"
)


@pytest.mark.parametrize("split", COUNTS)
def test_annotations_are_those_that_pycocotools_reads(shared_coco, split):
    path = data.instances_file(shared_coco, split)
    ours = parse(read_instances(path), 81, str(path), is_training=True)
    theirs = COCO(str(path))
    num_images, num_objects = COUNTS[split]
    assert count_images.count_images(path) == (num_images, num_images)
    assert ours.num_images == num_images
    assert len(ours.boxes) == num_objects
    assert ours.category_ids == tuple(theirs.getCatIds())
    assert ours.category_names[:3] == ("person", "bicycle", "car")
    for index, image_id in enumerate(ours.image_ids.tolist()):
        image = theirs.imgs[image_id]
        assert ours.file_names[index] == image["file_name"]
        assert ours.sizes[index].tolist() == [image["width"], image["height"]]
        boxes, labels, outlines = ours.objects_of(index)
        expected = [a for a in theirs.imgToAnns[image_id] if not a["iscrowd"]]
        kinds = [ours.category_ids[label - 1] for label in labels]
        assert kinds == [a["category_id"] for a in expected]
        assert boxes.tolist() == [a["bbox"] for a in expected]
        counts = outlines.first_polygon.diff().tolist()
        assert counts == [len(a["segmentation"]) for a in expected]
        flat = [number for a in expected for part in a["segmentation"] for number in part]
        assert outlines.corners.flatten().tolist() == flat


def test_masks_of_photos_are_pycocotools(shared_coco):
    """All objects of the training photos, each on a canvas of 28 x 28 around its own box."""
    path = data.instances_file(shared_coco, "train2017")
    ours = parse(read_instances(path), 81, str(path), is_training=True)
    num_covered = 0
    for index in range(ours.num_images):
        boxes, _, outlines = ours.objects_of(index)
        corners = torch.from_numpy(boxes).float()
        corners[:, 2:] += corners[:, :2]
        numbers = torch.arange(len(boxes))
        found = mask_targets(outlines, numbers, corners, 28)
        spans = (corners[:, 2:] - corners[:, :2]).double().clamp(min=1)
        for number in numbers.tolist():
            polygons = []
            for part in range(*outlines.first_polygon[number : number + 2].tolist()):
                first, end = outlines.first_corner[part : part + 2].tolist()
                moved = outlines.corners[first:end] - corners[number, :2].double()
                polygons.append((moved * (28 / spans[number])).flatten().tolist())
            runs = coco_mask.merge(coco_mask.frPyObjects(polygons, 28, 28))
            assert numpy.array_equal(found[number].numpy(), coco_mask.decode(runs) > 0)
            num_covered += int(found[number].sum())
    assert 0.4 < num_covered / (28 * 28 * len(ours.boxes)) < 0.8


def test_photos_are_read_and_become_batches(shared_coco):
    options = RunOptions(data_dir=shared_coco)
    data.check_files(PHOTOS, options)
    train_images, eval_images = data.load(PHOTOS, options)
    batches = data.train_batches(train_images, PHOTOS, 1, [1], 0, 1)
    sizes = train_images.annotations.sizes
    num_images = num_objects = 0
    for batch, indices in zip(batches, data.epoch_order(sizes, 2, 1, 1), strict=True):
        expected = [resized(*sizes[index].tolist(), PHOTOS) for index in indices]
        assert batch.sizes.tolist() == [list(size) for size in expected]
        assert (batch.images.double().std(dim=(1, 2, 3)) > 5).all()
        for (width, height), objects in zip(expected, batch.objects(), strict=True):
            boxes = objects.boxes
            assert boxes.min() >= 0
            assert (boxes[:, 2:] < torch.tensor([width, height])).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()
            num_objects += len(boxes)
        num_images += len(indices)
    assert num_images == 80
    assert num_objects == COUNTS["train2017"][1]
    first = next(data.eval_batches(eval_images, PHOTOS, 1))
    assert first[0].tolist() == [0]
    assert eval_images.ground_truth == json.loads(
        data.instances_file(shared_coco, "val2017").read_text()
    )


def photos_of_few_large_objects(content, num_photos):
    """An instances file of the first photos that have up to three objects, all of them large."""
    of_photo = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        of_photo[annotation["image_id"]].append(annotation)

    def is_easy(image):
        areas = [a["bbox"][2] * a["bbox"][3] for a in of_photo[image["id"]]]
        is_crowd = any(a["iscrowd"] for a in of_photo[image["id"]])
        enough = areas and min(areas) > 0.05 * image["width"] * image["height"]
        return len(areas) <= 3 and enough and not is_crowd

    chosen = [image for image in content["images"] if is_easy(image)][:num_photos]
    annotations = [a for image in chosen for a in of_photo[image["id"]]]
    return {**content, "images": chosen, "annotations": annotations}


@pytest.mark.slow
def test_a_small_network_learns_two_photos_by_heart(shared_coco):
    """From random weights: losses, proposals, masks and metric of real annotations fit."""
    path = data.instances_file(shared_coco, "val2017")
    content = photos_of_few_large_objects(json.loads(path.read_text()), 2)
    config = dataclasses.replace(
        MINI, num_classes=81, min_size=128, max_size=192, flip_probability=0.0, batch_size=2
    )
    annotations = parse(content, 81, str(path), is_training=True)
    images = data.Images(annotations, shared_coco / "val2017", ground_truth=content)
    torch.set_num_threads(1)  # more would wait for each other
    torch.manual_seed(1)
    model = MaskRCNN(config)
    losses_of = TrainingLosses(model, config)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for batch in data.train_batches(images, config, 1, range(1, 151), 0, 1):
        optimizer.zero_grad()
        losses_of(batch).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
    values = evaluate(model, images, config, torch.device("cpu"), 1)
    print({name: value for name, value in values.items() if name.endswith(("ap", "ap_50"))})
    assert values["box_ap_50"] > 0.95
    assert values["mask_ap_50"] > 0.95
    assert values["box_ap"] > 0.4
