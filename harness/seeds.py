"""One seed decides everything: independent streams are derived from it by name.

The names in use, the same in every benchmark:

| name | who draws from it |
| --- | --- |
| `python`, `numpy`, `torch`, `tensorflow` | the global generator of each, seeded at the start |
| `weights` | initial weights |
| `order`, epoch | the order of the training examples of an epoch |
| `negatives`, epoch; `augmentation`, epoch; ... | what a benchmark draws anew each epoch |
| `worker`, epoch, index | a loader worker process |
"""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *names: str | int, bits: int = 63) -> int:
    """An independent seed in [0, 2**bits) for the stream called `names` under `seed`.

    It is the head of SHA-256 over `seed` and the names, so that it is the same on every machine
    and any two streams are unrelated, neighbouring seeds and epochs included.
    """
    text = "/".join([str(seed), *map(str, names)])
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - bits)
