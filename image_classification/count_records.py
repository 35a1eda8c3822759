"""How many records TFRecord files hold, by their framing: no framework is needed.

    python3 image_classification/count_records.py SHARD...

Prints the sum. Exit status 1 where a file breaks off within a record.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

HEADER_BYTES = 8 + 4
"""A record's length (little-endian) and that number's checksum; after the record, its own."""


def count_records(path: Path) -> int:
    """Records of one file. Raises ValueError where it breaks off."""
    size_bytes = path.stat().st_size
    position, num_records = 0, 0
    with path.open("rb") as file:
        while position < size_bytes:
            file.seek(position)
            header = file.read(HEADER_BYTES)
            if len(header) < HEADER_BYTES:
                raise ValueError(f"{path} breaks off at byte {position}")
            (length,) = struct.unpack_from("<Q", header)
            position += HEADER_BYTES + length + 4
            num_records += 1
    if position != size_bytes:
        raise ValueError(f"{path} breaks off within its record {num_records}")
    return num_records


def main(paths: list[str]) -> int:
    """Print the sum over all files; returns the exit status."""
    try:
        print(sum(count_records(Path(path)) for path in paths))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
