"""Default boxes and their coding, beside torchvision's."""

import pytest

from single_stage_detector import default_boxes
from single_stage_detector.config import MINI, REFERENCE
from single_stage_detector.tests import checks


def test_the_table_is_torchvisions_but_for_114_clamped_boxes():
    checks.check_table()


def test_coding_is_torchvisions_and_its_own_inverse():
    checks.check_coding()


def test_overlap_is_torchvisions():
    checks.check_overlap()


def test_shapes_of_the_specification():
    """Its table of widths and heights, which has four digits."""
    first = default_boxes.box_shapes(REFERENCE, 0)
    assert first == [
        pytest.approx(pair, abs=5e-5)
        for pair in [(0.07, 0.07), (0.1025, 0.1025), (0.0990, 0.0495), (0.0495, 0.0990)]
    ]
    last = default_boxes.box_shapes(REFERENCE, 5)
    assert last[2] == pytest.approx((1.2304, 0.6152), abs=5e-5)  # the table has 1 in its place
    third = default_boxes.box_shapes(REFERENCE, 2)
    assert third[4] == pytest.approx((0.5716, 0.1905), abs=5e-5)


def test_minis_maps():
    assert default_boxes.map_sizes(MINI.input_size, MINI.extra_layers) == [16, 8, 4, 2, 1]
