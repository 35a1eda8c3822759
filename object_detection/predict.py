"""Draw what a trained model finds on an image.

    .venv/bin/python -m object_detection.predict mini --image photo.jpg

Prints a line for each object, the surest first: its score, what it is, and the corners of its box
in pixels; and draws them all, with their masks, into detections.png. Without a file it takes the
first image of the validation set.
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

import numpy
import torch
import tyro
from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps

from harness.checkpoint import newest_checkpoint
from harness.errors import UsageError
from harness.options import RunOptions, default_options, exit_with, one_line_errors
from harness.plot import newest_run
from object_detection import data, detection
from object_detection.boxes import Boxes
from object_detection.coco import parse, read_instances
from object_detection.config import PRESETS, Config
from object_detection.masks import Patch, paste
from object_detection.model import MaskRCNN
from object_detection.transforms import resize, to_array

MIN_PICTURE_SIZE = 640
"""Smaller images are drawn enlarged until their longer side has so many pixels."""
MASK_OPACITY = 0.5
"""Of a mask's colour above the image."""


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
    """Its edges, left, top, right, bottom, in pixels of the image, and within it."""
    mask: Patch
    """Its pixels."""


def load_model(run: Path, config: Config) -> tuple[MaskRCNN, Config]:
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
    # What the command line can change of the network, its input and what comes after it.
    numbers = ["min_size", "max_size", "legacy_coords", "stem_channels", "norm", "fpn_channels"]
    numbers += ["pretrained_backbone", "canonical_size", "box_head_channels", "num_mask_convs"]
    numbers += ["mask_head_channels", "rpn_nms_iou", "test_pre_nms", "test_post_nms", "nms_iou"]
    numbers += ["max_detections"]
    changes: dict[str, Any] = {name: trained[name] for name in numbers}
    changes |= {name: tuple(trained[name]) for name in ("num_blocks", "anchor_sizes")}
    config = dataclasses.replace(config, **changes)
    model = MaskRCNN(config)
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


def read_validation(config: Config, options: RunOptions) -> data.Images | None:
    """The validation set; None where its annotations are not there. No image is read yet."""
    if data.is_made_up(config, options):
        return data.make_up(config, "val2017")
    folder = data.root(config, options.data_dir)
    path = data.instances_file(folder, "val2017")
    if not path.exists():
        return None
    annotations = parse(read_instances(path), config.num_classes, str(path), is_training=False)
    return data.Images(annotations, folder / "val2017")


def first_image(images: data.Images) -> Image.Image:
    """The first image of a split. Raises UsageError where it cannot be read."""
    try:
        return images.read(0)
    except ValueError as error:
        raise UsageError(f"{error}; check the data with verify_dataset.sh") from error


@torch.no_grad()
def find(
    model: MaskRCNN, config: Config, image: Image.Image, names: dict[int, str], min_score: float
) -> list[Found]:
    """The objects of an image, the surest first."""
    pixels, sizes = data.pad([to_array(resize(image, config))], config.size_divisor)
    config = dataclasses.replace(config, min_score=min_score)
    (found,) = detection.find(model, pixels, sizes, torch.tensor([image.size]), config)
    ends = found.boxes[:, :2] + Boxes(config.legacy_coords).sizes(found.boxes)
    corners = torch.cat([found.boxes[:, :2], ends.minimum(torch.tensor(image.size))], dim=1)
    masks = paste(found.masks, found.boxes, image.height, image.width)
    return [
        Found(score, label, names.get(label, f"class {label}"), tuple(box), mask)
        for score, label, box, mask in zip(
            found.scores.tolist(), found.labels.tolist(), corners.tolist(), masks, strict=True
        )
    ]


def draw(image: Image.Image, objects: Sequence[Found], path: Path) -> None:
    """The image with a box, a mask, a name and a score for each object, each class in a colour of
    its own.

    Raises UsageError where the file cannot be written.
    """
    scale = max(1, -(-MIN_PICTURE_SIZE // max(image.size)))
    picture = image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    for each in reversed(objects):  # the surest last, above the others
        opacity = numpy.uint8(255 * MASK_OPACITY) * each.mask.bitmap
        corner = (each.mask.left * scale, each.mask.top * scale)
        enlarged = numpy.kron(opacity, numpy.ones((scale, scale), numpy.uint8))
        picture.paste(colour_of(each.label), corner, Image.fromarray(enlarged))
    canvas = ImageDraw.Draw(picture)
    line_width = max(2, max(picture.size) // 300)
    font = ImageFont.load_default(max(12, max(picture.size) // 45))
    for each in reversed(objects):
        colour = colour_of(each.label)
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


def colour_of(label: int) -> tuple[int, ...]:
    """Of a class: colours are far apart for labels that are near each other."""
    return ImageColor.getrgb(f"hsv({label * 223 % 360}, 100%, 95%)")


def main(arguments: list[str] | None = None) -> int:
    """Print and draw detections; returns the exit status."""
    try:
        with one_line_errors():
            options = tyro.cli(
                PredictOptions, prog="python -m object_detection.predict", args=arguments
            )
        if not 0 <= options.min_score < 1:
            raise UsageError(f"--min-score is {options.min_score}; give 0 to below 1")
        config = PRESETS[options.preset][1]
        defaults = default_options("object_detection", options.preset)
        runs = options.run or defaults.results_dir / "object_detection" / options.preset
        run = newest_run(runs, needs="checkpoints/*.json")
        model, config = load_model(run, config)
        validation = read_validation(config, defaults)
        if options.image:
            image = read_image(options.image)
        else:
            data.check_files(config, defaults)
            assert validation is not None  # its annotations are among these files
            image = first_image(validation)
        known = validation.annotations.category_names if validation else ()
        names = dict(enumerate(known, start=1))
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
