"""Wrong sciences, each put into the real code and each caught by a check that the tests use.

A mutation is a change of text in one module. The changed source is loaded as a module of its own,
and everything that it defines takes the place of the original wherever our code refers to it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from recommendation import data, evaluate, expand, model, prepare, train
from recommendation.tests import checks

pytestmark = pytest.mark.usefixtures("torch_state")

MODULES = (data, evaluate, expand, model, prepare, train)


@dataclass(frozen=True)
class Mutation:
    """One wrong science."""

    module: ModuleType
    right: str
    """Text that stands exactly once in the module."""
    wrong: str
    """What it is replaced by."""
    check: Callable[[], Any]
    """The check that must fail."""


def put_into_place(
    module: ModuleType, source: str, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """Load `source` and let its classes, functions and numbers stand for those of `module`."""
    path = folder / f"mutated_{module.__name__.rpartition('.')[2]}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    mutated = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, mutated)  # dataclasses look themselves up
    spec.loader.exec_module(mutated)
    for name, original in list(vars(module).items()):
        replacement = vars(mutated).get(name)
        if name.startswith("__") or replacement is original:
            continue
        for place in MODULES:
            if vars(place).get(name) is original:
                monkeypatch.setattr(place, name, replacement)


MUTATIONS = {
    # --- preparation ---
    "first instead of last held out": Mutation(
        prepare, "(times[kept], user_numbers)", "(-times[kept], user_numbers)", checks.check_split
    ),
    "first of equal times held out": Mutation(
        prepare,
        "(times[kept], user_numbers)",
        "(-numpy.arange(kept.sum()), times[kept], user_numbers)",
        checks.check_split,
    ),
    "held-out film trained on": Mutation(
        prepare,
        "numpy.unique(user_numbers[~is_last] * num_items + item_numbers[~is_last])",
        "numpy.unique(user_numbers * num_items + item_numbers)",
        checks.check_split,
    ),
    "users with 20 ratings left out": Mutation(
        prepare, ">= MIN_RATINGS", "> MIN_RATINGS", checks.check_split
    ),
    "ids numbered by size": Mutation(
        prepare,
        "pandas.factorize(items[kept])",
        "pandas.factorize(items[kept], sort=True)",
        checks.check_split,
    ),
    "held-out film kept out of the negatives": Mutation(
        prepare,
        "train_users, train_items, num_users,",
        "*numpy.divmod(numpy.unique(user_numbers * num_items + item_numbers), num_items),"
        " num_users,",
        checks.check_eval_negatives,
    ),
    "one negative less": Mutation(
        prepare,
        "num_users, num_items, num_eval_negatives\n",
        "num_users, num_items, num_eval_negatives - 1\n",
        checks.check_eval_negatives,
    ),
    "rated film among the negatives": Mutation(
        prepare, 'side="right"', 'side="left"', checks.check_eval_negatives
    ),
    "last item never a candidate": Mutation(
        prepare, "randint(0, pool_size,", "randint(0, pool_size - 1,", checks.check_eval_negatives
    ),
    "negatives without replacement": Mutation(
        prepare,
        "stream.randint(0, pool_size, size=num_drawn)",
        "stream.permutation(numpy.arange(num_drawn) % pool_size)",
        checks.check_eval_negatives,
    ),
    # --- expansion ---
    "singular values left out": Mutation(
        expand, "(user_vectors * values)", "user_vectors", checks.check_keep_rates
    ),
    "reduced vectors not orthonormal": Mutation(
        expand, "return left @ right", "return means", checks.check_keep_rates
    ),
    "keep rates without bounds": Mutation(
        expand, ".clip(MIN_KEEP_RATE, MAX_KEEP_RATE)", ".clip(0, 1)", checks.check_keep_rates
    ),
    "dropped what is to be kept": Mutation(
        expand, "bits < rate", "bits >= rate", checks.check_expanded_rows
    ),
    "films of a block not shuffled": Mutation(
        expand,
        "stream.permutation(num_items)",
        "numpy.arange(num_items)",
        checks.check_expanded_rows,
    ),
    "one shuffle for all blocks of a row": Mutation(
        expand, '"block", row, column', '"block", row', checks.check_expanded_rows
    ),
    "every block's films the same": Mutation(
        expand, " + column * num_items", "", checks.check_expanded_rows
    ),
    "held-out film of any block alike": Mutation(
        expand,
        "rates[row].cumsum()",
        "numpy.full(len(rates[row]), rates[row].mean()).cumsum()",
        checks.check_expanded_rows,
    ),
    "held-out film of another user": Mutation(
        expand,
        "interactions.test_items[mine]",
        "interactions.test_items[::-1][mine]",
        checks.check_expanded_rows,
    ),
    "users without a training film kept": Mutation(
        expand, "minlength=num_users) > 0", "minlength=num_users) >= 0", checks.check_expanded_rows
    ),
    "each row's users numbered from 0": Mutation(
        prepare, "users += num_users", "users += 0", checks.check_expanded_files
    ),
    "the same negatives' stream for every row": Mutation(
        prepare,
        "expand.negatives_seed(row)",
        "expand.negatives_seed(0)",
        checks.check_expanded_files,
    ),
    "as many copies of films as of users": Mutation(
        prepare,
        "num_items = interactions.num_items * num_columns",
        "num_items = interactions.num_items * num_rows",
        checks.check_expanded_files,
    ),
    # --- training examples ---
    "rated items not rejected": Mutation(
        data, "- 1)] == keys", "- 1)] == -1", checks.check_negatives_are_unrated
    ),
    "rated items rejected once only": Mutation(
        data,
        "while len(pending):",
        "while len(pending) and attempt < 2:",
        checks.check_negatives_are_unrated,
    ),
    "another user's rated items rejected": Mutation(
        data,
        "self.users[pending // self.num_negatives]",
        "self.users[pending % len(self.users)]",
        checks.check_negatives_are_unrated,
    ),
    "last item never drawn": Mutation(
        data, "% self.num_items\n", "% (self.num_items - 1)\n", checks.check_negatives_are_uniform
    ),
    "rejected draws moved to the next item": Mutation(
        data,
        "drawn = random_bits(key, pending) % self.num_items",
        "drawn = (random_bits(derive_seed(seed, epoch), pending) + attempt) % self.num_items",
        checks.check_negatives_are_uniform,
    ),
    "items drawn unevenly": Mutation(
        data,
        "random_bits(key, pending) % self.num_items",
        "random_bits(key, pending) % 128 % self.num_items",
        checks.check_negatives_are_uniform,
    ),
    "same negatives each epoch": Mutation(
        data,
        'derive_seed(seed, "negatives", epoch, attempt)',
        'derive_seed(seed, "negatives", attempt)',
        checks.check_epochs_are_unrelated,
    ),
    "same order each epoch": Mutation(
        data,
        'derive_seed(seed, "order", epoch)',
        'derive_seed(seed, "order")',
        checks.check_epochs_are_unrelated,
    ),
    "seed without effect on the negatives": Mutation(
        data,
        'derive_seed(seed, "negatives", epoch, attempt)',
        'derive_seed(1, "negatives", epoch, attempt)',
        checks.check_epochs_are_unrelated,
    ),
    "label shifted by one": Mutation(
        data,
        "(examples % num_slots == 0)",
        "(examples % num_slots == 1)",
        checks.check_epoch_is_whole,
    ),
    "item shifted by one": Mutation(
        data,
        "self.items.view(-1)[examples]",
        "self.items.view(-1).roll(-1)[examples]",
        checks.check_epoch_is_whole,
    ),
    "user of the next positive": Mutation(
        data,
        "self.train_users[examples // num_slots]",
        "self.train_users[(examples // num_slots + 1) % len(self.train_users)]",
        checks.check_epoch_is_whole,
    ),
    "examples drawn instead of permuted": Mutation(
        data,
        "torch.argsort(keys, stable=True)",
        "(keys % self.num_examples)",
        checks.check_epoch_is_whole,
    ),
    "sign carried by the shift": Mutation(
        data,
        "(bits >> count) & ((1 << (64 - count)) - 1)",
        "bits >> count",
        checks.check_random_bits,
    ),
    # --- network ---
    "no ReLU after the last layer": Mutation(
        model,
        "hidden = torch.relu(layer(hidden))",
        "hidden = layer(hidden) if layer is self.mlp[-1] else torch.relu(layer(hidden))",
        checks.check_forward,
    ),
    "sigmoid in the network and in the loss": Mutation(
        model, "dim=-1)).squeeze(-1)", "dim=-1)).squeeze(-1).sigmoid()", checks.check_forward
    ),
    "item off by one": Mutation(
        model,
        "self.mf_item(items)",
        "self.mf_item((items + 1) % self.mf_item.num_embeddings)",
        checks.check_forward,
    ),
    "item before user": Mutation(
        model,
        "[self.mlp_user(users), self.mlp_item(items)]",
        "[self.mlp_item(items), self.mlp_user(users)]",
        checks.check_forward,
    ),
    "sum for product of the factors": Mutation(
        model,
        "self.mf_user(users) * self.mf_item(items)",
        "self.mf_user(users) + self.mf_item(items)",
        checks.check_forward,
    ),
    "bias twice in the evaluation": Mutation(
        model,
        "nn.functional.linear(self.mlp_item.weight, item_weight)",
        "nn.functional.linear(self.mlp_item.weight, item_weight, first.bias)",
        checks.check_score_candidates,
    ),
    "no ReLU after the last layer in the evaluation": Mutation(
        model,
        "hidden = layer(hidden).relu_()",
        "hidden = layer(hidden)",
        checks.check_score_candidates,
    ),
    "PyTorch's first values in the perceptron": Mutation(
        model,
        "nn.init.xavier_uniform_(layer.weight)",
        "pass",
        checks.check_initial_values,
    ),
    "Glorot normal for uniform": Mutation(
        model, "xavier_uniform_", "xavier_normal_", checks.check_initial_values
    ),
    "PyTorch's first values in the output": Mutation(
        model, "math.sqrt(3 / ", "math.sqrt(1 / ", checks.check_initial_values
    ),
    "embeddings ten times as wide": Mutation(
        model, "EMBEDDING_STD = 0.01", "EMBEDDING_STD = 0.1", checks.check_initial_values
    ),
    "no bias in the output": Mutation(
        model, "mlp_layers[-1], 1)", "mlp_layers[-1], 1, bias=False)", checks.check_parameter_counts
    ),
    # --- metric ---
    "positive wins ties": Mutation(
        evaluate,
        "(places < positive_place)",
        "(places > positive_place)",
        checks.check_constant_model_scores_nothing,
    ),
    "positive first": Mutation(
        evaluate,
        "[negatives, positives.unsqueeze(1)]",
        "[positives.unsqueeze(1), negatives]",
        checks.check_evaluation,
    ),
    "positive first among the candidates, and still the positive": Mutation(
        evaluate,
        "is_ahead = (scores == positive_score) & (places < positive_place)",
        "is_ahead = torch.zeros_like(is_repeat)",
        checks.check_constant_model_scores_nothing,
    ),
    "positive in its last place": Mutation(
        evaluate,
        "positive_place = is_positive.int().argmax(dim=1, keepdim=True)",
        "positive_place = torch.full_like(candidates[:, :1], scores.shape[1] - 1).long()",
        checks.check_ranks,
    ),
    "duplicates counted twice": Mutation(
        evaluate, "(is_ahead & ~is_repeat)", "is_ahead", checks.check_ranks
    ),
    "first of the negatives dropped": Mutation(
        evaluate,
        "interactions.eval_negatives[mine]",
        "interactions.eval_negatives[mine, 1:]",
        checks.check_evaluation,
    ),
    "eleven best for ten": Mutation(
        evaluate, "ranks < top_k", "ranks <= top_k", checks.check_evaluation
    ),
    "gain of the place before": Mutation(
        evaluate, "ranks.double() + 2", "ranks.double() + 1.5", checks.check_evaluation
    ),
    "last block of users left out": Mutation(
        evaluate,
        "range(0, len(users), num_rows)",
        "range(0, len(users) - num_rows, num_rows)",
        checks.check_evaluation,
    ),
    "all users in every process": Mutation(
        evaluate,
        "slice(torch_support.rank(), None, torch_support.num_processes())",
        "slice(None)",
        checks.check_each_user_counts_once,
    ),
    "mean over this process's users": Mutation(
        evaluate,
        "num_users = data.num_users if max_users is None else len(users)",
        "num_users = len(users)",
        checks.check_each_user_counts_once,
    ),
    # --- training ---
    "loss divided by this process's share": Mutation(
        train,
        "(torch_support.num_processes() / size)",
        "(1 / len(labels))",
        checks.check_gradient_is_mean_over_processes,
    ),
    "loss not scaled by the number of processes": Mutation(
        train,
        "(torch_support.num_processes() / size)",
        "(1 / size)",
        checks.check_gradient_is_mean_over_processes,
    ),
    "whole batch in every process": Mutation(
        train,
        "*torch_support.share(start, size)",
        "start, start + size",
        checks.check_gradient_is_mean_over_processes,
    ),
    "short batch divided by the full size": Mutation(
        train,
        "(torch_support.num_processes() / size)",
        "(torch_support.num_processes() / config.batch_size)",
        checks.check_trajectory,
    ),
    "last short batch dropped": Mutation(
        data,
        "math.ceil(num_positives * (1 + config.num_train_negatives) / config.batch_size)",
        "num_positives * (1 + config.num_train_negatives) // config.batch_size",
        checks.check_trajectory,
    ),
    "gradients kept from step to step": Mutation(
        train, "optimizer.zero_grad()", "pass", checks.check_trajectory
    ),
    "weight decay": Mutation(
        train, "torch.optim.Adam(", "torch.optim.AdamW(", checks.check_trajectory
    ),
    "Adam's decays exchanged": Mutation(
        train,
        "(config.adam_beta1, config.adam_beta2)",
        "(config.adam_beta2, config.adam_beta1)",
        checks.check_trajectory,
    ),
    "learning rate twice": Mutation(
        train, "lr=config.learning_rate", "lr=2 * config.learning_rate", checks.check_trajectory
    ),
    "another epsilon": Mutation(
        train, "eps=config.adam_epsilon", "eps=1e-7", checks.check_trajectory
    ),
    "the first epoch's examples in every epoch": Mutation(
        train,
        "training_set.epoch(options.seed, epoch)",
        "training_set.epoch(options.seed, 1)",
        checks.check_trajectory,
    ),
    "mean absolute error for cross-entropy": Mutation(
        train,
        "binary_cross_entropy_with_logits(\n                    logits.float(),",
        "l1_loss(\n                    logits.float().sigmoid(),",
        checks.check_trajectory,
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_wrong_science_is_caught(name, monkeypatch, tmp_path):
    mutation = MUTATIONS[name]
    source = Path(str(mutation.module.__file__)).read_text()
    assert source.count(mutation.right) == 1, f"{mutation.right!r} stands not once: mend this test"
    changed = source.replace(mutation.right, mutation.wrong)
    put_into_place(mutation.module, changed, monkeypatch, tmp_path)
    with pytest.raises(AssertionError):
        mutation.check()


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_a_loaded_copy_of_the_right_source_passes(module, monkeypatch, tmp_path):
    """It is the mutation that a check catches, not the way in which it is put into place."""
    source = Path(str(module.__file__)).read_text()
    put_into_place(module, source, monkeypatch, tmp_path)
    for check in {mutation.check for mutation in MUTATIONS.values() if mutation.module is module}:
        check()


class WrongAdam(torch.optim.Optimizer):
    """Adam with `epsilon inside the root` or without `bias correction`."""

    fault: str

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float], eps: float, fused: bool
    ) -> None:
        del fused  # it is plain
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})
        self.num_steps = 0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None
        self.num_steps += 1
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for weights in group["params"]:
                state = self.state[weights]
                mean = state.setdefault("mean", torch.zeros_like(weights))
                square = state.setdefault("square", torch.zeros_like(weights))
                mean.lerp_(weights.grad, 1 - beta1)
                square.lerp_(weights.grad**2, 1 - beta2)
                if self.fault == "no bias correction":
                    corrected = mean, square
                else:
                    corrected = (
                        mean / (1 - beta1**self.num_steps), square / (1 - beta2**self.num_steps),
                    )  # fmt: skip
                if self.fault == "epsilon inside the root":
                    root = (corrected[1] + group["eps"]).sqrt()
                else:
                    root = corrected[1].sqrt() + group["eps"]
                weights.sub_(group["lr"] * corrected[0] / root)


@pytest.mark.parametrize("fault", ["no bias correction", "epsilon inside the root"])
def test_a_wrong_adam_is_caught(fault, monkeypatch):
    monkeypatch.setattr(torch.optim, "Adam", WrongAdam)
    monkeypatch.setattr(WrongAdam, "fault", fault, raising=False)
    with pytest.raises(AssertionError):
        checks.check_trajectory()


def test_the_wrong_adam_without_its_fault_passes(monkeypatch):
    monkeypatch.setattr(torch.optim, "Adam", WrongAdam)
    monkeypatch.setattr(WrongAdam, "fault", "none", raising=False)
    checks.check_trajectory()
