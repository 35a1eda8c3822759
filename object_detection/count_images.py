"""How many images an instances file of COCO names, by the standard library alone.

    python3 object_detection/count_images.py FILE

Prints how many there are, and how many of them have an annotation. Exit status 1 where it is none.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def count_images(path: Path) -> tuple[int, int]:
    """Images, and those with an annotation.

    Raises ValueError, KeyError or TypeError where it is no such file.
    """
    content = json.loads(path.read_bytes())
    named = {image["id"] for image in content["images"]}
    annotated = {annotation["image_id"] for annotation in content["annotations"]}
    return len(named), len(named & annotated)


def main(path: str) -> int:
    """Print both counts; returns the exit status."""
    try:
        num_images, num_annotated = count_images(Path(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"error: {path}: {error!r}", file=sys.stderr)
        return 1
    print(f"{num_images} images, {num_annotated} of them with an annotation")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
