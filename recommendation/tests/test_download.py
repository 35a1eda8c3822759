"""download_dataset.sh and verify_dataset.sh of this benchmark, run as a person would run them."""

import hashlib
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dataset_scripts import REPOSITORY, DatasetScripts, error_line, serve

SCRIPTS = DatasetScripts("recommendation")
run, pinned, copy_of_checkout = SCRIPTS.run, SCRIPTS.pinned, SCRIPTS.copy_of_checkout
WHEEL = "recbole-1.2.1-py3-none-any.whl"


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mini data set, as it comes from PyPI."""
    data = tmp_path_factory.mktemp("data with spaces") / "mini"
    result = run("download_dataset.sh", "mini", data=data)
    if result.returncode == 1:
        pytest.skip(f"PyPI cannot be reached: {result.stderr.splitlines()[-1]}")
    assert result.returncode == 0, result.stderr
    first_lines = result.stderr.splitlines()[:4]
    assert first_lines[0] == "MovieLens 100K"
    assert "GroupLens terms" in first_lines[1] and "may not be redistributed" in first_lines[1]
    assert "2.1 MB to fetch" in first_lines[3]
    assert result.stdout == ""
    return data


@pytest.fixture
def mini(downloaded: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage."""
    return Path(shutil.copytree(downloaded, tmp_path / "my data" / "mini"))


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[str]:
    """The address of a server for the files in tmp_path/mirror."""
    with serve(tmp_path / "mirror") as address:
        yield address


# --- facts ----------------------------------------------------------------------------------------


def test_the_checksums_are_those_of_the_published_files() -> None:
    assert pinned("reference") == {
        "ml-20m.zip": "96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3"
    }
    assert pinned("ml-1m") == {
        "ml-1m.zip": "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20"
    }
    assert pinned("mini") == {
        WHEEL: "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
        "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    }


@pytest.mark.parametrize("script", ["download_dataset.sh", "verify_dataset.sh"])
def test_help_and_wrong_usage(script: str, tmp_path: Path) -> None:
    shown = run(script, "--help", data=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    for word in (
        f"usage: recommendation/{script}",
        "reference",
        "mini",
        "ml-1m",
        "tiny",
        "DATA_DIR",
    ):
        assert word in shown.stdout
    assert ("DATASET_MIRROR" in shown.stdout) == (script == "download_dataset.sh")
    line = error_line(run(script, "ml-10m", data=tmp_path / "data"), 2)
    assert line == "error: unknown preset 'ml-10m'; choose one of: reference mini ml-1m tiny"
    assert not (tmp_path / "data").exists()


# --- mini, end to end -----------------------------------------------------------------------------


def test_mini_is_what_training_opens(downloaded: Path) -> None:
    files = sorted(path.name for path in downloaded.iterdir())
    assert files == ["MANIFEST.sha256", "ml-100k.inter", "ml-100k.item"]
    digests = pinned("mini")
    for name in files[1:]:
        assert hashlib.sha256((downloaded / name).read_bytes()).hexdigest() == digests[name]
    manifest = (downloaded / "MANIFEST.sha256").read_text().splitlines()
    assert manifest == [
        f"# {WHEEL} sha256:{digests[WHEEL]}",
        f"{digests['ml-100k.inter']}  ml-100k.inter",
        f"{digests['ml-100k.item']}  ml-100k.item",
    ]
    subprocess.run(
        ["sha256sum", "--check", "--strict", "MANIFEST.sha256"], cwd=downloaded, check=True
    )
    result = run("verify_dataset.sh", "mini", data=downloaded)
    assert (result.returncode, result.stdout, result.stderr) == (0, "OK: 2 files\n", "")


def test_a_second_download_does_nothing(mini: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in mini.iterdir()}
    # Without pip and without a network: what is complete needs neither.
    result = run("download_dataset.sh", "mini", data=mini, PYTHON="/there/is/no/python")
    assert result.returncode == 0, result.stderr
    assert "nothing to do" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in mini.iterdir()} == before


def test_from_another_folder_with_a_relative_path(mini: Path) -> None:
    away = str(mini.parent)
    for script in ("verify_dataset.sh", "download_dataset.sh"):
        result = run(script, data="mini", PRESET="mini", PWD=away)
        assert result.returncode == 0, result.stderr


def test_a_checkout_in_a_path_with_spaces(mini: Path, tmp_path: Path) -> None:
    copy = copy_of_checkout(tmp_path / "a [check] out")
    assert run("verify_dataset.sh", "mini", data=mini, root=copy).stdout == "OK: 2 files\n"
    # An empty DATA_DIR counts as none.
    shutil.copytree(mini, copy / "data" / "recommendation" / "mini")
    assert run("verify_dataset.sh", "mini", data="", root=copy).stdout == "OK: 2 files\n"


def test_one_changed_byte_is_found_and_mended(mini: Path) -> None:
    path = mini / "ml-100k.inter"
    content = bytearray(path.read_bytes())
    content[1_000_000] ^= 1
    path.write_bytes(content)
    result = run("verify_dataset.sh", "mini", data=mini)
    line = error_line(result, 1)
    assert result.stdout == (
        f"ml-100k.inter: differs, expected sha256:{pinned('mini')['ml-100k.inter']}, "
        f"found sha256:{hashlib.sha256(content).hexdigest()}\n"
    )
    # What to do is a command that can be typed, and it helps.
    command = line.split("; run ")[1].split(":")[0]
    assert command.endswith("recommendation/download_dataset.sh mini")
    if run("download_dataset.sh", "mini", data=mini).returncode == 1:
        pytest.skip("PyPI cannot be reached any more")
    assert run("verify_dataset.sh", "mini", data=mini).stdout == "OK: 2 files\n"


def test_a_changed_file_with_a_changed_manifest_is_found(mini: Path) -> None:
    path = mini / "ml-100k.item"
    path.write_bytes(path.read_bytes().replace(b"Toy Story", b"Joy Story"))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest = mini / "MANIFEST.sha256"
    manifest.write_text(manifest.read_text().replace(pinned("mini")["ml-100k.item"], found))
    result = run("verify_dataset.sh", "mini", data=mini)
    error_line(result, 1)
    assert result.stdout.startswith("ml-100k.item: differs, expected sha256:51d7cdf7")
    assert f"found sha256:{found}" in result.stdout


def test_a_missing_file_is_found(mini: Path) -> None:
    (mini / "ml-100k.item").unlink()
    result = run("verify_dataset.sh", "mini", data=mini)
    error_line(result, 1)
    assert result.stdout == (
        f"ml-100k.item: missing, expected sha256:{pinned('mini')['ml-100k.item']}\n"
    )


def test_what_prepare_made_is_proven_too(mini: Path) -> None:
    prepared = mini / "prepared"
    prepared.mkdir()
    (prepared / "users.npy").write_bytes(b"users")
    digest = hashlib.sha256(b"users").hexdigest()
    (prepared / "MANIFEST.sha256").write_text(f"{digest}  users.npy\n")
    assert run("verify_dataset.sh", "mini", data=mini).stdout == "OK: 3 files\n"
    (prepared / "users.npy").unlink()
    result = run("verify_dataset.sh", "mini", data=mini)
    assert "prepared" in error_line(result, 1)
    assert result.stdout == f"prepared/users.npy: missing, expected sha256:{digest}\n"


def test_a_persons_own_mini_is_proven_by_its_pinned_digests(mini: Path) -> None:
    (mini / "MANIFEST.sha256").unlink()
    result = run("verify_dataset.sh", "mini", data=mini)
    assert (result.returncode, result.stdout) == (0, "OK: 2 files\n")
    assert result.stderr.startswith("note: ")


# --- the sets of GroupLens ------------------------------------------------------------------------


def write_archive(path: Path, name: str, members: list[str]) -> None:
    """A made-up archive with the members of GroupLens' `name`.zip."""
    with zipfile.ZipFile(path, "w") as archive:
        for member in members:
            archive.writestr(f"{name}/{member}", f"made-up {member}\n")


GROUPLENS = {
    "reference": (
        "ml-20m",
        "198702078",
        ["ratings.csv", "movies.csv", "README.txt"],
        ["tags.csv", "links.csv", "genome-scores.csv"],
    ),
    "ml-1m": ("ml-1m", "5917549", ["ratings.dat", "movies.dat", "README"], ["users.dat"]),
}


@pytest.mark.parametrize("preset", GROUPLENS)
def test_a_made_up_archive_is_refused(preset: str, mirror: str, tmp_path: Path) -> None:
    name, _, wanted, others = GROUPLENS[preset]
    archive = tmp_path / "mirror" / f"{name}.zip"
    write_archive(archive, name, wanted + others)
    data = tmp_path / "data"
    line = error_line(run("download_dataset.sh", preset, data=data, DATASET_MIRROR=mirror), 2)
    assert f"expected sha256:{pinned(preset)[f'{name}.zip']}" in line
    assert f"found sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}" in line
    assert not data.exists()


@pytest.mark.parametrize("preset", GROUPLENS)
def test_an_archive_of_grouplens_is_unpacked(preset: str, mirror: str, tmp_path: Path) -> None:
    """With the digest and the size of a made-up archive in the place of the true ones."""
    name, size, wanted, others = GROUPLENS[preset]
    archive = tmp_path / "mirror" / f"{name}.zip"
    write_archive(archive, name, wanted + others)
    copy = copy_of_checkout(tmp_path / "copy")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    (copy / "recommendation" / "checksums" / f"{preset}.sha256").write_text(
        f"{digest}  {name}.zip\n"
    )
    script = copy / "recommendation" / "download_dataset.sh"
    text = script.read_text()
    assert text.count(size) == 1
    script.write_text(text.replace(size, str(archive.stat().st_size)))

    data = tmp_path / "data"
    result = run("download_dataset.sh", preset, data=data, root=copy, DATASET_MIRROR=mirror)
    assert result.returncode == 0, result.stderr
    assert "may not be redistributed" in result.stderr.splitlines()[1]
    files = sorted(str(path.relative_to(data)) for path in data.rglob("*") if path.is_file())
    assert files == sorted(["MANIFEST.sha256", *(f"{name}/{member}" for member in wanted)])
    first_line = (data / "MANIFEST.sha256").read_text().splitlines()[0]
    assert first_line == f"# {name}.zip sha256:{digest}"

    result = run("verify_dataset.sh", preset, data=data, root=copy)
    error_line(result, 1)
    num_ratings, header_lines = {"reference": (20_000_263, 1), "ml-1m": (1_000_209, 0)}[preset]
    found = 1 - header_lines
    assert result.stdout == (
        f"{name}/{wanted[0]}: expected {num_ratings} ratings, found {found} ratings\n"
    )


@pytest.mark.parametrize(
    ("preset", "ratings", "movies", "num_lines"),
    [
        ("reference", "ml-20m/ratings.csv", "ml-20m/movies.csv", 20_000_264),
        ("ml-1m", "ml-1m/ratings.dat", "ml-1m/movies.dat", 1_000_209),
    ],
)
def test_a_persons_own_copy_is_counted(
    preset: str, ratings: str, movies: str, num_lines: int, tmp_path: Path
) -> None:
    (tmp_path / ratings).parent.mkdir()
    (tmp_path / ratings).write_bytes(b"\n" * num_lines)
    (tmp_path / movies).write_bytes(b"\n")
    result = run("verify_dataset.sh", preset, data=tmp_path)
    assert (result.returncode, result.stdout) == (0, "OK: 2 files\n")
    assert "no MANIFEST.sha256" in result.stderr
    (tmp_path / ratings).write_bytes(b"\n" * (num_lines - 1))
    (tmp_path / movies).unlink()
    result = run("verify_dataset.sh", preset, data=tmp_path)
    error_line(result, 1)
    assert result.stdout.splitlines()[0] == f"{movies}: missing"
    assert re.search(rf"{ratings}: expected \d+ ratings, found \d+ ratings", result.stdout)


def test_another_movielens_in_the_place_of_the_reference_is_found(tmp_path: Path) -> None:
    shared = Path(os.environ.get("MLPERF_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    small = shared / "movielens" / "ml-latest-small"
    if not small.is_dir():
        pytest.skip(f"needs {small} (MLPERF_TEST_DATA names another place)")
    shutil.copytree(small, tmp_path / "ml-20m")
    result = run("verify_dataset.sh", data=tmp_path)
    assert "run DATA_DIR=" in error_line(result, 1)
    assert result.stdout == (
        "ml-20m/ratings.csv: expected 20000263 ratings, found 100836 ratings\n"
    )


# --- folders --------------------------------------------------------------------------------------


def test_nothing_there_is_a_line_for_each_file_and_what_to_do(tmp_path: Path) -> None:
    result = run("verify_dataset.sh", data=tmp_path / "nothing")
    assert "recommendation/download_dataset.sh reference" in error_line(result, 1)
    assert result.stdout == "ml-20m/ratings.csv: missing\nml-20m/movies.csv: missing\n"
    assert not (tmp_path / "nothing").exists()


def test_tiny_needs_nothing(tmp_path: Path) -> None:
    data = tmp_path / "tiny"
    result = run("download_dataset.sh", "tiny", data=data)
    assert (result.returncode, result.stdout) == (0, "")
    assert "nothing to fetch" in result.stderr
    assert run("verify_dataset.sh", "tiny", data=data).stdout == "OK: 0 files\n"
    assert not data.exists()


@pytest.mark.parametrize("preset", ["reference", "mini", "ml-1m"])
def test_a_folder_that_cannot_be_made_is_one_line(preset: str, tmp_path: Path) -> None:
    blocked = tmp_path / "a file"
    blocked.touch()
    line = error_line(run("download_dataset.sh", preset, data=blocked / "data"), 2)
    assert line.startswith(f"error: cannot write to {blocked}/data")
