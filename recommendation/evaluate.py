"""HR@10 and NDCG@10: is each user's held-out film among the ten best of its candidates?

Candidates are the user's negatives, then the held-out film. An item that comes twice counts
once, at its first place. Among equal scores the candidate that stands earlier ranks higher, so
the held-out film loses every tie (unless it had been drawn as a negative, earlier): a model that
scores everything alike gets about 0, not 1.

Shapes: U users, C = N + 1 candidates of each, B users of a block.
"""

from __future__ import annotations

import math

import numpy
import torch
from torch import Tensor

from harness import torch_support
from recommendation.model import NeuMF
from recommendation.prepare import Interactions

PAIRS_PER_BLOCK = {"cpu": 1 << 13, "cuda": 1 << 20}
"""User-item pairs that are scored at a time: a block's activations fit the CPU's cache; on a
GPU the two widest layers of the reference's perceptron take 1.6 GB (384 floats a pair)."""


class EvaluationSet:
    """The candidates of this process's share of the users, on the device."""

    def __init__(self, interactions: Interactions, device: torch.device) -> None:
        self.num_users = interactions.num_users
        """Users of the whole evaluation, over all processes."""
        mine = slice(torch_support.rank(), None, torch_support.num_processes())
        negatives = torch.tensor(numpy.asarray(interactions.eval_negatives[mine]), device=device)
        positives = torch.tensor(numpy.asarray(interactions.test_items[mine]), device=device)
        self.users = torch.arange(interactions.num_users, device=device)[mine]  # [U]
        self.candidates = torch.cat([negatives, positives.unsqueeze(1)], dim=1)  # [U, C] int32
        # Block by block: sorting all of ml-20m's candidates at once would take gigabytes more.
        num_rows = max(1, (1 << 24) // self.candidates.shape[1])
        self.is_repeat = torch.cat([mark_repeats(c) for c in self.candidates.split(num_rows)])

    @property
    def num_candidates(self) -> int:
        """Candidates of each user, C."""
        return self.candidates.shape[1]


def mark_repeats(candidates: Tensor) -> Tensor:
    """Which candidates stand earlier in their row already: [B, C] int -> [B, C] bool."""
    ordered, places = torch.sort(candidates, dim=1, stable=True)
    repeats = torch.zeros_like(candidates, dtype=torch.bool)
    repeats[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return torch.zeros_like(repeats).scatter_(1, places, repeats)


def rank_of_positive(scores: Tensor, candidates: Tensor, is_repeat: Tensor) -> Tensor:
    """Place of the held-out film, 0 the best: scores [B, C], candidates [B, C] -> [B].

    The film is the last candidate. A score that is not a number puts its film last.
    """
    places = torch.arange(scores.shape[1], device=scores.device)
    is_positive = (candidates == candidates[:, -1:]) & ~is_repeat  # its first place
    positive_place = is_positive.int().argmax(dim=1, keepdim=True)
    positive_score = scores.gather(1, positive_place)
    is_ahead = (scores == positive_score) & (places < positive_place)
    is_ahead |= ~(scores <= positive_score)  # greater, or not a number
    ranks = (is_ahead & ~is_repeat).sum(dim=1)
    is_nan = positive_score.squeeze(1).isnan()
    return torch.where(is_nan, torch.full_like(ranks, scores.shape[1]), ranks)


@torch.no_grad()
def evaluate(
    model: NeuMF, data: EvaluationSet, top_k: int, max_users: int | None = None
) -> dict[str, float]:
    """HR and NDCG over all users of all processes, each user once.

    Scores are float32 whatever the precision of training: in 16 bits many of a thousand candidates
    would tie with the held-out film, which loses ties. Returns `hr_at_<k>` and `ndcg_at_<k>`
    (natural logarithms cancel: ln 2 / ln(rank + 2) for a hit, 0 otherwise). With `max_users` only
    that many of this process's users are scored and counted, which is for timing.
    """
    device = data.users.device
    first_layer = model.split_first_layer()
    num_rows = max(1, PAIRS_PER_BLOCK[device.type] // data.num_candidates)
    sums = torch.zeros(2, dtype=torch.float64, device=device)  # hits, gains
    users = data.users[:max_users]
    for start in range(0, len(users), num_rows):
        rows = slice(start, min(start + num_rows, len(users)))
        candidates = data.candidates[rows]
        scores = model.score_candidates(users[rows], candidates, first_layer)
        ranks = rank_of_positive(scores, candidates, data.is_repeat[rows])
        gains = math.log(2) / torch.log(ranks.double() + 2)
        hits = ranks < top_k
        sums += torch.stack([hits.double().sum(), (gains * hits).sum()])
    hits_sum, gains_sum = torch_support.sum_over_processes(sums).tolist()
    num_users = data.num_users if max_users is None else len(users)
    return {f"hr_at_{top_k}": hits_sum / num_users, f"ndcg_at_{top_k}": gains_sum / num_users}
