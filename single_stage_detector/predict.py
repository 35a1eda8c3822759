"""Draw what a trained model finds on an image.

    .venv/bin/python -m single_stage_detector.predict mini --image photo.jpg

Prints a line for each object, the surest first: its score, what it is, and the corners of its box
in pixels; and draws them all into detections.png. Without a file it takes the first image of the
validation set.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps

from harness.checkpoint import newest_checkpoint
from harness.errors import UsageError
from harness.options import RunOptions, default_options, exit_with, one_line_errors
from harness.plot import newest_run
from single_stage_detector import data
from single_stage_detector.augmentation import prepare_for_evaluation
from single_stage_detector.coco import parse, read_instances
from single_stage_detector.config import PRESETS, Config
from single_stage_detector.default_boxes import DefaultBoxes
from single_stage_detector.detection import detect
from single_stage_detector.model import SSD, normalize_pixels

MIN_PICTURE_SIZE = 640
"""Smaller images are drawn enlarged until their longer side has so many pixels."""


@dataclass(frozen=True)
class PredictOptions:
    """Draw what a trained model finds on an image."""

    preset: tyro.conf.Positional[Literal["reference", "mini", "tiny"]] = "mini"
    """Whose runs to use."""
    image: Path | None = None
    """An image file; by default the first image of the validation set."""
    run: Path | None = None
    """A run's folder, or one above it; by default the preset's newest run."""
    min_score: float = 0.5
    """Least probability of what is shown."""
    output: Path = Path("detections.png")
    """Where to draw it; the name's ending is the format."""


@dataclass(frozen=True)
class Found:
    """One object."""

    score: float
    """Probability of the class."""
    label: int
    """Its number, from 1."""
    name: str
    """What it is."""
    corners: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels of the image, and within it."""


def load_model(run: Path, config: Config) -> tuple[SSD, Config]:
    """The model of a run's newest checkpoint, and the numbers that it was trained with.

    Raises UsageError where the run has none, or is of another preset or of made-up data.
    """
    checkpoint = newest_checkpoint(run / "checkpoints")
    if checkpoint is None:
        raise UsageError(f"{run} has no checkpoint; train first, or name another run")
    stored = json.loads((run / "config.json").read_text())
    trained = stored["config"]
    if trained["preset"] != config.preset:
        raise UsageError(f"{run} is a run of {trained['preset']}; give that preset")
    if stored["options"]["synthetic_data"]:
        raise UsageError(f"{run} was trained on made-up data; name another run")
    # What the command line can change of the network and of what comes after it.
    numbers = ("input_size", "extra_batch_norm", "nms_iou", "max_detections")
    sequences = ("num_blocks", "num_filters", "map_strides", "box_scales")
    changes: dict[str, Any] = {name: trained[name] for name in numbers}
    changes |= {name: tuple(trained[name]) for name in sequences}
    config = dataclasses.replace(config, **changes)
    model = SSD(config)
    state = torch.load(checkpoint.path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    return model.eval(), config


def read_image(path: Path) -> Image.Image:
    """An image file, in colours and upright. Raises UsageError for what is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return ImageOps.exif_transpose(image).convert("RGB")
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        cause = f"{path} is no image ({getattr(error, 'strerror', None) or error})"
        raise UsageError(f"{cause}; name another with --image") from error


def first_of_validation(config: Config, options: RunOptions) -> Image.Image:
    """The first image of the validation set. Raises UsageError where it cannot be read."""
    data.check_files(config, options)
    try:
        return data.load(config, options)[1].read(0)
    except ValueError as error:
        raise UsageError(f"{error}; check the data with verify_dataset.sh") from error


def read_names(config: Config, options: RunOptions) -> dict[int, str]:
    """What each label is; empty where the annotations of the data set are not there."""
    if data.is_made_up(config, options):
        names = data.make_up(config, "val2017").annotations.category_names
    else:
        path = data.instances_file(data.root(config, options.data_dir), "val2017")
        if not path.exists():
            return {}
        content = read_instances(path)
        names = parse(content, config.num_classes, str(path)).category_names
    return dict(enumerate(names, start=1))


@torch.no_grad()
def find(
    model: SSD, config: Config, image: Image.Image, names: dict[int, str], min_score: float
) -> list[Found]:
    """The objects of an image, the surest first."""
    pixels = torch.from_numpy(prepare_for_evaluation(image, config))[None]
    box_deltas, class_logits = model(normalize_pixels(pixels))
    config = dataclasses.replace(config, min_score=min_score)
    detections = detect(box_deltas, class_logits, DefaultBoxes(config), config)
    size = torch.tensor([*image.size, *image.size])
    boxes = detections.boxes.clamp(0, 1) * size
    return [
        Found(score, label, names.get(label, f"class {label}"), tuple(box))
        for score, label, box in zip(
            detections.scores.tolist(), detections.labels.tolist(), boxes.tolist(), strict=True
        )
    ]


def draw(image: Image.Image, objects: Sequence[Found], path: Path) -> None:
    """The image with a box, a name and a score for each object, each class in a colour of its own.

    Raises UsageError where the file cannot be written.
    """
    scale = max(1, -(-MIN_PICTURE_SIZE // max(image.size)))
    picture = image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    canvas = ImageDraw.Draw(picture)
    line_width = max(2, max(picture.size) // 300)
    font = ImageFont.load_default(max(12, max(picture.size) // 45))
    for each in reversed(objects):  # the surest last, above the others
        # Colours that are far apart for labels that are near each other.
        colour = ImageColor.getrgb(f"hsv({each.label * 223 % 360}, 100%, 95%)")
        left, top, right, bottom = (side * scale for side in each.corners)
        canvas.rectangle((left, top, right, bottom), outline=colour, width=line_width)
        text = f"{each.name} {each.score:.2f}"
        _, _, width, height = canvas.textbbox((0, 0), text, font=font)
        left = max(0, min(left, picture.width - width - 4))
        top = top - height - 4 if top >= height + 4 else top
        canvas.rectangle((left, top, left + width + 4, top + height + 4), fill=colour)
        canvas.text((left + 2, top + 2), text, fill="black", font=font)
    try:
        picture.save(path)
    except (OSError, ValueError) as error:  # ValueError: no format has this ending
        cause = f"cannot write {path}: {getattr(error, 'strerror', None) or error}"
        raise UsageError(f"{cause}; name another file with --output") from error
    print(f"picture: {path}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Print and draw detections; returns the exit status."""
    try:
        with one_line_errors():
            options = tyro.cli(
                PredictOptions, prog="python -m single_stage_detector.predict", args=arguments
            )
        if not 0 <= options.min_score < 1:
            raise UsageError(f"--min-score is {options.min_score}; give 0 to below 1")
        config = PRESETS[options.preset][1]
        defaults = default_options("single_stage_detector", options.preset)
        runs = options.run or defaults.results_dir / "single_stage_detector" / options.preset
        run = newest_run(runs, needs="checkpoints/*.json")
        model, config = load_model(run, config)
        if options.image:
            image = read_image(options.image)
        else:
            image = first_of_validation(config, defaults)
        names = read_names(config, defaults)
        print(f"model: {run}", file=sys.stderr)
        objects = find(model, config, image, names, options.min_score)
        for each in objects:
            left, top, right, bottom = each.corners
            box = f"left {left:.0f}, top {top:.0f}, right {right:.0f}, bottom {bottom:.0f}"
            print(f"{each.score:.3f}  {each.name}: {box}")
        if not objects:
            print(f"nothing has a score above {options.min_score}", file=sys.stderr)
        draw(image, objects, options.output)
    except UsageError as error:
        return exit_with(error)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` closes the pipe early
    sys.exit(main())
