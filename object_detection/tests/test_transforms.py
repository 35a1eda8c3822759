"""Sizes, boxes and outlines on their way to the network, in both conventions of coordinates."""

from __future__ import annotations

from object_detection.tests import data_checks


def test_boxes_become_corners_within_the_image():
    data_checks.check_objects()


def test_sizes_are_those_of_the_specification():
    data_checks.check_sizes()


def test_pixels_boxes_and_outlines_are_moved_alike():
    data_checks.check_augmentation()


def test_each_axis_has_its_own_ratio():
    data_checks.check_rounded_scale()


def test_a_mirrored_outline_covers_the_mirrored_pixels():
    data_checks.check_mirrored_mask()
