"""The authors' weights under our names, without running code; torchvision's; damaged files."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle

import numpy
import pytest
import torch
from torchvision.models import resnet50
from torchvision.transforms import functional

from harness.errors import UsageError
from object_detection import backbone_weights, prepare
from object_detection.backbone import Backbone
from object_detection.config import REFERENCE
from object_detection.model import normalize_pixels

BRANCHES = {"1": "branch2a", "2": "branch2b", "3": "branch2c"}


def caffe2_blobs(backbone, seed=0):
    """All blobs of a Detectron file of a ResNet-50, by its names."""
    stream = numpy.random.default_rng(seed)
    blobs = {"fc1000_w": stream.random((10, 4)), "fc1000_b": stream.random(10), "lr": 0.1}
    for name, value in backbone.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            continue
        array = stream.standard_normal(value.shape).astype(numpy.float32)
        parts = name.split(".")
        kind = parts[-1]
        if parts[0] == "conv1":
            blob = "conv1_w"
        elif parts[0] == "bn1":
            blob = f"res_conv1_bn_{kind[0].replace('w', 's')}"
        else:
            stage, block, part = int(parts[0][-1]) + 1, parts[1], parts[2]
            is_conv = part.startswith("conv") or parts[3] == "0"
            branch = "branch1" if part == "downsample" else BRANCHES[part[-1]]
            end = "w" if is_conv else f"bn_{kind[0].replace('w', 's')}"
            blob = f"res{stage}_{block}_{branch}_{end}"
        blobs[blob] = array
        blobs[f"{blob}_momentum"] = array * 0
    return blobs


@pytest.fixture(scope="module")
def backbone():
    return Backbone(REFERENCE)


@pytest.mark.parametrize("wrapped", [True, False])
def test_the_authors_weights_are_converted_and_loaded(tmp_path, backbone, wrapped):
    blobs = caffe2_blobs(backbone)
    content = {"blobs": blobs, "cfg": "a: 1"} if wrapped else blobs
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(content, protocol=2))
    prepare.prepare(REFERENCE, tmp_path)
    assert prepare.is_prepared(REFERENCE, tmp_path)
    network = Backbone(REFERENCE)
    backbone_weights.load_backbone(network, tmp_path / "prepared" / "R-50.npz")
    state = network.state_dict()
    pairs = {
        "conv1.weight": "conv1_w",
        "bn1.weight": "res_conv1_bn_s",
        "bn1.bias": "res_conv1_bn_b",
        "layer1.0.downsample.0.weight": "res2_0_branch1_w",
        "layer1.0.downsample.1.bias": "res2_0_branch1_bn_b",
        "layer3.5.conv2.weight": "res4_5_branch2b_w",
        "layer4.2.bn3.weight": "res5_2_branch2c_bn_s",
    }
    for ours, theirs in pairs.items():
        assert numpy.array_equal(state[ours], blobs[theirs]), ours
    assert not state["layer2.0.bn1.running_mean"].any()
    assert (state["layer2.0.bn1.running_var"] == 1).all()


class Evil:
    def __reduce__(self):
        return (open, ("/tmp/written-by-a-pickle", "w"))


def test_no_code_in_the_pickle_is_run(tmp_path):
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"blobs": {"conv1_w": Evil()}}))
    with pytest.raises(UsageError, match=r"asks for .*open") as error:
        backbone_weights.read_caffe2(path)
    assert "\n" not in str(error.value)


def test_what_is_no_such_file_is_named(tmp_path, backbone):
    with pytest.raises(UsageError, match=r"No such file.*; run download_dataset.sh"):
        backbone_weights.read_caffe2(tmp_path / "R-50.pkl")
    for content in (b"", b"nonsense", pickle.dumps([1, 2])):
        (tmp_path / "R-50.pkl").write_bytes(content)
        with pytest.raises(UsageError, match=r"is no file of weights.*; run download_dataset.sh"):
            backbone_weights.read_caffe2(tmp_path / "R-50.pkl")
    blobs = {**caffe2_blobs(backbone), "res6_0_branch1_w": numpy.zeros(3, numpy.float32)}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(blobs))
    with pytest.raises(UsageError, match=r"res6_0_branch1_w.*no part of a ResNet-50"):
        prepare.prepare(REFERENCE, tmp_path)


@torch.no_grad()
def test_weights_of_torchvision_give_its_features(tmp_path):
    """Pixels as it takes them, strides where it has them, its epsilon: the maps are the same."""
    torch.manual_seed(0)
    theirs = resnet50().eval()
    for name, buffer in theirs.named_buffers():
        if name.endswith("mean"):
            buffer.copy_(0.1 * torch.randn(buffer.shape))
        elif name.endswith("var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape))
    path = tmp_path / "weights.pth"
    torch.save(theirs.state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    named = path.rename(tmp_path / f"resnet50-{digest[:8]}.pth")
    config = dataclasses.replace(REFERENCE, pretrained_backbone="torchvision")
    network = Backbone(config)
    backbone_weights.load_backbone(network, named)
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    normalized = normalize_pixels(images, torch.tensor([[96, 64]] * 2), config)
    x = functional.normalize(images / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert torch.allclose(normalized, x, atol=1e-5)
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
    for stage, found in enumerate(network(normalized), start=1):
        x = getattr(theirs, f"layer{stage}")(x)
        assert (found - x).abs().max() < 1e-4 * x.abs().max(), stage
    damaged = named.rename(tmp_path / "resnet50-00000000.pth")
    with pytest.raises(UsageError, match=f"is damaged: its SHA-256 begins {digest[:8]}; run"):
        backbone_weights.load_backbone(network, damaged)
    other = tmp_path / "other.npz"
    numpy.savez(other, **{"conv1.weight": numpy.zeros(3, numpy.float32)})
    with pytest.raises(UsageError, match="holds no weights for this backbone"):
        backbone_weights.load_backbone(network, other)
