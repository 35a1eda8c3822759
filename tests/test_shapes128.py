"""The two detectors train on one generated set, of which each folder keeps its own generator."""

from __future__ import annotations

from pathlib import Path

import object_detection.prepare
import object_detection.shapes
import single_stage_detector.prepare
import single_stage_detector.shapes


def test_both_draw_the_same_pictures():
    modules = (object_detection.shapes, single_stage_detector.shapes)
    one, other = (
        [module.digest(module.draw_picture(module.SHAPES128, 1, n)) for n in range(20)]
        for module in modules
    )
    assert one == other
    one, other = (Path(module.__file__).read_text() for module in modules)
    assert one == other


def test_both_expect_the_same_set():
    assert object_detection.prepare.expected_meta() == single_stage_detector.prepare.expected_meta()
    one, other = (
        {name: (split.seed, split.num_pictures, split.digest) for name, split in prepare.items()}
        for prepare in (object_detection.prepare.SPLITS, single_stage_detector.prepare.SPLITS)
    )
    assert one == other
