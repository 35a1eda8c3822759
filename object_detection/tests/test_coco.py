"""Instances files: which images and objects come out, in which order, and what is refused."""

from __future__ import annotations

import copy
import json

import pytest

from harness.errors import UsageError
from object_detection.coco import parse, read_instances
from object_detection.tests import data_checks

CONTENT = data_checks.INSTANCES


def test_parsing_follows_the_rules():
    data_checks.check_parsing()


def test_a_file_without_annotations_has_no_images_to_train_on():
    content = {**CONTENT, "annotations": []}
    annotations = parse(content, 4, "file", is_training=True)
    assert annotations.num_images == 0
    assert annotations.boxes.shape == (0, 4)
    assert annotations.sizes.shape == (0, 2)
    assert annotations.first_object.tolist() == [0]
    assert parse(content, 4, "file", is_training=False).num_images == 5


def test_what_is_read_is_what_was_written(tmp_path):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(CONTENT))
    assert read_instances(path) == CONTENT


def expect_refusal(*words):
    return pytest.raises(UsageError, match=r"(?s)\A(?!.*\n)" + ".*".join(words))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file.*; run download_dataset.sh"),
        ("", "is not JSON.*; run verify_dataset.sh"),
        ("\x80", "is not JSON.*; run verify_dataset.sh"),
        ("[]", "has no lists of images, annotations, categories; "),
        ('{"images": [], "categories": [], "annotations": {}}', "has no lists of"),
    ],
)
def test_what_is_no_instances_file_is_named(tmp_path, text, words):
    path = tmp_path / "instances.json"
    if text is not None:
        path.write_text(text, encoding="latin-1")
    with expect_refusal(str(path), words):
        read_instances(path)


def test_another_number_of_categories_is_refused():
    with expect_refusal("file has 3 categories, not 80"):
        parse(CONTENT, 81, "file", is_training=True)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("image_id", 12345, "annotation 2 misnames 12345"),
        ("category_id", 2, "annotation 2 misnames 2"),
        ("image_id", [1], "annotation 2 is wrong: unhashable"),
        ("bbox", None, "number 2 of its annotations lacks 'bbox'"),
        ("segmentation", None, "number 2 of its annotations lacks 'segmentation'"),
        ("bbox", [1, 2, 3], "annotation 2 is wrong: its box is not four numbers"),
        ("bbox", [1, 2, 3, "wide"], "annotation 2 is wrong: could not convert"),
        ("bbox", [1, 2, 3, float("nan")], "annotation 2 is wrong: its box is not four numbers"),
        ("bbox", 7, "annotation 2 is wrong: its box is not four numbers"),
        ("segmentation", [[1, 2, 3]], "annotation 2 is wrong: a polygon is no list of x and y"),
        ("segmentation", [["a", 2]], "annotation 2 is wrong: could not convert"),
        ("segmentation", [[1, float("inf")]], "annotation 2 is wrong: a polygon is no list"),
        ("segmentation", 5, "annotation 2 is wrong: "),
        ("segmentation", {"counts": [4]}, "annotation 2 misnames 'size'"),
        ("segmentation", {"counts": [4], "size": [2, 3]}, "its runs are not of its size"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(field, value, words):
    content = copy.deepcopy(CONTENT)
    annotation = content["annotations"][1]
    assert annotation["id"] == 2
    if value is None:
        del annotation[field]
    else:
        annotation[field] = value
    with expect_refusal("file", words, "; run verify_dataset.sh"):
        parse(content, 4, "file", is_training=True)


@pytest.mark.parametrize(
    ("part", "field"),
    [("images", "id"), ("images", "file_name"), ("images", "height"), ("categories", "name")],
)
def test_a_field_that_is_missing_is_named(part, field):
    content = copy.deepcopy(CONTENT)
    del content[part][0][field]
    with expect_refusal(f"file: number 1 of its {part} lacks '{field}'; run verify_dataset.sh"):
        parse(content, 4, "file", is_training=True)


@pytest.mark.parametrize(("size", "words"), [(0, "without a size"), ("wide", "is no number")])
def test_an_image_without_a_size_is_refused(size, words):
    content = copy.deepcopy(CONTENT)
    content["images"][0]["width"] = size
    with expect_refusal("file has an image", words, "; run verify_dataset.sh"):
        parse(content, 4, "file", is_training=True)
