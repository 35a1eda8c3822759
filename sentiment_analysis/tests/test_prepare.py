"""From archives to word ids: v0.5's words, whole or not at all, and one line where it cannot be."""

from __future__ import annotations

import dataclasses
import errno
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy
import pytest

from harness.errors import UsageError
from harness.options import REPOSITORY, RunOptions
from sentiment_analysis import data, prepare
from sentiment_analysis.config import MINI, REFERENCE
from sentiment_analysis.tests import oracles, preparation_checks

COPY = dataclasses.replace(REFERENCE, dataset="imdb-copy", word_cutoff=2)
FILES = {
    "MANIFEST.sha256",
    "meta.json",
    "vocabulary.txt",
    *(f"{half}_{name}.npy" for half in ("train", "test") for name in prepare.ARRAYS),
}


@pytest.fixture
def three_of_each(monkeypatch):
    """IMDB's halves are taken to have three reviews of each label."""
    monkeypatch.setattr(prepare, "IMDB_REVIEWS", 3)


@pytest.fixture
def imdb(tmp_path, three_of_each):  # noqa: ARG001
    """A data folder with the archive of twelve reviews, a space in its path."""
    folder = tmp_path / "data of imdb"
    folder.mkdir()
    preparation_checks.write_imdb(folder / "aclImdb_twelve.tar.gz")
    return folder


def only_folder(data_dir):
    """The one prepared folder; nothing else was left beside the archive."""
    names = sorted(path.name for path in data_dir.iterdir() if path.is_dir())
    assert len(names) == 1, names
    return data_dir / names[0]


def folders(data_dir):
    return sorted(path.name for path in data_dir.iterdir() if path.is_dir())


def contents(folder):
    """Every file: its bytes, its time of change, its number on disk."""
    return {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino)
        for path in folder.iterdir()
    }


def assert_refused(config, data_dir, *words):
    """UsageError of one line with these words; nothing is left behind."""
    before = folders(data_dir)
    with pytest.raises(UsageError) as caught:
        prepare.prepare(config, data_dir)
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message
    assert folders(data_dir) == before


def list_or_refusal(archive):
    """The reviews of an archive, or the one line that says why it cannot be read."""
    try:
        return list(prepare.read_archive(archive))
    except UsageError as error:
        message = str(error)
    assert "\n" not in message
    return message


# --- science --------------------------------------------------------------------------------------


def test_words_of_hard_bytes():
    preparation_checks.check_words()


def test_words_equal_regular_expressions_on_random_bytes():
    generator = random.Random(1)
    for _ in range(300):
        text = generator.randbytes(generator.randrange(60)) + generator.choice(
            [b"", b"\r\n", b"\n"]
        )
        assert prepare.split_words(text) == oracles.plain_words(text), text


def test_vocabulary_and_ids():
    preparation_checks.check_vocabulary()


def test_many_words_need_wider_ids():
    """65,536 ids are two bytes each; one more needs four."""
    for num_words, dtype in ((65_535, "uint16"), (65_536, "uint32")):
        words = b" ".join(b"w%d" % number for number in range(num_words))
        short = [("train", 0, b"w0"), ("train", 1, b"w1"), ("test", 0, b"w2")]
        reviews = [*short, ("test", 1, words)]
        config = dataclasses.replace(MINI, word_cutoff=0)
        vocabulary, halves = prepare.number_words(iter(reviews), config)
        assert len(vocabulary) == num_words + 1
        assert halves["test"].tokens.dtype == dtype
        texts = halves["test"].tokens[1:]
        assert [vocabulary[word] for word in texts[:3]] == [b"w0", b"w1", b"w2"]
        assert len(set(texts.tolist())) == num_words


def test_archive_of_twelve_reviews():
    preparation_checks.check_archive()


def test_snippets():
    preparation_checks.check_snippets()


# --- what is written ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gz", "xz", "bz2"])
@pytest.mark.parametrize("counted", ["train_and_test", "train"])
@pytest.mark.usefixtures("three_of_each")
def test_a_whole_preparation(tmp_path, kind, counted):
    archive = tmp_path / f"aclImdb_small.tar.{kind}"
    preparation_checks.write_imdb(archive, kind)
    config = dataclasses.replace(COPY, vocabulary_from=counted)
    prepare.prepare(config, tmp_path)
    folder = only_folder(tmp_path)
    digest = prepare.file_digest(archive)
    between = "-train" if counted == "train" else ""
    assert folder.name == f"prepared{between}-{digest[:12]}-2"
    assert {path.name for path in folder.iterdir()} == FILES

    halves = ("train", "test") if counted == "train_and_test" else ("train",)
    words, expected = oracles.plain_numbering(preparation_checks.imdb_reviews(), 2, halves)
    options = RunOptions(data_dir=tmp_path)
    assert data.vocabulary(config, data.prepared(config, options)) == words
    loaded = data.load(config, data.prepared(config, options))
    for half, reviews in loaded.items():
        preparation_checks.assert_half(reviews, expected[half])
    num_train_words = sum(len(ids) for _, ids in expected["train"])
    assert data.sizes(config, data.prepared(config, options)) == (len(words), 6, 6, num_train_words)
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["source_sha256"] == digest
    done = subprocess.run(["sha256sum", "-c", "--strict", "MANIFEST.sha256"], cwd=folder)
    assert done.returncode == 0
    assert len((folder / "MANIFEST.sha256").read_text().splitlines()) == len(FILES) - 1


def write_pinned_snippets(folder, table, monkeypatch):
    """An archive with this table, which counts as VADER's."""
    path = folder / prepare.SNIPPETS_ARCHIVE
    preparation_checks.write_snippets(path, table)
    monkeypatch.setattr(prepare, "SNIPPETS_SHA256", prepare.file_digest(path))


def test_snippets_through_the_command(tmp_path, monkeypatch, capsys):
    write_pinned_snippets(tmp_path, preparation_checks.snippets_table(), monkeypatch)
    assert prepare.main(["mini", "--data-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""
    halves = data.load(MINI, data.prepared(MINI, RunOptions(data_dir=tmp_path)))
    assert [len(halves[half]) for half in ("train", "test")] == [9, 3]
    words = data.vocabulary(MINI, data.prepared(MINI, RunOptions(data_dir=tmp_path)))
    assert words == [b"a", b"film", b"its", b"<unk>"]
    for reviews in halves.values():
        assert reviews.tokens.reshape(-1, 4).tolist() == [[0, 1, 3, 2]] * len(reviews)


def test_a_second_preparation_changes_nothing(imdb):
    prepare.prepare(COPY, imdb)
    before = contents(only_folder(imdb))
    prepare.prepare(COPY, imdb)
    assert contents(only_folder(imdb)) == before


def test_keyed_by_cutoff_vocabulary_and_digest(imdb):
    prepare.prepare(COPY, imdb)
    first = only_folder(imdb)
    before = contents(first)
    prepare.prepare(dataclasses.replace(COPY, word_cutoff=1), imdb)
    prepare.prepare(dataclasses.replace(COPY, vocabulary_from="train"), imdb)
    texts = {name: text + b" more" for name, text in preparation_checks.IMDB_TEXTS.items()}
    preparation_checks.write_imdb(imdb / "aclImdb_twelve.tar.gz", "gz", texts)
    assert prepare.find_prepared(COPY, imdb) is None
    with pytest.raises(UsageError, match="is not prepared"):
        data.load(COPY, data.prepared(COPY, RunOptions(data_dir=imdb)))
    prepare.prepare(COPY, imdb)
    assert len(folders(imdb)) == 4
    assert b"more" in data.vocabulary(COPY, data.prepared(COPY, RunOptions(data_dir=imdb)))
    assert contents(first) == before


@pytest.mark.parametrize("content", ['{"format_version": 0}', "", "{"])
def test_an_older_or_cut_folder_is_made_anew(imdb, content):
    prepare.prepare(COPY, imdb)
    folder = only_folder(imdb)
    before = {name: parts[0] for name, parts in contents(folder).items()}
    (folder / "meta.json").write_text(content)
    (folder / "vocabulary.txt").unlink()
    prepare.prepare(COPY, imdb)
    assert {name: parts[0] for name, parts in contents(only_folder(imdb)).items()} == before


def test_a_cut_array_is_seen_before_training(imdb):
    prepare.prepare(COPY, imdb)
    path = only_folder(imdb) / "train_tokens.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UsageError, match="is damaged") as caught:
        data.load(COPY, data.prepared(COPY, RunOptions(data_dir=imdb)))
    assert "\n" not in str(caught.value)


KILLED = """
import os, signal, sys
from sentiment_analysis import prepare
prepare.IMDB_REVIEWS = 3
place, name = sys.argv[1].split(".")
real = getattr(getattr(prepare, place) if place != "prepare" else prepare, name)
calls = 0
def kill(*arguments):
    global calls
    calls += 1
    if calls == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
setattr(getattr(prepare, place) if place != "prepare" else prepare, name, kill)
options = ["--dataset", "imdb-copy", "--word-cutoff", "2", "--data-dir", sys.argv[3]]
sys.exit(prepare.main(["reference", *options]))
"""


@pytest.mark.parametrize("place", ["numpy.save 4", "prepare.write_manifest 1"])
def test_killed_in_between_leaves_nothing_that_counts(imdb, place):
    name, call = place.split()
    command = [sys.executable, "-c", KILLED, name, call, imdb]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [name.endswith(".tmp") for name in folders(imdb)] == [True]
    assert prepare.find_prepared(COPY, imdb) is None
    prepare.prepare(COPY, imdb)
    assert {path.name for path in only_folder(imdb).iterdir()} == FILES


def test_a_full_disk_is_one_line_and_leaves_nothing(imdb, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepare, "write_manifest", full)
    assert_refused(COPY, imdb, "cannot write", "No space left")
    assert folders(imdb) == []


def test_two_at_once_make_one(imdb):
    code = KILLED.replace("SIGKILL", "SIGCONT")
    command = [sys.executable, "-c", code, "prepare.locked", "1", imdb]
    both = [subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate() and process.returncode for process in both] == [0, 0]
    assert {path.name for path in only_folder(imdb).iterdir()} == FILES
    before = contents(only_folder(imdb))
    prepare.prepare(COPY, imdb)
    assert contents(only_folder(imdb)) == before


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.usefixtures("three_of_each")
def test_another_archive_under_the_true_name(tmp_path):
    preparation_checks.write_imdb(tmp_path / prepare.IMDB_ARCHIVE)
    assert_refused(REFERENCE, tmp_path, "expected sha256 c40f74a1", "imdb-copy")
    prepare.prepare(COPY, tmp_path)  # as a copy it may be taken


def test_the_true_archive_must_have_its_words(imdb, monkeypatch):
    (imdb / "aclImdb_twelve.tar.gz").rename(imdb / prepare.IMDB_ARCHIVE)
    monkeypatch.setattr(prepare, "IMDB_SHA256", prepare.file_digest(imdb / prepare.IMDB_ARCHIVE))
    assert_refused(REFERENCE, imdb, "expected 5147 words, found 1")


def test_missing_and_ambiguous_archives(tmp_path):
    assert_refused(REFERENCE, tmp_path, "aclImdb_v1.tar.gz is missing", "download_dataset.sh")
    assert_refused(MINI, tmp_path, f"{prepare.SNIPPETS_ARCHIVE} is missing", "mini")
    assert_refused(COPY, tmp_path, "has 0 files")
    for name in ("aclImdb_a.tar.gz", "aclImdb_b.tar.xz"):
        preparation_checks.write_imdb(tmp_path / name, name[-2:])
    assert_refused(COPY, tmp_path, "has 2 files")
    assert_refused(REFERENCE, tmp_path, "is another archive", "--dataset imdb-copy")


@pytest.mark.parametrize("lacking", ["test/neg/1_1", "train/pos/0_9"])
def test_a_review_too_few(imdb, lacking):
    texts = {name: text for name, text in preparation_checks.IMDB_TEXTS.items() if name != lacking}
    preparation_checks.write_imdb(imdb / "aclImdb_twelve.tar.gz", "gz", texts)
    half = lacking.split("/")[0]
    assert_refused(COPY, imdb, f"expected 3 {half} reviews of each label", "found [")


def test_a_label_without_reviews(imdb):
    texts = {
        name: text for name, text in preparation_checks.IMDB_TEXTS.items() if "test/pos" not in name
    }
    preparation_checks.write_imdb(imdb / "aclImdb_twelve.tar.gz", "gz", texts)
    assert_refused(COPY, imdb, "test half lacks reviews of a label")


@pytest.mark.parametrize("text", [b"", b"\r\n", b" ... !?\n"])
def test_a_review_without_words(imdb, text):
    texts = {**preparation_checks.IMDB_TEXTS, "train/neg/1_1": text}
    preparation_checks.write_imdb(imdb / "aclImdb_twelve.tar.gz", "gz", texts)
    assert_refused(COPY, imdb, "train half has no word")


@pytest.mark.parametrize("kind", ["gz", "xz", "bz2"])
def test_cut_archives(imdb, kind):
    """At whatever byte: a member is cut, or reviews are missing."""
    archive = imdb / "aclImdb_twelve.tar.gz"
    preparation_checks.write_imdb(archive, kind)
    whole = archive.read_bytes()
    refused = 0
    for size in [*range(0, len(whole) - 60, 41), len(whole) - 1]:
        archive.write_bytes(whole[:size])
        found = list_or_refusal(archive)
        if isinstance(found, str):
            refused += 1
        else:
            assert found == preparation_checks.imdb_reviews()[: len(found)]
            if len(found) < 12:
                assert_refused(COPY, imdb)
    assert refused > 0


@pytest.mark.parametrize("kind", ["gz", "xz", "bz2"])
def test_damaged_archives(imdb, kind):
    """Bytes changed: refused, or read; never a traceback."""
    archive = imdb / "aclImdb_twelve.tar.gz"
    preparation_checks.write_imdb(archive, kind)
    whole = bytearray(archive.read_bytes())
    generator = random.Random(4)
    refused = 0
    for _ in range(100):
        changed = bytearray(whole)
        changed[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        archive.write_bytes(changed)
        refused += isinstance(list_or_refusal(archive), str)
    assert refused > 10


CUT_IN_ITS_HEADER = b"\x1f\x8b\x08"  # tarfile raises a TypeError


@pytest.mark.parametrize(
    "content", [b"", b"not an archive", b"<html>" * 1000, CUT_IN_ITS_HEADER, b"\x1f\x8b\x08\x00"]
)
def test_no_archive_at_all(imdb, content):
    (imdb / "aclImdb_twelve.tar.gz").write_bytes(content)
    assert_refused(COPY, imdb, "aclImdb_twelve.tar.gz")


def test_cut_snippets(tmp_path):
    """The one file that is read is whole or refused; prepare() takes the pinned digest alone."""
    archive = tmp_path / prepare.SNIPPETS_ARCHIVE
    table = preparation_checks.snippets_table() + b"".join(
        b"%d\t2.0\t%s\r\n" % (number, random.Random(number).randbytes(20).hex().encode())
        for number in range(200)
    )
    preparation_checks.write_snippets(archive, table)
    whole = archive.read_bytes()
    expected = list(prepare.read_snippets(archive))
    for size in range(4, len(whole), 97):
        archive.write_bytes(whole[:size])
        try:
            found = list(prepare.read_snippets(archive))
        except UsageError:
            continue
        assert found in ([], expected), size
        assert_refused(MINI, tmp_path, f"expected sha256 {prepare.SNIPPETS_SHA256}")


@pytest.mark.parametrize("line", [b"no tabs at all", b"7\thigh\ttext", b"7\t1.0"])
def test_lines_that_are_not_vaders(tmp_path, monkeypatch, line):
    table = preparation_checks.snippets_table() + line + b"\r\n"
    write_pinned_snippets(tmp_path, table, monkeypatch)
    assert_refused(MINI, tmp_path, prepare.SNIPPETS_MEMBER, "download it again")


def test_errors_of_the_command_are_one_line(tmp_path, capsys):
    status = prepare.main(["reference", "--data-dir", str(tmp_path)])
    output = capsys.readouterr()
    assert status == 2
    assert output.out == ""
    assert re.fullmatch(r"[^\n]*aclImdb_v1\.tar\.gz is missing[^\n]*\n", output.err)


# --- the real reviews -----------------------------------------------------------------------------


@pytest.mark.slow
def test_real_copy_of_imdb(tmp_path, shared_imdb):
    """50,000 reviews in one pass; the copy lacks two of v0.5's 5,147 words."""
    (archive,) = shared_imdb.glob("aclImdb*.tar.*")
    (tmp_path / archive.name).symlink_to(archive)
    config = dataclasses.replace(REFERENCE, dataset="imdb-copy")
    start_s = time.process_time()
    prepare.prepare(config, tmp_path)
    took_s = time.process_time() - start_s
    print(f"{took_s:.1f} s of one core")
    assert took_s < 15
    options = RunOptions(data_dir=tmp_path)
    halves = data.load(config, data.prepared(config, options))
    words = data.vocabulary(config, data.prepared(config, options))
    assert len(words) == 5_145
    assert words[:5] == [b"the", b"and", b"a", b"of", b"to"]
    for reviews in halves.values():
        assert reviews.tokens.dtype == numpy.uint16
        assert numpy.bincount(reviews.labels).tolist() == [12_500, 12_500]
        assert reviews.labels.tolist() == sorted(reviews.labels.tolist())
        assert int(reviews.tokens.max()) == 5_144
    shutil.rmtree(tmp_path)
