"""Archives in the format of ILSVRC 2012's three, out of few images.

The development kit's table is a MATLAB file with the fields of the true one, inner nodes of WordNet
among its rows; its numbers for the classes are not in the order of the synsets.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import scipy.io
from PIL import Image

from image_classification.tests.checks import encode, make_pixels

FIELDS = (
    *("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children"),
    *("wordnet_height", "num_train_images"),
)


@dataclass(frozen=True)
class Photos:
    """Images by name: those of each class to train with, and those to evaluate with, labelled."""

    train: Mapping[str, Mapping[str, bytes]]  # synset -> file name -> bytes
    validation: Sequence[tuple[str, bytes]]  # synset, bytes

    @property
    def num_train_images(self) -> int:
        """All of the training set."""
        return sum(len(images) for images in self.train.values())


def ilsvrc_ids(synsets: Sequence[str]) -> dict[str, int]:
    """A number for each class from 1, in an order that is not the synsets'."""
    order = numpy.random.RandomState(3).permutation(sorted(synsets))
    return {str(synset): number for number, synset in enumerate(order, start=1)}


def made_up_photos(num_classes: int = 12, num_each: int = 9) -> Photos:
    """Made-up pictures of several shapes."""
    synsets = [f"n{1_000_007 * (number + 1):08d}" for number in range(num_classes)]
    pictures = iter(
        encode(make_pixels(seed, 30 + seed % 7, 40 - seed % 11)) for seed in range(10_000)
    )
    train = {
        synset: {f"{synset}_{number}.JPEG": next(pictures) for number in range(num_each)}
        for synset in synsets
    }
    return Photos(train, [(synset, next(pictures)) for synset in (*synsets, *synsets[::-1])])


def real_photos(paths: Sequence[Path]) -> Photos:
    """One photo of each class to train with, and every second one to evaluate with as well."""
    found = [(path.name.split("_")[0], path.read_bytes()) for path in paths]
    train = {synset: {f"{synset}_1.JPEG": photo} for synset, photo in found}
    return Photos(train, found[::-2])


def odd_images(pixels: numpy.ndarray) -> dict[str, bytes]:
    """What ImageNet has under the names of ordinary JPEGs: PNG, CMYK, a break; and plain grey."""
    buffers = {name: io.BytesIO() for name in ("png", "cmyk", "grey")}
    image = Image.fromarray(pixels)
    image.save(buffers["png"], "PNG")
    image.convert("CMYK").save(buffers["cmyk"], "JPEG", quality=95)
    image.convert("L").save(buffers["grey"], "JPEG", quality=95)
    encoded = encode(pixels)
    return {name: buffer.getvalue() for name, buffer in buffers.items()} | {
        "broken": encoded[: len(encoded) * 2 // 3]
    }


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Put a file into a tar."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def make_meta(synsets: Sequence[str]) -> bytes:
    """The table meta.mat: the classes, then inner nodes over two of them each."""
    ids = ilsvrc_ids(synsets)
    by_id = sorted(ids, key=lambda synset: ids[synset])
    rows = [(ids[synset], synset, f"{synset}, thing", "a thing", 0, [], 0, 1) for synset in by_id]
    for place in range(0, len(by_id) - 1, 2):
        number = len(by_id) + 1 + place // 2
        rows.append((number, f"n9{number:07d}", "group", "things", 2, [place + 1, place + 2], 1, 0))
    table = numpy.zeros((len(rows), 1), dtype=[(name, object) for name in FIELDS])
    for place, row in enumerate(rows):
        table[place, 0] = row
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"synsets": table})
    return buffer.getvalue()


def write_archives(folder: Path, photos: Photos) -> None:
    """The three archives of these images."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as archive:
        for synset in sorted(photos.train, reverse=True):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for name, content in photos.train[synset].items():
                    add(inner, name, content)
            add(archive, f"{synset}.tar", buffer.getvalue())
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as archive:
        names = [f"ILSVRC2012_val_{n:08d}.JPEG" for n in range(1, len(photos.validation) + 1)]
        contents = dict(zip(names, (image for _, image in photos.validation), strict=True))
        for name in sorted(names, key=lambda name: name[::-1]):  # not in the order of the labels
            add(archive, name, contents[name])
    ids = ilsvrc_ids(list(photos.train))
    truth = "".join(f"{ids[synset]}\n" for synset, _ in photos.validation)
    write_devkit(folder, make_meta(list(photos.train)), truth)


def write_devkit(folder: Path, meta: bytes, truth: str) -> None:
    """The development kit alone."""
    with tarfile.open(folder / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        root = "ILSVRC2012_devkit_t12"
        add(archive, f"{root}/readme.txt", b"Development kit\n")
        add(archive, f"{root}/data/meta.mat", meta)
        add(archive, f"{root}/data/ILSVRC2012_validation_ground_truth.txt", truth.encode())
