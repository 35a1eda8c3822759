"""Checkpoints: whole or refused, the newest two kept, nothing half-written."""

import errno
import json

import pytest

from harness.checkpoint import newest_checkpoint, write_atomically, write_checkpoint


def save(folder, step, content=b"weights"):
    with write_checkpoint(folder, step, "bin", {"step": step}) as file:
        file.write(content)


def test_newest_of_two_is_found_and_older_ones_go(tmp_path):
    for step in (5, 10, 100):
        save(tmp_path, step, b"%d" % step)
    found = newest_checkpoint(tmp_path)
    assert found.position == {"step": 100}
    assert found.path.read_bytes() == b"100"
    names = sorted(path.name for path in tmp_path.iterdir())
    steps = ("step-000000010", "step-000000100")
    assert names == [f"{step}.{suffix}" for step in steps for suffix in ("bin", "json")]


def test_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "never made") is None


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "json"])
def test_a_damaged_one_is_refused_and_the_previous_used(tmp_path, capsys, damage):
    save(tmp_path, 1)
    save(tmp_path, 2)
    newest = tmp_path / "step-000000002.bin"
    if damage == "truncate":
        newest.write_bytes(newest.read_bytes()[:-1])
    elif damage == "flip":
        newest.write_bytes(b"Weights")
    elif damage == "remove":
        newest.unlink()
    else:
        newest.with_suffix(".json").write_text('{"file": "step-0')
    assert newest_checkpoint(tmp_path).position == {"step": 1}
    message = capsys.readouterr().err
    assert "step-000000002 is damaged" in message
    assert message.count("\n") == 1
    # It stays out of the way when the run goes on, and is never taken later.
    assert newest_checkpoint(tmp_path).position == {"step": 1}
    assert capsys.readouterr().err == ""


def test_without_its_json_it_does_not_count(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "step-000000002.bin").write_bytes(b"killed before the json was written")
    assert newest_checkpoint(tmp_path).position == {"step": 1}


def test_a_failed_write_leaves_the_previous_one(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def half(descriptor):
        assert descriptor >= 0
        raise OSError(errno.ENOSPC, "disk is full")

    monkeypatch.setattr("os.fsync", half)
    with pytest.raises(OSError, match="disk"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000000001.bin",
        "step-000000001.json",
    ]
    assert newest_checkpoint(tmp_path).position == {"step": 1}


def test_the_same_step_twice(tmp_path):
    save(tmp_path, 1, b"first")
    save(tmp_path, 1, b"second")
    assert newest_checkpoint(tmp_path).path.read_bytes() == b"second"


def test_digest_is_sha256(tmp_path):
    save(tmp_path, 1, b"abc")
    record = json.loads((tmp_path / "step-000000001.json").read_text())
    assert record["sha256"].startswith("ba7816bf8f01cfea")  # FIPS 180-2, example B.1
    assert record["size_bytes"] == 3


def test_write_atomically_keeps_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_atomically(path, b"old")

    def full(descriptor):
        assert descriptor >= 0
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]
