"""Preparation of the generated set: whole or not at all, by any number of processes, one digest."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
from PIL import Image

from harness.errors import UsageError
from harness.options import REPOSITORY, RunOptions
from object_detection import data, prepare, shapes
from object_detection.config import MINI, REFERENCE, TINY
from object_detection.shapes import SHAPES128

VERIFY = REPOSITORY / "object_detection" / "verify_dataset.sh"


def split_of(seed, count):
    """So many pictures with the digest that they have."""
    digests = (shapes.digest(shapes.draw_picture(SHAPES128, seed, n)) for n in range(count))
    return prepare.Split(seed, count, shapes.digest_of_set(digests))


@pytest.fixture
def few(monkeypatch):
    """A set that is made in a moment, by one process."""
    splits = {"train2017": split_of(1, 30), "val2017": split_of(2, 12)}
    monkeypatch.setattr(prepare, "SPLITS", splits)
    monkeypatch.setattr(prepare, "PICTURES_AT_A_TIME", 5)
    monkeypatch.setattr(prepare, "num_cores", lambda: 1)
    return splits


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    """The whole set, made by the command; not to be changed."""
    data_dir = tmp_path_factory.mktemp("mini set")  # a space, as any path may have one
    command = [sys.executable, "-m", "object_detection.prepare", "mini"]
    done = subprocess.run(
        [*command, "--data-dir", data_dir], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return data_dir


def contents(folder):
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


def bytes_of(folder):
    """Every file below a folder, by name."""
    return {name: content for name, (content, _, _) in contents(folder).items()}


def digest_on_disk(folder, name):
    """What a split's digest is when it is read back as training reads it."""
    content = json.loads((folder / "annotations" / f"instances_{name}.json").read_text())
    digests = []
    for image in content["images"]:
        with Image.open(folder / name / image["file_name"]) as file:
            pixels = numpy.asarray(file.convert("RGB"))
        annotations = tuple(
            {key: value for key, value in annotation.items() if key not in ("id", "image_id")}
            for annotation in content["annotations"]
            if annotation["image_id"] == image["id"]
        )
        digests.append(shapes.digest(shapes.Picture(pixels, annotations)))
    return shapes.digest_of_set(digests)


# --- the set --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_whole_set_is_made_and_loaded(mini):
    assert prepare.is_prepared(MINI, mini)
    assert [path.name for path in mini.iterdir()] == ["prepared"]
    options = RunOptions(data_dir=mini)
    data.check_files(MINI, options)
    train_images, eval_images = data.load(MINI, options)
    assert (train_images.num_images, eval_images.num_images) == (1000, 400)
    assert eval_images.ground_truth is not None
    assert len(eval_images.ground_truth["images"]) == 400
    for name, split in prepare.SPLITS.items():
        assert digest_on_disk(mini / "prepared", name) == split.digest
    size_bytes = sum(path.stat().st_size for path in mini.rglob("*") if path.is_file())
    assert size_bytes < 100e6


@pytest.mark.slow
def test_the_whole_set_is_verified_and_damage_is_named(mini, tmp_path):
    data_dir = tmp_path / "copy"
    shutil.copytree(mini, data_dir)

    def verify():
        command = ["bash", VERIFY, "mini"]
        environment = {**os.environ, "DATA_DIR": str(data_dir)}
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    done = verify()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "OK: 2403 files" in done.stdout
    for name in ("val2017/000000000007.png", "annotations/instances_val2017.json"):
        path = data_dir / "prepared" / name
        before = path.read_bytes()
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        done = verify()
        assert done.returncode == 1
        assert f"prepared/{name}" in done.stdout + done.stderr
        path.write_bytes(before)


def test_what_is_written_is_what_was_drawn(few, tmp_path):
    prepare.prepare(MINI, tmp_path)
    folder = tmp_path / "prepared"
    for name, split in few.items():
        assert digest_on_disk(folder, name) == split.digest
        assert len(list((folder / name).iterdir())) == split.num_pictures
    assert {path.name for path in folder.iterdir()} == {
        *few,
        "annotations",
        "meta.json",
        "MANIFEST.sha256",
    }
    command = ["sha256sum", "--check", "--strict", "--quiet", "MANIFEST.sha256"]
    assert subprocess.run(command, cwd=folder, capture_output=True).returncode == 0
    lines = (folder / "MANIFEST.sha256").read_text().splitlines()
    assert sorted(line[66:] for line in lines) == sorted(
        set(bytes_of(folder)) - {"MANIFEST.sha256"}
    )


@pytest.mark.usefixtures("few")
def test_the_number_of_processes_changes_nothing(tmp_path, monkeypatch):
    prepare.prepare(MINI, tmp_path / "one")
    monkeypatch.setattr(prepare, "num_cores", lambda: 3)
    prepare.prepare(MINI, tmp_path / "three")
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "three")


@pytest.mark.parametrize("weights", ["torchvision", "none"])
def test_other_weights_need_no_preparation(weights, tmp_path):
    prepare.prepare(dataclasses.replace(REFERENCE, pretrained_backbone=weights), tmp_path / "data")
    prepare.prepare(TINY, tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_there_are_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"lacks R-50.pkl; run object_detection/download_dataset"):
        prepare.prepare(REFERENCE, tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


# --- again, and after an accident -----------------------------------------------------------------


@pytest.mark.usefixtures("few")
def test_a_second_preparation_does_nothing(tmp_path, monkeypatch):
    """So that the folder may be one that cannot be written to."""
    prepare.prepare(MINI, tmp_path)
    before = contents(tmp_path)

    def refuse(folder):
        raise AssertionError(f"{folder} is locked, which takes the right to write")

    monkeypatch.setattr(prepare, "locked", refuse)
    prepare.prepare(MINI, tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    "gone", ["train2017/000000000003.png", "val2017", "annotations/instances_val2017.json"]
)
def test_what_is_gone_is_made_again(tmp_path, gone):
    prepare.prepare(MINI, tmp_path)
    before = bytes_of(tmp_path)
    path = tmp_path / "prepared" / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UsageError, match="is not prepared"):
        data.check_files(MINI, RunOptions(data_dir=tmp_path))
    prepare.prepare(MINI, tmp_path)
    assert bytes_of(tmp_path) == before


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("text", ["", "[]", '{"format_version": 0}'])
def test_another_set_is_replaced(tmp_path, text):
    prepare.prepare(MINI, tmp_path)
    before = bytes_of(tmp_path)
    (tmp_path / "prepared" / "meta.json").write_text(text)
    (tmp_path / "prepared" / "old").touch()
    prepare.prepare(MINI, tmp_path)
    assert bytes_of(tmp_path) == before


def test_another_digest_is_refused(few, tmp_path, monkeypatch):
    wrong = dataclasses.replace(few["val2017"], digest="0" * 64)
    monkeypatch.setattr(prepare, "SPLITS", {**few, "val2017": wrong})
    words = f"of val2017 have the digest {few['val2017'].digest}, not 0{{64}}; install"
    with pytest.raises(UsageError, match=words):
        prepare.prepare(MINI, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("few")
def test_left_overs_are_cleared_away(tmp_path):
    (tmp_path / "prepared.tmp" / "train2017").mkdir(parents=True)
    (tmp_path / "prepared.tmp" / "train2017" / "half.png").write_bytes(b"half")
    prepare.prepare(MINI, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]
    assert not (tmp_path / "prepared" / "train2017" / "half.png").exists()


@pytest.mark.usefixtures("few")
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_killed_preparation_does_not_count(tmp_path, number):
    command = [sys.executable, "-m", "object_detection.prepare", "mini"]
    process = subprocess.Popen([*command, "--data-dir", tmp_path], cwd=REPOSITORY)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("prepared.tmp/train2017/*.png"))) < 10:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    process.send_signal(number)
    assert process.wait(30) == -number
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "a process outlived the one that started it"
        time.sleep(0.05)
    assert not (tmp_path / "prepared").exists()
    assert not prepare.is_prepared(MINI, tmp_path)
    prepare.prepare(MINI, tmp_path)
    assert prepare.is_prepared(MINI, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["large"], ["mini", "--no-such-option"]])
def test_wrong_options_are_one_line(arguments, capsys):
    assert prepare.main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.splitlines()) == 1


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert prepare.main(["mini", "--data-dir", str(tmp_path / "file" / "data")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot write" in line
    assert "; make room, or prepare where it can be written" in line


@pytest.mark.usefixtures("few")
def test_a_disk_that_fills_up_is_one_line(tmp_path):
    folder = tmp_path / "small disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    with contextlib.ExitStack() as stack:
        stack.callback(subprocess.run, ["umount", folder], check=True)
        with pytest.raises(UsageError, match=r"cannot write .*No space left on device; make room"):
            prepare.prepare(MINI, folder)
        assert not (folder / "prepared").exists()
