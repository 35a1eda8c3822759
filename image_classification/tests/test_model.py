"""The network: sizes, first values, precision, and its outputs beside torchvision's."""

from __future__ import annotations

import dataclasses

import keras
import numpy
import pytest
import torch

from image_classification import model
from image_classification.config import MINI, REFERENCE, TINY
from image_classification.tests import checks
from image_classification.tests.oracles import make_torch_resnet, plain_parameters


@pytest.fixture(autouse=True)
def torch_threads():
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(num_threads)


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [REFERENCE, MINI, TINY], ids=lambda config: config.preset)
def test_parameters_are_counted_layer_by_layer(config):
    checks.check_parameter_counts(config)


def test_parameter_counts_are_the_specifications():
    counts = plain_parameters(64, (3, 4, 6, 3), 7, 1001)
    assert counts == {"convolutions": 23_454_912, "scales and offsets": 53_120, "dense": 2_051_049}
    assert sum(counts.values()) == 25_559_081
    assert counts["convolutions"] + counts["dense"] == 25_505_961  # under L2
    assert sum(plain_parameters(64, (3, 4, 6, 3), 7, 1000).values()) == 25_557_032
    assert sum(plain_parameters(16, (1, 1, 1, 1), 3, 11).values()) == 510_107
    twin = make_torch_resnet((3, 4, 6, 3), 1001)
    assert sum(weights.numel() for weights in twin.parameters()) == 25_559_081


@pytest.fixture(scope="module")
def resnet_50() -> keras.Model:
    return checks.make_network(REFERENCE)


def test_layers_of_resnet_50(resnet_50):
    kinds = ("Conv2D", "BatchNormalization", "ReLU", "Add", "MaxPooling2D", "Dense")
    counts = [len(checks.layers_of(resnet_50, kind)) for kind in kinds]
    assert counts == [53, 53, 49, 16, 1, 1]
    projections = [x for x in checks.layers_of(resnet_50, "Conv2D") if x.kernel_size == (1, 1)]
    assert len(projections) == 16 * 2 + 4


def test_output_shapes_of_the_stages(resnet_50):
    (pool,) = checks.layers_of(resnet_50, "MaxPooling2D")
    assert pool.input.shape[1:] == (112, 112, 64)
    assert pool.output.shape[1:] == (56, 56, 64)
    shapes = [layer.output.shape[1:] for layer in checks.layers_of(resnet_50, "Add")]
    assert shapes == (
        [(56, 56, 256)] * 3 + [(28, 28, 512)] * 4 + [(14, 14, 1024)] * 6 + [(7, 7, 2048)] * 3
    )
    assert resnet_50.output.shape[1:] == (1001,)


def test_the_stride_is_on_the_3x3_convolution(resnet_50):
    convolutions = checks.layers_of(resnet_50, "Conv2D")
    strided = [(x.kernel_size[0], x.filters) for x in convolutions if x.strides == (2, 2)]
    assert strided == [(7, 64), (1, 512), (3, 128), (1, 1024), (3, 256), (1, 2048), (3, 512)]


def test_multiply_adds_of_an_image():
    """Section 2.1: 4.089 G; with the stride on the first 1x1 (v1) it would be 3.858 G."""
    assert round(checks.num_multiply_adds(REFERENCE) / 1e9, 3) == 4.089


# --- first values ---------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [REFERENCE, MINI], ids=lambda config: config.preset)
def test_first_values_have_the_specifications_distributions(config):
    checks.check_initial_values(config)


def test_first_values_are_decided_by_the_seed():
    first, again, other = (
        [values.numpy() for values in checks.make_network(TINY, seed).trainable_variables]
        for seed in (1, 1, 2)
    )
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    weights = [values.ndim > 1 for values in first]
    assert [(a != b).any() for a, b in zip(first, other, strict=True)] == weights
    assert [(a == b).mean() < 0.01 for a, b in zip(first, other, strict=True)] == weights
    kernels = [values.tobytes() for values in first if values.ndim > 1]
    assert len(set(kernels)) == len(kernels)


# --- outputs --------------------------------------------------------------------------------------


def test_outputs_of_a_small_network_equal_torchvisions():
    checks.check_forward()


def test_outputs_and_statistics_in_training_equal_torchvisions():
    checks.check_training_forward()


@pytest.mark.slow
def test_outputs_of_resnet_50_equal_torchvisions():
    checks.check_forward(REFERENCE, num_images=2)


@pytest.mark.slow
def test_outputs_and_statistics_of_resnet_50_in_training_equal_torchvisions():
    checks.check_training_forward(REFERENCE, num_images=2, bound=1e-4)


def test_outputs_do_not_depend_on_the_batch():
    network = checks.make_network(TINY)
    checks.make_lively(network)
    batch = checks.make_images(TINY, 6)
    together = network(batch, training=False).numpy()
    alone = numpy.concatenate([network(batch[n : n + 1], training=False) for n in range(6)])
    numpy.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)


# --- precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "bound"), [("mixed_bfloat16", 0.05), ("mixed_float16", 0.01)])
def test_sixteen_bits_keep_weights_and_logits_in_float32(policy, bound):
    config = dataclasses.replace(TINY, train_size=32)
    exact = checks.make_network(config)
    batch = checks.make_images(config, 8)
    keras.config.set_dtype_policy(policy)
    network = checks.make_network(config)
    assert {variable.dtype for variable in network.variables} == {"float32"}
    for ours, theirs in zip(network.variables, exact.variables, strict=True):
        numpy.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    for kind in ("Conv2D", "BatchNormalization", "Add", "Dense"):
        dtypes = {layer.compute_dtype for layer in checks.layers_of(network, kind)}
        assert dtypes == {policy.removeprefix("mixed_")}
    for training in (False, True):
        logits = network(batch, training=training)
        assert logits.dtype == "float32"
        expected = exact(batch, training=training).numpy()
        difference = checks.relative_difference(logits.numpy(), expected)
        assert 1e-5 < difference < bound


def test_only_batch_normalisation_is_outside_the_l2_term():
    network = checks.make_network(TINY)
    names = {v.path.split("/")[-1] for v in network.trainable_variables if model.is_regularized(v)}
    assert names == {"kernel", "bias"}
    names = {v.path.split("/")[-1] for v in network.variables if not model.is_regularized(v)}
    assert names == {"scale", "offset", "running_mean", "running_variance"}
