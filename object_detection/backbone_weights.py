"""ImageNet's weights for the backbone, out of torchvision's file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from harness.errors import UsageError
from single_stage_detector.model import Backbone

LEFT_OUT = ("layer4.", "fc.")
"""The last stage and the classifier, which SSD does not have."""


def load_backbone(backbone: Backbone, path: Path) -> None:
    """Give the backbone the weights of a ResNet-34 that torchvision published.

    The last part of the file's name is the head of its SHA-256, which is checked. No code in the
    file is run. Raises UsageError where it is missing, damaged, or another network's.
    """
    advice = "run download_dataset.sh"
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; {advice}") from error
    expected = path.stem.rpartition("-")[2]
    if not digest.startswith(expected):
        raise UsageError(f"{path} is damaged: its SHA-256 begins {digest[:8]}; {advice}")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        kept = {name: value for name, value in weights.items() if not name.startswith(LEFT_OUT)}
        backbone.load_state_dict(kept)  # counts of batches, younger than the file, may be missing
    except Exception as error:  # torch.load has no common base for what it raises
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UsageError(
            f"{path} holds no weights for this backbone ({cause}); {advice}"
        ) from error
