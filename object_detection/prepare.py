"""Make the generated data set of the mini preset, or convert the reference's backbone weights.

    .venv/bin/python -m object_detection.prepare mini

Off the clock, once, whole or not at all: writes DATA_DIR/prepared/. For the mini that is a data set
in COCO's layout, drawn by as many processes as there are cores and held against the digest below;
single_stage_detector trains on the same files. For the reference it is the weights without pickle.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy
from PIL import Image
from tqdm import tqdm

from harness.checkpoint import write_json
from harness.errors import UsageError
from harness.options import exit_with, parse_command_line
from harness.prepared import be_a_worker, locked, write_manifest
from harness.system import num_cores
from object_detection.backbone_weights import convert_caffe2, read_caffe2
from object_detection.config import PRESETS, Config, check_values
from object_detection.shapes import (
    SHAPES128,
    Picture,
    digest,
    digest_of_set,
    draw_picture,
    make_instances,
)


@dataclass(frozen=True)
class Split:
    """One part of the generated set."""

    seed: int
    num_pictures: int
    """Those without an object included."""
    digest: str
    """What `digest_of_set` must give."""


SPLITS = {
    "train2017": Split(1, 2000, "a5b8d7fa8e2c996aa199487d9680cc594419b9688a2560a75e1a43004c689a4c"),
    "val2017": Split(2, 400, "786355ea5aae1cf10fd63a38aa1a12a1ac3aa8b2f99bf8c5d13f086fe096bd7f"),
}
"""Named as COCO's are."""
ORIGINAL, CONVERTED = "R-50.pkl", "R-50.npz"
"""The authors' weights of ResNet-50, and what is made of them."""
FORMAT_VERSION = 1
"""Raised when the files change, so that older ones are made anew."""
PICTURES_AT_A_TIME = 25
"""That a process draws before it takes more."""


def expected_meta() -> dict[str, Any]:
    """What decides the files."""
    return {
        "format_version": FORMAT_VERSION,
        "digests": {name: split.digest for name, split in SPLITS.items()},
    }


def is_prepared(config: Config, data_dir: Path) -> bool:
    """Whether DATA_DIR/prepared holds what this preset needs there."""
    folder = data_dir / "prepared"
    if config.dataset == "coco-2017":
        return config.pretrained_backbone != "msra" or (folder / CONVERTED).exists()
    if config.dataset == "made-up":
        return True
    try:
        meta = json.loads((folder / "meta.json").read_text())
    except (OSError, ValueError):
        return False
    found = {name: len(list((folder / name).glob("*.png"))) for name in SPLITS}
    is_whole = found == {name: split.num_pictures for name, split in SPLITS.items()}
    files = [folder / "annotations" / f"instances_{name}.json" for name in SPLITS]
    return bool(meta == expected_meta() and is_whole and all(file.exists() for file in files))


def prepare(config: Config, data_dir: Path) -> None:
    """Make DATA_DIR/prepared where it is missing or another set.

    Raises UsageError where the folder cannot be written, the weights cannot be read, or what was
    made is not the set.
    """
    if is_prepared(config, data_dir):
        return
    if config.dataset == "coco-2017" and not (data_dir / ORIGINAL).exists():
        command = f"object_detection/download_dataset.sh {config.preset}"
        raise UsageError(f"{data_dir} lacks {ORIGINAL}; run {command}")
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with locked(data_dir):
            if is_prepared(config, data_dir):  # by another process, meanwhile
                return
            folder = data_dir / "prepared.tmp"
            shutil.rmtree(folder, ignore_errors=True)
            if config.dataset == "coco-2017":
                print(f"preparing {data_dir}: converting {ORIGINAL}", file=sys.stderr)
                write_weights(data_dir / ORIGINAL, folder)
            else:
                print(f"preparing {data_dir}: drawing pictures", file=sys.stderr)
                write_set(folder)
            shutil.rmtree(data_dir / "prepared", ignore_errors=True)
            folder.rename(data_dir / "prepared")
    except OSError as error:
        cause = f"cannot write {data_dir}/prepared: {error.strerror or error}"
        raise UsageError(f"{cause}; make room, or prepare where it can be written") from error


def write_weights(path: Path, folder: Path) -> None:
    """The authors' weights under our names, as NumPy's own format. No code in the file is run."""
    try:
        arrays = convert_caffe2(read_caffe2(path))
    except ValueError as error:
        raise UsageError(f"{path}: {error}; run download_dataset.sh") from error
    folder.mkdir()
    numpy.savez(folder / CONVERTED, allow_pickle=False, **arrays)
    write_manifest(folder)


def write_set(folder: Path) -> None:
    """Draw both splits and write them with their annotations and a manifest."""
    (folder / "annotations").mkdir(parents=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_cores(), context, initializer=be_a_worker) as pool:
        for name, split in SPLITS.items():
            (folder / name).mkdir()
            draw = partial(write_picture, folder / name, split.seed)
            numbers = range(split.num_pictures)
            drawn = list(
                tqdm(
                    pool.map(draw, numbers, chunksize=PICTURES_AT_A_TIME),
                    total=split.num_pictures,
                    desc=name,
                    unit="picture",
                    disable=None,
                    leave=False,
                )
            )
            found = digest_of_set(text for _, text in drawn)
            if found != split.digest:
                shutil.rmtree(folder)
                cause = f"the pictures of {name} have the digest {found}, not {split.digest}"
                raise UsageError(f"{cause}; install the versions of requirements.txt")
            instances = make_instances(SHAPES128, (objects for objects, _ in drawn), ".png")
            write_json(folder / "annotations" / f"instances_{name}.json", instances)
    write_json(folder / "meta.json", expected_meta())
    write_manifest(folder)


def write_picture(folder: Path, seed: int, number: int) -> tuple[tuple[dict[str, Any], ...], str]:
    """Draw a picture and write it as PNG; returns its annotations and its digest."""
    picture: Picture = draw_picture(SHAPES128, seed, number)
    Image.fromarray(picture.pixels).save(folder / f"{number + 1:012d}.png")
    return picture.annotations, digest(picture)


def main(arguments: list[str] | None = None) -> int:
    """Prepare the data of one preset; returns the exit status."""
    try:
        config, options = parse_command_line("object_detection", PRESETS, arguments)
        check_values(config)
        prepare(config, options.data_dir)
    except UsageError as error:
        return exit_with(error)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing to tidy up: the next call starts anew
    sys.exit(main())
