"""Wrong sciences of the data, each caught by a check; see test_mutations.py."""

from __future__ import annotations

import pytest

from single_stage_detector import augmentation, coco, config, data
from single_stage_detector.tests import data_checks
from tests.mutations import Mutation, assert_caught, assert_right_source_passes

pytestmark = pytest.mark.usefixtures("torch_state")

MODULES = (coco, config, augmentation, data)

MUTATIONS = {
    # --- instances files ---
    "labels from 0": Mutation(coco, "start=1)", "start=0)", data_checks.check_parsing),
    "labels in the order of the ids": Mutation(
        coco,
        'categories = content["categories"]',
        'categories = sorted(content["categories"], key=lambda category: category["id"])',
        data_checks.check_parsing,
    ),
    "crowds left out": Mutation(
        coco,
        'for annotation in content["annotations"]:',
        'for annotation in (a for a in content["annotations"] if not a["iscrowd"]):',
        data_checks.check_parsing,
    ),
    "boxes without width left out": Mutation(
        coco,
        'for annotation in content["annotations"]:',
        'for annotation in (a for a in content["annotations"] if a["bbox"][2]):',
        data_checks.check_parsing,
    ),
    "images without an object kept": Mutation(
        coco,
        'if objects[image["id"]]]',
        "]",
        data_checks.check_parsing,
    ),
    "images in the order of their ids": Mutation(
        coco,
        'images = [image for image in content["images"] if objects[image["id"]]]',
        'images = [image for image in content["images"] if objects[image["id"]]]\n'
        '    images.sort(key=lambda image: image["id"])',
        data_checks.check_parsing,
    ),
    "width taken for the right edge": Mutation(
        coco, "corners[:, 2:] += corners[:, :2]", "", data_checks.check_parsing
    ),
    "height and width changed over": Mutation(
        coco,
        '(image["width"], image["height"])',
        '(image["height"], image["width"])',
        data_checks.check_parsing,
    ),
    # --- the crop ---
    "one option less": Mutation(
        augmentation,
        "random.integers(1 + len(MIN_IOU_OPTIONS))",
        "random.integers(len(MIN_IOU_OPTIONS))",
        data_checks.check_crop_options,
    ),
    "no overlap where there is no limit": Mutation(
        config, "0.9, -math.inf)", "0.9, 0.0)", data_checks.check_crop_options
    ),
    "one trial whatever is asked": Mutation(
        augmentation,
        "for _ in range(num_trials):",
        "for _ in range(1):",
        data_checks.check_crop_options,
    ),
    "the whole image where a trial fails": Mutation(
        augmentation,
        "            crop = try_crop(boxes, min_iou, random)\n"
        "            if crop is not None:\n"
        "                return crop",
        "            return try_crop(boxes, min_iou, random)",
        data_checks.check_crop_options,
    ),
    "smaller crops": Mutation(
        augmentation, "MIN_CROP = 0.3", "MIN_CROP = 0.1", data_checks.check_crop_options
    ),
    "any object is enough": Mutation(
        augmentation,
        "(overlap(boxes, crop) > min_iou).all()",
        "(overlap(boxes, crop) > min_iou).any()",
        data_checks.check_crop_options,
    ),
    "the limit itself passes": Mutation(
        augmentation,
        "overlap(boxes, crop) > min_iou",
        "overlap(boxes, crop) >= min_iou",
        data_checks.check_crop_limits,
    ),
    "overlap over the box alone": Mutation(
        augmentation,
        "((right - left) * (bottom - top) + area - shared)",
        "((right - left) * (bottom - top))",
        data_checks.check_crop_limits,
    ),
    "a centre on the edge is inside": Mutation(
        augmentation, "(y < crop[3])", "(y <= crop[3])", data_checks.check_crop_limits
    ),
    "no limit of the aspect": Mutation(
        augmentation, "MAX_ASPECT = 2.0", "MAX_ASPECT = 4.0", data_checks.check_crop_limits
    ),
    "boxes not clipped": Mutation(
        augmentation,
        "numpy.clip(boxes[inside], low, numpy.array([right, bottom] * 2))",
        "boxes[inside]",
        data_checks.check_cut_out,
    ),
    "boxes relative to the image": Mutation(
        augmentation,
        "((clipped - low) / size).astype",
        "clipped.astype",
        data_checks.check_cut_out,
    ),
    "objects outside kept": Mutation(
        augmentation,
        "inside = is_inside(boxes, crop)",
        "inside = overlap(boxes, crop) > -1",
        data_checks.check_cut_out,
    ),
    "pixels rounded to the nearest": Mutation(
        augmentation,
        "int(right * image.width)",
        "round(right * image.width)",
        data_checks.check_cut_out,
    ),
    # --- mirror, size, colours ---
    "boxes not mirrored": Mutation(
        augmentation,
        "boxes[:, [0, 2]] = 1 - boxes[:, [0, 2]]",
        "pass",
        data_checks.check_order_of_augmentation,
    ),
    "mirrored upside down": Mutation(
        augmentation,
        "FLIP_LEFT_RIGHT",
        "FLIP_TOP_BOTTOM",
        data_checks.check_order_of_augmentation,
    ),
    "a quarter mirrored": Mutation(
        augmentation,
        "random.random() < 0.5",
        "random.random() < 0.25",
        data_checks.check_probabilities,
    ),
    "always cropped": Mutation(
        augmentation,
        "if random.random() < config.crop_probability:",
        "if random.random() < 1:",
        data_checks.check_probabilities,
    ),
    "colours before the size": Mutation(
        augmentation,
        "jitter_colours(resize(image, config.input_size), random)",
        "resize(jitter_colours(image, random), config.input_size)",
        data_checks.check_order_of_augmentation,
    ),
    "resized without antialiasing": Mutation(
        augmentation,
        "Image.Resampling.BILINEAR",
        "Image.Resampling.NEAREST",
        data_checks.check_order_of_augmentation,
    ),
    "colours in a fixed order": Mutation(
        augmentation, "random.permutation(4)", "range(4)", data_checks.check_jitter
    ),
    "stronger brightness": Mutation(
        augmentation,
        "MAX_BRIGHTNESS_CHANGE = 0.125",
        "MAX_BRIGHTNESS_CHANGE = 0.5",
        data_checks.check_jitter,
    ),
    "hue in degrees of 256": Mutation(
        augmentation, "int(turns * 255)", "int(turns * 360)", data_checks.check_jitter
    ),
    "blue before red": Mutation(
        augmentation,
        "numpy.asarray(image).transpose(2, 0, 1)",
        "numpy.asarray(image)[:, :, ::-1].transpose(2, 0, 1)",
        data_checks.check_evaluation_batches,
    ),
    # --- batches ---
    "the same order in each epoch": Mutation(
        data,
        'derive_seed(seed, "order", epoch)',
        'derive_seed(seed, "order")',
        data_checks.check_batches,
    ),
    "the same augmentation in each epoch": Mutation(
        data,
        'derive_seed(self.seed, "augmentation", epoch, index)',
        'derive_seed(self.seed, "augmentation", index)',
        data_checks.check_batches,
    ),
    "another image's objects": Mutation(
        data,
        "boxes, labels = self.images.annotations.boxes_of(index)",
        "boxes, labels = self.images.annotations.boxes_of(index // 2)",
        data_checks.check_batches,
    ),
    "the last, smaller batch dropped": Mutation(
        data,
        "first_step * batch_size, num_images,",
        "first_step * batch_size, num_images - 3,",
        data_checks.check_batches,
    ),
    "evaluation drops the last, smaller batch": Mutation(
        data,
        "for start in range(0, len(mine), size)",
        "for start in range(0, len(mine) - size + 1, size)",
        data_checks.check_evaluation_batches,
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_wrong_science_is_caught(name, monkeypatch, tmp_path):
    assert_caught(MUTATIONS[name], monkeypatch, tmp_path, MODULES)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_a_loaded_copy_of_the_right_source_passes(module, monkeypatch, tmp_path):
    mutations = list(MUTATIONS.values())
    assert_right_source_passes(module, mutations, monkeypatch, tmp_path, MODULES)
