"""Say what is on image files with a trained model.

    .venv/bin/python -m image_classification.predict mini photo.jpg

Prints the likeliest classes of each image with their probabilities, and draws both beside the image
into predictions.png. Without files it takes nine images of the validation set.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

# First: it imports TensorFlow without its start-up notes.
from harness import tensorflow_support  # isort: split

import keras
import numpy
import tensorflow as tf
import tyro
from numpy.typing import NDArray

from harness.checkpoint import newest_checkpoint
from harness.errors import UsageError
from harness.options import default_options, exit_with, one_line_errors
from harness.plot import newest_run
from image_classification import data
from image_classification.config import PRESETS, Config
from image_classification.images import eval_image
from image_classification.model import resnet
from image_classification.sources import to_plain_jpeg


@dataclass(frozen=True)
class PredictOptions:
    """Say what is on image files with a trained model."""

    preset: tyro.conf.Positional[Literal["reference", "mini", "tiny"]] = "mini"
    """Whose runs to use."""
    images: tyro.conf.Positional[tuple[Path, ...]] = ()
    """JPEG or PNG files; by default nine images of the validation set."""
    num_classes: int = 5
    """How many of the likeliest classes to name."""
    run: Path | None = None
    """A run's folder, or one above it; by default the preset's newest run."""
    picture: Path = Path("predictions.png")
    """Where to draw the images with their classes."""


@dataclass(frozen=True)
class Labelled:
    """An image as it is shown, and what it is if that is known."""

    name: str
    encoded: bytes
    label: int | None = None


def load_model(run: Path, config: Config) -> tuple[keras.Model, Config]:
    """The model of a run's newest checkpoint, and the facts that it was trained with.

    Raises UsageError where the run has none, or is of another preset than `config`.
    """
    checkpoint = newest_checkpoint(run / "checkpoints")
    if checkpoint is None:
        raise UsageError(f"{run} has no checkpoint; train first, or name another run")
    stored = json.loads((run / "config.json").read_text())["config"]
    if stored["preset"] != config.preset:
        raise UsageError(f"{run} is a run of {stored['preset']}; give that preset")
    fields = (
        "num_blocks",
        "num_filters",
        "stem_kernel",
        "stem_stride",
        "train_size",
        "eval_resize",
    )
    config = dataclasses.replace(config, **{name: stored[name] for name in fields})
    model = resnet(
        config.num_classes,
        config.num_blocks,
        config.num_filters,
        config.stem_kernel,
        config.stem_stride,
        config.train_size,
    )
    with numpy.load(checkpoint.path) as arrays:  # the model's variables, then the optimiser's
        for variable, name in zip(model.variables, sorted(arrays.files), strict=False):
            variable.assign(arrays[name])
    return model, config


def read_files(paths: Sequence[Path]) -> list[Labelled]:
    """Image files as JPEGs. Raises UsageError for what is none."""
    found = []
    for path in paths:
        try:
            found.append(Labelled(path.name, to_plain_jpeg(path.read_bytes())))
        except OSError as error:
            cause = f"{path} is no image ({error.strerror or error})"
            raise UsageError(f"{cause}; name others") from error
    return found


def some_of(images: data.Images, num_images: int) -> list[Labelled]:
    """The first images of a split."""
    found: list[Labelled] = []
    for record in images.records(None).take(num_images):
        encoded, label = data.parse(record)
        found.append(Labelled(f"image {len(found) + 1}", encoded.numpy(), int(label)))
    return found


def probabilities(
    model: keras.Model, images: Sequence[Labelled], config: Config
) -> NDArray[numpy.float32]:
    """Of each image and class: [N, num_classes]."""
    batch = tf.stack([eval_image(image.encoded, config) for image in images])
    return numpy.asarray(tf.nn.softmax(model(batch, training=False)))


def read_class_names(data_dir: Path) -> dict[int, str]:
    """Names by label; empty where the data set is made up or not prepared."""
    path = data_dir / "prepared" / "classes.tsv"
    if not path.exists():
        return {}
    rows = (line.split("\t") for line in path.read_text().splitlines())
    return {int(label): name for label, _, name in rows}


def draw(
    images: Sequence[Labelled], texts: Sequence[str], colours: Sequence[str], path: Path
) -> None:
    """A grid of images with a few lines of text over each.

    Raises UsageError where the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(3, len(images))
    rows = -(-len(images) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(3.2 * columns, 4 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, text, colour in zip(axes.flat, images, texts, colours, strict=False):
        axis.imshow(tf.io.decode_jpeg(image.encoded, channels=3))
        axis.set_title(text, fontsize="small", color=colour)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        cause = f"cannot write {path}: {error.strerror or error}"
        raise UsageError(f"{cause}; name another file with --picture") from error
    pyplot.close(figure)
    print(f"picture: {path}", file=sys.stderr)


def describe(
    image: Labelled, scores: NDArray[Any], names: dict[int, str], num_classes: int
) -> tuple[str, str]:
    """Text for one image, and a colour: green where the likeliest class is right, red where not."""
    best = numpy.argsort(-scores, kind="stable")[:num_classes].tolist()
    lines = [f"{scores[label]:6.1%}  {names.get(label, f'class {label}')}" for label in best]
    if image.label is None:
        return "\n".join(lines), "black"
    truth = names.get(image.label, f"class {image.label}")
    colour = "green" if best[0] == image.label else "red"
    return "\n".join([*lines, f"it is {truth}"]), colour


def main(arguments: list[str] | None = None) -> int:
    """Print and draw predictions; returns the exit status."""
    try:
        with one_line_errors():
            options = tyro.cli(
                PredictOptions, prog="python -m image_classification.predict", args=arguments
            )
        if options.num_classes < 1:
            raise UsageError(f"--num-classes is {options.num_classes}; give 1 or more")
        tensorflow_support.hide_gpus()
        config = PRESETS[options.preset][1]
        defaults = default_options("image_classification", options.preset)
        runs = options.run or defaults.results_dir / "image_classification" / options.preset
        run = newest_run(runs, needs="checkpoints/*.json")
        model, config = load_model(run, config)
        if options.images:
            images = read_files(options.images)
        else:
            data.check_files(config, defaults)
            images = some_of(data.load(config, defaults)[1], 9)
        names = read_class_names(defaults.data_dir)
        print(f"model: {run}", file=sys.stderr)
        scores = probabilities(model, images, config)
        found = [
            describe(image, row, names, options.num_classes)
            for image, row in zip(images, scores, strict=True)
        ]
        for image, (text, _) in zip(images, found, strict=True):
            print(f"{image.name}:\n{text}")
        draw(images, [text for text, _ in found], [colour for _, colour in found], options.picture)
    except UsageError as error:
        return exit_with(error)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` closes the pipe early
    sys.exit(main())
