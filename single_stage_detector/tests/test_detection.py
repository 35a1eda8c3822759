"""From outputs to detections, beside torchvision's batched_nms."""

from single_stage_detector.tests import checks


def test_detections_are_torchvisions():
    checks.check_detections()


def test_a_class_has_a_limit():
    checks.check_limit_of_a_class()


def test_nothing_detected_is_no_error():
    checks.check_nothing_detected()


def test_what_a_suppressed_box_overlaps_stays():
    checks.check_suppression_chain()
