"""Generated pictures: masks, boxes and areas by COCO's own code, odd cases, one digest for all."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy
import pytest
from pycocotools import mask as coco_mask

from single_stage_detector import shapes
from single_stage_detector.coco import parse

# Of the first eight pictures of each. A change here changes what every mini run trains on.
DIGESTS = {
    "shapes128": "56a2e2c06d3a13f372bc3264c11546c72e3758f97e6566704c263787712810ce",
    "occluded": "83a1828b7034a062ca8d6e284d736a496d3dcc8864e750b8e05a04309e858ad3",
    "odd": "4cfb27506ccf374ea98b2349d76fc7e9e9744280937c2385cc31bc591cb8721c",
}
RECIPES = {
    "shapes128": shapes.SHAPES128,
    "occluded": dataclasses.replace(
        shapes.SHAPES128, occlusion=True, min_objects=4, max_objects=9, empty_one_in=0
    ),
    "odd": dataclasses.replace(shapes.SHAPES128, crowd_one_in=2, flat_one_in=2),
}


def draw(name, count, seed=1):
    """The first pictures of a set."""
    return [shapes.draw_picture(RECIPES[name], seed, index) for index in range(count)]


def mask_of(annotation, recipe):
    """The annotation's bitmap, as COCO's own code reads it."""
    segmentation = annotation["segmentation"]
    runs = coco_mask.frPyObjects(segmentation, recipe.height, recipe.width)
    if isinstance(segmentation, list):
        runs = coco_mask.merge(runs)
    return coco_mask.decode(runs), runs


@pytest.mark.parametrize("name", RECIPES)
def test_pictures_are_the_same_on_every_machine(name):
    digests = [shapes.digest(picture) for picture in draw(name, 8)]
    assert len(set(digests)) == 8
    assert shapes.digest_of_set(digests) == DIGESTS[name]


def test_no_rounding_is_close():
    """The tables of sines and radii come from the C library, whose last bit may differ."""
    directions = range(shapes.NUM_DIRECTIONS)
    exact = [4096 * math.cos(2 * math.pi * k / shapes.NUM_DIRECTIONS) for k in directions]
    ratio = shapes.SHAPES128.max_radius / shapes.SHAPES128.min_radius
    steps = range(shapes.NUM_RADII)
    least = shapes.UNIT * shapes.SHAPES128.min_radius
    exact += [least * ratio ** (step / (shapes.NUM_RADII - 1)) for step in steps]
    assert min(abs(value % 1 - 0.5) for value in exact) > 1e-6


@pytest.mark.parametrize("name", RECIPES)
def test_box_and_area_are_those_of_the_mask(name):
    recipe = RECIPES[name]
    num_objects = 0
    for picture in draw(name, 40):
        for annotation in picture.annotations:
            if annotation["area"] == 0:
                continue  # a box without width
            mask, runs = mask_of(annotation, recipe)
            num_objects += 1
            assert annotation["area"] == mask.sum() == coco_mask.area(runs)
            assert annotation["bbox"] == coco_mask.toBbox(runs).tolist()
            rows, columns = mask.nonzero()
            left, top = columns.min(), rows.min()
            size = [columns.max() - left + 1, rows.max() - top + 1]
            assert annotation["bbox"] == [left, top, *size]
    assert num_objects > 90


def test_what_is_painted_is_the_mask():
    """Beside the masks there is background, the same as if no object had been there."""
    for index in range(20):
        picture = shapes.draw_picture(shapes.SHAPES128, 1, index)
        random = numpy.random.RandomState([1, index])
        background = shapes.draw_background(shapes.SHAPES128, random)
        together = numpy.zeros((128, 128), bool)
        for annotation in picture.annotations:
            mask, _ = mask_of(annotation, shapes.SHAPES128)
            inside = mask.astype(bool)
            together |= inside
            distance = picture.pixels[inside].mean(axis=0) - background[inside].mean(axis=0)
            # Colours near 0 and 255 are cut off, which takes some of the distance.
            assert abs(distance).sum() > 0.75 * shapes.MIN_COLOUR_DISTANCE
        assert numpy.array_equal(picture.pixels[~together], background[~together])
        if picture.annotations:
            assert (picture.pixels[together] != background[together]).any(axis=1).mean() > 0.99


def test_objects_do_not_cover_each_other():
    for picture in draw("shapes128", 60):
        masks = [mask_of(a, shapes.SHAPES128)[0] for a in picture.annotations]
        assert not masks or numpy.sum(masks, axis=0).max() == 1


def test_the_set_is_as_it_is_described():
    pictures = draw("shapes128", 400, seed=3)
    counts = [len(picture.annotations) for picture in pictures]
    assert set(counts) == {0, 1, 2, 3, 4, 5}
    assert 2 <= counts.count(0) <= 18
    kinds = [a["category_id"] for picture in pictures for a in picture.annotations]
    assert set(kinds) == {1, 3, 6, 10}
    assert min(kinds.count(kind) for kind in set(kinds)) > 0.2 * len(kinds)
    sides = [max(a["bbox"][2:]) for picture in pictures for a in picture.annotations]
    assert 10 < min(sides) < 17
    assert 60 < max(sides) <= 69
    assert 10 < numpy.median(sides) < 40  # log-uniform: small ones are not rare
    for picture in pictures:
        assert picture.pixels.shape == (128, 128, 3)
        assert picture.pixels.dtype == numpy.uint8
        for annotation in picture.annotations:
            left, top, width, height = annotation["bbox"]
            assert left >= 0 and top >= 0 and left + width <= 128 and top + height <= 128
            assert len(annotation["segmentation"]) == 1
            assert annotation["iscrowd"] == 0


def test_seeds_share_no_picture():
    first, second = ({shapes.digest(p) for p in draw("shapes128", 30, seed)} for seed in (1, 2))
    assert len(first) == len(second) == 30
    assert not first & second


def test_what_is_covered_belongs_to_what_covers_it():
    recipe = RECIPES["occluded"]
    is_covered = 0
    for picture in draw("occluded", 20):
        masks = [mask_of(annotation, recipe)[0] for annotation in picture.annotations]
        assert numpy.sum(masks, axis=0).max() == 1
        for annotation, mask in zip(picture.annotations, masks, strict=True):
            assert isinstance(annotation["segmentation"], dict)
            assert mask.any()
        boxes = [annotation["bbox"] for annotation in picture.annotations]
        is_covered += any(
            a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]
            for a, b in itertools.combinations(boxes, 2)
        )
    assert is_covered > 10


def test_crowds_have_runs_and_lie_behind_the_objects():
    recipe = RECIPES["odd"]
    crowds = 0
    for picture in draw("odd", 40):
        masks = []
        for annotation in picture.annotations:
            assert annotation["iscrowd"] == isinstance(annotation["segmentation"], dict)
            if annotation["area"]:
                masks.append(mask_of(annotation, recipe)[0])
            crowds += annotation["iscrowd"]
        assert not masks or numpy.sum(masks, axis=0).max() == 1
    assert 10 < crowds < 30


def test_flat_boxes_have_height_and_no_area():
    flat = [a for p in draw("odd", 40) for a in p.annotations if a["area"] == 0]
    assert 10 < len(flat) < 30
    for annotation in flat:
        left, top, width, height = annotation["bbox"]
        assert width == 0
        assert height > 0
        assert 0 <= left <= 128
        assert 0 <= top < top + height <= 128


def test_a_picture_can_have_more_than_200_objects():
    recipe = shapes.Recipe(
        400, 300, 250, 250, min_radius=3, max_radius=4, empty_one_in=0, occlusion=True
    )
    picture = shapes.draw_picture(recipe, 1, 0)
    assert picture.pixels.shape == (300, 400, 3)
    assert len(picture.annotations) > 200


def test_runs_are_cocos_uncompressed_form():
    random = numpy.random.default_rng(2)
    for density in (0.0, 0.1, 0.9, 1.0):
        mask = (random.random((9, 7)) < density).astype(numpy.uint8)
        counts = shapes.count_runs(mask)
        assert sum(counts) == 63
        runs = coco_mask.frPyObjects({"size": [9, 7], "counts": counts}, 9, 7)
        assert numpy.array_equal(coco_mask.decode(runs), mask)


def test_the_instances_file_is_cocos():
    pictures = draw("odd", 12)
    content = shapes.make_instances(
        RECIPES["odd"], (picture.annotations for picture in pictures), ".png"
    )
    assert [image["id"] for image in content["images"]] == list(range(1, 13))
    assert content["images"][0] == {
        "id": 1,
        "file_name": "000000000001.png",
        "width": 128,
        "height": 128,
    }
    assert [a["id"] for a in content["annotations"]] == [
        n for n, _ in enumerate(content["annotations"], start=1)
    ]
    annotations = parse(content, 5, "made-up")
    assert annotations.category_ids == (1, 3, 6, 10)
    assert annotations.category_names == ("disc", "box", "triangle", "star")
    assert annotations.num_images == sum(bool(picture.annotations) for picture in pictures)


def test_the_digest_covers_pixels_and_annotations():
    (picture,) = draw("shapes128", 1)
    digest = shapes.digest(picture)
    pixels = picture.pixels.copy()
    pixels[5, 5, 1] ^= 1
    assert shapes.digest(dataclasses.replace(picture, pixels=pixels)) != digest
    fewer = dataclasses.replace(picture, annotations=picture.annotations[1:])
    assert shapes.digest(fewer) != digest
    assert shapes.digest_of_set(["a", "b"]) != shapes.digest_of_set(["b", "a"])
