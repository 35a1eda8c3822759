"""From the archives to shards: TFRecord files of JPEGs in an order that was shuffled once over all.

    .venv/bin/python -m image_classification.prepare mini

Off the clock, once per data set: writes DATA_DIR/prepared/, whole or not at all, by as many
processes as there are cores. ImageNet's shards take about 150 GB. What an earlier call wrote before
it was interrupted is kept.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import shutil
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
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
from image_classification.config import CONVERSION_SEED, PRESETS, Config, check_values
from image_classification.sources import (
    DEVKIT,
    EVAL_TAR,
    MNIST,
    TRAIN_TAR,
    Source,
    Sources,
    find_imagenet,
    find_mnist,
    to_plain_jpeg,
)

FORMAT_VERSION = 1
"""Raised when the shards change, so that older ones are made anew."""
FEW_IMAGES = 10_000
"""Fewer than these are written by one process: starting others would take longer."""
FILES = {"imagenet": (TRAIN_TAR, EVAL_TAR, DEVKIT), "mnist-5k": (MNIST,), "made-up": ()}


def missing_files(config: Config, data_dir: Path) -> list[str]:
    """Names of the archives that are not there."""
    return [name for name in FILES[config.dataset] if not (data_dir / name).exists()]


def expected_meta(config: Config) -> dict[str, int | str]:
    """What decides the shards beside the archives themselves."""
    return {
        "format_version": FORMAT_VERSION,
        "dataset": config.dataset,
        "num_train_shards": config.num_train_shards,
        "num_eval_shards": config.num_eval_shards,
    }


def is_prepared(config: Config, data_dir: Path) -> bool:
    """Whether DATA_DIR/prepared holds all shards of this configuration."""
    meta = _read_json(data_dir / "prepared" / "meta.json") or {}
    if any(meta.get(name) != value for name, value in expected_meta(config).items()):
        return False
    return all((data_dir / "prepared" / name).exists() for name in meta["num_images"])


# --- Shards -----------------------------------------------------------------------------------


def prepare(config: Config, data_dir: Path) -> None:
    """Make DATA_DIR/prepared where it is missing or of another configuration.

    Raises UsageError where an archive is missing or damaged, or the folder cannot be written.
    """
    if config.dataset == "made-up" or is_prepared(config, data_dir):
        return
    if missing := missing_files(config, data_dir):
        cause = f"{data_dir} lacks {', '.join(missing)}"
        raise UsageError(f"{cause}; run image_classification/download_dataset.sh {config.preset}")
    try:
        with locked(data_dir):
            if is_prepared(config, data_dir):  # by another process, meanwhile
                return
            print(f"preparing {data_dir}: looking for the images", file=sys.stderr)
            find = find_imagenet if config.dataset == "imagenet" else find_mnist
            sources = find(data_dir)
            _check_counts(sources, config)
            _write(sources, config, data_dir)
    except OSError as error:
        cause = f"cannot write {data_dir}/prepared: {error.strerror or error}"
        raise UsageError(f"{cause}; make room, or prepare where it can be written") from error


def _check_counts(sources: Sources, config: Config) -> None:
    found = len(sources.train), len(sources.validation)
    expected = config.num_train_images, config.num_eval_images
    if found != expected:
        cause = f"the archives hold {found[0]:,} and {found[1]:,} images, not {expected[0]:,} and"
        raise UsageError(f"{cause} {expected[1]:,}; check them with verify_dataset.sh")


def _write(sources: Sources, config: Config, data_dir: Path) -> None:
    """Write all shards into prepared.tmp, where those of an earlier call may lie; then rename."""
    folder = data_dir / "prepared.tmp"
    meta = expected_meta(config)
    if folder.exists() and _read_json(folder / "begun.json") != meta:
        shutil.rmtree(folder)
    folder.mkdir(exist_ok=True)
    write_json(folder / "begun.json", meta)

    todo = [
        (folder / name, images)
        for name, images in _shards(sources, config).items()
        if not (folder / f"{name}.json").exists()
    ]
    _write_shards(todo)

    records = {path.stem: _read_json(path) for path in folder.glob("*-of-*.json")}
    with (folder / "classes.tsv").open("w") as file:
        for label, (synset, name) in enumerate(sources.class_names, start=1):
            file.write(f"{label}\t{synset}\t{name}\n")
    counts = {name: record["num_images"] for name, record in sorted(records.items())}
    changed = sorted(name for record in records.values() for name in record["encoded_anew"])
    write_json(folder / "meta.json", {**meta, "num_images": counts, "encoded_anew": changed})
    for path in [*folder.glob("*-of-*.json"), folder / "begun.json"]:
        path.unlink()
    write_manifest(folder, known={name: record["sha256"] for name, record in records.items()})
    shutil.rmtree(data_dir / "prepared", ignore_errors=True)
    folder.rename(data_dir / "prepared")


def _shards(sources: Sources, config: Config) -> dict[str, list[Source]]:
    """Which images go to which file: both splits are shuffled as a whole, then cut."""
    shards = {}
    for split, images, num_shards in (
        ("train", sources.train, config.num_train_shards),
        ("validation", sources.validation, config.num_eval_shards),
    ):
        order = numpy.random.RandomState(CONVERSION_SEED).permutation(len(images))
        for number, part in enumerate(numpy.array_split(order, num_shards)):
            name = f"{split}-{number:05d}-of-{num_shards:05d}"
            shards[name] = [images[place] for place in part.tolist()]
    return shards


def _write_shards(todo: Sequence[tuple[Path, list[Source]]]) -> None:
    """In as many processes as there are cores; a few shards, in this one."""
    progress = tqdm(total=len(todo), desc="shards", unit="shard", disable=None, leave=False)
    if sum(len(images) for _, images in todo) < FEW_IMAGES:
        for path, images in todo:
            write_shard(path, images)
            progress.update()
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_cores(), context, initializer=be_a_worker) as pool:
        futures = [pool.submit(write_shard, path, images) for path, images in todo]
        try:
            for future in as_completed(futures):
                future.result()
                progress.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def write_shard(path: Path, images: Sequence[Source]) -> None:
    """Write one TFRecord file, whole or not at all, and beside it what it holds as JSON.

    Raises UsageError naming the image that is none, OSError where the file cannot be written.
    """
    from harness import tensorflow_support

    tensorflow_support.hide_gpus()
    import tensorflow as tf

    temporary = path.with_name(path.name + ".part")
    encoded_anew = []
    try:
        with tf.io.TFRecordWriter(str(temporary)) as writer:
            for image in images:
                encoded, is_new = _plain_jpeg_of(image)
                if is_new:
                    encoded_anew.append(image.filename)
                writer.write(make_example(encoded, image.label, image.filename, image.synset))
    except tf.errors.OpError as error:
        raise OSError(error.message) from error
    with temporary.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    temporary.replace(path)
    record = {"num_images": len(images), "sha256": digest, "encoded_anew": encoded_anew}
    write_json(path.with_name(path.name + ".json"), record)


def _plain_jpeg_of(image: Source) -> tuple[bytes, bool]:
    """Its bytes for the shard, and whether they are not those of the archive."""
    before = image.read()
    try:
        encoded = to_plain_jpeg(before)
    except OSError as error:
        cause = f"{image.filename} is no image"
        raise UsageError(f"{cause}; check the archives with verify_dataset.sh") from error
    return encoded, encoded is not before


def make_example(encoded: bytes, label: int, filename: str, synset: str = "") -> bytes:
    """A serialised tf.train.Example with the features that v0.5's shards have."""
    import tensorflow as tf

    def number(value: int) -> Any:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    def text(value: bytes) -> Any:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    with Image.open(io.BytesIO(encoded)) as image:
        width, height = image.size
    features = {
        "image/encoded": text(encoded),
        "image/format": text(b"JPEG"),
        "image/colorspace": text(b"RGB"),
        "image/channels": number(3),
        "image/height": number(height),
        "image/width": number(width),
        "image/filename": text(filename.encode()),
        "image/class/label": number(label),
        "image/class/synset": text(synset.encode()),
    }
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return bytes(example.SerializeToString(deterministic=True))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def main(arguments: list[str] | None = None) -> int:
    """Prepare the data of one preset; returns the exit status."""
    try:
        config, options = parse_command_line("image_classification", PRESETS, arguments)
        check_values(config)
        prepare(config, options.data_dir)
    except UsageError as error:
        return exit_with(error)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing to tidy up: the next call goes on
    sys.exit(main())
