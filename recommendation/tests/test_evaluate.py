"""The metric: beside a plain one, over any blocks and processes, and on real data."""

from __future__ import annotations

import dataclasses

import numpy
import pytest
import torch

from recommendation import evaluate, model, prepare
from recommendation.config import MINI
from recommendation.tests import checks
from recommendation.tests.oracles import plain_metric, plain_rank


def test_the_plain_metric_on_cases_done_by_hand():
    # Distinct candidates 5, 7, 9; the positive 9 is drawn twice and stands third.
    assert plain_rank([5, 7, 5, 9, 9], [0.1, 0.9, 0.1, 0.5, 0.5]) == 1
    # All tied: the positive, last, loses to each distinct negative.
    assert plain_rank([5, 7, 5, 9], [0.5] * 4) == 2
    # All tied, and the positive was drawn first.
    assert plain_rank([9, 5, 7, 9], [0.5] * 4) == 0
    assert plain_metric([0, 2, 10], top_k=10) == (2, (1 + 0.5) / 3)


def test_repeats_are_all_but_the_first():
    candidates = torch.tensor([[3, 3, 5, 3, 5], [1, 2, 3, 4, 1], [2, 2, 2, 2, 2], [9, 7, 5, 3, 1]])
    expected = [[0, 1, 0, 1, 1], [0, 0, 0, 0, 1], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0]]
    assert evaluate.mark_repeats(candidates).int().tolist() == expected


def test_ranks_equal_the_plain_ones():
    checks.check_ranks()


def test_quality_equals_the_plain_metric():
    checks.check_evaluation()


def test_a_constant_model_scores_nothing():
    checks.check_constant_model_scores_nothing()


def test_each_user_counts_once_over_any_processes():
    checks.check_each_user_counts_once()


@pytest.mark.parametrize("pairs", [1, 100, 101, 700, 5_900, 6_000, 1 << 20])
def test_quality_does_not_depend_on_the_block(monkeypatch, pairs):
    interactions, table = checks.random_interactions(2), checks.tied_scores(2, 30)
    hits, ndcg = checks.plain_quality(interactions, table, 10)
    monkeypatch.setitem(evaluate.PAIRS_PER_BLOCK, "cpu", pairs)
    seen: list[int] = []

    class Watched(checks.TableModel):
        def score_candidates(self, users, candidates, first_layer):
            seen.extend(users.tolist())
            return super().score_candidates(users, candidates, first_layer)

    evaluation_set = evaluate.EvaluationSet(interactions, checks.CPU)
    quality = evaluate.evaluate(Watched(table), evaluation_set, 10)
    assert seen == list(range(60))
    assert quality["hr_at_10"] == hits / 60
    assert abs(quality["ndcg_at_10"] - ndcg) < 1e-12


def test_a_negative_that_is_not_a_number_ranks_ahead():
    scores = torch.tensor([[torch.nan, 0.1, 0.5], [0.2, 0.1, 0.5]])
    candidates = torch.tensor([[1, 2, 3], [1, 2, 3]])
    ranks = evaluate.rank_of_positive(scores, candidates, evaluate.mark_repeats(candidates))
    assert ranks.tolist() == [1, 0]


def test_nan_scores_are_no_hits():
    interactions = checks.random_interactions(3)
    evaluation_set = evaluate.EvaluationSet(interactions, checks.CPU)
    everything = checks.TableModel(torch.full((60, 70), torch.nan))
    quality = evaluate.evaluate(everything, evaluation_set, 10)
    assert quality == {"hr_at_10": 0.0, "ndcg_at_10": 0.0}

    # The positive alone is not a number: its users lose, the others stay as they are.
    table = checks.tied_scores(3, 1_000)
    broken = table.clone()
    users = torch.arange(0, 60, 2)
    broken[users, torch.from_numpy(interactions.test_items).long()[users]] = torch.nan
    quality = evaluate.evaluate(checks.TableModel(broken), evaluation_set, 70)
    assert quality["hr_at_70"] == 0.5
    hits, _ = checks.plain_quality(interactions, table, 70)
    assert hits == 60


def test_infinite_scores_rank_as_the_largest_and_smallest():
    interactions = dataclasses.replace(
        checks.random_interactions(4), test_items=numpy.full(60, 69, dtype=numpy.int32)
    )
    evaluation_set = evaluate.EvaluationSet(interactions, checks.CPU)
    for value, expected in ((torch.inf, 1.0), (-torch.inf, 0.0)):
        table = checks.tied_scores(4, 50)
        table[:, 69] = value
        quality = evaluate.evaluate(checks.TableModel(table), evaluation_set, 10)
        assert quality["hr_at_10"] == expected


def test_max_users_is_a_part_of_the_users():
    interactions, table = checks.random_interactions(5), checks.tied_scores(5, 30)
    evaluation_set = evaluate.EvaluationSet(interactions, checks.CPU)
    part = dataclasses.replace(
        interactions,
        eval_negatives=interactions.eval_negatives[:25],
        test_items=interactions.test_items[:25],
    )
    hits, _ = checks.plain_quality(part, table, 10)
    quality = evaluate.evaluate(checks.TableModel(table), evaluation_set, 10, max_users=25)
    assert quality["hr_at_10"] == hits / 25


def test_a_network_is_evaluated_as_its_logits_say():
    """The whole path: network, shortcut, metric, against forward and the plain metric."""
    interactions = checks.split(checks.make_ratings(1), num_eval_negatives=99)
    num_users, num_items = interactions.num_users, interactions.num_items
    network = checks.lively_network(8, num_users, num_items).float()
    users, items = torch.cartesian_prod(torch.arange(num_users), torch.arange(num_items)).T
    with torch.no_grad():
        table = network(users, items).view(num_users, num_items)
    quality = evaluate.evaluate(network, evaluate.EvaluationSet(interactions, checks.CPU), 10)
    hits, ndcg = checks.plain_quality(interactions, table, 10)
    assert 0 < hits < num_users
    assert quality["hr_at_10"] == hits / num_users
    assert abs(quality["ndcg_at_10"] - ndcg) < 1e-12


@pytest.fixture(scope="module")
def interactions_100k(ml_100k) -> prepare.Interactions:
    """The mini preset's data."""
    columns = prepare.read_ratings(ml_100k / "ml-100k.inter", "ml-100k")
    return prepare.split_interactions(*columns, MINI.num_eval_negatives)


def test_popularity_on_movielens_100k(interactions_100k):
    """The specification measured 0.129 / 0.071 on other draws of the same candidates."""
    counts = numpy.bincount(interactions_100k.train_items, minlength=1_682)
    table = torch.from_numpy(counts).float().expand(943, -1)
    evaluation_set = evaluate.EvaluationSet(interactions_100k, checks.CPU)
    quality = evaluate.evaluate(checks.TableModel(table), evaluation_set, 10)
    hits, ndcg = checks.plain_quality(interactions_100k, table, 10)
    assert quality["hr_at_10"] == hits / 943
    assert abs(quality["ndcg_at_10"] - ndcg) < 1e-12
    assert abs(quality["hr_at_10"] - 0.129) < 0.005
    assert abs(quality["ndcg_at_10"] - 0.071) < 0.003


def test_an_untrained_network_scores_as_chance_does(interactions_100k):
    torch.manual_seed(1)
    network = model.NeuMF(943, 1_682, 8, (64, 32, 16, 8))
    evaluation_set = evaluate.EvaluationSet(interactions_100k, checks.CPU)
    quality = evaluate.evaluate(network, evaluation_set, 10)
    # 10 of about 733 distinct candidates (999 draws out of some 1,577): 0.0136 +- 0.0038.
    assert 0.002 < quality["hr_at_10"] < 0.03
