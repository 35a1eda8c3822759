"""Tell the sentiment of sentences with a trained model, and the words that decided it.

    .venv/bin/python -m sentiment_analysis.predict mini "a warm , funny film"
    shuf -n 5 reviews.txt | .venv/bin/python -m sentiment_analysis.predict mini

Takes its arguments, or else each line of stdin, as a review.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy
import torch
import tyro
from torch import Tensor

from harness import torch_support
from harness.checkpoint import newest_checkpoint
from harness.errors import UsageError
from harness.options import default_options, exit_with, one_line_errors
from harness.plot import newest_run
from sentiment_analysis import data
from sentiment_analysis.config import NEGATIVE, POSITIVE, PRESETS
from sentiment_analysis.model import SequenceCNN
from sentiment_analysis.prepare import UNKNOWN_WORD, split_words


@dataclass(frozen=True)
class PredictOptions:
    """Tell the sentiment of sentences with a trained model, and the words that decided it."""

    preset: tyro.conf.Positional[Literal["reference", "mini", "tiny"]] = "mini"
    """Whose data and runs to use."""
    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """Reviews; without any, each line of stdin is one."""
    num_windows: int = 3
    """Windows of words to show for each review, those that weigh most first; 0 shows none."""
    run: Path | None = None
    """A run's folder, or one above it; by default the preset's newest run."""


@dataclass(frozen=True)
class Finding:
    """What the model makes of a review."""

    positive_probability: float
    windows: list[tuple[float, int, int]]
    """Weight, first word and one past the last; above zero speaks for a positive review."""
    unknown: list[int]
    """Places of the words that are not in the vocabulary."""


@torch.no_grad()
def explain(model: SequenceCNN, words: Sequence[bytes], ids_of: Mapping[bytes, int]) -> Finding:
    """Classify one review of at least one word, and share the decision out to its windows.

    ids_of: the id of each word of the vocabulary, the unknown word's too.

    The difference of the two logits is a sum over filters, and each filter's value comes from the
    one window where it is largest: a window weighs what the filters that it won add to it.
    """
    unknown = ids_of[UNKNOWN_WORD]
    ids = numpy.array([ids_of.get(word, unknown) for word in words])
    known, places = numpy.unique(ids, return_inverse=True)
    device = torch.device("cpu")
    (windows,) = data.make_windows(places, [len(ids)], len(known), model.filter_widths, device)
    pooled = model.pool(model.responses(torch.from_numpy(known)), [windows])
    logits = model.output(torch.cat([values for values, _ in pooled], dim=1))[0]  # [2]
    margins = model.output.weight[POSITIVE] - model.output.weight[NEGATIVE]  # [filters of all]
    weight_of: dict[tuple[int, int], float] = {}
    for (values, winners), width, margin in zip(
        pooled, model.filter_widths, margins.split(model.filters[0].shape[1]), strict=True
    ):
        shares = (values[0] * margin).tolist()
        positions = winning_positions(windows, winners, model, width)
        for share, position in zip(shares, positions, strict=True):
            first = position - width // 2
            span = max(0, first), min(len(ids), first + width)
            weight_of[span] = weight_of.get(span, 0.0) + share
    heaviest = sorted(weight_of.items(), key=lambda item: -abs(item[1]))
    return Finding(
        positive_probability=float(logits.softmax(dim=0)[POSITIVE]),
        windows=[(weight, *span) for span, weight in heaviest],
        unknown=[place for place, number in enumerate(ids) if number == unknown],
    )


def winning_positions(
    windows: Tensor, winners: Tensor, model: SequenceCNN, width: int
) -> list[int]:
    """Word at which each filter's winning window stands: windows [1, L, K], winners [1, k, H].

    The same words may stand in several windows; the first of them counts.
    """
    first = model.left - width // 2
    rows = windows[0, :, first : first + width] * width + torch.arange(width)  # [L, k]
    is_winner = (rows[:, :, None] == winners).all(dim=1)  # [L, H]
    return is_winner.int().argmax(dim=0).tolist()


def load_model(run: Path, preset: str) -> tuple[SequenceCNN, dict[bytes, int]]:
    """The model of a run's newest checkpoint, and the ids of its words.

    Raises UsageError where the run has no whole checkpoint, is of another preset or was trained on
    made-up data, or where its data is not there any more.
    """
    checkpoint = newest_checkpoint(run / "checkpoints")
    if checkpoint is None:
        raise UsageError(f"{run} has no checkpoint; train first, or name another run")
    stored = json.loads((run / "config.json").read_text())
    values = stored["config"]
    if values["preset"] != preset:
        raise UsageError(f"{run} is a run of {values['preset']}; give that preset")
    if stored["options"]["synthetic_data"]:
        raise UsageError(f"{run} was trained on made-up data; name another run")
    fields = ("dataset", "word_cutoff", "vocabulary_from")
    config = dataclasses.replace(PRESETS[preset][1], **{name: values[name] for name in fields})
    options = default_options("sentiment_analysis", preset)
    vocabulary = data.vocabulary(config, data.prepared(config, options))
    if len(vocabulary) != stored["derived"]["num_words"]:
        cause = f"{run} knows {stored['derived']['num_words']} words, the data {len(vocabulary)}"
        raise UsageError(f"{cause}; set DATA_DIR to the data that it was trained on")
    model = SequenceCNN(
        len(vocabulary), values["embedding_size"], values["num_filters"], values["filter_widths"]
    )
    state = torch.load(checkpoint.path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    return model.eval(), {word: number for number, word in enumerate(vocabulary)}


def show(text: str, finding: Finding, words: Sequence[bytes], num_windows: int) -> None:
    """Print one review's sentiment, the windows that weigh most, and the unknown words."""
    probability = finding.positive_probability
    name = "positive" if probability >= 0.5 else "negative"
    print(f"{name}  {max(probability, 1 - probability):.3f}  {text}")
    shown = [word.decode(errors="replace") for word in words]
    for weight, first, stop in finding.windows[:num_windows]:
        print(f"    {weight:+.2f}  {' '.join(shown[first:stop])}")
    if finding.unknown:
        print(f"    not in the vocabulary: {' '.join(shown[place] for place in finding.unknown)}")


def main(arguments: list[str] | None = None) -> int:
    """Print what the model makes of each review; returns the exit status."""
    try:
        with one_line_errors():
            options = tyro.cli(
                PredictOptions, prog="python -m sentiment_analysis.predict", args=arguments
            )
        if options.num_windows < 0:
            raise UsageError(f"--num-windows is {options.num_windows}; give 0 or more")
        defaults = default_options("sentiment_analysis", options.preset)
        runs = options.run or defaults.results_dir / "sentiment_analysis" / options.preset
        run = newest_run(runs, needs="checkpoints/*.json")
        model, ids_of = load_model(run, options.preset)
        torch_support.set_up(torch.device("cpu"), 0)
        print(f"model: {run}", file=sys.stderr)
        texts: Iterable[str] = options.texts or (line.rstrip("\n") for line in sys.stdin)
        for text in texts:
            words = split_words(text.encode(errors="surrogateescape"))
            if words:
                show(text, explain(model, words, ids_of), words, options.num_windows)
            else:
                print(f"no words  -  {text}")
    except UsageError as error:
        return exit_with(error)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` closes the pipe early
    sys.exit(main())
