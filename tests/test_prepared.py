"""What preparing data shares: one process at a time, and a manifest that sha256sum -c accepts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.prepared import locked, write_manifest

ROOT = Path(__file__).parent.parent

SECOND = """
import sys
from pathlib import Path
from harness.prepared import locked
folder = Path(sys.argv[1])
print("waits", flush=True)
with locked(folder):
    print("has it", (folder / "made").exists(), flush=True)
"""


def test_a_second_process_waits_and_then_sees_what_the_first_made(tmp_path):
    command = [sys.executable, "-c", SECOND, str(tmp_path)]
    with locked(tmp_path):
        other = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert other.stdout and other.stdout.readline() == "waits\n"
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.5)
        (tmp_path / "made").touch()
    output, _ = other.communicate(timeout=30)
    assert output == "has it True\n"


def test_an_error_releases_the_lock(tmp_path):
    with pytest.raises(OSError, match="full"), locked(tmp_path):
        raise OSError("full")
    command = [sys.executable, "-c", SECOND, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.stdout == "waits\nhas it False\n"


def test_the_lock_leaves_nothing_behind(tmp_path):
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def check_manifest(folder: Path) -> int:
    command = ["sha256sum", "--check", "--strict", "--quiet", "MANIFEST.sha256"]
    return subprocess.run(command, cwd=folder, capture_output=True).returncode


def test_the_manifest_names_every_file_in_order_and_is_what_sha256sum_reads(tmp_path):
    for name in ("b.npy", "a b.npy", "meta.json"):
        (tmp_path / name).write_text(f"content of {name}")
    write_manifest(tmp_path)
    lines = (tmp_path / "MANIFEST.sha256").read_text().splitlines()
    assert [line[64:] for line in lines] == ["  a b.npy", "  b.npy", "  meta.json"]
    assert check_manifest(tmp_path) == 0
    (tmp_path / "b.npy").write_text("another")
    assert check_manifest(tmp_path) == 1


def test_the_manifest_reaches_into_folders(tmp_path):
    (tmp_path / "images" / "train").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    names = ("images/train/1.png", "images/2 b.png", "meta.json")
    for name in names:
        (tmp_path / name).write_text(f"content of {name}")
    write_manifest(tmp_path)
    lines = (tmp_path / "MANIFEST.sha256").read_text().splitlines()
    assert [line[66:] for line in lines] == ["images/2 b.png", "images/train/1.png", "meta.json"]
    assert check_manifest(tmp_path) == 0
    (tmp_path / "MANIFEST.sha256").unlink()
    write_manifest(tmp_path, known={"images/2 b.png": "0" * 64, "1.png": "1" * 64})
    known, *others = (tmp_path / "MANIFEST.sha256").read_text().splitlines()
    assert known == f"{'0' * 64}  images/2 b.png"
    assert others == lines[1:]


def test_known_digests_are_taken_as_they_are(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text("content")
    write_manifest(tmp_path, known={"a": "0" * 64, "elsewhere": "1" * 64})
    first, second = (tmp_path / "MANIFEST.sha256").read_text().splitlines()
    assert first == f"{'0' * 64}  a"
    assert second[64:] == "  b" and second[:64] != "0" * 64


def test_every_file_is_on_the_disk_before_the_manifest_is(tmp_path, monkeypatch):
    """A power cut must not leave a manifest beside files that never arrived."""
    for name in ("a", "b"):
        (tmp_path / name).write_text("content")
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_ino))
    write_manifest(tmp_path, known={"a": "0" * 64})
    assert synced == [(tmp_path / name).stat().st_ino for name in ("a", "b", "MANIFEST.sha256")]
