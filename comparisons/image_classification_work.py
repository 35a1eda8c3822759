"""What the three programs of comparisons.image_classification do alike: sizes, photos, clocks.

Each measures its input pipeline first, then training steps on one made-up batch, and prints the
JSON line that pairs.py describes. It imports no framework and nothing of the harness.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHANNEL_MEANS = (123.68, 116.78, 103.94)
CROP_AREA = (0.05, 1.0)
CROP_ASPECT = (0.75, 1.33)
LEARNING_RATE = 0.001
MOMENTUM = 0.9

NUM_WARM_UP_STEPS = 1
"""The first step compiles or allocates; it takes several times as long as the others."""
WARM_UP_BATCHES_PER_CORE = 4
"""More than a pipeline holds ready, so that what is measured was made while it was measured."""


@dataclass(frozen=True)
class Work:
    """How much of it; the defaults are what is compared."""

    photos: Path
    """Folder with a folder of JPEGs for each class."""
    seed: int
    image_size: int = 224
    """Side of the square that the network sees, in pixels."""
    num_classes: int = 1001
    batch_size: int = 8
    """Images of a training step."""
    num_steps: int = 5
    """Training steps on the clock."""
    input_batch_size: int = 64
    """Images of a batch where the input pipeline runs alone."""
    input_batches_per_core: int = 24
    """Batches on the clock, for each core: as long on any machine."""

    @property
    def num_warm_up_batches(self) -> int:
        """Batches before the clock of the input pipeline starts."""
        return WARM_UP_BATCHES_PER_CORE * num_cores()

    @property
    def num_input_batches(self) -> int:
        """Batches on the clock."""
        return self.input_batches_per_core * num_cores()

    def find_photos(self) -> list[Path]:
        """The photos themselves, class by class."""
        return sorted(self.photos.glob("*/*.JPEG"))

    def num_copies(self) -> int:
        """How often each photo is needed for an epoch that no pipeline comes to the end of.

        As much is left when the clock stops as went before it started: a pipeline that ran dry
        would give its last batches for nothing.
        """
        num_batches = self.num_input_batches + 2 * self.num_warm_up_batches
        return -(-num_batches * self.input_batch_size // len(self.find_photos()))


def num_cores() -> int:
    """Cores that the frame holds this run to."""
    return len(os.sched_getaffinity(0))


def link_photos(work: Work, folder: Path) -> Path:
    """A data set of a folder for each class, in which each photo stands under many names."""
    for photo in work.find_photos():
        class_folder = folder / photo.parent.name
        class_folder.mkdir(parents=True, exist_ok=True)
        for copy in range(work.num_copies()):
            (class_folder / f"{photo.stem}-{copy}.JPEG").symlink_to(photo.resolve())
    return folder


def measure_input(batches: Iterator[tuple[Any, Any]], work: Work) -> tuple[float, Any]:
    """Images per second of a pipeline whose batches are taken as fast as they come; the last one.

    `batches` gives images and labels, without end.
    """
    for _ in range(work.num_warm_up_batches):
        next(batches)
    num_images = 0
    start_s = time.perf_counter()
    for _ in range(work.num_input_batches):
        images, _ = next(batches)
        num_images += len(images)
    return num_images / (time.perf_counter() - start_s), images


def measure_steps(step: Callable[[], float], work: Work) -> tuple[float, dict[str, Any]]:
    """Images per second of training steps, and their details. `step` returns the loss."""
    seconds, losses = [], []
    for _ in range(NUM_WARM_UP_STEPS + work.num_steps):
        start_s = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - start_s)
    timed = seconds[NUM_WARM_UP_STEPS:]
    return work.batch_size * len(timed) / sum(timed), {"steps_s": seconds, "losses": losses}


def print_result(
    train_images_per_s: float,
    input_images_per_s: float,
    input_wait_percent: float | None,
    facts: dict[str, Any],
    details: dict[str, Any],
) -> None:
    """The line that the frame reads."""
    measures = {
        "train_images_per_s": train_images_per_s,
        "input_images_per_s": input_images_per_s,
        "input_wait_percent": input_wait_percent,
    }
    print(json.dumps({"measures": measures, "facts": facts, "details": details}))
