"""The network beside a padded conv1d in float64, its size, and the weights that it starts from."""

from sentiment_analysis.tests import checks


def test_logits_and_gradients_equal_a_padded_convolution():
    checks.check_convolution()


def test_the_odd_word_of_an_even_width_lies_left():
    checks.check_alignment()


def test_parameter_counts():
    checks.check_parameter_counts()


def test_initial_values():
    checks.check_initial_values()


def test_shared_stream():
    checks.check_shared_stream()


def test_dropout_is_for_training_only():
    checks.check_dropout()
