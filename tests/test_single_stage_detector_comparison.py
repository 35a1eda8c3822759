"""comparisons/single_stage_detector.py: its clock, its made-up work, each side at a tiny size."""

from __future__ import annotations

import dataclasses

import numpy
import pytest
import torch
import torchvision

from comparisons import comparison, report
from comparisons import single_stage_detector_torchvision_peer as peer_run
from comparisons import single_stage_detector_work as work_module
from comparisons.pairs import PairOptions
from comparisons.single_stage_detector import COMPARISON
from comparisons.single_stage_detector_work import Work
from single_stage_detector.default_boxes import DefaultBoxes
from single_stage_detector.detection import detect
from single_stage_detector.evaluate import coco_statistics
from single_stage_detector.loss import encode_targets
from single_stage_detector.model import normalize_pixels

SMALL = Work(seed=1, batch_size=2, num_blocks=(1, 1, 1), num_filters=(8, 16, 32))


@pytest.fixture(autouse=True)
def two_threads():
    """More threads than cores make small operations many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


# --- clock and made-up work -----------------------------------------------------------------------


def test_the_first_call_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0

    class Clock:
        @staticmethod
        def perf_counter() -> float:
            return now_s

    durations_s = iter([100.0, 4.0, 2.0, 9.0])

    def call() -> float:
        nonlocal now_s
        duration_s = next(durations_s)
        now_s += duration_s
        return duration_s

    monkeypatch.setattr(work_module, "time", Clock)
    assert work_module.median_s(call, 3) == (4.0, 9.0, [100.0, 4.0, 2.0, 9.0])


def test_images_have_as_many_objects_as_cocos() -> None:
    inputs = work_module.make_inputs(dataclasses.replace(SMALL, batch_size=40))
    counts = (inputs.labels > 0).sum(dim=1)
    assert 5 < counts.float().mean() < 10 and counts.min() >= 1 and counts.max() > 15
    assert inputs.labels.max() > 70
    assert inputs.boxes.min() >= 0 and inputs.boxes.max() <= 1
    is_object = inputs.labels > 0
    assert ((inputs.boxes[..., 2:] - inputs.boxes[..., :2])[is_object] > 0.01).all()
    assert not inputs.boxes[~is_object].any()
    assert inputs.pixels.dtype == torch.uint8 and inputs.pixels.shape == (40, 3, 300, 300)


def test_another_seed_is_other_work_and_the_same_seed_the_same() -> None:
    again, other = SMALL, dataclasses.replace(SMALL, seed=2)
    inputs = work_module.make_inputs(SMALL)
    assert torch.equal(inputs.pixels, work_module.make_inputs(again).pixels)
    assert not torch.equal(inputs.pixels, work_module.make_inputs(other).pixels)
    logits = work_module.make_outputs(SMALL, inputs)[1]
    assert torch.equal(logits, work_module.make_outputs(again, inputs)[1])
    assert not torch.equal(logits, work_module.make_outputs(other, inputs)[1])


def test_outputs_show_the_objects_in_many_boxes_within_the_image() -> None:
    work = dataclasses.replace(SMALL, batch_size=4)
    inputs, config = work_module.make_inputs(work), work.config
    default_boxes = DefaultBoxes(config)
    deltas, logits = work_module.make_outputs(work, inputs)
    boxes = default_boxes.decode(deltas)
    assert boxes.min() > -1e-4 and boxes.max() < 1 + 1e-4
    num_candidates = (logits.softmax(dim=1)[:, 1:] > config.min_score).sum(dim=(1, 2))
    assert num_candidates.min() > 50 and num_candidates.max() < 5000
    found = detect(deltas, logits, default_boxes, config)
    assert len(found.scores) < num_candidates.sum()  # something was suppressed
    is_near = [
        torchvision.ops.box_iou(
            found.boxes[found.images == image], inputs.boxes[image, inputs.labels[image] > 0]
        )
        .amax(dim=0)
        .gt(0.5)
        for image in range(4)
    ]
    assert torch.cat(is_near).float().mean() > 0.8


def test_the_result_set_is_like_a_trained_models() -> None:
    ground_truth, results = work_module.make_results(dataclasses.replace(SMALL, num_coco_images=60))
    crowds = [annotation for annotation in ground_truth["annotations"] if annotation["iscrowd"]]
    assert crowds and len(ground_truth["images"]) == 60
    assert numpy.isfinite(results).all() and (results[:, 3:5] > 0).all()
    found = coco_statistics(ground_truth, results)
    assert 0.1 < found["ap"] < 0.6 and min(found.values()) > 0.05


# --- each side ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_torchvisions_detector_says_what_ours_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights give the same detections, if it is kept from clipping boxes."""
    monkeypatch.setattr(
        torchvision.models.detection.ssd.box_ops, "clip_boxes_to_image", lambda boxes, _: boxes
    )
    config, inputs = SMALL.config, work_module.make_inputs(SMALL)
    ours = work_module.make_network(SMALL, inputs).eval()
    theirs = peer_run.build(work_module.make_network(SMALL, inputs), config).eval()
    # Its table centres a row and a column of the 10 x 10 map outside the image (specification 7).
    generator = theirs.anchor_generator
    make_grid = generator._grid_default_boxes
    monkeypatch.setattr(
        generator, "_grid_default_boxes", lambda *args, **rest: make_grid(*args, **rest).clamp(0, 1)
    )
    with torch.no_grad():
        deltas, logits = ours(normalize_pixels(inputs.pixels))
        found = detect(deltas, logits, DefaultBoxes(config), config)
        expected = theirs(list(inputs.pixels.float() / 255))
    for image, other in enumerate(expected):
        mine = found.images == image
        assert 20 < len(other["scores"]) < config.max_detections
        assert torch.equal(found.labels[mine], other["labels"])
        assert torch.allclose(found.scores[mine], other["scores"], atol=1e-5)
        assert torch.allclose(300 * found.boxes[mine], other["boxes"], atol=1e-2)


def test_torchvisions_matches_are_ours() -> None:
    work = dataclasses.replace(SMALL, batch_size=8)
    config, inputs = work.config, work_module.make_inputs(work)
    default_boxes = DefaultBoxes(config)
    detector = peer_run.build(work_module.make_network(SMALL, inputs), config)
    targets = peer_run.targets_of(inputs, 300)
    assert sum(len(target["labels"]) for target in targets) == int((inputs.labels > 0).sum())
    theirs = peer_run.encode_targets(detector, targets, 300 * default_boxes.corners)
    _, labels = encode_targets(default_boxes, inputs.boxes, inputs.labels)
    assert theirs == int((labels > 0).sum()) > 50


@pytest.mark.slow
def test_each_side_does_the_same_work_at_a_tiny_size(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pair through the frame, which refuses unlike facts."""
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    sizes = {"batch-size": "2", "num-blocks": "1 1 1", "num-filters": "8 16 32", "num-steps": "1"}
    sizes |= {"num-calls": "2", "num-coco-images": "20", "num-coco-calls": "1"}
    arguments = tuple(
        word for name, value in sizes.items() for word in (f"--{name}", *value.split())
    )
    tiny = dataclasses.replace(
        COMPARISON,
        our_command=(COMPARISON.our_command[0], *arguments),
        peers=tuple(dataclasses.replace(peer, arguments=arguments) for peer in COMPARISON.peers),
    )
    record = comparison.measure(tiny, PairOptions(num_pairs=1, num_threads=1))
    ours, theirs = record["runs"]
    assert ours["facts"] == theirs["facts"]
    expected = {"batch_size": 2, "image_size": 300, "num_classes": 81, "num_default_boxes": 8732}
    expected |= {"min_score": 0.05, "nms_iou": 0.5, "max_detections": 200, "num_threads": 1}
    assert expected.items() <= ours["facts"].items()
    assert 0 < ours["facts"]["ap"] < 1 and ours["facts"]["num_matches"] > 10
    for run in (ours, theirs):
        details = run["details"]
        assert len(details["steps_s"]) == len(details["evaluations_s"]) == 2
        assert 2 < details["loss"] < 60
        assert details["num_detections"] > 20
    found = [run["details"]["num_post_processed"] for run in (ours, theirs)]
    assert found[0] == pytest.approx(found[1], abs=1)  # an overlap of almost the limit
    assert "| COCO's metric of 500 images, s |" in report.table(record)
