"""Crop, mirror, size and colours, beside torchvision's and the rule as the specification says."""

from __future__ import annotations

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from single_stage_detector import augmentation
from single_stage_detector.tests import data_checks


def test_there_are_seven_options_with_their_trials():
    data_checks.check_crop_options()


def test_overlap_centre_and_aspect_are_strict_where_the_rule_is():
    data_checks.check_crop_limits()


def test_crops_fulfil_their_option_for_every_object():
    data_checks.check_crop()


def test_a_crop_keeps_and_clips_its_objects():
    data_checks.check_cut_out()


def test_the_steps_are_torchvisions_in_the_rules_order():
    data_checks.check_order_of_augmentation()


def test_colours_change_as_torchvisions_do():
    data_checks.check_jitter()


def test_half_are_mirrored_and_a_part_is_cropped():
    data_checks.check_probabilities()


@pytest.mark.parametrize("turns", [-0.05, -0.003, 0.0, 0.003, 0.05])
def test_hue_turns_as_torchvisions_does(turns):
    image = data_checks.photo(60, 40, seed=4)
    ours = augmentation.shift_hue(image, turns)
    assert numpy.array_equal(ours, data_checks.functional.adjust_hue(image, turns))


side = st.floats(0, 1, width=32)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(side, side, side, side), min_size=1, max_size=6),
    st.integers(0, 2**32),
    st.sampled_from([1, 50]),
)
def test_what_a_crop_leaves_lies_within_it(sides, seed, num_trials):
    """Whatever the boxes, those without width or height included."""
    corners = [[min(a, b), min(c, d), max(a, b), max(c, d)] for a, b, c, d in sides]
    boxes, labels = numpy.array(corners, numpy.float32), numpy.arange(len(corners))
    crop = augmentation.choose_crop(boxes, num_trials, data_checks.generator(seed))
    if crop is None:
        return
    image, found, kept = augmentation.cut_out(data_checks.photo(70, 50), boxes, labels, crop)
    inside = [data_checks.plain_centre_is_inside(box, crop) for box in boxes.tolist()]
    assert kept.tolist() == labels[inside].tolist()
    assert len(kept) > 0
    assert found.dtype == numpy.float32
    assert found.min() >= 0
    assert found.max() <= 1 + 1e-6
    assert (found[:, :2] <= found[:, 2:]).all()
    assert abs(image.width - 70 * (crop[2] - crop[0])) <= 1
    assert abs(image.height - 50 * (crop[3] - crop[1])) <= 1
