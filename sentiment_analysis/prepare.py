"""From an archive of reviews to word ids: one pass over it, then a file of ids for each half.

    .venv/bin/python -m sentiment_analysis.prepare mini

Off the clock, once for each archive and vocabulary: writes DATA_DIR/prepared-<digest>-<cutoff>/,
whole or not at all. The words, the vocabulary and the labels are v0.5's (which made them within
the timed run, in five passes over the archive).
"""

from __future__ import annotations

import hashlib
import json
import lzma
import re
import shutil
import string
import sys
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, Literal, cast

import numpy
from numpy.typing import NDArray

from harness.errors import UsageError
from harness.options import exit_with, parse_command_line
from harness.prepared import locked, write_manifest
from sentiment_analysis.config import NEGATIVE, POSITIVE, PRESETS, Config, check_values

IntArray = NDArray[numpy.integer]
Half = Literal["train", "test"]
HALVES: tuple[Half, Half] = ("train", "test")
ARRAYS = ("tokens", "offsets", "labels")

IMDB_ARCHIVE = "aclImdb_v1.tar.gz"
IMDB_SHA256 = "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe"
IMDB_REVIEWS = 12_500
"""Reviews of each half and label."""
IMDB_VOCABULARY = 5_147
"""Words that v0.5 finds in the true archive, the unknown one included."""
IMDB_MEMBER = re.compile(r"aclImdb/(train|test)/(pos|neg)/\d+_\d+\.txt")

SNIPPETS_ARCHIVE = "hutto_ICWSM_2014.tar.gz"
SNIPPETS_SHA256 = "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa"
SNIPPETS_MEMBER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
MIN_RATING = 1.0
"""Snippets rated nearer to zero than this are left out; ratings reach from -4 to 4."""
TEST_PERIOD = 5
"""Every fifth snippet is for the test: the file is ordered by the polarity of its source."""

UNKNOWN_WORD = b"<unk>"
PUNCTUATION = string.punctuation.encode()
FORMAT_VERSION = 1
"""Raised when the arrays change, so that older ones are made anew."""


@dataclass(frozen=True)
class Reviews:
    """Reviews as word ids, one after another."""

    tokens: IntArray  # [T] uint16 or uint32
    offsets: IntArray  # [N + 1] int64: where each review begins, and the end of the last
    labels: IntArray  # [N] int64: 0 positive, 1 negative

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> IntArray:
        """Words of each review: [N]."""
        return numpy.diff(self.offsets)


def split_words(text: bytes) -> list[bytes]:
    """The words of a review, by bytes: ASCII punctuation goes without a trace, ASCII is lowered.

    So `don't` is `dont`, `out.<br />` is `outbr`, and other bytes stay as they are.
    """
    return text.rstrip(b"\r\n").translate(None, PUNCTUATION).lower().split()


def source_file(config: Config, data_dir: Path) -> Path:
    """The file that the reviews come from. Raises UsageError where it is missing."""
    name = {"imdb": IMDB_ARCHIVE, "movie-snippets": SNIPPETS_ARCHIVE}.get(config.dataset)
    copies = sorted(data_dir.glob("aclImdb*.tar.*"))
    if name is None:
        if len(copies) == 1:
            return copies[0]
        cause = f"{data_dir} has {len(copies)} files aclImdb*.tar.*"
        raise UsageError(f"{cause}; put the one there that imdb-copy shall read")
    if (data_dir / name).is_file():
        return data_dir / name
    if config.dataset == "imdb" and copies:
        cause = f"{data_dir / name} is missing, and {copies[0].name} is another archive"
        raise UsageError(f"{cause}; take --dataset imdb-copy to train on that one")
    cause = f"{data_dir / name} is missing"
    raise UsageError(f"{cause}; run sentiment_analysis/download_dataset.sh {config.preset}")


def read_archive(path: Path) -> Iterator[tuple[Half, int, bytes]]:
    """Half, label and text of every labelled review, in one pass, in the order of the archive.

    The archive is a tar of the layout aclImdb/{train,test}/{pos,neg}/<id>_<stars>.txt, packed with
    gzip, bzip2 or xz. Raises UsageError where it is none, or is cut.
    """
    for name, text in read_members(path, IMDB_MEMBER):
        found = IMDB_MEMBER.fullmatch(name)
        assert found
        yield cast(Half, found[1]), POSITIVE if found[2] == "pos" else NEGATIVE, text


def read_snippets(path: Path) -> Iterator[tuple[Half, int, bytes]]:
    """Half, label and text of VADER's movie snippets with a clear rating, in the order of the file.

    Lines are `id <tab> mean rating <tab> text`. Raises UsageError where one is not, or where the
    archive around the file cannot be read.
    """
    number = 0
    for _, table in read_members(path, re.compile(re.escape(SNIPPETS_MEMBER))):
        for line in table.split(b"\r\n"):
            if not line:
                continue
            try:
                _, rating_text, text = line.split(b"\t", 2)
                rating = float(rating_text)
            except ValueError as error:
                cause = f"{path}: {SNIPPETS_MEMBER} is not VADER's file ({error})"
                raise UsageError(f"{cause}; download it again") from error
            if abs(rating) >= MIN_RATING:
                label = POSITIVE if rating > 0 else NEGATIVE
                yield "train" if number % TEST_PERIOD else "test", label, text
                number += 1


def read_members(path: Path, wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """Name and content of the files of an archive whose names match, in one pass.

    Raises UsageError where it is no archive, or is cut.
    """
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                if wanted.fullmatch(member.name) and member.isfile():
                    yield member.name, cast(IO[bytes], archive.extractfile(member)).read()
    except (OSError, EOFError, TypeError, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
        # TypeError: what tarfile makes of an archive that is cut within gzip's first header.
        raise UsageError(f"{path} cannot be read ({error}); download it again") from error


def number_words(
    reviews: Iterator[tuple[Half, int, bytes]], config: Config
) -> tuple[list[bytes], dict[Half, Reviews]]:
    """The vocabulary, and the reviews as places in it: all positives of a half, then all negatives.

    The vocabulary has the words that occur more than `word_cutoff` times, the most frequent first
    and among equals by their bytes; last the unknown word. Raises UsageError where a half has no
    review, or a review no word.
    """
    numbers: defaultdict[bytes, int] = defaultdict(count().__next__)  # by first appearance
    found: dict[tuple[Half, int], list[IntArray]] = {}
    for half, label, text in reviews:
        words = split_words(text)
        if not words:
            raise UsageError(f"a review of the {half} half has no word; check the data set")
        ids = numpy.fromiter(map(numbers.__getitem__, words), numpy.int32, len(words))
        found.setdefault((half, label), []).append(ids)
    for half in HALVES:
        if not (found.get((half, POSITIVE)) and found.get((half, NEGATIVE))):
            raise UsageError(f"the {half} half lacks reviews of a label; check the data set")

    counted = HALVES if config.vocabulary_from == "train_and_test" else ("train",)
    counts = numpy.zeros(len(numbers), numpy.int64)
    for (half, _), parts in found.items():
        if half in counted:
            counts += numpy.bincount(numpy.concatenate(parts), minlength=len(counts))
    words = list(numbers)
    kept = [number for number in range(len(words)) if counts[number] > config.word_cutoff]
    kept.sort(key=lambda number: (-counts[number], words[number]))
    new_ids = numpy.full(len(words), len(kept))  # the unknown word's
    new_ids[kept] = numpy.arange(len(kept))
    dtype = numpy.uint16 if len(kept) < 1 << 16 else numpy.uint32

    halves: dict[Half, Reviews] = {}
    for half in HALVES:
        by_label = [(label, ids) for label in (POSITIVE, NEGATIVE) for ids in found[half, label]]
        lengths = [len(ids) for _, ids in by_label]
        halves[half] = Reviews(
            tokens=new_ids[numpy.concatenate([ids for _, ids in by_label])].astype(dtype),
            offsets=numpy.concatenate([[0], numpy.cumsum(lengths)]).astype(numpy.int64),
            labels=numpy.array([label for label, _ in by_label], dtype=numpy.int64),
        )
    return [*(words[number] for number in kept), UNKNOWN_WORD], halves


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def prepared_folder(config: Config, data_dir: Path, digest: str) -> Path:
    """Where the ids of an archive with this digest lie, for this vocabulary."""
    counted = "-train" if config.vocabulary_from == "train" else ""
    return data_dir / f"prepared{counted}-{digest[:12]}-{config.word_cutoff}"


def find_prepared(config: Config, data_dir: Path) -> Path | None:
    """The folder of this configuration where it is there, else None.

    Raises UsageError where the reviews' file is missing.
    """
    folder = prepared_folder(config, data_dir, file_digest(source_file(config, data_dir)))
    try:
        meta = json.loads((folder / "meta.json").read_text())
    except (OSError, ValueError):
        return None
    return folder if meta.get("format_version") == FORMAT_VERSION else None


def prepare(config: Config, data_dir: Path) -> None:
    """Make the folder of this configuration where it is missing.

    Raises UsageError where the reviews are missing or not what they should be, or the folder
    cannot be written.
    """
    if config.dataset == "made-up" or find_prepared(config, data_dir):
        return
    source = source_file(config, data_dir)
    digest = file_digest(source)
    expected = {"imdb": IMDB_SHA256, "movie-snippets": SNIPPETS_SHA256}.get(config.dataset, digest)
    if digest != expected:
        other = ", or take --dataset imdb-copy" if config.dataset == "imdb" else ""
        cause = f"{source}: expected sha256 {expected}, found {digest}"
        raise UsageError(f"{cause}; download it again{other}")
    print(f"preparing {source}", file=sys.stderr)
    reader = read_snippets if config.dataset == "movie-snippets" else read_archive
    vocabulary, halves = number_words(reader(source), config)
    check_counts(config, source, vocabulary, halves)
    try:
        with locked(data_dir):
            if not find_prepared(config, data_dir):  # by another process, meanwhile
                _write(vocabulary, halves, prepared_folder(config, data_dir, digest), digest)
    except OSError as error:
        cause = f"cannot write to {data_dir}: {error.strerror}"
        raise UsageError(f"{cause}; make room, or prepare where it can be written") from error


def check_counts(
    config: Config, source: Path, vocabulary: list[bytes], halves: dict[Half, Reviews]
) -> None:
    """Raises UsageError where IMDB's reviews or words are not as many as they are known to be."""
    if config.dataset not in ("imdb", "imdb-copy"):
        return
    for half in HALVES:
        num_found = numpy.bincount(halves[half].labels).tolist()
        if num_found != [IMDB_REVIEWS, IMDB_REVIEWS]:
            cause = f"{source}: expected {IMDB_REVIEWS} {half} reviews of each label"
            raise UsageError(f"{cause}, found {num_found}; get the whole archive")
    recipe = (config.word_cutoff, config.vocabulary_from)
    is_known = recipe == (PRESETS["reference"][1].word_cutoff, "train_and_test")
    if config.dataset == "imdb" and is_known and len(vocabulary) != IMDB_VOCABULARY:
        cause = f"{source}: expected {IMDB_VOCABULARY} words, found {len(vocabulary)}"
        raise UsageError(f"{cause}; please report this")


def _write(vocabulary: list[bytes], halves: dict[Half, Reviews], folder: Path, digest: str) -> None:
    """Write all files under a temporary name; the folder gets its own when they are there."""
    temporary = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a preparation that was killed
    try:
        temporary.mkdir()
        for half, reviews in halves.items():
            for name in ARRAYS:
                numpy.save(temporary / f"{half}_{name}.npy", getattr(reviews, name))
        (temporary / "vocabulary.txt").write_bytes(b"".join(word + b"\n" for word in vocabulary))
        meta = {
            "format_version": FORMAT_VERSION,
            "source_sha256": digest,
            "num_words": len(vocabulary),
            "num_train": len(halves["train"]),
            "num_test": len(halves["test"]),
            "num_train_words": len(halves["train"].tokens),
        }
        (temporary / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
        write_manifest(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    """Prepare the data of one preset; returns the exit status."""
    try:
        config, options = parse_command_line("sentiment_analysis", PRESETS, arguments)
        check_values(config)
        prepare(config, options.data_dir)
    except UsageError as error:
        return exit_with(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
