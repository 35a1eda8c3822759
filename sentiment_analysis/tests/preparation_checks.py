"""What must hold of the words, the vocabulary and the archives, as plain functions.

They reach the code through its modules, as checks.py says: test_mutations.py puts wrong ones there.
"""

from __future__ import annotations

import dataclasses
import io
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentiment_analysis import prepare
from sentiment_analysis.config import MINI, Config
from sentiment_analysis.tests import oracles
from sentiment_analysis.tests.checks import text_of

IMDB_TEXTS = {
    "test/neg/0_2": b"Bad. Bad, BAD film!",
    "test/neg/1_1": b"I don't like it.<br /><br />The the THE end\r\n",
    "test/neg/2_4": b"awful caf\xc3\xa9",
    "test/pos/0_10": b"Great film; great caf\xc3\xa9",
    "test/pos/1_9": b"a -- good -- end, unseen",
    "test/pos/2_7": b"the best",
    "train/neg/0_3": b"bad, bad acting",
    "train/neg/1_1": b"dont see it",
    "train/neg/2_2": b"the film is bad...",
    "train/pos/0_9": b"GREAT great acting",
    "train/pos/1_8": b"good good film",
    "train/pos/2_10": b"see the film, see it",
}
"""Twelve reviews, negative ones first and test before train, as tar may have them."""
LABELS = {"pos": 0, "neg": 1}
OTHER_MEMBERS = {
    "README": b"not a review",
    "imdb.vocab": b"the\nand\n",
    "train/unsup/0_0.txt": b"unlabelled unlabelled unlabelled",
    "train/labeledBow.feat": b"9 0:9",
    "train/urls_pos.txt": b"http://www.imdb.com/title/tt0453418/usercomments",
    "train/pos/notes.txt": b"notes",
    "train/pos/deeper/1_1.txt": b"deeper",
}


def write_tar(path: Path, members: dict[str, bytes], kind: str) -> None:
    """A tar of regular files with their folders."""
    with tarfile.open(path, f"w:{kind}") as archive:  # type: ignore[call-overload]
        folders: set[Path] = set()
        for name, content in members.items():
            for folder in sorted(set(Path(name).parents) - folders - {Path()}):
                entry = tarfile.TarInfo(str(folder))
                entry.type = tarfile.DIRTYPE
                archive.addfile(entry)
                folders.add(folder)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def write_imdb(path: Path, kind: str = "gz", texts: dict[str, bytes] | None = None) -> None:
    """An archive with IMDB's layout: the twelve reviews, and files that are none."""
    members = {f"aclImdb/{name}": content for name, content in OTHER_MEMBERS.items()}
    reviews = IMDB_TEXTS if texts is None else texts
    members |= {f"aclImdb/{name}.txt": content for name, content in reviews.items()}
    write_tar(path, members, kind)


def imdb_reviews() -> list[tuple[str, int, bytes]]:
    """What the archive's reader must find in it."""
    parts = ((name.split("/"), text) for name, text in IMDB_TEXTS.items())
    return [(half, LABELS[label], text) for (half, label, _), text in parts]


HARD_TEXTS = {
    b"I don't care": [b"i", b"dont", b"care"],
    b"out.<br /><br />The end.\r\n": [b"outbr", b"br", b"the", b"end"],
    b"well-known 10/10": [b"wellknown", b"1010"],
    b"Caf\xc3\x89 \x85\xa0 na\xefve": [b"caf\xc3\x89", b"\x85\xa0", b"na\xefve"],
    b"one\ttwo\x0bthree\x0cfour\r\nfive\x1csix": [
        b"one",
        b"two",
        b"three",
        b"four",
        b"five\x1csix",
    ],
    b" ... !?! -- \r\n": [],
    b"": [],
    b"\xff\x00Z": [b"\xff\x00z"],
    bytes(range(33, 127)): [b"0123456789" + bytes(range(97, 123)) * 2],
}


def check_words() -> None:
    """Spec 1.2, on bytes that other tokenisers treat otherwise."""
    for text, expected in HARD_TEXTS.items():
        assert prepare.split_words(text) == expected == oracles.plain_words(text), text


def assert_numbering(reviews: Sequence[tuple[Any, int, bytes]], config: Config) -> None:
    """Vocabulary, ids, labels and order equal the plain ones."""
    both = config.vocabulary_from == "train_and_test"
    counted = ("train", "test") if both else ("train",)
    words, expected = oracles.plain_numbering(reviews, config.word_cutoff, counted)
    vocabulary, halves = prepare.number_words(iter(reviews), config)
    assert vocabulary == words
    assert vocabulary[-1] == b"<unk>"
    for half in ("train", "test"):
        assert_half(halves[half], expected[half])


def assert_half(found: prepare.Reviews, expected: list[tuple[int, list[int]]]) -> None:
    """Labels and ids of a half."""
    assert found.labels.tolist() == [label for label, _ in expected]
    texts = [text_of(found, number).tolist() for number in range(len(found))]
    assert texts == [ids for _, ids in expected]


def check_vocabulary() -> None:
    """Spec 1.3: above the cutoff, most frequent first, equals by bytes, the unknown word last."""
    for cutoff in (0, 1, 2, 3, 100):
        for counted in ("train_and_test", "train"):
            config = dataclasses.replace(MINI, word_cutoff=cutoff, vocabulary_from=counted)
            assert_numbering(imdb_reviews(), config)
    config = dataclasses.replace(MINI, word_cutoff=3)
    vocabulary, halves = prepare.number_words(iter(imdb_reviews()), config)
    # the: 6; bad: 6; film: 5; great: 4; it, see and good: 3
    assert vocabulary == [b"bad", b"the", b"film", b"great", b"<unk>"]
    assert text_of(halves["train"], 0).tolist() == [3, 3, 4]
    assert halves["train"].labels.tolist() == [0, 0, 0, 1, 1, 1]


def check_archive() -> None:
    """The labelled reviews of an archive and nothing else; positive is 0."""
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("gz", "xz", "bz2"):
            path = Path(folder) / f"aclImdb.tar.{kind}"
            write_imdb(path, kind)
            assert list(prepare.read_archive(path)) == imdb_reviews(), kind


RATINGS = (2.5, -1.0, 0.99, 1.0, -3.9, 0.0, -0.5, 1.2, 1.1, -1.01, 4.0, -2.0, 3.0, -1.5, 1.6)
"""12 of these 15 are clear."""


def snippets_table(ratings: Sequence[float] = RATINGS) -> bytes:
    """VADER's file: each snippet has its number and common words."""
    rows = (f"{n + 1}\t{r}\ta film, snippet{n} it's" for n, r in enumerate(ratings))
    return b"".join(row.encode() + b"\r\n" for row in rows)


def write_snippets(path: Path, table: bytes) -> None:
    """VADER's archive with files beside the one that is read."""
    members = {
        "hutto_ICWSM_2014/readme.txt": b"read me",
        "hutto_ICWSM_2014/tweets_GroundTruth.txt": b"1\t2.0\tno film\r\n",
        prepare.SNIPPETS_MEMBER: table,
        "hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt": b"1\t2.0\tno film\r\n",
    }
    write_tar(path, members, "gz")


def check_snippets() -> None:
    """Spec 9.2: clear ratings only, the sign the label, every fifth of those left for the test."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / prepare.SNIPPETS_ARCHIVE
        write_snippets(path, snippets_table())
        found = list(prepare.read_snippets(path))
    clear = [number for number, rating in enumerate(RATINGS) if abs(rating) >= 1.0]
    assert len(clear) == 12
    expected = [
        (
            "test" if place in (0, 5, 10) else "train",
            0 if RATINGS[number] > 0 else 1,
            f"a film, snippet{number} it's".encode(),
        )
        for place, number in enumerate(clear)
    ]
    assert found == expected
