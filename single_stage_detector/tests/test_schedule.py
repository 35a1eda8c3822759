"""Learning rates and moments of evaluation, by number."""

from single_stage_detector.tests import checks


def test_rates_and_evaluations_of_v05_v06_and_v07():
    checks.check_schedule()
