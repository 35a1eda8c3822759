"""The science once more, written plainly: nothing here calls the benchmark's own code.

Weights have v0.5's (Paddle's) names and layout: embedding [V, E]; for a convolution of width k
filter_k [k E, H] (the k places one after another), filter_bias_k [H] and output_k [H, 2];
output_bias [2].
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

PADDING = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (2, 1), 5: (2, 2)}
"""Zeros to the left and to the right of a review, for each width of a convolution."""

Weights = dict[str, Tensor]


def paddle_layout(named: Mapping[str, Tensor], widths: Sequence[int]) -> Weights:
    """Copies of our weights (or of their gradients) by name, in v0.5's layout."""
    turned = {"embedding": named["embedding"], "output_bias": named["output.bias"]}
    parts = named["output.weight"].chunk(len(widths), dim=1)  # [2, H] each
    for place, width in enumerate(widths):
        filters = named[f"filters.{place}"]  # [k, H, E]
        turned[f"filter_{width}"] = torch.cat([by_place.T for by_place in filters])
        turned[f"filter_bias_{width}"] = named[f"filter_biases.{place}"]
        turned[f"output_{width}"] = parts[place].T
    return {name: value.detach().clone() for name, value in turned.items()}


def our_layout(weights: Mapping[str, Tensor], widths: Sequence[int]) -> Weights:
    """The way back, for load_state_dict."""
    turned = {"embedding": weights["embedding"], "output.bias": weights["output_bias"]}
    for place, width in enumerate(widths):
        matrix = weights[f"filter_{width}"]  # [k E, H]
        turned[f"filters.{place}"] = torch.stack([part.T for part in matrix.chunk(width)])
        turned[f"filter_biases.{place}"] = weights[f"filter_bias_{width}"]
    turned["output.weight"] = torch.cat([weights[f"output_{k}"].T for k in widths], dim=1)
    return turned


def plain_convolutions(
    weights: Mapping[str, Tensor], texts: Sequence[Tensor], widths: Sequence[int]
) -> dict[int, Tensor]:
    """Bias and ELU done, -inf behind the end of each review: [N, H, T] for each width."""
    longest = max(map(len, texts))
    size = weights["embedding"].shape[1]
    embedded = [
        functional.pad(weights["embedding"][text], (0, 0, 0, longest - len(text))) for text in texts
    ]
    channels = torch.stack(embedded).transpose(1, 2)  # [N, E, T]
    is_inside = torch.arange(longest) < torch.tensor([[len(text)] for text in texts])  # [N, T]
    outputs = {}
    for width in widths:
        kernel = weights[f"filter_{width}"].reshape(width, size, -1).permute(2, 1, 0)  # [H, E, k]
        sums = functional.conv1d(functional.pad(channels, PADDING[width]), kernel)
        values = functional.elu(sums + weights[f"filter_bias_{width}"][:, None])
        outputs[width] = values.masked_fill(~is_inside[:, None], -math.inf)
    return outputs


def plain_logits(
    weights: Mapping[str, Tensor], texts: Sequence[Tensor], widths: Sequence[int]
) -> Tensor:
    """Logits [N, 2] by padding, torch's conv1d and a mask."""
    convolved = plain_convolutions(weights, texts, widths)
    logits = weights["output_bias"]
    for width in widths:
        logits = logits + convolved[width].max(dim=2).values @ weights[f"output_{width}"]
    return logits


class PlainLazyAdam:
    """Adam as v0.5 had it, in its own words; of the embedding only the rows of a batch.

    Kingma and Ba (2015), the end of their section 2: epsilon is added to the root of the
    uncorrected second moment. With `epsilon_inside`, to the corrected one's, as PyTorch does.
    """

    def __init__(
        self,
        weights: Weights,
        learning_rate: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        epsilon_inside: bool = False,
    ) -> None:
        self.weights = weights
        self.learning_rate, self.betas, self.epsilon = learning_rate, (beta1, beta2), epsilon
        self.epsilon_inside = epsilon_inside
        self.first = {name: torch.zeros_like(value) for name, value in weights.items()}
        self.second = {name: torch.zeros_like(value) for name, value in weights.items()}
        self.number = 0

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], words: Tensor) -> None:
        """One step; `words` are the rows of the embedding that move."""
        self.number += 1
        beta1, beta2 = self.betas
        root = math.sqrt(1 - beta2**self.number)
        rate = self.learning_rate * root / (1 - beta1**self.number)
        epsilon = self.epsilon * root if self.epsilon_inside else self.epsilon
        for name, value in self.weights.items():
            rows = words if name == "embedding" else torch.arange(len(value))
            gradient = gradients[name][rows]
            first = beta1 * self.first[name][rows] + (1 - beta1) * gradient
            second = beta2 * self.second[name][rows] + (1 - beta2) * gradient**2
            self.first[name][rows], self.second[name][rows] = first, second
            value[rows] -= rate * first / (second.sqrt() + epsilon)


def plain_words(text: bytes) -> list[bytes]:
    """Spec 1.2 by regular expressions."""
    text = re.sub(rb"[\r\n]+\Z", b"", text)
    text = re.sub(rb"[!-/:-@\[-`{-~]", b"", text)
    text = re.sub(rb"[A-Z]", lambda found: bytes([found[0][0] + 32]), text)
    return re.findall(rb"[^ \t\n\r\x0b\x0c]+", text)


def plain_numbering(
    reviews: Sequence[tuple[str, int, bytes]], cutoff: int, counted: Sequence[str]
) -> tuple[list[bytes], dict[str, list[tuple[int, list[int]]]]]:
    """Spec 1.3 and 1.4: the vocabulary, and each half's labels with ids, positive (0) first."""
    counts = Counter(word for half, _, t in reviews if half in counted for word in plain_words(t))
    kept = sorted((-number, word) for word, number in counts.items() if number > cutoff)
    vocabulary = [word for _, word in kept]
    ids = {word: place for place, word in enumerate(vocabulary)}
    halves: dict[str, list[tuple[int, list[int]]]] = {"train": [], "test": []}
    for wanted in (0, 1):
        for half, label, text in reviews:
            if label == wanted:
                numbers = [ids.get(word, len(vocabulary)) for word in plain_words(text)]
                halves[half].append((label, numbers))
    return [*vocabulary, b"<unk>"], halves


def plain_accuracies(is_right: Sequence[bool], batch_size: int) -> tuple[float, float]:
    """Percent: mean of the accuracies of the batches, and accuracy over all reviews."""
    batches: list[list[bool]] = [[]]
    for answer in is_right:
        if len(batches[-1]) == batch_size:
            batches.append([])
        batches[-1].append(answer)
    of_batches = [sum(batch) / len(batch) for batch in batches]
    return 100 * sum(of_batches) / len(batches), 100 * sum(is_right) / len(is_right)
