"""ImageNet's weights: torchvision's own file format, and what is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
import torchvision

from harness.errors import UsageError
from single_stage_detector.backbone_weights import load_backbone
from single_stage_detector.config import REFERENCE
from single_stage_detector.model import Backbone
from single_stage_detector.tests import oracles


def write(state: object, folder: Path) -> Path:
    """A file under the name that the head of its digest gives it."""
    path = folder / "weights.pth"
    torch.save(state, path)
    head = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    return path.rename(folder / f"resnet34-{head}.pth")


def backbone() -> Backbone:
    return Backbone(REFERENCE.num_blocks, REFERENCE.num_filters)


@pytest.mark.parametrize("counts_batches", [True, False])
def test_torchvisions_weights_give_torchvisions_features(counts_batches, tmp_path):
    """The published file is from before batch normalisation counted its batches."""
    torch.manual_seed(1)
    resnet = torchvision.models.resnet34()
    state = resnet.state_dict()
    if not counts_batches:
        state = {name: x for name, x in state.items() if "num_batches" not in name}
    ours = backbone()
    load_backbone(ours, write(state, tmp_path))
    theirs = oracles.TorchvisionBackbone(REFERENCE)
    theirs.load_state_dict(
        {
            name: x
            for name, x in resnet.state_dict().items()
            if not name.startswith(("layer4", "fc"))
        }
    )
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours.eval()(images), theirs.eval()(images))


class Sly:
    """What would run code when it is unpickled."""

    def __reduce__(self):
        return (print, ("unpickled",))


@pytest.mark.parametrize("fault", ["missing", "damaged", "another network", "a list", "code"])
def test_other_files_are_refused_in_one_line(fault, tmp_path, capsys):
    state = torchvision.models.resnet34().state_dict()
    if fault == "another network":
        state = torchvision.models.resnet18().state_dict()
    path = write({"a list": [1, 2], "code": Sly()}.get(fault, state), tmp_path)
    if fault == "missing":
        path.unlink()
    elif fault == "damaged":
        content = bytearray(path.read_bytes())
        content[-1000] ^= 1
        path.write_bytes(content)
    ours = backbone()
    before = {name: x.clone() for name, x in ours.state_dict().items()}
    with pytest.raises(UsageError) as error:
        load_backbone(ours, path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    assert message.endswith("; run download_dataset.sh")
    assert "unpickled" not in capsys.readouterr().out
    if fault != "another network":
        assert all(torch.equal(x, before[name]) for name, x in ours.state_dict().items())
