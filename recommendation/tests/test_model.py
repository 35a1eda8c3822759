"""The network: sizes, first values, and its outputs beside two others, one of them RecBole's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from recommendation import model
from recommendation.tests import checks


def test_parameter_counts_are_the_specifications():
    checks.check_parameter_counts()


def test_parameter_count_of_the_later_rounds_data():
    assert checks.count_parameters(2_197_225, 855_776, 64, (256, 256, 128, 64)) == 586_283_265


def test_parameters_of_ml_20m_part_by_part():
    with torch.device("meta"):
        network = model.NeuMF(138_493, 26_744, 64, (256, 256, 128, 64))
    embeddings = [network.mf_user, network.mf_item, network.mlp_user, network.mlp_item]
    assert sum(table.weight.numel() for table in embeddings) == 31_725_504
    assert sum(weights.numel() for weights in network.mlp.parameters()) == 106_944
    assert sum(weights.numel() for weights in network.output.parameters()) == 129


def test_first_values_have_the_specifications_distributions():
    checks.check_initial_values()


def test_an_odd_first_width_is_refused():
    with pytest.raises(ValueError, match="must be even"):
        model.NeuMF(5, 5, 4, (7, 4))


def test_logits_equal_the_plain_networks():
    checks.check_forward()


def test_score_candidates_equals_forward():
    checks.check_score_candidates()


def test_logits_do_not_depend_on_the_batch():
    network = checks.lively_network(2)
    users, items = torch.arange(30), torch.arange(30) + 40
    together = network(users, items)
    alone = torch.cat([network(users[n : n + 1], items[n : n + 1]) for n in range(30)])
    assert torch.allclose(together, alone, rtol=0, atol=1e-12)


@pytest.fixture
def recbole_neumf(recbole_wheel, monkeypatch) -> Iterator[type[nn.Module]]:
    """RecBole 1.2.1's NeuMF, loaded out of the wheel.

    Only two packages that would import all of RecBole, and its dependencies with it, are replaced:
    by empty ones over the same folder, with the names that the network itself asks for.
    """
    monkeypatch.syspath_prepend(str(recbole_wheel))
    for name in ("recbole.utils", "recbole.model.general_recommender"):
        package = ModuleType(name)
        package.__path__ = [f"{recbole_wheel}/{name.replace('.', '/')}"]
        monkeypatch.setitem(sys.modules, name, package)
    import recbole.utils.enum_type as enum_type  # type: ignore[import-not-found]

    for name in ("ModelType", "InputType", "FeatureSource", "FeatureType"):
        setattr(sys.modules["recbole.utils"], name, getattr(enum_type, name))
    sys.modules["recbole.utils"].set_color = None  # type: ignore[attr-defined]
    from recbole.model.general_recommender.neumf import NeuMF  # type: ignore[import-not-found]

    yield NeuMF
    for name in [name for name in sys.modules if name.split(".")[0] == "recbole"]:
        monkeypatch.delitem(sys.modules, name)


class Counts:
    """What RecBole's network asks of a data set: the numbers of ids, the padding's included."""

    def __init__(self, num_users: int, num_items: int) -> None:
        self.numbers = {"user": num_users + 1, "item": num_items + 1}

    def num(self, field: str) -> int:
        return self.numbers[field]


def recbole_twin(neumf: type[nn.Module], network: model.NeuMF) -> Any:
    """RecBole's network with our weights; its row 0 of each embedding is padding."""
    num_users, num_factors = network.mf_user.weight.shape
    num_items = network.mf_item.num_embeddings
    settings: dict[str, Any] = {
        "USER_ID_FIELD": "user",
        "ITEM_ID_FIELD": "item",
        "LABEL_FIELD": "label",
        "NEG_PREFIX": "negative_",
        "device": torch.device("cpu"),
        "mf_embedding_size": num_factors,
        "mlp_embedding_size": network.mlp_user.embedding_dim,
        "mlp_hidden_size": [layer.out_features for layer in network.mlp],
        "dropout_prob": 0.0,
        "mf_train": True,
        "mlp_train": True,
        "use_pretrain": False,
        "mf_pretrain_path": None,
        "mlp_pretrain_path": None,
    }
    make: Any = neumf
    twin = make(settings, Counts(num_users, num_items)).to(network.output.weight.dtype)
    ours = dict(network.named_parameters())
    with torch.no_grad():
        for place in ("mf", "mlp"):
            for kind in ("user", "item"):
                table = getattr(twin, f"{kind}_{place}_embedding").weight
                table[0] = torch.nan  # never to be read
                table[1:] = ours[f"{place}_{kind}.weight"]
        layers = [layer for layer in twin.mlp_layers.mlp_layers if isinstance(layer, nn.Linear)]
        for layer, source in zip([*layers, twin.predict_layer], [*network.mlp, network.output],
                                 strict=True):  # fmt: skip
            layer.weight.copy_(source.weight)
            layer.bias.copy_(source.bias)
    return twin


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_outputs_and_gradients_equal_recboles(recbole_neumf, dtype, bound):
    torch.manual_seed(6)
    network = model.NeuMF(943, 1_682, 64, (256, 256, 128, 64)).to(dtype)
    with torch.no_grad():  # at the first values nearly all logits are the same
        for embedding in (network.mf_user, network.mf_item, network.mlp_user, network.mlp_item):
            embedding.weight.mul_(50)
    twin = recbole_twin(recbole_neumf, network)
    users, items = torch.randint(0, 943, (4096,)), torch.randint(0, 1_682, (4096,))
    users[:2], items[:2] = torch.tensor([0, 942]), torch.tensor([1_681, 0])
    logits, expected = network(users, items), twin(users + 1, items + 1)
    assert expected.std() > 0.1
    assert (logits - expected).abs().max() <= bound

    labels = (torch.arange(4096) % 5 == 0).to(dtype)
    nn.functional.binary_cross_entropy_with_logits(logits, labels).backward()
    twin.calculate_loss({"user": users + 1, "item": items + 1, "label": labels}).backward()
    for place in ("mf", "mlp"):
        for kind in ("user", "item"):
            gradient = getattr(network, f"{place}_{kind}").weight.grad
            table = getattr(twin, f"{kind}_{place}_embedding").weight.grad
            assert (gradient - table[1:]).abs().max() <= bound * table[1:].abs().max()
    assert (network.output.weight.grad - twin.predict_layer.weight.grad).abs().max() <= bound
