"""The randomised fractal expansion: a larger data set of the same character out of a smaller one.

    .venv/bin/python -m recommendation.prepare reference --expansion 16 32

Belletti, Lakshmanan, Krichene, Chen and Anderson, Scalable Realistic Recommendation Datasets
through Fractal Expansions, 2019 (arXiv:1901.08910), in the randomised form of their second paper,
as v0.6 of the benchmark used it. The expanded matrix of users and films is a Kronecker product
with chance: as many blocks as the small left matrix has entries, and each block a copy of the
original matrix with its users and its films shuffled, of which each interaction is kept with the
probability that stands in the left matrix. The left matrix is the original, reduced.

Every draw comes from a stream of its own block or row, seeded by its place, and what is kept is
decided by integers: the expanded data is bitwise the same everywhere as long as the keep rates
are. Those come from a singular value decomposition in float64, which LAPACKs round differently in
about the 12th digit; rounded to 65536ths they agree, unless one lies that near to the middle of
two. meta.json of the prepared data stores them, so that two machines can be compared.

Shapes: U users, I films and P training positives of the original; R rows and C columns of the
left matrix, K = min(R, C).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy
import scipy.sparse.linalg
from numpy.typing import NDArray

from harness.errors import UsageError
from harness.seeds import derive_seed
from recommendation.config import EVALUATION_SEED

if TYPE_CHECKING:
    from recommendation.prepare import Interactions

FloatArray = NDArray[numpy.float64]
IntArray = NDArray[numpy.integer]

RATE_UNIT = 1 << 16
"""A keep rate is a whole number of this many parts."""
MIN_KEEP_RATE, MAX_KEEP_RATE = 0.01, 0.95
"""v0.6's bounds: no block is empty, none is a whole copy."""


def keep_rates(interactions: Interactions, expansion: tuple[int, int]) -> IntArray:
    """The left matrix: of each block the keep rate, in parts of RATE_UNIT: [R, C] int64.

    The training matrix's first K singular vectors are reduced to R and C entries and made
    orthonormal again; with the singular values as they are that is the reduced matrix (the
    paper's section on the reduction). Divided by its largest magnitude and clipped it holds
    probabilities. Raises UsageError where the data has no more users than rows, or films than
    columns.
    """
    sizes = (interactions.num_users, interactions.num_items)
    if expansion[0] >= sizes[0] or expansion[1] >= sizes[1]:
        given = " ".join(map(str, expansion))
        cause = f"the data has only {sizes[0]} users and {sizes[1]} films"
        raise UsageError(f"{cause}; give an expansion below that, not {given}")
    user_vectors, values, item_vectors = leading_singular_vectors(interactions, min(expansion))
    user_vectors = reduce_vectors(user_vectors, expansion[0])  # [R, K]
    item_vectors = reduce_vectors(item_vectors, expansion[1])  # [C, K]
    reduced = (user_vectors * values) @ item_vectors.T  # [R, C]
    rates = (reduced / abs(reduced).max()).clip(MIN_KEEP_RATE, MAX_KEEP_RATE)
    return numpy.rint(rates * RATE_UNIT).astype(numpy.int64)


def leading_singular_vectors(
    interactions: Interactions, num_vectors: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Singular vectors and values of the training matrix (1 where a user rated a film).

    Returns [U, K], [K] and [I, K], from ARPACK to machine precision.
    """
    pairs = interactions.train_users, interactions.train_items
    shape = interactions.num_users, interactions.num_items
    matrix = scipy.sparse.csr_array((numpy.ones(len(pairs[0])), pairs), shape=shape)
    user_vectors, values, item_vectors = scipy.sparse.linalg.svds(
        matrix, num_vectors, v0=numpy.ones(min(shape))
    )
    return user_vectors, values, item_vectors.T


def reduce_vectors(vectors: FloatArray, size: int) -> FloatArray:
    """`size` means of consecutive rows, then the nearest orthonormal columns: [size, K].

    Nearest in the Frobenius norm: the factor of the polar decomposition. It undoes neither the
    signs of the singular vectors nor their turns within equal singular values, so that these,
    which a decomposition may choose, cancel in the reduced matrix.
    """
    means = numpy.stack([part.mean(axis=0) for part in numpy.array_split(vectors, size)])
    left, _, right = numpy.linalg.svd(means, full_matrices=False)
    return left @ right


def expand_row(
    interactions: Interactions, rates: IntArray, row: int
) -> tuple[IntArray, IntArray, IntArray]:
    """The users of one row of blocks: what they rated, and the film that each holds out.

    rates: [R, C], from keep_rates. Returns users (numbered from 0 within this row) and items of
    the training positives, sorted by user, then item, and the test item of each user; all int32.
    Item number c * I + i is a film of block column c.

    A user is in every block of its row the copy of another original user. It holds out the
    held-out film of one of these, drawn in proportion to the blocks' keep rates; as that film is
    not among the original user's training positives (MovieLens has no rating twice), its copy is
    not among these. A user of whom no training positive was kept is left out.
    """
    num_users, num_items = interactions.num_users, interactions.num_items
    all_items = num_items * rates.shape[1]
    drawn = _stream("held-out", row).randint(0, rates[row].sum(), size=num_users)
    held_out_block = numpy.searchsorted(rates[row].cumsum(), drawn, side="right")
    test_items = numpy.empty(num_users, dtype=numpy.int32)
    parts = []
    for column, rate in enumerate(rates[row].tolist()):
        stream = _stream("block", row, column)
        new_user = stream.permutation(num_users)
        new_item = stream.permutation(num_items) + column * num_items
        bits = stream.randint(0, RATE_UNIT, size=len(interactions.train_users), dtype=numpy.uint16)
        kept = numpy.flatnonzero(bits < rate)
        users = new_user[interactions.train_users[kept]]
        parts.append(users * all_items + new_item[interactions.train_items[kept]])
        mine = held_out_block[new_user] == column
        test_items[new_user[mine]] = new_item[interactions.test_items[mine]]
    pairs = numpy.concatenate(parts)
    del parts
    pairs.sort()
    users = (pairs // all_items).astype(numpy.int32)
    pairs %= all_items
    is_left = numpy.bincount(users, minlength=num_users) > 0
    numbers = (numpy.cumsum(is_left) - 1).astype(numpy.int32)
    return numbers[users], pairs.astype(numpy.int32), test_items[is_left]


def negatives_seed(row: int) -> int:
    """Seed of the evaluation's negatives for the users of a row of blocks."""
    return derive_seed(EVALUATION_SEED, "expansion", "negatives", row, bits=32)


def _stream(*names: str | int) -> numpy.random.RandomState:
    """A stream of this name; NumPy keeps what RandomState draws unchanged."""
    seed = derive_seed(EVALUATION_SEED, "expansion", *names, bits=32)
    return numpy.random.RandomState(seed)
