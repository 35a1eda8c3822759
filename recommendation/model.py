"""NeuMF: a matrix factorisation beside a perceptron, joined by one linear layer.

He et al., Neural Collaborative Filtering, WWW 2017, section 3.4.

Shapes: B users (or user-item pairs), C candidate items per user, F num_factors, L perceptron
widths (L[0] is both embeddings side by side).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

EMBEDDING_STD = 0.01


class NeuMF(nn.Module):
    """Scores how likely a user is to rate an item.

    Raises ValueError where the first perceptron width is odd: it is split between user and item.
    """

    def __init__(
        self, num_users: int, num_items: int, num_factors: int, mlp_layers: Sequence[int]
    ) -> None:
        super().__init__()
        if mlp_layers[0] % 2:
            raise ValueError(f"the first perceptron width must be even, not {mlp_layers[0]}")
        self.mf_user = nn.Embedding(num_users, num_factors)
        self.mf_item = nn.Embedding(num_items, num_factors)
        self.mlp_user = nn.Embedding(num_users, mlp_layers[0] // 2)
        self.mlp_item = nn.Embedding(num_items, mlp_layers[0] // 2)
        self.mlp = nn.ModuleList(
            nn.Linear(width_in, width_out) for width_in, width_out in pairwise(mlp_layers)
        )
        self.output = nn.Linear(num_factors + mlp_layers[-1], 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """v0.5's initial values; biases keep PyTorch's default, uniform +-1/sqrt(width_in)."""
        for embedding in (self.mf_user, self.mf_item, self.mlp_user, self.mlp_item):
            nn.init.normal_(embedding.weight, std=EMBEDDING_STD)
        for layer in self.mlp:
            nn.init.xavier_uniform_(layer.weight)  # Glorot: +-sqrt(6 / (in + out))
        limit = math.sqrt(3 / self.output.in_features)  # LeCun
        nn.init.uniform_(self.output.weight, -limit, limit)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Logits of pairs: users [B], items [B] -> [B]. The sigmoid is the loss's."""
        factors = self.mf_user(users) * self.mf_item(items)  # [B, F]
        hidden = torch.cat([self.mlp_user(users), self.mlp_item(items)], dim=-1)  # [B, L[0]]
        for layer in self.mlp:
            hidden = torch.relu(layer(hidden))  # [B, L[k]]
        return self.output(torch.cat([factors, hidden], dim=-1)).squeeze(-1)

    def split_first_layer(self) -> tuple[Tensor, Tensor]:
        """The first perceptron layer before its ReLU, for every user and every item alone.

        It is linear, so the sum of a user's and an item's row is the layer of the pair. Returns
        [num_users, L[1]] (with the bias) and [num_items, L[1]].
        """
        first = cast(nn.Linear, self.mlp[0])
        user_weight, item_weight = first.weight.chunk(2, dim=1)  # [L[1], L[0]/2] each
        return (
            nn.functional.linear(self.mlp_user.weight, user_weight, first.bias),
            nn.functional.linear(self.mlp_item.weight, item_weight),
        )

    def score_candidates(
        self, users: Tensor, candidates: Tensor, first_layer: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Logits of many items for each user: users [B], candidates [B, C] -> [B, C].

        first_layer: what `split_first_layer` returned for these weights. The same numbers as
        `forward` up to rounding, without its first and largest layer.
        """
        user_part, item_part = first_layer
        # In place: these activations are the evaluation's largest, and memory is its bottleneck.
        hidden = nn.functional.embedding(candidates, item_part)  # [B, C, L[1]]
        hidden.add_(user_part[users].unsqueeze(1)).relu_()
        for layer in list(self.mlp)[1:]:
            hidden = layer(hidden).relu_()  # [B, C, L[k]]
        factor_weight, hidden_weight = self.output.weight.squeeze(0).split(
            [self.mf_user.embedding_dim, hidden.shape[-1]]
        )
        weighted = self.mf_user(users) * factor_weight  # [B, F]
        by_factors = torch.einsum("bf,bcf->bc", weighted, self.mf_item(candidates))
        return by_factors + hidden @ hidden_weight + self.output.bias
