"""comparisons/image_classification.py: its clocks, Keras's crops, and each side at a tiny size."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import tensorflow as tf
from PIL import Image

from comparisons import comparison, report
from comparisons import image_classification_keras_peer as keras_run
from comparisons import image_classification_ours as our_run
from comparisons import image_classification_work as work_module
from comparisons.image_classification import COMPARISON
from comparisons.image_classification_work import Work
from comparisons.pairs import PairOptions
from image_classification import data
from image_classification.config import REFERENCE

pytestmark = pytest.mark.usefixtures("tensorflow_threads")
NUM_PHOTOS = 12


class Clock:
    """Stands for the module time: a second goes by where a test says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(work_module, "time", clock)
    monkeypatch.setattr(our_run, "time", clock)
    monkeypatch.setattr(work_module, "num_cores", lambda: 2)
    return clock


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve noisy pictures of three classes, each with the same distribution of pixels."""
    folder = tmp_path_factory.mktemp("photos")
    stream = numpy.random.RandomState(1)
    for number in range(NUM_PHOTOS):
        blocks = stream.randint(0, 256, (12, 15, 3)).astype(numpy.uint8)
        pixels = blocks.repeat(20, axis=0).repeat(20, axis=1)
        class_folder = folder / f"n0000000{number % 3}"
        class_folder.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(class_folder / f"{number}.JPEG", quality=95)
    return folder


# --- clocks ---------------------------------------------------------------------------------------


def test_the_first_batches_are_not_timed(clock: Clock) -> None:
    """Of 2 cores 8 batches warm up and 6 count, the smaller ones as what they hold."""
    taken = []

    def batches() -> Iterator[tuple[Any, Any]]:
        for number in range(100):
            clock.now_s += 100 if number < 8 else 2
            taken.append(number)
            yield [number] * (10 if number % 2 else 4), None

    work = Work(Path(), 1, input_batches_per_core=3)
    images_per_s, last = work_module.measure_input(batches(), work)
    assert images_per_s == (4 + 10) * 3 / 12
    assert last == [13] * 10
    assert len(taken) == 14


def test_the_first_step_is_not_timed(clock: Clock) -> None:
    losses = iter([5.0, 4.0, 3.0, 2.0])

    def step() -> float:
        loss = next(losses)
        clock.now_s += 100 if loss == 5 else loss
        return loss

    images_per_s, details = work_module.measure_steps(step, Work(Path(), 1, num_steps=3))
    assert images_per_s == 8 * 3 / (4 + 3 + 2)
    assert details == {"steps_s": [100, 4, 3, 2], "losses": [5, 4, 3, 2]}


def test_the_wait_is_a_share_of_the_whole_loop(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waits of 50, 1, 2 and 3 s before steps of 9 s: 6 of the last 33 s."""

    def train_batches(*_: Any) -> Iterator[tuple[list[int], list[int]]]:
        for wait_s in (50, 1, 2, 3):
            clock.now_s += wait_s
            yield [0] * 8, [1] * 8

    def train_step(_images: Any, _labels: Any, size: tf.Tensor, _stop: Any) -> tf.Tensor:
        assert size == 8
        clock.now_s += 9
        return tf.constant([1.5, 0.0])

    monkeypatch.setattr(data, "train_batches", train_batches)
    work = Work(Path(), 1)
    percent, waits_s = our_run.measure_wait(train_step, data.Images(1), REFERENCE, work)
    assert percent == pytest.approx(100 * 6 / 33)
    assert waits_s == [50, 1, 2, 3]


def test_no_pipeline_comes_to_its_end(photos: Path, tmp_path: Path) -> None:
    work = Work(photos, 1, input_batch_size=5, input_batches_per_core=2)
    links = sorted(work_module.link_photos(work, tmp_path / "links").glob("*/*"))
    images = our_run.write_photos(work, tmp_path)
    assert len(links) == images.num_images == sum(1 for _ in images.records(None))
    num_taken = (work.num_warm_up_batches + work.num_input_batches) * 5
    assert len(links) >= num_taken + work.num_warm_up_batches * 5
    assert len(links) < num_taken + work.num_warm_up_batches * 5 + NUM_PHOTOS
    targets = {link.resolve() for link in links}
    assert targets == {path.resolve() for path in work.find_photos()}
    assert all(link.parent.name == link.resolve().parent.name for link in links)


# --- Keras's crops --------------------------------------------------------------------------------


def test_keras_crops_have_the_area_the_aspect_and_the_place_of_the_others() -> None:
    """Of an image whose pixels are their own places."""
    num_crops, side = 2000, 64
    rows, columns = numpy.meshgrid(*[numpy.arange(side) / (side - 1)] * 2, indexing="ij")
    image = numpy.stack([rows, columns, rows], axis=-1).astype(numpy.float32)
    keras_run.keras.utils.set_random_seed(1)
    crops = keras_run.random_crops(tf.repeat(image[None], num_crops, axis=0), 16).numpy()
    assert crops.shape == (num_crops, 16, 16, 3)
    top, bottom = crops[:, 0, 0, 0], crops[:, -1, 0, 0]
    left, right = crops[:, 0, 0, 1], crops[:, 0, -1, 1]
    height, width = bottom - top, right - left
    area, aspect = height * width, width / height
    assert (min(top.min(), left.min()) > -1e-6) and (max(bottom.max(), right.max()) < 1 + 1e-6)
    assert 0.05 - 1e-4 < area.min() < 0.07 and 0.95 < area.max() <= 1 + 1e-6
    assert 0.75 - 1e-4 < aspect.min() < 0.77 and 1.31 < aspect.max() < 1.33 + 1e-4
    assert abs(area.mean() - 0.525) < 0.03  # even, but for what is cut off at the edge
    assert abs(numpy.log(aspect).mean()) < 0.02
    for start, size in ((top, height), (left, width)):
        is_free = size < 0.9
        place = start[is_free] / (1 - size[is_free])
        assert abs(place.mean() - 0.5) < 0.04 and place.min() < 0.02 and place.max() > 0.98


# --- each side ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_side_does_the_same_work_at_a_tiny_size(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pair through the frame, which refuses unlike facts."""
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    sizes = {"image-size": 32, "batch-size": 2, "num-steps": 2}
    sizes |= {"input-batch-size": 24, "input-batches-per-core": 2}
    options = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    arguments = ("--photos", str(photos), *options)
    tiny = dataclasses.replace(
        COMPARISON,
        our_command=(COMPARISON.our_command[0], *arguments),
        peers=tuple(dataclasses.replace(peer, arguments=arguments) for peer in COMPARISON.peers),
        needs=(),
    )
    record = comparison.measure(tiny, PairOptions(num_pairs=1, num_threads=1))
    ours, *peers = record["runs"]
    assert [run["side"] for run in peers] == ["keras", "torchvision"]
    for run in peers:
        assert run["facts"] == ours["facts"]
        assert run["measures"]["input_wait_percent"] is None
    num_images = math.ceil(10 * 24 / NUM_PHOTOS) * NUM_PHOTOS
    expected = {"batch_size": 2, "image_size": 32, "input_image_size": 32, "num_threads": 1}
    expected |= {"num_parameters": 25_559_081, "input_batch_size": 24, "num_images": num_images}
    assert expected.items() <= ours["facts"].items()
    assert 0 < ours["measures"]["input_wait_percent"] < 100
    assert peers[0]["details"]["num_convolution_biases"] == 26_560
    for run in record["runs"]:
        details = run["details"]
        assert len(details["steps_s"]) == len(details["losses"]) == 3
        assert 4 < details["losses"][0] < 15  # a uniform guess has log(1001) = 6.9
        # The same pixels in all: less the channels' means, and not divided.
        assert details["pixel_mean"] == pytest.approx(127.5 - 114.8, abs=10)
        assert details["pixel_deviation"] == pytest.approx(70, abs=10)
    assert "| waiting for input, % of our step |" in report.table(record)
