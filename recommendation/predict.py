"""Recommend films to a user with a trained model.

    .venv/bin/python -m recommendation.predict mini --user 196

Prints the ten films that the model scores highest among those the user has not rated, by title.
"""

from __future__ import annotations

import csv
import json
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from harness.checkpoint import newest_checkpoint
from harness.errors import UsageError
from harness.options import default_options, exit_with, one_line_errors
from harness.plot import newest_run
from recommendation import data
from recommendation.config import PRESETS, Config
from recommendation.model import NeuMF

TITLE_FILES = {
    "ml-20m": ("ml-20m/movies.csv", "utf-8"),
    "ml-1m": ("ml-1m/movies.dat", "latin-1"),
    "ml-100k": ("ml-100k.item", "utf-8"),
}
"""Where each data set keeps its titles, and the encoding of the file."""


@dataclass(frozen=True)
class PredictOptions:
    """Recommend films to a user with a trained model."""

    preset: tyro.conf.Positional[Literal["reference", "mini", "ml-1m", "tiny"]] = "mini"
    """Whose data and runs to use."""
    user: int | None = None
    """MovieLens id of the user; by default the first in the ratings file."""
    num_films: int = 10
    """How many films to recommend."""
    run: Path | None = None
    """A run's folder, or one above it; by default the preset's newest run."""


def recommend(
    model: NeuMF, user: int, rated: torch.Tensor, num_films: int
) -> list[tuple[int, float]]:
    """The items that score highest among those not in `rated`, with their probabilities.

    user: its number; rated: item numbers [R]. Fewer than num_films come back where the user has
    rated nearly everything.
    """
    items = torch.arange(model.mf_item.num_embeddings)
    with torch.no_grad():
        scores = model(torch.full_like(items, user), items).sigmoid()  # [num_items]
    scores[rated] = -1.0
    best = torch.topk(scores, min(num_films, int((scores >= 0).sum())))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def read_titles(config: Config, data_dir: Path) -> dict[int, str]:
    """Title, with the year where the file has it, by MovieLens item id; empty for made-up data.

    Raises UsageError where the file of titles is missing.
    """
    if config.dataset == "made-up":
        return {}
    name, encoding = TITLE_FILES[config.dataset]
    try:
        text = (data_dir / name).read_text(encoding=encoding)
    except OSError as error:
        cause = f"{data_dir / name}: {error.strerror}"
        raise UsageError(f"{cause}; run download_dataset.sh {config.preset}") from error
    if config.dataset == "ml-20m":
        return {int(row["movieId"]): row["title"] for row in csv.DictReader(text.splitlines())}
    if config.dataset == "ml-1m":
        rows = (line.split("::") for line in text.splitlines())
        return {int(row[0]): row[1] for row in rows}
    rows = (line.split("\t") for line in text.splitlines()[1:])
    return {int(row[0]): f"{row[1]} ({row[2]})" for row in rows}


def load_model(run: Path) -> tuple[NeuMF, Config]:
    """The model of a run's newest checkpoint, and the run's preset.

    Raises UsageError where the run has no whole checkpoint.
    """
    checkpoint = newest_checkpoint(run / "checkpoints")
    if checkpoint is None:
        raise UsageError(f"{run} has no checkpoint; train first, or name another run")
    stored = json.loads((run / "config.json").read_text())
    if stored["options"]["synthetic_data"]:
        raise UsageError(f"{run} was trained on made-up data; name another run")
    if stored["config"].get("expansion", [1, 1]) != [1, 1]:  # its users and films are nobody's
        raise UsageError(f"{run} was trained on expanded data; name another run")
    sizes, config = stored["derived"], stored["config"]
    model = NeuMF(
        sizes["num_users"], sizes["num_items"], config["num_factors"], config["mlp_layers"]
    )
    state = torch.load(checkpoint.path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    return model, PRESETS[config["preset"]][1]


def main(arguments: list[str] | None = None) -> int:
    """Print recommendations; returns the exit status."""
    try:
        with one_line_errors():
            options = tyro.cli(
                PredictOptions, prog="python -m recommendation.predict", args=arguments
            )
        defaults = default_options("recommendation", options.preset)
        config = PRESETS[options.preset][1]
        data.check_files(config, defaults)
        runs = options.run or defaults.results_dir / "recommendation" / options.preset
        run = newest_run(runs, needs="checkpoints/*.json")
        model, trained_on = load_model(run)
        if trained_on.preset != options.preset:
            raise UsageError(f"{run} is a run of {trained_on.preset}; give that preset")
        interactions = data.load(config, defaults)
        titles = read_titles(config, defaults.data_dir)
        user_ids = interactions.user_ids.tolist()
        user_id = options.user if options.user is not None else user_ids[0]
        if user_id not in user_ids:
            raise UsageError(f"no user {user_id}; ids run from {min(user_ids)} to {max(user_ids)}")
        user = user_ids.index(user_id)
        rated = torch.tensor(interactions.train_items[interactions.train_users == user])
        print(f"model: {run}", file=sys.stderr)
        print(f"user {user_id} has rated {len(rated)} films in the training set; likely next:")
        for place, (item, probability) in enumerate(
            recommend(model, user, rated.long(), options.num_films), start=1
        ):
            item_id = int(interactions.item_ids[item])
            held_out = "  <- the film rated last, held out of training"
            mark = held_out if item == interactions.test_items[user] else ""
            title = titles.get(item_id, f"film {item_id}")
            print(f"{place:3d}.  {probability:.3f}  {title}{mark}")
    except UsageError as error:
        return exit_with(error)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` closes the pipe early
    sys.exit(main())
