"""comparisons/object_detection.py: its made-up work, and each side at a small size."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy
import pytest
import torch
from pycocotools import mask as coco_mask
from torchvision.ops import MultiScaleRoIAlign

from comparisons import comparison, report
from comparisons import object_detection_torchvision_peer as peer_run
from comparisons import object_detection_work as work_module
from comparisons.object_detection import COMPARISON
from comparisons.object_detection_work import Work
from comparisons.pairs import PairOptions
from object_detection import box_head
from object_detection.anchors import make_anchors
from object_detection.boxes import Boxes
from object_detection.config import REFERENCE
from object_detection.detection import find
from object_detection.evaluate import coco_statistics
from object_detection.masks import encode, paste
from object_detection.model import normalize_pixels
from object_detection.region_proposals import propose
from object_detection.regions import read_regions
from object_detection.training_losses import LOSSES, TrainingLosses

SMALL = Work(
    seed=1, width=224, height=160, num_blocks=(1, 1, 1, 1), roi_batch_size=32, max_detections=20
)
HALF_OPEN = torch.tensor([0, 0, 1, 1])


@pytest.fixture(autouse=True)
def two_threads():
    """More threads than cores make small operations many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def batch():
    return work_module.make_batch(SMALL)


@pytest.fixture(scope="module")
def network_and_count(batch):
    return work_module.make_network(SMALL, batch)


@pytest.fixture(scope="module")
def network(network_and_count):
    return network_and_count[0]


@pytest.fixture
def same_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of half-open boxes torchvision reads other regions; here it reads those of v0.5's boxes."""

    def read(self, maps, boxes, _):
        some = [maps[str(level)] for level in range(4)]
        return read_regions(some, [x - HALF_OPEN for x in boxes], self.output_size[0], SMALL.config)

    monkeypatch.setattr(MultiScaleRoIAlign, "forward", read)


# --- made-up work ---------------------------------------------------------------------------------


def test_images_have_as_many_objects_as_cocos() -> None:
    work = dataclasses.replace(SMALL, batch_size=30)
    batch = work_module.make_batch(work)
    counts = batch.first_object.diff().float()
    assert 4 < counts.mean() < 9 and counts.min() >= 1 and counts.max() > 8
    assert batch.labels.min() >= 1 and batch.labels.max() > 70
    assert batch.images.shape == (30, 3, 160, 224) and batch.images.float().std() > 10
    sides = Boxes(SMALL.config.legacy_coords).sizes(batch.boxes)
    assert sides.min() < 12 and sides.max() > 80
    for target in peer_run.targets_of(batch):  # each bitmap is in its box, and touches all sides
        for box, bitmap in zip(target["boxes"], target["masks"], strict=True):
            rows, columns = bitmap.nonzero().T
            ends = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert torch.tensor(ends).tolist() == box.tolist()


def test_images_narrower_than_a_multiple_are_padded() -> None:
    batch = work_module.make_batch(dataclasses.replace(SMALL, width=211))
    assert batch.images.shape[3] == 224 and batch.sizes.tolist() == [[211, 160]] * 2
    assert [image.shape for image in peer_run.images_of(batch)] == [(3, 160, 211)] * 2


def test_another_seed_is_other_work_and_the_same_seed_the_same(batch) -> None:
    other = dataclasses.replace(SMALL, seed=2)
    assert torch.equal(batch.images, work_module.make_batch(SMALL).images)
    assert not torch.equal(batch.images, work_module.make_batch(other).images)
    masks = work_module.make_masks(SMALL)[0]
    assert torch.equal(masks, work_module.make_masks(SMALL)[0])
    assert not torch.equal(masks, work_module.make_masks(other)[0])


def test_the_network_sees_the_objects_and_finds_as_many_as_may_be(batch, network_and_count) -> None:
    network, num_masks = network_and_count
    config = dataclasses.replace(SMALL.config, roi_batch_size=10_000)
    assert num_masks == 2 * SMALL.roi_batch_size * box_head.FOREGROUND_SHARE
    with torch.no_grad():
        maps, *outputs = network(normalize_pixels(batch.images, batch.sizes, config))
        anchors = make_anchors(config, maps)
        proposals = propose(*outputs, anchors, batch.sizes, config, is_training=True)
        found = find(network, batch.images, batch.sizes, batch.sizes, config)
    num_shown = work_module.count_foreground(batch, proposals, config)
    assert 4 * len(batch.labels) < num_shown < 20 * len(batch.labels)
    assert [len(one.scores) for one in found] == [SMALL.max_detections] * 2
    assert len(torch.cat([one.labels for one in found]).unique()) > 5


def test_masks_are_blobs() -> None:
    masks, boxes = work_module.make_masks(dataclasses.replace(SMALL, max_detections=100))
    covered = (masks > 0.5).float().mean(dim=(1, 2))
    assert covered.min() > 0.2 and covered.max() < 0.8 and len(covered.unique()) > 50
    assert boxes.min() >= 0 and (boxes[:, 2] <= 640).all() and (boxes[:, 3] <= 480).all()
    runs = peer_run.paste(masks, boxes)
    assert runs == [encode(patch, 480, 640) for patch in paste(masks, boxes, 480, 640)]
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = torch.from_numpy(coco_mask.area(runs).astype(numpy.float32))
    assert torch.allclose(areas / sides.prod(dim=1), covered, atol=0.1)


def test_the_result_set_is_like_a_trained_models() -> None:
    ground_truth, results = work_module.make_results(dataclasses.replace(SMALL, num_coco_images=60))
    crowds = [annotation for annotation in ground_truth["annotations"] if annotation["iscrowd"]]
    assert crowds and all("counts" in crowd["segmentation"] for crowd in crowds)
    assert len(ground_truth["images"]) == 60 and len(results) > 1000
    expected = peer_run.judge(ground_truth, results)
    for kind, numbers in expected.items():
        found = coco_statistics(ground_truth, results, kind)
        assert list(found.values()) == pytest.approx(numbers, abs=1e-12)
        assert 0.1 < found["ap"] < 0.6 and min(found.values()) > 0.05
    assert expected["box"] != expected["mask"]


# --- each side ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("same_reading")
def test_torchvision_finds_what_ours_finds(batch, network) -> None:
    """The same weights give the same detections."""
    detector = peer_run.build(network, SMALL.config).eval()
    with torch.no_grad():
        found = find(network, batch.images, batch.sizes, batch.sizes, SMALL.config)
        expected = detector(peer_run.images_of(batch))
    for mine, other in zip(found, expected, strict=True):
        assert torch.equal(mine.labels, other["labels"])
        assert torch.allclose(mine.scores, other["scores"], rtol=0, atol=1e-4)
        assert torch.allclose(mine.boxes + HALF_OPEN, other["boxes"], rtol=0, atol=1e-2)
        assert torch.allclose(mine.masks, other["masks"][:, 0], rtol=0, atol=1e-3)


@pytest.mark.usefixtures("same_reading")
def test_torchvisions_losses_are_ours(batch, network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all anchors and proposals, so that chance decides nothing; without what the science says
    otherwise: anchors across the border count, and the loss of a box bends at 1/9. The masks that
    are to be learned are polygons in each region here, and bitmaps that are interpolated there.
    """
    monkeypatch.setattr(Boxes, "are_inside", lambda _, boxes, __: boxes[:, 0] < torch.inf)
    monkeypatch.setattr(box_head, "BETA", 1 / 9)
    every = {"rpn_batch_size": 1_000_000, "roi_batch_size": 1_000_000, "train_post_nms": 300}
    config = dataclasses.replace(SMALL.config, **every)
    detector = peer_run.build(network, config).train()
    with torch.no_grad():
        found = dict(zip(LOSSES, TrainingLosses(network, config)(batch).tolist(), strict=True))
        by_name = detector(peer_run.images_of(batch), peer_run.targets_of(batch))
    expected = dict(zip(LOSSES, (by_name[name].item() for name in peer_run.LOSSES), strict=True))
    assert min(found.values()) > 0.01
    assert found.pop("masks") == pytest.approx(expected.pop("masks"), rel=0.05)
    assert found == pytest.approx(expected, rel=1e-4)


def test_both_train_the_same_weights(network) -> None:
    detector = peer_run.build(network, SMALL.config)
    ours, theirs = (
        work_module.optimizer_of(some, SMALL.config).param_groups for some in (network, detector)
    )
    for mine, other in zip(ours, theirs, strict=True):
        shapes, other_shapes = (
            sorted(tuple(weights.shape) for weights in group["params"]) for group in (mine, other)
        )
        assert shapes == other_shapes
        for name in ("lr", "momentum", "weight_decay", "fused"):
            assert mine[name] == other[name]
    trained = sum(len(group["params"]) for group in ours)
    num_all = len(list(network.parameters()))
    assert trained < num_all == len(list(detector.parameters()))


def test_anchors_are_ours_in_maps_whose_size_no_stride_divides(batch, network) -> None:
    """160 pixels make 3 rows of the coarsest map, from which torchvision would guess a stride."""
    detector = peer_run.build(network, SMALL.config)
    images, _ = detector.transform(peer_run.images_of(batch))
    maps = network(images.tensors)[0]
    first, second = detector.rpn.anchor_generator(images, maps)
    expected = torch.cat(make_anchors(SMALL.config, maps))
    assert torch.equal(first, second) and torch.equal(first - HALF_OPEN, expected)


def test_masks_of_a_step_that_are_nearly_as_many_as_expected_count_as_equal(capsys) -> None:
    """Which box suppresses another may hang on its last bit."""
    for num_masks, counted in ((100, 100), (98, 100), (60, 60)):
        heads = torch.nn.Identity(), torch.nn.Identity()
        sizes = itertools.chain([7, 7], itertools.repeat(num_masks))

        def call(heads=heads, sizes=sizes) -> torch.Tensor:
            heads[0](torch.zeros(8, 1))
            heads[1](torch.zeros(next(sizes), 1))
            return torch.zeros(5)

        work_module.measure(
            dataclasses.replace(SMALL, num_steps=1, num_pastings=1, num_coco_calls=1),
            step=call,
            find=lambda call=call: len(call()),
            paste=lambda: [{"counts": b"1"}],
            judge=lambda: {"box": [0.5]},
            heads=heads,
            num_expected_masks=100,
            facts={},
        )
        facts = json.loads(capsys.readouterr().out)["facts"]
        assert facts["num_masks_of_step"] == counted
        assert facts["num_masks_of_inference"] == 7 and facts["num_regions_of_step"] == 8


@pytest.mark.slow
def test_each_side_does_the_same_work_at_a_small_size(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pair through the frame, which refuses unlike facts."""
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    sizes = {"width": "224", "height": "160", "num-blocks": "1 1 1 1", "roi-batch-size": "32"}
    sizes |= {"max-detections": "20", "num-steps": "1", "num-pastings": "2"}
    sizes |= {"num-coco-images": "20", "num-coco-calls": "1"}
    arguments = tuple(
        word for name, value in sizes.items() for word in (f"--{name}", *value.split())
    )
    small = dataclasses.replace(
        COMPARISON,
        our_command=(COMPARISON.our_command[0], *arguments),
        peers=tuple(dataclasses.replace(peer, arguments=arguments) for peer in COMPARISON.peers),
    )
    record = comparison.measure(small, PairOptions(num_pairs=1, num_threads=1))
    ours, theirs = record["runs"]
    assert ours["facts"] == theirs["facts"]
    expected = {"batch_shape": [2, 3, 160, 224], "num_classes": 81, "num_threads": 1}
    expected |= {"num_detections": 40, "num_masks_of_inference": 40, "num_pasted": 20}
    expected |= {"num_regions_of_step": 64, "num_masks_of_step": 16, "min_score": 0.05}
    assert expected.items() <= ours["facts"].items()
    assert {len(numbers) for numbers in ours["facts"]["statistics"].values()} == {12}
    for run in (ours, theirs):
        details = run["details"]
        assert len(details["steps_s"]) == len(details["inferences_s"]) == 2
        assert details["peak_memory_bytes"] > 2**28
    first, other = (run["details"]["losses"][0] for run in (ours, theirs))
    # Each draws its own anchors and proposals; the losses of boxes follow other rules.
    for name in ("objectness", "classes", "masks"):
        assert first[name] == pytest.approx(other[name], rel=0.3)
    assert "| COCO's metric of 500 images, boxes and masks, s |" in report.table(record)


def test_the_first_step_of_the_reference_is_of_the_published_size() -> None:
    """What is compared by default: the issue's batch, in the reference configuration."""
    work = Work(seed=1)
    config = dataclasses.replace(work.config, batch_size=REFERENCE.batch_size)
    assert config == REFERENCE
    assert (work.batch_size, work.width, work.height) == (2, config.max_size, config.min_size)
