"""Files, order and batches: the same with any number of workers, from any step, over processes."""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from harness.errors import UsageError
from harness.options import REPOSITORY, RunOptions
from harness.torch_support import share
from object_detection import data, prepare, train, transforms
from object_detection.config import MINI, REFERENCE, TINY
from object_detection.tests import data_checks
from object_detection.tests.data_checks import SMALL

pytestmark = pytest.mark.usefixtures("torch_state")


@pytest.fixture
def images(tmp_path):
    """19 photos on disk."""
    return data_checks.write_photos(tmp_path, 19)


def same(one, other):
    """Whether two lists of batches are equal to the bit."""
    return len(one) == len(other) and all(
        all(
            torch.equal(getattr(a, field.name), getattr(b, field.name))
            for field in dataclasses.fields(data.Batch)
        )
        for a, b in zip(one, other, strict=True)
    )


# --- batches --------------------------------------------------------------------------------------


def test_lying_and_standing_images_are_apart():
    data_checks.check_order()


def test_an_epoch_has_each_image_with_its_objects():
    data_checks.check_batches()


def test_evaluation_has_each_image_once_as_it_is():
    data_checks.check_evaluation_batches()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(images, num_workers):
    alone = list(data.train_batches(images, SMALL, 1, [1], 0, 0))
    assert same(alone, list(data.train_batches(images, SMALL, 1, [1], 0, num_workers)))
    both = (data.eval_batches(images, SMALL, workers) for workers in (0, num_workers))
    for one, other in zip(*both, strict=True):
        assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_goes_on_from_any_step(images, monkeypatch, num_workers):
    """Without reading again what was done."""
    whole = list(data.train_batches(images, SMALL, 1, [1], 0, 0))
    order = data.epoch_order(images.annotations.sizes, 4, 1, 1)
    done = {index for batch in order[:3] for index in batch}
    read = data.Images.read

    def refuse(self, index):
        assert index not in done
        return read(self, index)

    monkeypatch.setattr(data.Images, "read", refuse)
    assert same(whole[3:], list(data.train_batches(images, SMALL, 1, [1], 3, num_workers)))


def test_epochs_and_seeds_differ_and_repeat(images):
    batches = {
        (seed, epoch): list(data.train_batches(images, SMALL, seed, [epoch], 0, 0))
        for seed, epoch in ((1, 1), (1, 2), (2, 1))
    }
    for one, other in itertools.combinations(batches.values(), 2):
        assert not same(one, other)
    assert same(batches[1, 1], list(data.train_batches(images, SMALL, 1, [1], 0, 0)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_same_workers_read_one_epoch_after_the_other(images, num_workers):
    alone = [list(data.train_batches(images, SMALL, 1, [epoch], 0, 0)) for epoch in (2, 3, 4)]
    batches = data.train_batches(images, SMALL, 1, itertools.count(2), 3, num_workers)
    children = []
    for whole in (alone[0][3:], *alone[1:]):
        assert same(whole, list(itertools.islice(batches, len(whole))))
        children.append({child.pid for child in multiprocessing.active_children()})
    assert children == [children[0]] * 3
    assert len(children[0]) == num_workers


def test_augmentation_leaves_the_annotations_alone(images):
    before = images.annotations.boxes.copy()
    corners = images.annotations.outlines.corners.clone()
    for epoch in range(1, 4):
        list(data.train_batches(images, SMALL, 1, [epoch], 0, 0))
    assert numpy.array_equal(images.annotations.boxes, before)
    assert torch.equal(images.annotations.outlines.corners, corners)


@pytest.mark.parametrize("num_processes", [2, 3])
def test_processes_share_each_batch(images, monkeypatch, num_processes):
    whole = list(data.train_batches(images, SMALL, 1, [1], 0, 0))
    order = [n for numbers, *_ in data.eval_batches(images, SMALL, 0) for n in numbers.tolist()]
    assert order == list(range(19))
    monkeypatch.setenv("WORLD_SIZE", str(num_processes))
    numbers = []
    for rank in range(num_processes):
        monkeypatch.setenv("RANK", str(rank))
        for all_, mine in zip(whole, data.train_batches(images, SMALL, 1, [1], 0, 0), strict=True):
            part = slice(*share(0, len(all_.images)))
            height, width = mine.images.shape[2:]
            assert torch.equal(mine.images, all_.images[part, :, :height, :width])
            assert torch.equal(mine.sampling_seeds, all_.sampling_seeds[part])
            for one, other in zip(mine.objects(), all_.objects()[part], strict=True):
                assert torch.equal(one.boxes, other.boxes)
                assert torch.equal(one.labels, other.labels)
        numbers += [n for some, *_ in data.eval_batches(images, SMALL, 0) for n in some.tolist()]
    assert sorted(numbers) == list(range(19))


@pytest.mark.parametrize("num_images", [1, 2, 3, 4, 5])
def test_passes_are_parts_of_a_batch(images, num_images):
    for batch in data.train_batches(images, SMALL, 1, [1], 0, 0):
        parts = list(batch.split(num_images))
        assert all(len(part.images) <= num_images for part in parts)
        for name in ("images", "sizes", "boxes", "labels", "sampling_seeds"):
            together = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(together, getattr(batch, name)), name
        found = [objects for part in parts for objects in part.objects()]
        for one, other in zip(found, batch.objects(), strict=True):
            assert torch.equal(one.labels, other.labels)
            assert torch.equal(one.outlines.first_polygon, other.outlines.first_polygon)
            assert torch.equal(one.boxes, other.boxes)


def test_a_timing_reads_only_some_images(images):
    batches = list(data.eval_batches(images, SMALL, 0, max_images=5))
    assert [numbers.tolist() for numbers, *_ in batches] == [[0, 1, 2, 3], [4]]
    all_numbers = [len(numbers) for numbers, *_ in data.eval_batches(images, SMALL, 0, 1000)]
    assert sum(all_numbers) == 19


def test_a_batch_moves_to_a_device(images):
    batch = next(data.train_batches(images, SMALL, 1, [1], 0, 0))
    moved = batch.to(torch.device("meta"))
    on_cpu = {"first_object", "sampling_seeds"}
    for field in dataclasses.fields(data.Batch):
        expected = "cpu" if field.name in on_cpu else "meta"
        assert getattr(moved, field.name).device.type == expected, field.name
        assert getattr(moved, field.name).shape == getattr(batch, field.name).shape


@pytest.mark.parametrize(
    ("cores", "processes", "given", "on_cpu", "on_gpu"),
    [
        (2, 1, 0, 1, 1),
        (1, 1, 0, 1, 1),
        (3, 1, 0, 2, 2),
        (16, 1, 0, 4, 15),
        (64, 1, 0, 4, 16),
        (64, 8, 0, 4, 7),
        (16, 8, 0, 1, 1),
        (2, 1, 3, 3, 3),
    ],
)
def test_workers_are_as_many_as_cores_are_left(
    monkeypatch, cores, processes, given, on_cpu, on_gpu
):
    monkeypatch.setattr(data, "num_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    for device, expected in (("cpu", on_cpu), ("cuda", on_gpu)):
        found = data.num_workers(RunOptions(num_workers=given), torch.device(device))
        assert found == expected


ORPHANS = """
import dataclasses, os, sys, torch
from pathlib import Path
from object_detection import data
from object_detection.tests.data_checks import SMALL, write_photos
batches = data.train_batches(write_photos(Path(sys.argv[1]), 19), SMALL, 1, [1], 0, 2)
next(batches)
children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
print(*children, flush=True)
sys.stdin.read()
"""


def is_at_work(process):
    """Whether there is such a process, and it is no corpse."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


def test_workers_ignore_ctrl_c_and_end_with_their_parent(tmp_path):
    command = [sys.executable, "-c", ORPHANS, str(tmp_path)]
    pipe = subprocess.PIPE
    parent = subprocess.Popen(command, cwd=REPOSITORY, stdin=pipe, stdout=pipe, text=True)
    assert parent.stdout is not None
    workers = parent.stdout.readline().split()
    assert len(workers) == 2
    for worker in workers:
        os.kill(int(worker), signal.SIGINT)
    time.sleep(0.5)
    assert all(map(is_at_work, workers))
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 20
    while any(map(is_at_work, workers)):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


# --- damaged images -------------------------------------------------------------------------------


def cut(encoded):
    return encoded[: len(encoded) // 2]


def empty(_):
    return b""


def no_image(_):
    return b"<html>404 Not Found</html>"


def huge(encoded):
    """A header that claims 65,535 by 65,535 pixels."""
    place = encoded.index(b"\xff\xc0") + 5
    return encoded[:place] + b"\xff\xff\xff\xff" + encoded[place + 4 :]


@pytest.mark.parametrize("damage", [cut, empty, no_image, huge, None])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_image_is_named_in_one_line(images, damage, num_workers):
    path = images.folder / "7.png"
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(data_checks.encode(data_checks.photo(64, 64), "JPEG")))
    for batches in (
        data.train_batches(images, SMALL, 1, [1], 0, num_workers),
        data.eval_batches(images, SMALL, num_workers),
    ):
        with pytest.raises(UsageError) as error:
            list(batches)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
        assert str(error.value).endswith("; run object_detection/verify_dataset.sh")


def test_a_run_that_meets_a_damaged_image_says_which(images, monkeypatch, tmp_path, capfd):
    (images.folder / "7.png").write_bytes(b"")
    monkeypatch.setattr(data, "load", lambda config, options: (images, images))
    config = dataclasses.replace(TINY, num_train_images=19, num_eval_images=19)
    options = RunOptions(results_dir=tmp_path / "results", device="cpu", num_workers=1)
    assert train.train(config, options) == 1
    output = capfd.readouterr()
    (line,) = [line for line in output.err.splitlines() if "7.png" in line]
    assert "error: UsageError: cannot read the image" in line
    assert "Traceback" not in output.err
    assert "ABORTED,object_detection,1," in output.out


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "I;16", "1"])
def test_images_of_any_kind_have_three_colours(images, mode):
    image = (
        Image.new("L", (20, 30), 90).convert(mode) if mode != "I;16" else Image.new(mode, (4, 4))
    )
    image.save(images.folder / "0.png", "TIFF" if mode == "CMYK" else "PNG")
    read = images.read(0)
    assert read.mode == "RGB"
    assert read.size == image.size


def test_an_image_of_another_size_than_its_annotations_say_is_taken(images):
    data_checks.photo(77, 55).save(images.folder / "0.png")
    (numbers, _, sizes), *_ = data.eval_batches(images, SMALL, 0)
    assert numbers[0] == 0
    assert tuple(sizes[0].tolist()) == transforms.resized(77, 55, SMALL)


# --- files ----------------------------------------------------------------------------------------


def reference_files(folder):
    """Empty files in the place of COCO's."""
    for split in data.SPLITS:
        (folder / split).mkdir(parents=True)
        data.instances_file(folder, split).parent.mkdir(exist_ok=True)
        data.instances_file(folder, split).touch()
    (folder / "prepared").mkdir()
    for name in data.BACKBONE_FILES.values():
        (folder / name).touch()


def test_everything_there_passes(tmp_path):
    reference_files(tmp_path)
    data.check_files(REFERENCE, RunOptions(data_dir=tmp_path))


@pytest.mark.parametrize(
    "missing",
    [
        "train2017",
        "val2017",
        "annotations/instances_train2017.json",
        "annotations/instances_val2017.json",
        "resnet50-0676ba61.pth",
    ],
)
def test_what_is_missing_is_named(tmp_path, missing):
    reference_files(tmp_path)
    path = tmp_path / missing
    path.rmdir() if path.is_dir() else path.unlink()
    words = f" lacks {missing}; run object_detection/download_dataset.sh reference$"
    config = dataclasses.replace(REFERENCE, pretrained_backbone="torchvision")
    with pytest.raises(UsageError, match=words):
        data.check_files(config, RunOptions(data_dir=tmp_path))
    if missing.endswith(".pth"):
        data.check_files(REFERENCE, RunOptions(data_dir=tmp_path))
    data.check_files(REFERENCE, RunOptions(data_dir=tmp_path, synthetic_data=True))


def test_the_generated_set_must_be_prepared(tmp_path, monkeypatch):
    words = f"{tmp_path} is not prepared; run python -m object_detection.prepare mini$"
    with pytest.raises(UsageError, match=words):
        data.check_files(MINI, RunOptions(data_dir=tmp_path))
    monkeypatch.setattr(data, "is_prepared", lambda config, data_dir: data_dir == tmp_path)
    for split in data.SPLITS:
        (tmp_path / "prepared" / split).mkdir(parents=True)
        data.instances_file(tmp_path / "prepared", split).parent.mkdir(exist_ok=True)
        data.instances_file(tmp_path / "prepared", split).touch()
    data.check_files(MINI, RunOptions(data_dir=tmp_path))
    assert data.root(MINI, tmp_path) == tmp_path / "prepared"
    assert data.root(REFERENCE, tmp_path) == tmp_path


def test_another_number_of_images_is_refused(shared_coco):
    options = RunOptions(data_dir=shared_coco)
    config = dataclasses.replace(REFERENCE, num_train_images=81, num_eval_images=80)
    with pytest.raises(UsageError, match=r"has \d+ images to use, not 81; run .*verify"):
        data.load(config, options)


def test_splits_are_named_as_prepare_names_them():
    assert tuple(prepare.SPLITS) == data.SPLITS


# --- made-up data ---------------------------------------------------------------------------------


def test_tiny_is_made_up_and_the_same_each_time():
    train_images, eval_images = data.load(TINY, RunOptions())
    assert (train_images.num_images, eval_images.num_images) == (30, 20)
    again, _ = data.load(TINY, RunOptions())
    assert again.made_up == train_images.made_up
    assert not set(train_images.made_up) & set(eval_images.made_up)
    assert train_images.read(0).size == (64, 64)
    assert train_images.ground_truth is None
    assert eval_images.ground_truth is not None
    assert len(eval_images.ground_truth["images"]) == 20
    assert train_images.annotations.category_ids == (1, 3, 6, 10)


def test_made_up_photos_are_like_cocos():
    """In size, in objects and in the bytes of a file, so that reading them costs as much."""
    config = dataclasses.replace(REFERENCE, num_train_images=100, num_eval_images=40)
    images, eval_images = data.load(config, RunOptions(synthetic_data=True))
    assert images.num_images == 100
    assert eval_images.num_images == 40
    assert images.read(99).size == (640, 480)
    assert set(images.annotations.labels.tolist()) == set(range(1, 81))
    assert 5 < len(images.annotations.labels) / 100 < 9
    assert 100_000 < numpy.mean([len(encoded) for encoded in images.made_up]) < 250_000
    assert eval_images.ground_truth is not None
    assert len(eval_images.ground_truth["categories"]) == 80
    batch = next(data.train_batches(images, config, 1, [1], 0, 0))
    assert batch.images.shape == (2, 3, 800, 1088)
    assert batch.sizes.tolist() == [[1066, 800]] * 2


def test_steps_count_the_partial_batch():
    assert data.num_steps(REFERENCE) == 58_633
    assert data.num_steps(SMALL) == 5
