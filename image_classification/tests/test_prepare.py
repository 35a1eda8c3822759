"""Preparation: ImageNet's archives, MNIST's table, the shards and what lies on disk."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import hashlib
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy
import pytest
import scipy.io
import tensorflow as tf
from PIL import Image

from harness.errors import UsageError
from harness.options import REPOSITORY, RunOptions
from image_classification import data, prepare, sources, train
from image_classification.config import MINI, REFERENCE, Config
from image_classification.count_records import count_records
from image_classification.count_records import main as count_main
from image_classification.tests import archives, checks

# Of each shard of MNIST's digits. A change here changes what every run trains on or is measured by:
# raise FORMAT_VERSION with it.
MNIST_DIGESTS = {
    "train-00000-of-00004": "17d960657c6738da1e670077af69985ed99eb4a5e6a6f2be32315b819269a46d",
    "train-00001-of-00004": "16ad0f372618a95479e82d70b78c7ce43f5220c1162234618a5220db727534d5",
    "train-00002-of-00004": "6e3f2a8c373a7873342536eec00d445fe1f6cccbb84ae9ddeae85bd23f94aec1",
    "train-00003-of-00004": "12a9f3c96d57ebfac7a0039f3728b3c23b1da6f84ba0363324283fe939e4c770",
    "validation-00000-of-00001": "a4555b8ec3cdbb495d73a3f72ba00a8e2da0fcdcd753488471ddcac4b0559e71",
}
ODD = {"png": "PNG", "cmyk": "CMYK", "broken": "broken off", "grey": "grey"}


def config_of(photos: archives.Photos, **changes) -> Config:
    """The reference preset with the counts of these images, and few shards."""
    counts = {
        "num_train_images": photos.num_train_images,
        "num_eval_images": len(photos.validation),
        "num_train_shards": 7,
        "num_eval_shards": 3,
    }
    return dataclasses.replace(REFERENCE, **(counts | changes))


@pytest.fixture(scope="module")
def made_up() -> archives.Photos:
    photos = archives.made_up_photos()
    first = min(photos.train)
    odd = archives.odd_images(checks.make_pixels(5, 48, 64, noise=0))
    train = {
        synset: images
        | ({f"{first}_{name}.JPEG": odd[name] for name in ODD} if synset == first else {})
        for synset, images in photos.train.items()
    }
    return dataclasses.replace(photos, train=train)


@pytest.fixture(scope="module")
def imagenet(made_up, tmp_path_factory) -> Path:
    """The three archives, not to be written to."""
    folder = tmp_path_factory.mktemp("imagenet")
    archives.write_archives(folder, made_up)
    return folder


@pytest.fixture
def data_dir(imagenet, tmp_path) -> Path:
    """A data folder with the archives, as a person may have linked them."""
    folder = tmp_path / "data set"  # a space, as any path may have one
    folder.mkdir()
    for path in imagenet.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def examples_of(folder: Path, split: str) -> list[dict[str, object]]:
    """All records of a split in shard order, read by tf.data: feature to value."""
    examples = []
    for path in sorted((folder / "prepared").glob(f"{split}-*-of-*")):
        for record in tf.data.TFRecordDataset(str(path)):
            example = tf.train.Example.FromString(record.numpy())
            values = {}
            for name, feature in example.features.feature.items():
                (value,) = getattr(feature, feature.WhichOneof("kind")).value
                values[name] = value
            examples.append(values)
    return examples


def contents(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """Every file below a folder: its bytes, its time of change, its number on disk."""
    return {
        str(path.relative_to(folder)): (
            path.read_bytes(),
            path.stat().st_mtime_ns,
            path.stat().st_ino,
        )
        for path in folder.rglob("*")
        if path.is_file()
    }


def shards_of(folder: Path) -> dict[str, str]:
    """Digest of each file that was prepared."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((folder / "prepared").iterdir())
    }


# --- ImageNet -------------------------------------------------------------------------------------


def assert_shards_hold(folder: Path, photos: archives.Photos, changed: set[str]) -> None:
    """Every image once, with the label of its synset, as it was but for the `changed` ones."""
    labels = {synset: 1 + rank for rank, synset in enumerate(sorted(photos.train))}
    expected = {
        "train": {
            name: (synset, content)
            for synset, images in photos.train.items()
            for name, content in images.items()
        },
        "validation": {
            f"ILSVRC2012_val_{number:08d}.JPEG": image
            for number, image in enumerate(photos.validation, start=1)
        },
    }
    for split, images in expected.items():
        examples = examples_of(folder, split)
        names = [example["image/filename"].decode() for example in examples]
        assert sorted(names) == sorted(images)
        for name, example in zip(names, examples, strict=True):
            synset, content = images[name]
            encoded = example.pop("image/encoded")
            assert (encoded == content) == (name not in changed), name
            pixels = tf.io.decode_jpeg(encoded)  # as many channels as it has
            assert example == {
                "image/format": b"JPEG",
                "image/colorspace": b"RGB",
                "image/channels": 3,
                "image/height": pixels.shape[0],
                "image/width": pixels.shape[1],
                "image/filename": name.encode(),
                "image/class/label": labels[synset],
                "image/class/synset": synset.encode(),
            }


def test_shards_hold_every_image_with_its_label(made_up, data_dir):
    config = config_of(made_up)
    prepare.prepare(config, data_dir)
    first = min(made_up.train)
    changed = {f"{first}_{name}.JPEG" for name in ("png", "cmyk", "broken")}
    assert_shards_hold(data_dir, made_up, changed)
    meta = json.loads((data_dir / "prepared" / "meta.json").read_text())
    assert meta["encoded_anew"] == sorted(changed)
    assert sum(meta["num_images"].values()) == 12 * 9 + 4 + 24
    lines = (data_dir / "prepared" / "classes.tsv").read_text().splitlines()
    assert lines == [
        f"{label}\t{synset}\t{synset}, thing"
        for label, synset in enumerate(sorted(made_up.train), start=1)
    ]


def test_odd_images_keep_what_can_be_seen(made_up, data_dir):
    prepare.prepare(config_of(made_up), data_dir)
    pixels = checks.make_pixels(5, 48, 64, noise=0).astype(int)
    examples = {e["image/filename"].decode(): e for e in examples_of(data_dir, "train")}
    for name in ("png", "cmyk", "broken"):
        encoded = examples[f"{min(made_up.train)}_{name}.JPEG"]["image/encoded"]
        found = tf.io.decode_jpeg(encoded).numpy().astype(int)
        assert found.shape == (48, 64, 3)
        rows = slice(0, 16) if name == "broken" else slice(0, 48)  # below a break it is grey
        assert abs(found[rows] - pixels[rows]).mean() < 3, name
    grey = tf.io.decode_jpeg(examples[f"{min(made_up.train)}_grey.JPEG"]["image/encoded"])
    assert grey.shape == (48, 64, 1)


def test_photos_of_imagenet_become_shards(photos, tmp_path):
    real = archives.real_photos(photos)
    assert (real.num_train_images, len(real.validation)) == (100, 50)
    archives.write_archives(tmp_path, real)
    config = config_of(real, num_train_shards=6)
    prepare.prepare(config, tmp_path)
    assert_shards_hold(tmp_path, real, set())
    train_images, eval_images = data.load(config, RunOptions(data_dir=tmp_path))
    for batches, count in (
        (data.train_batches(train_images, config, 1, 1, 0), 100),
        (data.eval_batches(eval_images, config), 50),
    ):
        found = list(batches)
        assert sum(len(labels) for _, labels in found) == count
        for pixels, _ in found:
            assert pixels.shape[1:] == (224, 224, 3)
            assert tf.reduce_min(pixels) > -124 and tf.reduce_max(pixels) < 152
            assert (tf.math.reduce_std(pixels, axis=(1, 2, 3)) > 5).numpy().all()


def test_odd_images_come_out_of_the_pipeline(made_up, data_dir):
    config = config_of(made_up)
    prepare.prepare(config, data_dir)
    for images in data.load(config, RunOptions(data_dir=data_dir)):
        labels = checks.flat(checks.labels_of(data.train_batches(images, config, 1, 1, 0)))
        assert len(labels) == images.num_images
        assert set(labels) == set(range(1, 13))


def test_the_shuffle_is_over_all_images(made_up, data_dir):
    """v0.5's converter left the shards sorted by class."""
    prepare.prepare(config_of(made_up), data_dir)
    labels = [int(example["image/class/label"]) for example in examples_of(data_dir, "train")]
    equal_neighbours = sum(a == b for a, b in itertools.pairwise(labels))
    assert equal_neighbours / len(labels) < 0.25  # by chance 1 of 12
    thirds = [set(labels[start : start + 37]) for start in (0, 37, 74)]
    assert all(len(third) >= 10 for third in thirds)
    sizes = [count_records(path) for path in sorted((data_dir / "prepared").glob("train-*"))]
    assert len(sizes) == 7 and max(sizes) - min(sizes) <= 1


@pytest.mark.slow
def test_resnet_50_takes_a_step_on_photos(photos, tmp_path):
    """From ImageNet's photos in archives like its own to the weights after two steps."""
    real, data_dir = archives.real_photos(photos), tmp_path / "data"
    data_dir.mkdir()
    archives.write_archives(data_dir, real)
    config = config_of(real, batch_size=2, warmup_epochs=0)
    prepare.prepare(config, data_dir)
    options = RunOptions(
        data_dir=data_dir, results_dir=tmp_path / "results", device="cpu", num_steps=2
    )
    assert train.train(config, options) == 0
    (losses,) = (tmp_path / "results").rglob("losses.csv")
    values = [float(line.split(",")[1]) for line in losses.read_text().splitlines()]
    assert len(values) == 2
    # The logarithm of 1001 classes and the L2 term, in which most is the weights' own size.
    assert all(6 < value < 30 for value in values)


# --- the same shards, whatever happens ------------------------------------------------------------


def test_shards_are_the_same_twice(made_up, data_dir, imagenet, tmp_path):
    prepare.prepare(config_of(made_up), data_dir)
    other = tmp_path / "other"
    shutil.copytree(imagenet, other)
    prepare.prepare(config_of(made_up), other)
    assert shards_of(other) == shards_of(data_dir)


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 3])
def test_shards_are_the_same_whatever_the_processes(
    made_up, data_dir, imagenet, tmp_path, monkeypatch, num_processes
):
    prepare.prepare(config_of(made_up), data_dir)
    other = tmp_path / "other"
    shutil.copytree(imagenet, other)
    monkeypatch.setattr(prepare, "FEW_IMAGES", 0)
    monkeypatch.setattr(prepare, "num_cores", lambda: num_processes)
    prepare.prepare(config_of(made_up), other)
    assert shards_of(other) == shards_of(data_dir)


def test_a_shard_that_is_gone_is_made_again(made_up, data_dir):
    config = config_of(made_up)
    prepare.prepare(config, data_dir)
    before = shards_of(data_dir)
    (data_dir / "prepared" / "validation-00001-of-00003").unlink()
    with pytest.raises(UsageError, match="is not prepared"):
        data.check_files(config, RunOptions(data_dir=data_dir))
    prepare.prepare(config, data_dir)
    assert shards_of(data_dir) == before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_the_one_that_started_them(data_dir, number):
    """Each writes its number beside the shards, and then works for long."""
    program = """
import os, sys, time
from pathlib import Path
from image_classification import prepare
def write_shard(path, images):
    path.with_name(f"{os.getpid()}.pid").touch()
    time.sleep(600)
prepare.write_shard = write_shard
if __name__ == "__main__":
    prepare.FEW_IMAGES = 0
    prepare.num_cores = lambda: 2
    if sys.argv[2] == "2":
        prepare.signal.signal(2, prepare.signal.SIG_DFL)
    prepare._write_shards([(Path(sys.argv[1]) / str(n), []) for n in range(4)])
"""
    script = data_dir / "program.py"
    script.write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(Path(prepare.__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, script, data_dir, str(int(number))], env=environment
    )
    workers = []
    for _ in range(1200):
        workers = [int(path.stem) for path in data_dir.glob("*.pid")]
        if len(workers) == 2:
            break
        time.sleep(0.05)
    assert len(workers) == 2
    process.send_signal(number)
    assert process.wait(60) == -number
    for _ in range(200):
        alive = [worker for worker in workers if Path(f"/proc/{worker}").exists()]
        if not alive:
            break
        time.sleep(0.05)
    assert not alive


@pytest.mark.parametrize("few_images", [0, 10_000])
def test_a_disk_that_fills_up_is_one_line(made_up, imagenet, tmp_path, monkeypatch, few_images):
    folder = tmp_path / "small disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", folder]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    monkeypatch.setattr(prepare, "FEW_IMAGES", few_images)
    try:
        for path in imagenet.iterdir():
            (folder / path.name).symlink_to(path)
        with pytest.raises(UsageError, match=r"cannot write .*No space left on device; make room"):
            prepare.prepare(config_of(made_up), folder)
        assert not (folder / "prepared").exists()
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_second_preparation_does_nothing(made_up, data_dir):
    prepare.prepare(config_of(made_up), data_dir)
    before = contents(data_dir)
    prepare.prepare(config_of(made_up), data_dir)
    assert contents(data_dir) == before


def test_another_number_of_shards_is_prepared_anew(made_up, data_dir):
    fewer = config_of(made_up, num_train_shards=2)
    prepare.prepare(config_of(made_up), data_dir)
    assert not prepare.is_prepared(fewer, data_dir)
    prepare.prepare(fewer, data_dir)
    assert prepare.is_prepared(fewer, data_dir)
    assert not prepare.is_prepared(config_of(made_up), data_dir)
    assert len(list((data_dir / "prepared").glob("train-*"))) == 2


def test_manifest_covers_every_prepared_file(made_up, data_dir):
    prepare.prepare(config_of(made_up), data_dir)
    folder = data_dir / "prepared"
    lines = (folder / "MANIFEST.sha256").read_text().splitlines()
    listed = dict(reversed(line.split("  ")) for line in lines)
    shards = {f"train-{n:05d}-of-00007" for n in range(7)}
    shards |= {f"validation-{n:05d}-of-00003" for n in range(3)}
    assert set(listed) == shards | {"classes.tsv", "meta.json"}
    assert {path.name for path in folder.iterdir()} == set(listed) | {"MANIFEST.sha256"}
    for name, digest in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_an_interruption_keeps_whole_shards(made_up, data_dir, imagenet, tmp_path, monkeypatch):
    """What was written is not written again, and what was half written is."""
    whole = tmp_path / "whole"
    shutil.copytree(imagenet, whole)
    prepare.prepare(config_of(made_up), whole)
    reads = sources.Source.read
    num_read = 0

    def interrupted(source: sources.Source) -> bytes:
        nonlocal num_read
        num_read += 1
        if num_read == 60:  # within the fourth shard
            raise KeyboardInterrupt
        return reads(source)

    with monkeypatch.context() as patch:
        patch.setattr(sources.Source, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare(config_of(made_up), data_dir)
    assert not prepare.is_prepared(config_of(made_up), data_dir)
    assert not (data_dir / "prepared").exists()
    before = contents(data_dir / "prepared.tmp")
    done = [f"train-{n:05d}-of-00007" for n in range(3)]
    assert [name for name in sorted(before) if name in done] == done
    assert "train-00003-of-00007" not in before

    prepare.prepare(config_of(made_up), data_dir)
    after = contents(data_dir / "prepared")
    assert [after[name] for name in done] == [before[name] for name in done]
    assert shards_of(data_dir) == shards_of(whole)
    assert sorted(path.name for path in data_dir.iterdir()) == [
        *sorted(path.name for path in imagenet.iterdir()),
        "prepared",
    ]


KILLED_PREPARATION = """
import dataclasses, os, signal, sys
from pathlib import Path
from image_classification import prepare, sources
from image_classification.config import MINI
read, calls = sources.Source.read, []
def killed(source):
    calls.append(source)
    if len(calls) == 2500:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(source)
sources.Source.read = killed
prepare.prepare(MINI, Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_killed_preparation_does_not_count_and_is_taken_up(mnist, mini_data, tmp_path):
    shutil.copy(mnist / "mnist_5k.csv.gz", tmp_path)
    command = [sys.executable, "-c", KILLED_PREPARATION, str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not prepare.is_prepared(MINI, tmp_path)
    before = contents(tmp_path / "prepared.tmp")
    assert {"train-00000-of-00004", "train-00001-of-00004"} <= set(before)
    assert "train-00002-of-00004.part" in before
    prepare.prepare(MINI, tmp_path)
    after = contents(tmp_path / "prepared")
    for name in ("train-00000-of-00004", "train-00001-of-00004"):
        assert after[name] == before[name]
    assert shards_of(tmp_path) == shards_of(mini_data)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mnist_5k.csv.gz", "prepared"]


def test_left_overs_of_another_configuration_are_cleared_away(made_up, data_dir):
    folder = data_dir / "prepared.tmp"
    folder.mkdir()
    (folder / "begun.json").write_text('{"num_train_shards": 3}')
    for name in ("train-00000-of-00003", "train-00000-of-00007"):
        (folder / name).write_bytes(b"of another time")
        (folder / f"{name}.json").write_text('{"num_images": 1}')
    prepare.prepare(config_of(made_up), data_dir)
    assert "train-00000-of-00003" not in shards_of(data_dir)
    assert len(examples_of(data_dir, "train")) == made_up.num_train_images


def test_what_a_kill_left_half_written_is_gone_in_the_end(made_up, data_dir):
    """Of a shard, or of the small file beside it."""
    folder = data_dir / "prepared.tmp"
    folder.mkdir()
    meta = prepare.expected_meta(config_of(made_up))
    (folder / "begun.json").write_text(json.dumps(meta))
    for name in ("train-00000-of-00007.part", "train-00000-of-00007.json.tmp"):
        (folder / name).write_bytes(b"half")
    prepare.prepare(config_of(made_up), data_dir)
    assert not [name for name in shards_of(data_dir) if name.endswith((".part", ".tmp"))]


@pytest.mark.parametrize("earlier", [False, True])
def test_a_full_disk_is_one_line_and_keeps_what_there_was(made_up, data_dir, monkeypatch, earlier):
    fewer = config_of(made_up, num_train_shards=2)
    if earlier:
        prepare.prepare(fewer, data_dir)
    before = shards_of(data_dir) if earlier else {}

    def full(path: Path, value: object) -> None:
        if path.name == "train-00003-of-00007.json":
            raise OSError(28, os.strerror(28))
        original(path, value)

    original = prepare.write_json
    monkeypatch.setattr(prepare, "write_json", full)
    with pytest.raises(UsageError, match="No space left on device; make room") as error:
        prepare.prepare(config_of(made_up), data_dir)
    assert "\n" not in str(error.value)
    assert prepare.is_prepared(fewer, data_dir) == earlier
    assert not earlier or shards_of(data_dir) == before


# --- what is wrong is one line --------------------------------------------------------------------


def error_of(config: Config, folder: Path) -> str:
    """The UsageError of a preparation; nothing whole may have come of it."""
    with pytest.raises(UsageError) as error:
        prepare.prepare(config, folder)
    message = str(error.value)
    assert "\n" not in message and "; " in message  # cause; what to do next
    assert not (folder / "prepared").exists()
    return message


def replace(path: Path, content: bytes) -> None:
    """Another file in the place of a link."""
    path.unlink()
    path.write_bytes(content)


def test_missing_archives_are_named(made_up, data_dir):
    (data_dir / "ILSVRC2012_img_val.tar").unlink()
    message = error_of(config_of(made_up), data_dir)
    assert message == (
        f"{data_dir} lacks ILSVRC2012_img_val.tar; "
        "run image_classification/download_dataset.sh reference"
    )


@pytest.mark.parametrize("field", ["num_train_images", "num_eval_images"])
def test_wrong_counts_are_said(made_up, data_dir, field):
    config = config_of(made_up)
    wrong = dataclasses.replace(config, **{field: getattr(config, field) + 1_000})
    message = error_of(wrong, data_dir)
    assert message.startswith("the archives hold 112 and 24 images, not ")
    assert f"{getattr(wrong, field):,}" in message


NAMES = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz")
DAMAGES = {
    "empty": lambda content: b"",
    "a page": lambda content: b"<html><body>404 Not Found</body></html>\n" * 40,
    "cut in the middle": lambda content: content[: len(content) // 2],
    "without its first bytes": lambda content: content[1000:],
    "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_archive_is_one_line(made_up, data_dir, imagenet, name, damage):
    replace(data_dir / name, DAMAGES[damage]((imagenet / name).read_bytes()))
    message = error_of(config_of(made_up), data_dir)
    assert "verify_dataset.sh" in message or "bring the files" in message


def test_every_cut_of_the_devkit_is_one_line(made_up, data_dir, imagenet):
    """gzip, tar and MATLAB file break off in many ways."""
    content = (imagenet / NAMES[2]).read_bytes()
    for size in range(0, len(content) - 8, 97):
        replace(data_dir / NAMES[2], content[:size])
        error_of(config_of(made_up), data_dir)


@pytest.mark.parametrize(
    ("meta", "truth", "says"),
    [
        (b"no table", None, "cannot be read"),
        (b"", None, "cannot be read"),
        (b"MATLAB 5.0 MAT-file" + bytes(200), None, "cannot be read"),
        (None, "1\n" * 23, "ILSVRC2012_img_val.tar has 24 images, the devkit labels 23"),
        (None, "1\n" * 23 + "13\n", "a number that is no class's"),
        (None, "1\n" * 23 + "0\n", "a number that is no class's"),
        (None, "1\n" * 23 + "dog\n", "cannot be read"),
    ],
)
def test_a_wrong_devkit_is_one_line(made_up, data_dir, meta, truth, says):
    (data_dir / NAMES[2]).unlink()
    synsets = list(made_up.train)
    archives.write_devkit(
        data_dir,
        archives.make_meta(synsets) if meta is None else meta,
        "1\n" * 24 if truth is None else truth,
    )
    assert says in error_of(config_of(made_up), data_dir)


def test_a_table_of_other_fields_is_one_line(made_up, data_dir):
    (data_dir / NAMES[2]).unlink()
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"synsets": numpy.zeros(3), "others": 1})
    archives.write_devkit(data_dir, buffer.getvalue(), "1\n" * 24)
    assert "cannot be read" in error_of(config_of(made_up), data_dir)


def test_a_tar_of_other_things_is_one_line(made_up, data_dir):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archives.add(archive, "n99999999.tar", b"")
    replace(data_dir / NAMES[0], buffer.getvalue())
    message = error_of(config_of(made_up), data_dir)
    assert "holds n99999999.tar, which is no class's tar" in message


def test_what_is_no_image_is_named(made_up, tmp_path):
    first = min(made_up.train)
    train_images = made_up.train | {first: {f"{first}_0.JPEG": b"<html>not this</html>"}}
    photos = dataclasses.replace(made_up, train=train_images)
    archives.write_archives(tmp_path, photos)
    message = error_of(config_of(photos), tmp_path)
    assert message == f"{first}_0.JPEG is no image; check the archives with verify_dataset.sh"


def test_a_folder_that_cannot_be_written_is_one_line(mnist, tmp_path, monkeypatch):
    (tmp_path / "mnist_5k.csv.gz").symlink_to(mnist / "mnist_5k.csv.gz")

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(Path, "mkdir", refused)
    assert "Permission denied" in error_of(MINI, tmp_path)


# --- MNIST ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(mnist) -> list[tuple[list[int], int]]:
    """Pixels and digit of every row, read without our reader."""
    with gzip.open(mnist / "mnist_5k.csv.gz", "rt", newline="") as file:
        rows = [[int(float(cell)) for cell in row] for row in csv.reader(file)]
    assert {len(row) for row in rows} == {785}
    return [(row[:784], row[784]) for row in rows]


def test_digits_are_split_evenly_with_their_labels(mini_data, table):
    seen = []
    for split, num_each in (("train", 400), ("validation", 100)):
        examples = examples_of(mini_data, split)
        digits = []
        for example in examples:
            number = int(Path(example["image/filename"].decode()).stem)
            pixels, digit = table[number]
            assert example["image/class/label"] == 1 + digit
            assert example["image/class/synset"] == str(digit).encode()
            found = numpy.asarray(Image.open(io.BytesIO(example["image/encoded"])).convert("L"))
            difference = found.reshape(-1).astype(int) - numpy.array(pixels)
            assert abs(difference).max() < 40 and abs(difference).mean() < 4
            seen.append(number)
            digits.append(digit)
        assert numpy.bincount(digits).tolist() == [num_each] * 10
    assert sorted(seen) == list(range(5_000))


def test_training_and_validation_digits_are_others(mini_data):
    """No image of the one is in the other, under whatever name."""
    train_images, validation = (
        {example["image/encoded"] for example in examples_of(mini_data, split)}
        for split in ("train", "validation")
    )
    assert not train_images & validation


def test_prepared_digits_are_pinned(mini_data):
    digests = shards_of(mini_data)
    assert {name: digest for name, digest in digests.items() if "-of-" in name} == MNIST_DIGESTS


DAMAGED_TABLES = {
    "not compressed": lambda content: gzip.decompress(content),
    "cut": lambda content: content[: len(content) // 2],
    "a page": lambda content: b"<html></html>",
    "another table": lambda content: gzip.compress(b"1,2,3\n4,5,6\n"),
    "a word": lambda content: gzip.compress(gzip.decompress(content).replace(b",0", b",x", 1)),
    "a row less": lambda content: gzip.compress(gzip.decompress(content).split(b"\n", 1)[1]),
    "empty": lambda content: b"",
    "changed": lambda content: content[:5000] + bytes([content[5000] ^ 255]) + content[5001:],
}


@pytest.mark.filterwarnings("ignore:loadtxt")
@pytest.mark.parametrize("damage", DAMAGED_TABLES)
def test_a_damaged_table_is_one_line(mnist, tmp_path, damage):
    content = (mnist / "mnist_5k.csv.gz").read_bytes()
    (tmp_path / "mnist_5k.csv.gz").write_bytes(DAMAGED_TABLES[damage](content))
    message = error_of(MINI, tmp_path)
    assert str(tmp_path / "mnist_5k.csv.gz") in message


# --- counting records, and the command ------------------------------------------------------------


def test_records_are_counted_as_tf_data_counts_them(mini_data, capsys):
    paths = sorted((mini_data / "prepared").glob("*-of-*"))
    for path in paths:
        assert count_records(path) == sum(1 for _ in tf.data.TFRecordDataset(str(path)))
    assert count_main([str(path) for path in paths]) == 0
    assert capsys.readouterr().out == "5000\n"


def test_a_file_that_breaks_off_is_no_count(mini_data, tmp_path, capsys):
    content = (mini_data / "prepared" / "train-00000-of-00004").read_bytes()
    path = tmp_path / "shard"
    for size in (len(content) - 1, len(content) - 200, 11, 5, len(content) - len(content) // 3):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match="breaks off"):
            count_records(path)
    assert count_main([str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith(f"error: {path} breaks off")
    path.write_bytes(b"")
    assert count_records(path) == 0


def run_module(module: str, preset: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program of ours as a person would, from the repository's root."""
    command = [sys.executable, "-m", f"image_classification.{module}", preset, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


def test_command_line_names_what_is_missing(tmp_path):
    done = run_module("prepare", "mini", "--data-dir", str(tmp_path))
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path} lacks mnist_5k.csv.gz; run ")
    assert list(tmp_path.iterdir()) == []
