"""The stop rule at its edges."""

import math

import pytest

from harness.errors import UsageError
from harness.stop_rule import QualityTarget, all_met, better, parse_targets, show

ACCURACY = QualityTarget("accuracy", 0.635)
ERROR_RATE = QualityTarget("wer", 23.0, higher_is_better=False)
BOTH = (QualityTarget("bbox", 0.377), QualityTarget("segm", 0.339))


@pytest.mark.parametrize(
    ("target", "quality", "met"),
    [
        (ACCURACY, 0.635, True),
        (ACCURACY, math.nextafter(0.635, 0), False),
        (ACCURACY, math.nextafter(0.635, 1), True),
        (ACCURACY, math.nan, False),
        (ACCURACY, math.inf, False),
        (ERROR_RATE, 23.0, True),
        (ERROR_RATE, math.nextafter(23.0, 24), False),
        (ERROR_RATE, math.nextafter(23.0, 22), True),
        (ERROR_RATE, -math.inf, False),
        (ERROR_RATE, math.nan, False),
    ],
)
def test_one_target(target, quality, met):
    assert target.is_met_by(quality) is met


def test_all_targets_in_the_same_evaluation():
    assert all_met(BOTH, {"bbox": 0.377, "segm": 0.339})
    assert not all_met(BOTH, {"bbox": 0.5, "segm": 0.338})
    assert not all_met(BOTH, {"bbox": 0.376, "segm": 0.5})
    assert not all_met(BOTH, {"bbox": 0.5, "segm": math.nan})
    with pytest.raises(KeyError):
        all_met(BOTH, {"bbox": 0.5})


def test_better():
    assert better([ACCURACY], {"accuracy": 0.6}, {"accuracy": 0.5})
    assert better([ERROR_RATE], {"wer": 30.0}, {"wer": 40.0})
    assert not better([ERROR_RATE], {"wer": math.nan}, {"wer": 40.0})
    assert better(BOTH, {"bbox": 0.3, "segm": 0.3}, {"bbox": 0.4, "segm": 0.1})


def test_targets_from_the_command_line():
    assert show(BOTH) == "0.377/0.339"
    assert parse_targets(show(BOTH), BOTH) == BOTH
    changed = parse_targets("0.1/0.2", BOTH)
    assert [target.value for target in changed] == [0.1, 0.2]
    assert not parse_targets("20", [ERROR_RATE])[0].higher_is_better


@pytest.mark.parametrize("text", ["", "0.1", "0.1/0.2/0.3", "a/b", "nan/0.1", "0.1/inf"])
def test_a_wrong_target_is_one_line(text):
    with pytest.raises(UsageError) as error:
        parse_targets(text, BOTH)
    assert "bbox/segm" in str(error.value)
    assert "\n" not in str(error.value)
