"""One run of RecBole's NeuMF on MovieLens 100K, in the environment of recommendation-peer.txt.

comparisons.recommendation calls it. Its last line on stdout is the JSON object that
comparisons/pairs.py describes. It imports RecBole and nothing of ours, and uses RecBole as its
documentation says: Config, data_preparation, Trainer.fit; only the clock around Trainer's epochs
and evaluations, and the end at the target, are added.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

SETTINGS: dict[str, Any] = {
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "eval_args": {
        "split": {"LS": "test_only"},
        "group_by": "user",
        "order": "TO",
        "mode": "uni999",
    },
    "metrics": ["Hit"],
    "topk": [10],
    "valid_metric": "Hit@10",
    "mf_embedding_size": 64,
    "mlp_embedding_size": 128,
    "mlp_hidden_size": [256, 128, 64],
    "dropout_prob": 0.0,
    "learning_rate": 5e-4,
    "train_batch_size": 2048,
    "train_neg_sample_args": {
        "distribution": "uniform",
        "sample_num": 4,
        "alpha": 1.0,
        "dynamic": False,
        "candidate_num": 0,
    },
    "epochs": 20,
    "stopping_step": 20,  # epochs without progress: never earlier than the last
    # Its fastest of 4096 (the default), 16384, 65536 and 1000000.
    "eval_batch_size": 16384,
    "use_gpu": False,
    "show_progress": False,
    "state": "ERROR",
}
TARGET = 0.20
DATASET = "movielens"


class TargetReachedError(Exception):
    """Ends Trainer.fit, which has no stop of its own for a quality."""


def main() -> None:
    """Train to the target and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ratings", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    sys.argv = sys.argv[:1]  # RecBole's Config reads what is left there
    folder = Path("data", DATASET)
    folder.mkdir(parents=True)
    (folder / f"{DATASET}.inter").symlink_to(options.ratings.resolve(strict=True))
    print(json.dumps(run(options.seed)))


def run(seed: int) -> dict[str, Any]:
    """One run in the current folder, whose data/ holds the ratings."""
    import torch
    from recbole.config import Config  # type: ignore[import-not-found]
    from recbole.data import create_dataset, data_preparation  # type: ignore[import-not-found]
    from recbole.model.general_recommender import NeuMF  # type: ignore[import-not-found]
    from recbole.trainer import Trainer  # type: ignore[import-not-found]
    from recbole.utils import init_seed  # type: ignore[import-not-found]

    class TimedTrainer(Trainer):
        """RecBole's, with a clock around each epoch and each evaluation."""

        def _train_epoch(self, *args: Any, **options: Any) -> Any:
            start_s = time.perf_counter()
            loss = super()._train_epoch(*args, **options)
            epochs_s.append(time.perf_counter() - start_s)
            return loss

        def _valid_epoch(self, *args: Any, **options: Any) -> Any:
            start_s = time.perf_counter()
            score, result = super()._valid_epoch(*args, **options)
            now_s = time.perf_counter()
            evaluations_s.append(now_s - start_s)
            elapsed_s.append(now_s - fit_start_s)
            qualities.append(score)
            return score, result

    def stop_at_target(_epoch: int, score: float) -> None:
        if score >= TARGET:
            raise TargetReachedError

    epochs_s: list[float] = []
    evaluations_s: list[float] = []
    elapsed_s: list[float] = []  # from the start of fit to the end of each evaluation
    qualities: list[float] = []

    preparation_start_s = time.perf_counter()
    settings = {**SETTINGS, "seed": seed, "data_path": "data"}
    config = Config(model="NeuMF", dataset=DATASET, config_dict=settings)
    init_seed(config["seed"], config["reproducibility"])
    train_data, _, test_data = data_preparation(config, create_dataset(config))
    preparation_s = time.perf_counter() - preparation_start_s
    init_seed(config["seed"], config["reproducibility"])
    network = NeuMF(config, train_data.dataset).to(config["device"])
    trainer = TimedTrainer(config, network)

    fit_start_s = time.perf_counter()
    reached = False
    try:
        trainer.fit(train_data, test_data, verbose=False, callback_fn=stop_at_target)
    except TargetReachedError:
        reached = True

    facts = facts_of(network, train_data, test_data, config)
    facts["num_threads"] = torch.get_num_threads()
    trained = epochs_s[1:]  # the first one warms up
    num_examples = facts["train_samples"] * len(trained)
    return {
        "measures": {
            "train_examples_per_s": num_examples / sum(trained) if trained else None,
            "evaluation_s": statistics.median(evaluations_s),
            "time_to_target_s": elapsed_s[-1] if reached else None,
        },
        "facts": facts,
        "details": {
            "preparation_s": preparation_s,
            "epochs_s": epochs_s,
            "evaluations_s": evaluations_s,
            "qualities": qualities,
            "recbole": importlib.metadata.version("recbole"),
        },
    }


def facts_of(network: Any, train_data: Any, test_data: Any, config: Any) -> dict[str, Any]:
    """What was done, read off RecBole's own objects, under the names of our configuration."""
    embeddings = [module for module in network.children() if hasattr(module, "num_embeddings")]
    optimized = sum(weights.numel() for weights in network.parameters())
    padding = sum(embedding.embedding_dim for embedding in embeddings)  # a row 0 in each
    return {
        "device": str(config["device"]),
        "num_users": train_data.dataset.user_num - 1,
        "num_items": train_data.dataset.item_num - 1,
        "num_parameters": optimized - padding,
        "num_factors": config["mf_embedding_size"],
        "mlp_layers": [2 * config["mlp_embedding_size"], *config["mlp_hidden_size"]],
        "batch_size": train_data.step * train_data.times,
        "steps_per_epoch": len(train_data),
        "train_samples": len(train_data.dataset) * train_data.times,
        "num_train_negatives": train_data.times - 1,
        "learning_rate": config["learning_rate"],
        "max_epochs": config["epochs"],
        "eval_samples": len(test_data.dataset),
        "num_eval_negatives": test_data.times - 1,
        "top_k": config["topk"][0],
        "target_hr_at_10": TARGET,
    }


if __name__ == "__main__":
    main()
