"""Adam as v0.5's framework had it: lazy for the embedding, epsilon after the bias correction.

Both halves are PyTorch's own. SparseAdam changes only the rows that a gradient has, and adds
epsilon to the root of the uncorrected second moment: v0.5's rule. Adam adds it to the corrected
one, so it is given epsilon with the correction undone.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sentiment_analysis.config import Config
from sentiment_analysis.model import SequenceCNN


class LazyAdam:
    """Adam over all weights; of the embedding only the rows of a step's words."""

    def __init__(self, model: SequenceCNN, config: Config) -> None:
        self.embedding = model.embedding
        self.epsilon, self.beta2 = config.adam_epsilon, config.adam_beta2
        settings: dict[str, Any] = {
            "lr": config.learning_rate,
            "betas": (config.adam_beta1, config.adam_beta2),
            "eps": config.adam_epsilon,
        }
        others = [weights for weights in model.parameters() if weights is not model.embedding]
        self.sparse = torch.optim.SparseAdam([model.embedding], **settings)
        self.dense = torch.optim.Adam(others, **settings, fused=True)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self.sparse.zero_grad()
        self.dense.zero_grad()

    def step(self, scaler: torch.GradScaler, words: Tensor, number: int) -> None:
        """Take step `number`, counted from 1.

        words: all words of the step's batch [W], each once, ascending. Their rows move, by their
        moments alone where their gradient is zero; all other rows and their moments stay.
        """
        gradient = self.embedding.grad
        assert gradient is not None
        self.embedding.grad = torch.sparse_coo_tensor(
            words.unsqueeze(0),
            gradient[words],
            gradient.shape,
            is_coalesced=True,
            check_invariants=False,
        )
        correction = math.sqrt(1 - self.beta2**number)
        for group in self.dense.param_groups:
            group["eps"] = self.epsilon / correction
        scaler.step(self.sparse)
        scaler.step(self.dense)

    def state_dict(self) -> dict[str, object]:
        """Both halves' states."""
        return {"sparse": self.sparse.state_dict(), "dense": self.dense.state_dict()}

    def load_state_dict(self, state: dict[str, dict[str, object]]) -> None:
        """Put back what `state_dict` returned."""
        self.sparse.load_state_dict(state["sparse"])
        self.dense.load_state_dict(state["dense"])
