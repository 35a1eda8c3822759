"""The network, beside torchvision's SSD and ResNet."""

from single_stage_detector.tests import checks


def test_parameter_counts():
    checks.check_parameter_counts()


def test_outputs_are_torchvisions_with_our_weights():
    checks.check_forward()


def test_the_backbone_is_torchvisions_resnet34():
    checks.check_backbone()


def test_initial_values():
    checks.check_initial_values()
