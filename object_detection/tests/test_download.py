"""download_dataset.sh and verify_dataset.sh of this benchmark, run as a person would run them."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from object_detection.count_images import count_images
from tests.dataset_scripts import REPOSITORY, DatasetScripts, error_line, serve

DETECTOR = DatasetScripts("object_detection")
WEIGHTS = "R-50.pkl"
ANNOTATIONS = "annotations/instances_{}.json"
COUNTS = {"train2017": (3, 2), "val2017": (2, 1)}
"""Images of the made-up set, and how many of them have an annotation."""
TRUE_COUNTS = {"train2017 118287 117266": "train2017 3 2", "val2017 5000 4952": "val2017 2 1"}
"""Words of verify_dataset.sh, and what stands in their place for the made-up set."""


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[str]:
    """The address of a server for the files in tmp_path/mirror."""
    with serve(tmp_path / "mirror") as address:
        yield address


def instances(split: str) -> str:
    """A made-up instances file: the last image has no annotation, the first has two."""
    num_images, num_annotated = COUNTS[split]
    owners = [0, *range(num_annotated)]
    return json.dumps(
        {
            "images": [{"id": 10 * n, "file_name": f"{n:012d}.jpg"} for n in range(num_images)],
            "annotations": [{"id": 1 + n, "image_id": 10 * i} for n, i in enumerate(owners)],
            "categories": [],
        }
    )


def make_archives(folder: Path) -> dict[str, bytes]:
    """Made-up archives of COCO's structure, and weights; name to content."""
    with zipfile.ZipFile(folder / "annotations_trainval2017.zip", "w") as archive:
        for split in COUNTS:
            archive.writestr(ANNOTATIONS.format(split), instances(split))
            archive.writestr(f"annotations/captions_{split}.json", "not wanted")
    for split, (num_images, _) in COUNTS.items():
        with zipfile.ZipFile(folder / f"{split}.zip", "w") as archive:
            for number in range(num_images):
                archive.writestr(f"{split}/{number:012d}.jpg", f"photo {number} of {split}")
    (folder / WEIGHTS).write_bytes(b"weights")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def copy(tmp_path: Path, mirror: str) -> Path:
    """A checkout whose digests and counts are those of the made-up set, which the mirror has."""
    assert mirror
    files = make_archives(tmp_path / "mirror")
    root = DETECTOR.copy_of_checkout(tmp_path / "copy", TRUE_COUNTS)
    checksums = root / "object_detection" / "checksums"
    lines = [f"{hashlib.md5(content).hexdigest()}  {name}\n" for name, content in files.items()]
    (checksums / "reference.md5").write_text("".join(lines))
    return root


# --- facts ----------------------------------------------------------------------------------------


def test_the_checksums_are_those_of_the_specification() -> None:
    assert DETECTOR.pinned("reference", "md5") == {
        "annotations_trainval2017.zip": "f4bbac642086de4f52a3fdda2de5fa2c",
        "train2017.zip": "cced6f7f71b7629ddf16f17bbcfab6b2",
        "val2017.zip": "442b8da7639aecaf257c1dceb8ba8c80",
        WEIGHTS: "b19105fdd7baafb40480251377de18f2",
    }


def test_addresses_and_counts_are_those_of_the_specification() -> None:
    folder = REPOSITORY / "object_detection"
    download = (folder / "download_dataset.sh").read_text()
    addresses = re.findall(r'^[A-Z]+="(https://.+)"$', download, re.MULTILINE)
    assert addresses == [
        "https://s3.amazonaws.com/images.cocodataset.org",
        "https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/MSRA",
    ]
    assert "http://" not in download
    verify = (folder / "verify_dataset.sh").read_text()
    assert all(f"verify_split {words}\n" in verify for words in TRUE_COUNTS)


@pytest.mark.parametrize("script", ["download_dataset.sh", "verify_dataset.sh"])
def test_help_and_wrong_usage(script: str, tmp_path: Path) -> None:
    shown = DETECTOR.run(script, "--help", data=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    words = ("reference", "mini", "tiny", "DATA_DIR", "data/coco/<preset>")
    for word in (f"usage: object_detection/{script}", *words):
        assert word in shown.stdout
    line = error_line(DETECTOR.run(script, "full", data=tmp_path / "data"), 2)
    assert line == "error: unknown preset 'full'; choose one of: reference mini tiny"
    assert not (tmp_path / "data").exists()


# --- COCO -----------------------------------------------------------------------------------------


def test_the_set_is_fetched_unpacked_and_proven(copy: Path, mirror: str, tmp_path: Path) -> None:
    data = tmp_path / "my data"
    result = DETECTOR.run("download_dataset.sh", data=data, root=copy, DATASET_MIRROR=mirror)
    assert result.returncode == 0, result.stderr
    head = result.stderr.splitlines()[:4]
    assert "COCO 2017" in head[0]
    assert "CC BY 4.0" in head[1]
    assert "20.4 GB to fetch" in head[3]
    files = {str(path.relative_to(data)) for path in data.rglob("*") if path.is_file()}
    photos = {f"{s}/{n:012d}.jpg" for s, (count, _) in COUNTS.items() for n in range(count)}
    tables = {ANNOTATIONS.format(split) for split in COUNTS}
    assert files == {"MANIFEST.sha256", WEIGHTS, *photos, *tables}

    result = DETECTOR.run("verify_dataset.sh", data=data, root=copy)
    assert (result.returncode, result.stdout, result.stderr) == (0, "OK: 8 files\n", "")
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    result = DETECTOR.run("download_dataset.sh", data=data, root=copy, DATASET_MIRROR="https://x")
    assert result.returncode == 0
    assert "nothing to do" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before


def test_what_differs_is_named_and_only_it_is_fetched(
    copy: Path, mirror: str, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    run = functools.partial(DETECTOR.run, data=data, root=copy)
    assert run("download_dataset.sh", DATASET_MIRROR=mirror).returncode == 0
    (data / "val2017" / "000000000001.jpg").unlink()
    (data / WEIGHTS).write_bytes(b"other weights")
    result = run("verify_dataset.sh")
    assert "run DATA_DIR=" in error_line(result, 1)
    found = result.stdout.splitlines()
    assert any(line.startswith("val2017/000000000001.jpg: missing") for line in found)
    assert any(line.startswith(f"{WEIGHTS}: differs, expected ") for line in found), found
    assert "val2017: expected 2 images, found 1 images" in found
    assert len(found) == 3
    (data / WEIGHTS).unlink()
    (tmp_path / "mirror" / "train2017.zip").unlink()  # it is not needed again
    result = run("download_dataset.sh", DATASET_MIRROR=mirror)
    assert result.returncode == 0, result.stderr
    assert run("verify_dataset.sh").stdout == "OK: 8 files\n"


def test_other_weights_are_refused(copy: Path, mirror: str, tmp_path: Path) -> None:
    (tmp_path / "mirror" / WEIGHTS).write_bytes(b"wrong weights")
    data = tmp_path / "data"
    result = DETECTOR.run("download_dataset.sh", data=data, root=copy, DATASET_MIRROR=mirror)
    line = error_line(result, 2)
    assert f"expected md5:{hashlib.md5(b'weights').hexdigest()}" in line
    assert f"found md5:{hashlib.md5(b'wrong weights').hexdigest()}" in line
    assert not (data / WEIGHTS).exists()


OTHER_WEIGHTS = "resnet34-333f7ec4.pth"


def test_both_detectors_live_in_one_folder(copy: Path, mirror: str, tmp_path: Path) -> None:
    """Who has fetched COCO for one of them fetches only the weights for the other."""
    other = DatasetScripts("single_stage_detector")
    other.copy_of_checkout(tmp_path / "other", TRUE_COUNTS)
    checksums = tmp_path / "other" / "single_stage_detector" / "checksums"
    own = (copy / "object_detection" / "checksums" / "reference.md5").read_text()
    lines = [line for line in own.splitlines(keepends=True) if WEIGHTS not in line]
    (checksums / "reference.md5").write_text("".join(lines))
    (tmp_path / "mirror" / OTHER_WEIGHTS).write_bytes(b"other weights")
    head = hashlib.sha256(b"other weights").hexdigest()[:8]
    (checksums / "reference.sha256-prefix").write_text(f"{head}  {OTHER_WEIGHTS}\n")
    data = tmp_path / "data"
    roots = {DETECTOR: copy, other: tmp_path / "other"}
    first, second = (
        functools.partial(scripts.run, data=data, root=root, DATASET_MIRROR=mirror)
        for scripts, root in roots.items()
    )
    assert second("download_dataset.sh").returncode == 0
    for archive in (tmp_path / "mirror").glob("*.zip"):
        archive.unlink()
    result = first("download_dataset.sh")
    assert result.returncode == 0, result.stderr
    assert first("verify_dataset.sh").returncode == 0
    result = second("verify_dataset.sh")
    assert result.returncode == 0, result.stdout
    assert "nothing to do" in second("download_dataset.sh").stderr


def test_another_archive_is_refused(mirror: str, tmp_path: Path) -> None:
    """Against the true digests."""
    make_archives(tmp_path / "mirror")
    result = DETECTOR.run("download_dataset.sh", data=tmp_path / "data", DATASET_MIRROR=mirror)
    line = error_line(result, 2)
    assert "expected md5:f4bbac642086de4f52a3fdda2de5fa2c" in line
    assert not (tmp_path / "data").exists()


def test_a_persons_own_copy_is_counted(copy: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("annotations_trainval2017.zip", "train2017.zip", "val2017.zip"):
        with zipfile.ZipFile(tmp_path / "mirror" / name) as archive:
            archive.extractall(data)
    (data / WEIGHTS).write_bytes(b"weights")
    result = DETECTOR.run("verify_dataset.sh", data=data, root=copy)
    assert result.returncode == 0, result.stdout
    assert result.stderr.startswith("note: ")
    content = json.loads((data / ANNOTATIONS.format("val2017")).read_text())
    del content["annotations"][:]
    (data / ANNOTATIONS.format("val2017")).write_text(json.dumps(content))
    (data / "train2017" / "000000000000.jpg").rename(data / "train2017" / "000000000000.jpg.part")
    (data / WEIGHTS).unlink()
    result = DETECTOR.run("verify_dataset.sh", data=data, root=copy)
    error_line(result, 1)
    assert result.stdout.splitlines() == [
        f"{WEIGHTS}: missing, expected md5:{hashlib.md5(b'weights').hexdigest()}",
        "train2017: expected 3 images, found 2 images",
        f"{ANNOTATIONS.format('val2017')}: expected 2 images, 1 of them with an annotation, "
        "found 2 images, 0 of them with an annotation",
    ]


def test_nothing_there_is_a_line_for_each_file_and_what_to_do(tmp_path: Path) -> None:
    result = DETECTOR.run("verify_dataset.sh", data=tmp_path / "nothing")
    assert "object_detection/download_dataset.sh reference" in error_line(result, 1)
    assert result.stdout.splitlines() == [
        "annotations/instances_train2017.json: missing",
        "annotations/instances_val2017.json: missing",
        f"{WEIGHTS}: missing, expected md5:b19105fdd7baafb40480251377de18f2",
        "train2017: missing, expected 118287 images",
        "val2017: missing, expected 5000 images",
    ]


def test_part_of_coco_in_its_place_is_found(shared_coco: Path) -> None:
    result = DETECTOR.run("verify_dataset.sh", data=shared_coco)
    error_line(result, 1)
    assert "train2017: expected 118287 images, found 80 images" in result.stdout
    train = shared_coco / ANNOTATIONS.format("train2017")
    num_images, num_annotated = count_images(train)
    assert f"found {num_images} images, {num_annotated} of them" in result.stdout


def test_only_images_that_there_are_count(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 1}, {"id": 2}, {"id": 2}],
        "annotations": [{"image_id": 2}, {"image_id": 2}, {"image_id": 3}],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    assert count_images(path) == (2, 1)


def test_what_is_no_instances_file_is_said(copy: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "annotations").mkdir(parents=True)
    (data / ANNOTATIONS.format("train2017")).write_text("[]")
    result = DETECTOR.run("verify_dataset.sh", data=data, root=copy)
    assert result.returncode == 1
    assert "found no annotations" in result.stdout


# --- made here ------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["mini", "tiny"])
def test_what_is_made_here_needs_nothing(preset: str, tmp_path: Path) -> None:
    data = tmp_path / preset
    result = DETECTOR.run("download_dataset.sh", preset, data=data)
    assert (result.returncode, result.stdout) == (0, "")
    assert "nothing to fetch" in result.stderr
    result = DETECTOR.run("verify_dataset.sh", preset, data=data)
    assert (result.returncode, result.stdout) == (0, "OK: 0 files\n")
    assert ("not made yet" in result.stderr) == (preset == "mini")
    assert not data.exists()


def test_what_prepare_made_is_proven(tmp_path: Path) -> None:
    folder = tmp_path / "prepared" / "train2017"
    folder.mkdir(parents=True)
    (folder / "1.png").write_bytes(b"a picture")
    digest = hashlib.sha256(b"a picture").hexdigest()
    (tmp_path / "prepared" / "MANIFEST.sha256").write_text(f"{digest}  train2017/1.png\n")
    assert DETECTOR.run("verify_dataset.sh", "mini", data=tmp_path).stdout == "OK: 1 files\n"
    (folder / "1.png").write_bytes(b"another")
    result = DETECTOR.run("verify_dataset.sh", "mini", data=tmp_path)
    assert "prepared" in error_line(result, 1)
    assert result.stdout.startswith(f"prepared/train2017/1.png: differs, expected sha256:{digest}")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    blocked = tmp_path / "a file"
    blocked.touch()
    line = error_line(DETECTOR.run("download_dataset.sh", data=blocked / "data"), 2)
    assert line.startswith(f"error: cannot write to {blocked}/data")
