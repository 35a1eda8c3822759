"""Batches: order, augmentation, shares of processes, made-up images, files that are not there."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path

import numpy
import pytest
import tensorflow as tf

from harness.errors import UsageError
from harness.options import RunOptions
from harness.seeds import derive_seed
from image_classification import data
from image_classification.config import MINI, REFERENCE, TINY
from image_classification.images import train_image
from image_classification.tests import checks

TINY_SHA256 = "b0ae4139044df5283439f42159a0b4210c8eb281454b18a55d89d489d8532e9f"
"""Of the tiny preset's made-up images, decoded, and their labels as 64-bit integers."""


@pytest.fixture(scope="module")
def numbered(tmp_path_factory) -> data.Images:
    return checks.write_numbered(tmp_path_factory.mktemp("shards"))


# --- order ----------------------------------------------------------------------------------------


def test_an_epoch_is_whole(numbered):
    checks.check_epoch_is_whole(numbered)


def test_epochs_and_seeds_have_unrelated_orders(numbered):
    checks.check_orders_are_unrelated(numbered)


def test_sixteen_shards_are_read_in_turn(numbered):
    checks.check_shards_are_read_in_turn(numbered)


def test_batches_do_not_depend_on_threads(numbered):
    checks.check_order_ignores_threads(numbered)


def test_parallel_operations_keep_the_order(numbered):
    checks.check_operations_keep_the_order(numbered)


def test_a_later_start_is_the_tail_of_the_epoch(numbered):
    checks.check_skipping(numbered)


def test_processes_share_each_batch_without_loss(numbered):
    checks.check_shares(numbered)


def test_skipped_images_are_not_decoded(tmp_path):
    """A resumed run would wait for them."""
    shard = str(tmp_path / "train-00000-of-00001")
    with tf.io.TFRecordWriter(shard) as writer:
        for label in range(1, 9):
            encoded = checks.encode(checks.make_pixels(label, 20, 20)) if label > 4 else b"no JPEG"
            example = tf.train.Example()
            example.features.feature["image/encoded"].bytes_list.value.append(encoded)
            example.features.feature["image/class/label"].int64_list.value.append(label)
            writer.write(example.SerializeToString())
    images = data.Images(8, (shard,))
    config = dataclasses.replace(checks.NUMBERED, batch_size=4, shuffle_buffer=1)
    tail = checks.labels_of(data.train_batches(images, config, 1, 1, 1))
    assert tail == [[5, 6, 7, 8]]
    with pytest.raises(tf.errors.InvalidArgumentError):
        checks.labels_of(data.train_batches(images, config, 1, 1, 0))


def test_the_crop_of_a_place_differs_by_epoch_and_seed(numbered):
    """Also for an image that comes at the same place."""
    config = dataclasses.replace(checks.NUMBERED, shuffle_buffer=1, random_flip=False)
    one_shard = dataclasses.replace(numbered, shards=numbered.shards[:1], num_images=17)
    contents = {
        place: next(iter(data.train_batches(one_shard, config, *place, 0)))
        for place in ((1, 1), (1, 2), (2, 1))
    }
    labels = [labels.numpy().tolist() for _, labels in contents.values()]
    assert labels == [list(range(1, 18))] * 3
    pixels = [pixels.numpy() for pixels, _ in contents.values()]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        differs = (pixels[first] != pixels[second]).any(axis=(1, 2, 3))
        assert differs.mean() > 0.7  # a small image has few windows, and two may agree


def test_batches_have_the_types_that_the_network_takes(numbered):
    for batches in (
        data.train_batches(numbered, checks.NUMBERED, 1, 1, 0),
        data.eval_batches(numbered, checks.NUMBERED),
    ):
        pixels, labels = next(iter(batches))
        assert pixels.shape == (32, 12, 12, 3) and labels.shape == (32,)
        assert (pixels.dtype, labels.dtype) == (tf.float32, tf.int32)


def test_batches_are_the_images_of_train_image(numbered):
    """Place by place: the record's image, with the seed of the epoch and the place in it."""
    batches = list(data.train_batches(numbered, checks.NUMBERED, 4, 2, 0))
    pixels = numpy.concatenate([pixels for pixels, _ in batches])
    labels = numpy.concatenate([labels for _, labels in batches])
    encoded = {}
    for record in tf.data.TFRecordDataset(numbered.shards):
        jpeg, label = data.parse(record)
        encoded[int(label)] = jpeg
    seed = derive_seed(4, "augmentation", 2, bits=63)
    for place in (0, 1, 31, 32, 100, len(labels) - 1):
        expected = train_image(
            encoded[int(labels[place])], tf.constant([seed, place], tf.int64), checks.NUMBERED
        )
        numpy.testing.assert_array_equal(pixels[place], expected)


# --- MNIST ----------------------------------------------------------------------------------------


def test_batches_of_mini_hold_many_classes(mini_data):
    train, validation = data.load(MINI, RunOptions(data_dir=mini_data))
    assert (train.num_images, validation.num_images) == (4_000, 1_000)
    assert (len(train.shards), len(validation.shards)) == (4, 1)
    for epoch in (1, 2):
        batches = checks.labels_of(data.train_batches(train, MINI, 1, epoch, 0))
        assert [len(batch) for batch in batches] == [64] * 62 + [32]
        assert min(len(set(batch)) for batch in batches) >= 7
        counts = numpy.bincount(checks.flat(batches), minlength=11)
        assert counts.tolist() == [0] + [400] * 10
        # Over the epoch no class is gathered at one end: places of a class are even.
        order = numpy.array(checks.flat(batches))
        for label in range(1, 11):
            middle = numpy.flatnonzero(order == label).mean()
            assert abs(middle - 1999.5) < 5 * 4_000 / 12**0.5 / 20


# --- made-up images -------------------------------------------------------------------------------


def test_made_up_images_are_the_same_everywhere():
    digest = hashlib.sha256()
    for split, count in (("train", 200), ("validation", 50)):
        images = data.make_up(TINY, split, count)
        assert images.num_images == count == len(images.made_up)
        for number, record in enumerate(images.made_up):
            encoded, label = data.parse(record)
            assert int(label) == 1 + number % 4
            pixels = tf.io.decode_jpeg(encoded, channels=3).numpy()
            assert pixels.shape == (22, 27, 3)
            digest.update(pixels.tobytes() + numpy.int64(label).tobytes())
    assert digest.hexdigest() == TINY_SHA256


def test_made_up_images_of_a_large_preset_are_used_again():
    config = dataclasses.replace(TINY, num_train_images=600, num_classes=1001)
    images = data.make_up(config, "train", 600)
    assert len(images.made_up) == 256 and len(set(images.made_up)) == 256
    labels = checks.flat(checks.labels_of(data.eval_batches(images, config)))
    assert labels == [1 + number % 256 for number in range(600)]
    sizes = [len(batch) for batch in checks.labels_of(data.train_batches(images, config, 1, 1, 0))]
    assert sum(sizes) == 600


def test_training_and_validation_images_are_others():
    train, validation = (data.make_up(TINY, split, 50) for split in ("train", "validation"))
    assert not set(train.made_up) & set(validation.made_up)


@pytest.mark.parametrize("preset", [TINY, MINI], ids=["tiny", "mini"])
def test_made_up_images_need_no_files(preset):
    options = RunOptions(data_dir=Path("/there is nothing"), synthetic_data=True)
    data.check_files(preset, options)
    train, validation = data.load(preset, options)
    assert train.num_images == preset.num_train_images
    assert validation.num_images == preset.num_eval_images
    next(iter(data.train_batches(train, preset, 1, 1, 0)))


# --- what is wrong is one line --------------------------------------------------------------------


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UsageError) as error:
        data.check_files(REFERENCE, RunOptions(data_dir=tmp_path))
    assert str(error.value) == (
        f"{tmp_path} lacks ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, "
        "ILSVRC2012_devkit_t12.tar.gz; run image_classification/download_dataset.sh reference"
    )
    with pytest.raises(UsageError, match=r"lacks mnist_5k\.csv\.gz; run .*\.sh mini"):
        data.check_files(MINI, RunOptions(data_dir=tmp_path / "nothing"))


def test_files_that_are_not_prepared_are_said_so(mnist, mini_data, tmp_path):
    shutil.copy(mnist / "mnist_5k.csv.gz", tmp_path)
    with pytest.raises(UsageError) as error:
        data.check_files(MINI, RunOptions(data_dir=tmp_path))
    assert str(error.value) == (
        f"{tmp_path} is not prepared; run python -m image_classification.prepare mini"
    )
    data.check_files(MINI, RunOptions(data_dir=mini_data))


def test_shards_alone_are_enough(mini_data, tmp_path):
    """The archives may be removed once they are written."""
    (tmp_path / "prepared").symlink_to(mini_data / "prepared")
    data.check_files(MINI, RunOptions(data_dir=tmp_path))
    with pytest.raises(UsageError, match="lacks"):
        data.check_files(REFERENCE, RunOptions(data_dir=tmp_path))


@pytest.mark.parametrize(
    ("batch_size", "num_replicas", "fits"),
    [(64, 1, True), (64, 2, True), (64, 3, False), (66, 2, True), (64, 8, True), (64, 16, False)],
)
def test_batches_that_cannot_be_cut_are_refused(batch_size, num_replicas, fits):
    """ImageNet's last training batch of 64 has 15 images; of its evaluation, 16."""
    config = dataclasses.replace(REFERENCE, batch_size=batch_size)
    if fits:
        data.check_batches(config, num_replicas)
        return
    with pytest.raises(UsageError, match=f"cannot be cut into {num_replicas} parts; give another"):
        data.check_batches(config, num_replicas)


def test_steps_of_an_epoch():
    assert data.num_steps(REFERENCE) == 20_019
    assert data.num_steps(MINI) == 63
    assert data.num_steps(TINY) == 13
