"""From images on disk to batches: loader processes decode and resize, the order is the seed's.

The order of an epoch is decided by (seed, epoch), an image's augmentation by (seed, epoch, index),
however many workers there are.

Shapes: B images of a process's share of a batch, H and W the sides that they are padded to, M the
most objects that one of them has.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from harness.torch_support import share
from object_detection import shapes
from object_detection.coco import (
    METRIC_FIELDS,
    Annotations,
    IntArray,
    check_fields,
    parse,
    read_instances,
)
from object_detection.config import Config
from object_detection.masks import Outlines, ends, outlines_of
from object_detection.prepare import is_prepared
from object_detection.transforms import Objects, augment, resize, to_array, to_objects

SPLITS = ("train2017", "val2017")
BACKBONE_FILES = {"msra": "prepared/R-50.npz", "torchvision": "resnet50-0676ba61.pth"}
"""Weights of ImageNet: the authors' own, converted by prepare.py, or torchvision's."""
MAX_DEFAULT_WORKERS = {"cpu": 4, "cuda": 16}
"""Of a training process. Where a GPU computes, decoding and resizing are all that CPUs do."""
DAMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for files that are missing, cut or changed."""


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
        """Images of the split."""
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
    """Pixels, uint8 [B, 3, H, W], zero to the right and below of smaller images."""
    sizes: Tensor
    """Width and height without that, int64 [B, 2]."""
    boxes: Tensor
    """Corners in pixels, image after image, float32 [G, 4]."""
    labels: Tensor
    """int64 [G]."""
    corners: Tensor
    """Of the polygons of all objects, float64 [E, 2]."""
    first_corner: Tensor
    """Where each polygon begins, and the last ends [P + 1]."""
    first_polygon: Tensor
    """Where the polygons of each object begin, and of the last end [G + 1]."""
    first_object: Tensor
    """Where the objects of each image begin, and of the last end, on the CPU [B + 1]."""
    sampling_seeds: Tensor
    """Of what is drawn of each image's anchors and proposals, on the CPU [B]."""

    def to(self, device: torch.device) -> Batch:
        """The same on the device, but for what stays on the CPU."""
        return self._map(lambda part: part.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same in memory that a GPU reads by itself; the loader calls this."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        names = ("images", "sizes", "boxes", "labels", "corners", "first_corner", "first_polygon")
        return dataclasses.replace(self, **{name: function(getattr(self, name)) for name in names})

    def objects(self) -> list[Objects]:
        """Boxes, labels and outlines of each image."""
        found = []
        limits = self.first_object.tolist()
        for first, end in itertools.pairwise(limits):
            polygons = self.first_polygon[first : end + 1]
            outlines = Outlines(self.corners, self.first_corner, polygons)
            found.append(Objects(self.boxes[first:end], self.labels[first:end], outlines))
        return found

    def split(self, num_images: int) -> Iterator[Batch]:
        """Parts of at most so many images."""
        limits = self.first_object.tolist()
        for first in range(0, len(self.images), num_images):
            end = min(first + num_images, len(self.images))
            objects = slice(limits[first], limits[end])
            yield dataclasses.replace(
                self,
                images=self.images[first:end],
                sizes=self.sizes[first:end],
                boxes=self.boxes[objects],
                labels=self.labels[objects],
                first_polygon=self.first_polygon[objects.start : objects.stop + 1],
                first_object=self.first_object[first : end + 1] - limits[first],
                sampling_seeds=self.sampling_seeds[first:end],
            )


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


def backbone_file(config: Config, options: RunOptions) -> Path:
    """ImageNet's weights for the backbone."""
    return options.data_dir / BACKBONE_FILES[config.pretrained_backbone]


def check_files(config: Config, options: RunOptions) -> None:
    """Raises UsageError where the data set is not there. Reads no image and no annotation."""
    if is_made_up(config, options):
        return
    if not is_prepared(config, options.data_dir):
        command = f"python -m object_detection.prepare {config.preset}"
        raise UsageError(f"{options.data_dir} is not prepared; run {command}")
    folder = root(config, options.data_dir)
    needed = [instances_file(folder, split) for split in SPLITS]
    needed += [folder / split for split in SPLITS]
    if config.pretrained_backbone != "none":
        needed.append(backbone_file(config, options))
    missing = [str(path.relative_to(options.data_dir)) for path in needed if not path.exists()]
    if missing:
        cause = f"{options.data_dir} lacks {', '.join(missing)}"
        raise UsageError(f"{cause}; run object_detection/download_dataset.sh {config.preset}")


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
        is_training = split == "train2017"
        if is_training and config.dataset == "shapes128":
            content = first_with_objects(content, count)
        annotations = parse(content, config.num_classes, str(path), is_training)
        if annotations.num_images != count:
            cause = f"{path} has {annotations.num_images} images to use, not {count}"
            raise UsageError(f"{cause}; run object_detection/verify_dataset.sh")
        ground_truth = None
        if not is_training:
            check_fields(content, str(path), METRIC_FIELDS)
            ground_truth = content
        splits.append(Images(annotations, folder / split, ground_truth=ground_truth))
    return splits[0], splits[1]


def first_with_objects(content: dict[str, Any], count: int) -> dict[str, Any]:
    """Of an instances file only the first so many images that have an annotation."""
    annotated = {annotation["image_id"] for annotation in content["annotations"]}
    images = [image for image in content["images"] if image["id"] in annotated][:count]
    kept = {image["id"] for image in images}
    annotations = [one for one in content["annotations"] if one["image_id"] in kept]
    return {**content, "images": images, "annotations": annotations}


def make_up(config: Config, split: str) -> Images:
    """Made-up images of a split: shapes, in the place of COCO's photos of COCO's usual size.

    A few different pictures, encoded as JPEG, that come again and again.
    """
    if config.dataset == "coco-2017":
        recipe = shapes.Recipe(640, 480, 3, 12, min_radius=20, max_radius=120, empty_one_in=0)
        num_different = 32
    else:
        side = config.max_size
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
        parse(content, config.num_classes, "made-up data", is_training),
        made_up=tuple(encoded),
        ground_truth=None if is_training else content,
    )


def made_up_batch(config: Config, num_images: int, width: int, height: int) -> Batch:
    """Black images of this size for warming up, one object in each."""
    side = float(min(width, height) - 1)
    objects = Objects(
        torch.tensor([[0, 0, side, side]]),
        torch.tensor([1]),
        outlines_of([[[0, 0, side, 0, side, side]]]),
    )
    pixels = numpy.zeros((3, height, width), numpy.uint8)
    examples = [(pixels, objects, number) for number in range(num_images)]
    return collate_for_training(examples, config.size_divisor)


# --- batches --------------------------------------------------------------------------------------


def num_steps(config: Config) -> int:
    """Steps of an epoch; the last batch may be smaller."""
    return math.ceil(config.num_train_images / config.batch_size)


def num_workers(options: RunOptions, device: torch.device) -> int:
    """Loader processes of each training process: as given, or one for each core but one.

    At least one: where that leaves one core to compute, one thread is faster than two, which would
    wait for each other in this network's many small steps.
    """
    num_local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    num_others = num_cores() // num_local - 1
    return options.num_workers or max(1, min(MAX_DEFAULT_WORKERS[device.type], num_others))


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
    places = train_places(images.annotations.sizes, config.batch_size, seed, epochs, first_step)
    collate = partial(collate_for_training, divisor=config.size_divisor)
    return read_all(TrainExamples(images, config, seed), places, num_workers, collate)


def train_places(
    sizes: IntArray, batch_size: int, seed: int, epochs: Iterable[int], first_step: int
) -> Iterator[list[tuple[int, int]]]:
    """This process's share of each batch: epoch and index of its images."""
    for epoch in epochs:
        for batch in epoch_order(sizes, batch_size, seed, epoch)[first_step:]:
            first, last = share(0, len(batch))
            yield [(epoch, index) for index in batch[first:last]]
        first_step = 0


def epoch_order(sizes: IntArray, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of an epoch, which has each image once: lying images apart from standing ones.

    sizes: width and height of all [N, 2]. What is left of both kinds makes up the last batches
    together, so that their number is N / batch_size, rounded up, however many are of each kind.
    """
    stream = numpy.random.Generator(numpy.random.PCG64(derive_seed(seed, "order", epoch)))
    waiting: dict[bool, list[int]] = {False: [], True: []}
    batches = []
    for index in stream.permutation(len(sizes)).tolist():
        kind = waiting[bool(sizes[index, 1] < sizes[index, 0])]
        kind.append(index)
        if len(kind) == batch_size:
            batches.append(list(kind))
            kind.clear()
    rest = waiting[False] + waiting[True]
    return batches + [rest[i : i + batch_size] for i in range(0, len(rest), batch_size)]


def eval_batches(
    images: Images, config: Config, num_workers: int, max_images: int | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """This process's share of the images, each once: numbers [B], pixels uint8 [B, 3, H, W], sizes
    without padding [B, 2].

    With `max_images` only so many are read, which is for timing.
    """
    count = images.num_images if max_images is None else min(max_images, images.num_images)
    mine = list(range(*share(0, count)))
    size = config.eval_batch_size
    places = [mine[start : start + size] for start in range(0, len(mine), size)]
    collate = partial(collate_for_evaluation, divisor=config.size_divisor)
    return read_all(EvalExamples(images, config), places, num_workers, collate)


@dataclass(frozen=True)
class TrainExamples(Dataset[Any]):
    """The augmented images of a training."""

    images: Images
    config: Config
    seed: int

    def __getitem__(
        self, place: tuple[int, int]
    ) -> tuple[NDArray[numpy.uint8], Objects, int] | str:
        """Pixels [3, H, W], objects and sampling seed of an image in an epoch (epoch, index).

        Or why the image cannot be read.
        """
        epoch, index = place
        try:
            image = self.images.read(index)
        except ValueError as error:
            return str(error)
        annotated = self.images.annotations.objects_of(index)
        objects = to_objects(*annotated, image.size, self.config.legacy_coords)
        stream = derive_seed(self.seed, "augmentation", epoch, index)
        random = numpy.random.Generator(numpy.random.PCG64(stream))
        sampling_seed = derive_seed(self.seed, "sampling", epoch, index, bits=63)
        return *augment(image, objects, self.config, random), sampling_seed


@dataclass(frozen=True)
class EvalExamples(Dataset[Any]):
    """The images as they are, at the network's size."""

    images: Images
    config: Config

    def __getitem__(self, index: int) -> tuple[int, NDArray[numpy.uint8]] | str:
        """The image's number and pixels [3, H, W]; or why it cannot be read."""
        try:
            return index, to_array(resize(self.images.read(index), self.config))
        except ValueError as error:
            return str(error)


def pad(pixels: Sequence[NDArray[numpy.uint8]], divisor: int) -> tuple[Tensor, Tensor]:
    """Images [3, h, w] as one tensor [B, 3, H, W] with zeros, and width and height of each [B, 2].

    H and W are the largest of all, rounded up to multiples of the divisor.
    """
    heights, widths = ([image.shape[axis] for image in pixels] for axis in (1, 2))
    height, width = (-(-max(sides) // divisor) * divisor for sides in (heights, widths))
    images = numpy.zeros((len(pixels), 3, height, width), numpy.uint8)
    for place, image in zip(images, pixels, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return torch.from_numpy(images), torch.tensor([widths, heights]).T.contiguous()


def collate_for_training(examples: Sequence[Any], divisor: int) -> Batch:
    """Examples of one batch."""
    pixels, objects, seeds = zip(*examples, strict=True)
    images, sizes = pad(pixels, divisor)
    outlines = [some.outlines for some in objects]
    polygon_lengths = torch.cat([some.first_corner.diff() for some in outlines])
    num_polygons = torch.cat([some.first_polygon.diff() for some in outlines])
    return Batch(
        images=images,
        sizes=sizes,
        boxes=torch.cat([some.boxes for some in objects]),
        labels=torch.cat([some.labels for some in objects]),
        corners=torch.cat([some.corners for some in outlines]),
        first_corner=ends(polygon_lengths),
        first_polygon=ends(num_polygons),
        first_object=ends(torch.tensor([len(some.labels) for some in objects])),
        sampling_seeds=torch.tensor(seeds),
    )


def collate_for_evaluation(examples: Sequence[Any], divisor: int) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers [B], pixels [B, 3, H, W] and sizes [B, 2] of one batch."""
    numbers, pixels = zip(*examples, strict=True)
    return torch.tensor(numbers), *pad(pixels, divisor)


def read_all(
    examples: Dataset[Any],
    places: Iterable[list[Any]],
    num_workers: int,
    collate: Callable[[Sequence[Any]], Any],
) -> Iterator[Any]:
    """The batches at these places, in order, read ahead by loader processes.

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
    for batch in loader:
        if isinstance(batch, str):
            raise UsageError(f"{batch}; run object_detection/verify_dataset.sh")
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
