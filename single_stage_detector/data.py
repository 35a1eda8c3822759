"""From images on disk to batches: loader processes decode and augment, the order is the seed's.

The order of an epoch is decided by (seed, epoch), an image's augmentation by (seed, epoch, index),
however many workers there are.

Shapes: B images of a process's share of a batch, S the side that the network sees, M the most
objects that an image of the batch has.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from harness.errors import UsageError
from harness.options import RunOptions
from harness.prepared import be_a_worker
from harness.seeds import derive_seed
from harness.system import num_cores
from harness.torch_support import num_processes, share
from single_stage_detector import shapes
from single_stage_detector.augmentation import augment, prepare_for_evaluation
from single_stage_detector.coco import (
    METRIC_FIELDS,
    Annotations,
    FloatArray,
    IntArray,
    check_fields,
    parse,
    read_instances,
)
from single_stage_detector.config import Config
from single_stage_detector.prepare import is_prepared

SPLITS = ("train2017", "val2017")
BACKBONE_FILE = "resnet34-333f7ec4.pth"
"""ImageNet's weights of ResNet-34; the name carries the head of its SHA-256."""
MAX_DEFAULT_WORKERS = {"cpu": 4, "cuda": 16}
"""Of a training process. Where a GPU computes, decoding and augmenting are all that CPUs do."""
DAMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for files that are missing, cut or changed."""
EVALUATION_BATCHES = 4
"""An evaluation batch has as many images as a process's share of so many training batches has."""
MAX_EVALUATION_BATCH = 128
"""Images of an evaluation batch at most: one loader process makes the whole of it."""


@dataclass(frozen=True)
class Images:
    """One split: where its images are, and what is on them."""

    annotations: Annotations
    folder: Path | None = None
    """Where the files lie."""
    made_up: tuple[bytes, ...] = ()
    """Encoded images in place of files, used again and again."""
    ground_truth: dict[str, Any] | None = None
    """The whole instances file of the validation set, which COCO's metric reads."""

    @property
    def num_images(self) -> int:
        """Images with an object."""
        return self.annotations.num_images

    def read(self, index: int) -> Image.Image:
        """The image, in colours. Raises ValueError naming a file that cannot be read."""
        if self.folder is None:
            file: Any = io.BytesIO(self.made_up[index % len(self.made_up)])
        else:
            file = self.folder / self.annotations.file_names[index]
        try:
            with Image.open(file) as image:
                return image.convert("RGB")
        except DAMAGE as error:
            raise ValueError(f"cannot read the image {file} ({error})") from error


@dataclass(frozen=True)
class Batch:
    """Augmented images and their objects."""

    images: Tensor
    """Pixels, uint8 [B, 3, S, S]."""
    boxes: Tensor
    """Corners relative to the image, float32 [B, M, 4]; zeros where an image has fewer."""
    labels: Tensor
    """int64 [B, M]; 0 where an image has fewer."""

    def to(self, device: torch.device) -> Batch:
        """The same on the device."""
        moved = (x.to(device, non_blocking=True) for x in (self.images, self.boxes, self.labels))
        return Batch(*moved)

    def pin_memory(self) -> Batch:
        """The same in memory that a GPU reads by itself; the loader calls this."""
        return Batch(self.images.pin_memory(), self.boxes.pin_memory(), self.labels.pin_memory())


# --- the data set on disk -------------------------------------------------------------------------


def is_made_up(config: Config, options: RunOptions) -> bool:
    """Whether no file is read."""
    return options.synthetic_data or config.dataset == "made-up"


def root(config: Config, data_dir: Path) -> Path:
    """The folder that holds annotations/ and the splits."""
    return data_dir / "prepared" if config.dataset == "shapes128" else data_dir


def instances_file(folder: Path, split: str) -> Path:
    """The annotations of a split."""
    return folder / "annotations" / f"instances_{split}.json"


def backbone_file(options: RunOptions) -> Path:
    """ImageNet's weights for the backbone."""
    return options.data_dir / BACKBONE_FILE


def check_files(config: Config, options: RunOptions) -> None:
    """Raises UsageError where the data set is not there. Reads no image and no annotation."""
    if is_made_up(config, options):
        return
    if config.dataset == "shapes128":
        if not is_prepared(options.data_dir):
            command = f"python -m single_stage_detector.prepare {config.preset}"
            raise UsageError(f"{options.data_dir} is not prepared; run {command}")
        return
    folder = options.data_dir
    needed = [instances_file(folder, split) for split in SPLITS]
    needed += [folder / split for split in SPLITS]
    if config.pretrained_backbone:
        needed.append(backbone_file(options))
    missing = [str(path.relative_to(options.data_dir)) for path in needed if not path.exists()]
    if not missing:
        return
    cause = f"{options.data_dir} lacks {', '.join(missing)}"
    raise UsageError(f"{cause}; run single_stage_detector/download_dataset.sh {config.preset}")


def load(config: Config, options: RunOptions) -> tuple[Images, Images]:
    """The training and the validation set. No image is read yet.

    Raises UsageError where annotations cannot be read, or are of another number of images.
    """
    if is_made_up(config, options):
        return make_up(config, "train2017"), make_up(config, "val2017")
    folder = root(config, options.data_dir)
    splits = []
    for split, count in zip(SPLITS, (config.num_train_images, config.num_eval_images), strict=True):
        path = instances_file(folder, split)
        content = read_instances(path)
        annotations = parse(content, config.num_classes, str(path))
        if annotations.num_images != count:
            cause = f"{path} has {annotations.num_images} images with an object, not {count}"
            raise UsageError(f"{cause}; run single_stage_detector/verify_dataset.sh")
        ground_truth = None
        if split == "val2017":
            check_fields(content, str(path), METRIC_FIELDS)
            ground_truth = content
        splits.append(Images(annotations, folder / split, ground_truth=ground_truth))
    return splits[0], splits[1]


def make_up(config: Config, split: str) -> Images:
    """Made-up images of a split: shapes, in the place of COCO's photos of COCO's usual size.

    A few different pictures, encoded as JPEG, that come again and again.
    """
    if config.dataset == "coco-2017":
        recipe = shapes.Recipe(640, 480, 3, 12, min_radius=20, max_radius=120, empty_one_in=0)
        num_different = 32
    else:
        side = config.input_size
        recipe = shapes.Recipe(
            side, side, 1, 3, min_radius=side // 6, max_radius=side // 3, empty_one_in=0
        )
        num_different = 100
    is_training = split == "train2017"
    num_images = config.num_train_images if is_training else config.num_eval_images
    seed = 1 if is_training else 2
    pictures = [
        shapes.draw_picture(recipe, seed, number)
        for number in range(min(num_images, num_different))
    ]
    content = shapes.make_instances(
        recipe, (pictures[n % len(pictures)].annotations for n in range(num_images)), ".jpg"
    )
    if config.num_classes > 1 + len(content["categories"]):
        num_kinds = config.num_classes - 1
        content["categories"] = [{"id": k, "name": f"kind {k}"} for k in range(1, num_kinds + 1)]
        for annotation in content["annotations"]:
            annotation["category_id"] = 1 + annotation["id"] % num_kinds
    encoded = []
    for picture in pictures:
        file = io.BytesIO()
        Image.fromarray(picture.pixels).save(file, "JPEG", quality=95)
        encoded.append(file.getvalue())
    return Images(
        parse(content, config.num_classes, "made-up data"),
        made_up=tuple(encoded),
        ground_truth=None if is_training else content,
    )


# --- batches --------------------------------------------------------------------------------------


def num_steps(config: Config) -> int:
    """Steps of an epoch; the last batch may be smaller."""
    return math.ceil(config.num_train_images / config.batch_size)


def num_workers(options: RunOptions, device: torch.device) -> int:
    """Loader processes of each training process: as given, or one for each core but one.

    With two cores or fewer none: there a thread reads ahead.
    """
    num_local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    num_mine = num_cores() // num_local
    default = min(MAX_DEFAULT_WORKERS[device.type], num_mine - 1) if num_mine > 2 else 0
    return options.num_workers or default


def train_batches(
    images: Images,
    config: Config,
    seed: int,
    epochs: Iterable[int],
    first_step: int,
    num_workers: int,
) -> Iterator[Batch]:
    """This process's share of each batch of some epochs; of the first from `first_step` on.

    The same loader processes read them all. Raises UsageError naming an image that cannot be read.
    """
    places = train_places(images.num_images, config.batch_size, seed, epochs, first_step)
    return read_all(TrainExamples(images, config, seed), places, num_workers, collate)


def train_places(
    num_images: int, batch_size: int, seed: int, epochs: Iterable[int], first_step: int
) -> Iterator[list[tuple[int, int]]]:
    """This process's share of each batch: epoch and index of its images."""
    for epoch in epochs:
        order = epoch_order(num_images, seed, epoch)
        for start in range(first_step * batch_size, num_images, batch_size):
            first, last = share(start, min(batch_size, num_images - start))
            yield [(epoch, index) for index in order[first:last]]
        first_step = 0


def epoch_order(num_images: int, seed: int, epoch: int) -> list[int]:
    """The images of an epoch, each once."""
    stream = numpy.random.Generator(numpy.random.PCG64(derive_seed(seed, "order", epoch)))
    order: list[int] = stream.permutation(num_images).tolist()
    return order


def eval_batches(
    images: Images, config: Config, num_workers: int, max_images: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's share of the images, each once: numbers [B], pixels uint8 [B, 3, S, S].

    With `max_images` only so many are read, which is for timing.
    """
    count = images.num_images if max_images is None else min(max_images, images.num_images)
    mine = list(range(*share(0, count)))
    size = EVALUATION_BATCHES * math.ceil(config.batch_size / num_processes())
    size = min(size, MAX_EVALUATION_BATCH)
    places = [mine[start : start + size] for start in range(0, len(mine), size)]
    return read_all(EvalExamples(images, config), places, num_workers, collate_for_evaluation)


@dataclass(frozen=True)
class TrainExamples(Dataset[Any]):
    """The augmented images of a training."""

    images: Images
    config: Config
    seed: int

    def __getitem__(
        self, place: tuple[int, int]
    ) -> tuple[NDArray[numpy.uint8], FloatArray, IntArray] | str:
        """Pixels [3, S, S], boxes [M, 4] and labels [M] of an image in an epoch (epoch, index).

        Or why the image cannot be read.
        """
        epoch, index = place
        stream = derive_seed(self.seed, "augmentation", epoch, index)
        try:
            image = self.images.read(index)
        except ValueError as error:
            return str(error)
        boxes, labels = self.images.annotations.boxes_of(index)
        random = numpy.random.Generator(numpy.random.PCG64(stream))
        return augment(image, boxes, labels, self.config, random)


@dataclass(frozen=True)
class EvalExamples(Dataset[Any]):
    """The images as they are, at the network's size."""

    images: Images
    config: Config

    def __getitem__(self, index: int) -> tuple[int, NDArray[numpy.uint8]] | str:
        """The image's number and pixels [3, S, S]; or why it cannot be read."""
        try:
            return index, prepare_for_evaluation(self.images.read(index), self.config)
        except ValueError as error:
            return str(error)


def collate(examples: Sequence[Any]) -> Batch:
    """Examples of one batch, their objects padded to the most that one has."""
    pixels, boxes, labels = zip(*examples, strict=True)
    num_objects = max(len(each) for each in labels)
    padded_boxes = numpy.zeros((len(examples), num_objects, 4), numpy.float32)
    padded_labels = numpy.zeros((len(examples), num_objects), numpy.int64)
    for place, (some_boxes, some_labels) in enumerate(zip(boxes, labels, strict=True)):
        padded_boxes[place, : len(some_boxes)] = some_boxes
        padded_labels[place, : len(some_labels)] = some_labels
    arrays = (numpy.stack(pixels), padded_boxes, padded_labels)
    return Batch(*map(torch.from_numpy, arrays))


def collate_for_evaluation(examples: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Numbers [B] and pixels [B, 3, S, S] of one batch."""
    numbers, pixels = zip(*examples, strict=True)
    return torch.tensor(numbers), torch.from_numpy(numpy.stack(pixels))


def read_all(
    examples: Dataset[Any],
    places: Iterable[list[Any]],
    num_workers: int,
    collate: Callable[[Sequence[Any]], Any],
) -> Iterator[Any]:
    """The batches at these places, in order, read ahead by loader processes, or else by a thread.

    Raises UsageError where an example says why it cannot be read: an error in a worker would come
    with the worker's traceback.
    """
    loader = DataLoader(
        examples,
        batch_sampler=places,
        num_workers=num_workers,
        collate_fn=partial(collate_or_say, collate),
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=begin_worker,
    )
    for batch in loader if num_workers else read_ahead(loader):
        if isinstance(batch, str):
            raise UsageError(f"{batch}; run single_stage_detector/verify_dataset.sh")
        yield batch


def read_ahead(batches: Iterable[Any]) -> Iterator[Any]:
    """The same batches; a thread makes the next while the caller is busy with the last."""
    coming_batches = iter(batches)
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, coming_batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, coming_batches, None)
            yield batch


def collate_or_say(collate: Callable[[Sequence[Any]], Any], examples: Sequence[Any]) -> Any:
    """The batch; or the first example's word on why it cannot be read."""
    for example in examples:
        if isinstance(example, str):
            return example
    return collate(examples)


def begin_worker(_: int) -> None:
    """The process that trains deals with Ctrl-C; its loader processes end with it."""
    be_a_worker()
