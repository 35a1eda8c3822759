"""From JPEG to what the network sees: resize, crops, mirroring, the evaluation's centre."""

from __future__ import annotations

import dataclasses

import numpy
import pytest
import tensorflow as tf

from image_classification import images
from image_classification.config import CHANNEL_MEANS, MINI, REFERENCE
from image_classification.images import eval_image
from image_classification.sources import encode_jpeg, to_plain_jpeg
from image_classification.tests import checks
from image_classification.tests.oracles import plain_eval_image


def test_resize_is_tensorflow_1s():
    checks.check_resize()


def test_training_images_are_parts_of_the_picture():
    checks.check_train_images()


def test_crops_are_distributed_as_v0_5s():
    checks.check_crops()


def test_half_of_the_crops_are_mirrored_whatever_their_shape():
    checks.check_mirroring()


def test_the_centre_for_evaluation():
    checks.check_eval_images()


def test_the_means_are_v0_5s():
    assert CHANNEL_MEANS == (123.68, 116.78, 103.94)  # red, green, blue
    colours = images.subtract_means(tf.constant([[[255.0, 255.0, 255.0], [0.0, 0.0, 0.0]]])).numpy()
    expected = [[131.32, 138.22, 151.06], [-123.68, -116.78, -103.94]]
    numpy.testing.assert_allclose(colours[0], expected, atol=1e-4)


def test_red_comes_first():
    pixels = numpy.zeros((300, 300, 3), numpy.uint8)
    pixels[..., 0] = 200
    image = images.eval_image(tf.constant(checks.encode(pixels)), REFERENCE).numpy()
    numpy.testing.assert_allclose(image[0, 0], [76.32, -116.78, -103.94], atol=3)


def test_the_seed_decides_the_crop():
    encoded = checks.encode(checks.make_pixels(1, 120, 90))
    first, again = (checks.crops_of(encoded, REFERENCE, 4, first) for first in (0, 2))
    numpy.testing.assert_array_equal(first.images[2:], again.images[:2])
    assert (first.images[0] != first.images[1]).any()
    one = images.train_image(tf.constant(encoded), tf.constant([7, 3], tf.int64), REFERENCE)
    numpy.testing.assert_array_equal(one, first.images[3])


def test_grey_photos_have_three_equal_channels():
    encoded = checks.encode(checks.make_pixels(3, 260, 280)[..., 0])
    image = images.train_image(tf.constant(encoded), tf.constant([1, 1], tf.int64), REFERENCE)
    colours = image.numpy() + numpy.array(CHANNEL_MEANS, numpy.float32)
    numpy.testing.assert_allclose(colours, colours[..., :1].repeat(3, axis=2), atol=1e-4)
    assert colours.std() > 10


# --- photos of ImageNet ---------------------------------------------------------------------------


def test_a_crop_decodes_as_it_does_within_the_whole(photos):
    """But for a column on either side, where colours have half as many columns as the picture."""
    stream = numpy.random.RandomState(0)
    num_equal = 0
    for path in photos:
        encoded = to_plain_jpeg(path.read_bytes())
        whole = tf.io.decode_jpeg(encoded, channels=3).numpy()
        height, width = whole.shape[:2]
        rows, columns = stream.randint(2, height + 1), stream.randint(4, width + 1)
        top, left = stream.randint(0, height - rows + 1), stream.randint(0, width - columns + 1)
        window = [top, left, rows, columns]
        part = tf.image.decode_and_crop_jpeg(encoded, window, channels=3).numpy()
        expected = whole[top : top + rows, left : left + columns]
        numpy.testing.assert_array_equal(part[:, 1:-1], expected[:, 1:-1], err_msg=path.name)
        num_equal += bool((part == expected).all())
    assert num_equal > 70


def test_photos_for_evaluation_equal_the_plain_way(photos):
    for path in photos[::5]:
        encoded = to_plain_jpeg(path.read_bytes())
        pixels = tf.io.decode_jpeg(encoded, channels=3).numpy()
        image = images.eval_image(tf.constant(encoded), REFERENCE).numpy()
        numpy.testing.assert_allclose(image, plain_eval_image(pixels, 256, 224), rtol=0, atol=1e-3)


@pytest.mark.parametrize("side", [23, 46, 83, 97, 99, 28, 224])
def test_images_for_evaluation_are_never_smaller_than_the_network_sees(side):
    """Where the shorter side becomes as long as that, rounding would make some a pixel less."""
    for train_size in (28, 224):
        config = dataclasses.replace(MINI, train_size=train_size, eval_resize=train_size)
        encoded = encode_jpeg(numpy.zeros((side, side + 20, 3), numpy.uint8))
        assert eval_image(encoded, config).shape == (train_size, train_size, 3)
