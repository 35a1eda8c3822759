"""ImageNet's weights for the backbone: the authors' own (MSRA), or torchvision's.

The authors' file is a pickle of NumPy arrays under Caffe2's names. It is converted once, by
prepare.py, and read with an unpickler that knows arrays and nothing else, so that no code in it can
run.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.errors import UsageError
from object_detection.backbone import Backbone

ADVICE = "run download_dataset.sh"
BRANCHES = {"branch1": "downsample", "branch2a": "1", "branch2b": "2", "branch2c": "3"}
"""Caffe2's names of a block's convolutions, and what ours are called after."""
CONSTANTS = {"s": "weight", "b": "bias"}
"""Of batch normalisation: scale and bias, mean and variance already in them."""
LEFT_OUT = re.compile(r".*_momentum|fc1000_[wb]|pred_[wb]|conv1_b|lr|weight_order")
"""Blobs that are no weights of the four stages."""

EPSILON = 1e-5
"""That torchvision's batch normalisation adds to a variance."""

Arrays = dict[str, NDArray[numpy.float32]]


class ArraysOnly(pickle.Unpickler):
    """Reads dictionaries, strings, numbers and NumPy arrays; refuses all else."""

    ADMITTED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """What the pickle may call."""
        if (module, name) not in self.ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_caffe2(path: Path) -> Arrays:
    """The blobs of a Detectron file by name.

    Raises UsageError where it is missing or holds anything but arrays.
    """
    try:
        content = ArraysOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        blobs = content.get("blobs", content)
        return {
            name: value.astype(numpy.float32)
            for name, value in blobs.items()
            if isinstance(value, numpy.ndarray)
        }
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; {ADVICE}") from error
    except Exception as error:  # unpickling has no common base for what it raises
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UsageError(f"{path} is no file of weights ({cause}); {ADVICE}") from error


def our_name(name: str) -> str | None:
    """What a blob of Caffe2 is called in our backbone; None for those that it does not have."""
    if LEFT_OUT.fullmatch(name):
        return None
    if match := re.fullmatch(r"(?:res_)?conv1_(w|bn_([sb]))", name):
        return "conv1.weight" if match[1] == "w" else f"bn1.{CONSTANTS[match[2]]}"
    pattern = r"res([2-5])_(\d+)_(branch\w+?)_(w|bn_([sb]))"
    if not (match := re.fullmatch(pattern, name)):
        raise ValueError(f"it has {name!r}, which is no part of a ResNet-50")
    block = f"layer{int(match[1]) - 1}.{match[2]}"
    part, is_constant = BRANCHES[match[3]], match[4] != "w"
    value = CONSTANTS[match[5]] if is_constant else "weight"
    if part == "downsample":
        return f"{block}.downsample.{int(is_constant)}.{value}"
    return f"{block}.{'bn' if is_constant else 'conv'}{part}.{value}"


def convert_caffe2(blobs: Mapping[str, NDArray[numpy.float32]]) -> Arrays:
    """The same arrays under our names. Raises ValueError for what is no part of a ResNet-50."""
    named = {our_name(name): value for name, value in blobs.items()}
    return {name: value for name, value in named.items() if name is not None}


def load_backbone(backbone: Backbone, path: Path) -> None:
    """Give the backbone the weights of prepare.py's file, or of a ResNet-50 of torchvision.

    The last part of the name of torchvision's is the head of its SHA-256, which is checked. No
    code in a file is run. Raises UsageError where it is missing, damaged, or another network's.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; {ADVICE}") from error
    if path.suffix == ".pth":
        digest = hashlib.sha256(content).hexdigest()
        if not digest.startswith(path.stem.rpartition("-")[2]):
            raise UsageError(f"{path} is damaged: its SHA-256 begins {digest[:8]}; {ADVICE}")
    try:
        weights = read_weights(content, path.suffix)
        for name, value in backbone.state_dict().items():  # folded into scale and bias
            if path.suffix == ".npz" and name.endswith(("running_mean", "running_var")):
                weights.setdefault(name, value)
        backbone.load_state_dict(weights)
    except Exception as error:  # torch.load and numpy.load have no common base for what they raise
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UsageError(
            f"{path} holds no weights for this backbone ({cause}); {ADVICE}"
        ) from error


def read_weights(content: bytes, suffix: str) -> dict[str, Tensor]:
    """Tensors by our names, out of the bytes of a file."""
    if suffix == ".npz":
        with numpy.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    for name, value in weights.items():
        if name.endswith("running_var"):  # our constants know no epsilon
            value += EPSILON
    left_out = ("fc.", "num_batches_tracked")
    return {
        name: value
        for name, value in weights.items()
        if not name.startswith(left_out) and not name.endswith(left_out)
    }
