"""What must hold of the science, as plain functions.

The tests of each subject call them on the code as it is; test_mutations.py calls the same ones on
code that was made wrong on purpose, and expects an AssertionError.

They reach the code through its modules (`model.resnet`, not `resnet`), so that they see what a
mutation put there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy
import scipy.stats
import tensorflow as tf
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.models.resnet import ResNet

from image_classification import data, evaluate, images, model, optimizer, prepare
from image_classification.config import REFERENCE, TINY, Config
from image_classification.tests.oracles import (
    FloatArray,
    as_torch_images,
    make_torch_resnet,
    plain_eval_image,
    plain_hits,
    plain_interleave,
    plain_learning_rate,
    plain_parameters,
    plain_resize,
    torch_layers,
)

# --- helpers --------------------------------------------------------------------------------------


def make_network(config: Config, seed: int = 1) -> keras.Model:
    """The network of a configuration, with the first values of a seed."""
    keras.utils.set_random_seed(seed)
    return model.resnet(
        config.num_classes,
        config.num_blocks,
        config.num_filters,
        config.stem_kernel,
        config.stem_stride,
        config.train_size,
    )


def layers_of(network: keras.Model, kind: str) -> list[Any]:
    """A network's layers of a class, in the order in which they were made."""

    def number(layer: keras.Layer) -> int:
        digits = layer.name.rpartition("_")[2]
        return int(digits) if digits.isdecimal() else 0

    return sorted((x for x in network.layers if type(x).__name__ == kind), key=number)


def make_pixels(seed: int, height: int, width: int, noise: int = 30) -> NDArray[numpy.uint8]:
    """A made-up picture [H, W, 3]: colours that change slowly, under noise."""
    stream = numpy.random.RandomState(seed)
    waves = numpy.zeros((height, width, 3))
    for channel in range(3):
        down, across, start = stream.uniform(0.01, 0.1), stream.uniform(0.01, 0.1), seed + channel
        y, x = numpy.arange(height)[:, None], numpy.arange(width)
        waves[..., channel] = numpy.sin(y * down + start) + numpy.cos(x * across + start)
    grains = stream.uniform(-noise, noise, size=waves.shape)
    return (128 + 48 * waves + grains).clip(0, 255).astype(numpy.uint8)


def encode(pixels: NDArray[numpy.uint8], **options: Any) -> bytes:
    """A JPEG with colours for every pixel, so that a part decodes as it does within the whole."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **({"quality": 95, "subsampling": 0} | options))
    return buffer.getvalue()


# --- model: sizes and first values ----------------------------------------------------------------


def num_multiply_adds(config: Config) -> int:
    """Multiply-adds of an image: of each convolution and the dense layer."""
    network = make_network(config)
    total = math.prod(network.output.shape[1:]) * layers_of(network, "Dense")[0].kernel.shape[0]
    for layer in layers_of(network, "Conv2D"):
        total += math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:3])
    return total


def check_parameter_counts(config: Config = REFERENCE) -> None:
    """Trainable numbers of each kind, statistics and the L2 set, counted layer by layer."""
    network = make_network(config)
    expected = plain_parameters(
        config.num_filters, config.num_blocks, config.stem_kernel, config.num_classes
    )
    found = {
        "convolutions": sum(x.count_params() for x in layers_of(network, "Conv2D")),
        "scales and offsets": sum(
            int(weights.numpy().size)
            for layer in layers_of(network, "BatchNormalization")
            for weights in layer.trainable_variables
        ),
        "dense": sum(x.count_params() for x in layers_of(network, "Dense")),
    }
    assert found == expected
    sizes = {variable.path: int(variable.numpy().size) for variable in network.trainable_variables}
    assert sum(sizes.values()) == sum(expected.values())
    statistics = sum(int(v.numpy().size) for v in network.non_trainable_variables)
    assert statistics == expected["scales and offsets"]
    regularized = [v for v in network.trainable_variables if model.is_regularized(v)]
    assert sum(sizes[v.path] for v in regularized) == expected["convolutions"] + expected["dense"]
    kernels = [x.kernel for x in layers_of(network, "Conv2D")]
    dense = layers_of(network, "Dense")[0]
    assert {id(v) for v in regularized} == {id(v) for v in (*kernels, dense.kernel, dense.bias)}


def check_initial_values(config: Config = REFERENCE) -> None:
    """Convolutions: truncated normal of variance 1 / fan_in. Dense: Glorot, bias 0. Norms: 1, 0."""
    network = make_network(config, seed=3)
    bound = 2 / 0.87962566103423978  # where the normal distribution is cut, in deviations
    for layer in layers_of(network, "Conv2D"):
        assert layer.bias is None
        numbers = layer.kernel.numpy().astype(float).ravel()
        std = math.sqrt(1 / math.prod(layer.kernel.shape[:3]))
        # The fourth moment of this distribution is 2.37 variances squared.
        assert abs(numbers.mean()) < 6 * std / math.sqrt(numbers.size)
        assert abs((numbers**2).mean() / std**2 - 1) < 6 * math.sqrt(1.37 / numbers.size)
        largest = abs(numbers).max() / std
        assert largest <= bound * (1 + 1e-6)
        assert numbers.size < 4_000 or largest > 0.99 * bound
    (dense,) = layers_of(network, "Dense")
    numbers, limit = dense.kernel.numpy(), math.sqrt(6 / sum(dense.kernel.shape))
    assert 0.98 * limit < abs(numbers).max() <= limit * (1 + 1e-6)
    assert abs((numbers**2).mean() / (limit**2 / 3) - 1) < 6 * math.sqrt(0.8 / numbers.size)
    assert not dense.bias.numpy().any()
    for layer in layers_of(network, "BatchNormalization"):
        values = [layer.scale, layer.offset, layer.running_mean, layer.running_variance]
        assert [set(v.numpy().tolist()) for v in values] == [{1.0}, {0.0}, {0.0}, {1.0}]


# --- model: beside torchvision's ------------------------------------------------------------------

SMALL_RESNET = dataclasses.replace(REFERENCE, num_blocks=(1, 1, 1, 1), train_size=64)
"""One bottleneck in each stage; torchvision has no other widths."""


def make_lively(network: keras.Model) -> None:
    """Give batch normalisation other values than its first, so that each of them matters."""
    stream = numpy.random.RandomState(0)
    for layer in layers_of(network, "BatchNormalization"):
        shape = layer.scale.shape
        layer.scale.assign(stream.uniform(0.3, 0.7, shape))
        layer.offset.assign(stream.normal(0, 0.1, shape))
        layer.running_mean.assign(stream.normal(0, 0.1, shape))
        layer.running_variance.assign(stream.uniform(0.5, 2, shape))


def torch_twin(network: keras.Model, num_blocks: Sequence[int], own_pool: bool = False) -> ResNet:
    """The network of torchvision with our weights and statistics."""
    (dense,) = layers_of(network, "Dense")
    twin = make_torch_resnet(num_blocks, dense.units, own_pool)
    convolutions, normalizations = torch_layers(twin)

    def put(target: torch.Tensor, values: keras.Variable, *order: int) -> None:
        source = torch.from_numpy(values.numpy())
        target.copy_(source.permute(order) if order else source)

    with torch.no_grad():
        for convolution, layer in zip(convolutions, layers_of(network, "Conv2D"), strict=True):
            put(convolution.weight, layer.kernel, 3, 2, 0, 1)
        for ours, theirs in zip(
            layers_of(network, "BatchNormalization"), normalizations, strict=True
        ):
            put(theirs.weight, ours.scale)
            put(theirs.bias, ours.offset)
            put(theirs.running_mean, ours.running_mean)
            put(theirs.running_var, ours.running_variance)
        put(twin.fc.weight, dense.kernel, 1, 0)
        put(twin.fc.bias, dense.bias)
    return twin


def relative_difference(found: FloatArray, expected: FloatArray) -> float:
    """Largest difference, in parts of the largest value."""
    assert found.shape == expected.shape
    return float(abs(found - expected).max() / abs(expected).max())


def make_images(config: Config, num_images: int) -> FloatArray:
    """Made-up images as the pipeline would hand them over, [N, S, S, 3]."""
    size = config.train_size
    pixels = numpy.stack([make_pixels(seed, size, size) for seed in range(num_images)])
    return pixels.astype(numpy.float32) - numpy.array([123.68, 116.78, 103.94], numpy.float32)


def check_forward(config: Config = SMALL_RESNET, num_images: int = 4, bound: float = 1e-5) -> None:
    """Outputs in evaluation equal torchvision's; with its own max pool they do not."""
    network = make_network(config)
    make_lively(network)
    batch = make_images(config, num_images)
    ours = network(batch, training=False).numpy()
    with torch.no_grad():
        theirs = torch_twin(network, config.num_blocks).eval()(as_torch_images(batch)).numpy()
        stock = torch_twin(network, config.num_blocks, own_pool=True).eval()
        others = stock(as_torch_images(batch)).numpy()
    assert abs(ours[0] - ours[1]).max() > 0.01 * abs(ours).max()
    assert relative_difference(ours, theirs) <= bound
    assert relative_difference(ours, others) > 1000 * bound


def check_training_forward(
    config: Config = SMALL_RESNET, num_images: int = 4, bound: float = 1e-5
) -> None:
    """Outputs in training equal torchvision's, and to 1e-5 the statistics after it.

    Their variance is the unbiased one; a negative control shows that the other would be seen.
    """
    network = make_network(config)
    make_lively(network)
    twin = torch_twin(network, config.num_blocks).train()
    layers, others = layers_of(network, "BatchNormalization"), torch_layers(twin)[1]
    before = [layer.running_variance.numpy() for layer in layers]
    batch = make_images(config, num_images)
    ours = network(batch, training=True).numpy()
    with torch.no_grad():
        theirs = twin(as_torch_images(batch)).numpy()
    assert relative_difference(ours, theirs) <= bound
    for layer, other in zip(layers, others, strict=True):
        assert other.running_mean is not None and other.running_var is not None
        for found, expected in (
            (layer.running_mean, other.running_mean),
            (layer.running_variance, other.running_var),
        ):
            assert relative_difference(found.numpy(), expected.numpy()) <= 1e-5
    num_values = num_images * math.prod(layers[-1].output.shape[1:3])
    found, old = layers[-1].running_variance.numpy(), 0.9 * before[-1]
    biased = old + (found - old) * (num_values - 1) / num_values
    assert relative_difference(biased, found) > 1e-4


# --- optimiser ------------------------------------------------------------------------------------

CHANGING = dataclasses.replace(
    REFERENCE, num_train_images=640, warmup_epochs=0.5, decay_epochs=(1, 2)
)
"""Ten steps an epoch: the rate grows for five, and falls after ten and after twenty."""


def momentum_trajectory(make: Callable[[list[Any]], Callable[[list[Any]], None]]) -> FloatArray:
    """A vector after each of 30 steps with made-up gradients; `make` gives a step of a rule."""
    stream = numpy.random.RandomState(2)
    weights = keras.Variable(stream.normal(size=50).astype(numpy.float32))
    step = make([weights])
    states = []
    for _ in range(30):
        step([tf.constant(stream.normal(size=50).astype(numpy.float32))])
        states.append(weights.numpy().copy())
    return numpy.stack(states)


def our_momentum(variables: list[Any]) -> Callable[[list[Any]], None]:
    """The rule of our module, with the changing rate."""
    rule = optimizer.Momentum(optimizer.LearningRate(CHANGING), CHANGING.momentum)
    rule.build(variables)
    return lambda gradients: rule.apply(gradients, variables)


def changing_rate(step: int) -> float:
    """The plain rate of CHANGING."""
    return plain_learning_rate(step, 64, 640, 0.128, 0.5, (1, 2))


def check_momentum() -> None:
    """The weights of 30 steps equal TensorFlow 1's, bit for bit, and torch's; not Keras's SGD."""
    ours = momentum_trajectory(our_momentum)

    def tensorflow_1(variables: list[Any]) -> Callable[[list[Any]], None]:
        rate, steps = optimizer.LearningRate(CHANGING), iter(range(30))
        rule = tf.compat.v1.train.MomentumOptimizer(lambda: rate(next(steps)), 0.9)
        values = [variable.value for variable in variables]
        return lambda gradients: rule.apply_gradients(zip(gradients, values, strict=True))

    def pytorch(variables: list[Any]) -> Callable[[list[Any]], None]:
        weights = torch.nn.Parameter(torch.from_numpy(variables[0].numpy().copy()))
        rule = torch.optim.SGD([weights], lr=0.0, momentum=0.9)
        steps = iter(range(30))

        def step(gradients: list[Any]) -> None:
            rule.param_groups[0]["lr"] = changing_rate(next(steps))
            weights.grad = torch.from_numpy(gradients[0].numpy())
            rule.step()
            variables[0].assign(weights.detach().numpy())

        return step

    def keras_sgd(variables: list[Any]) -> Callable[[list[Any]], None]:
        rule = keras.optimizers.SGD(optimizer.LearningRate(CHANGING), momentum=0.9)
        return lambda gradients: rule.apply(gradients, variables)

    assert (ours[0] == momentum_trajectory(lambda _: lambda _: None)[0]).all()  # the rate is 0
    assert (ours[1] != ours[0]).all()
    numpy.testing.assert_array_equal(ours, momentum_trajectory(tensorflow_1))
    numpy.testing.assert_allclose(ours, momentum_trajectory(pytorch), rtol=2e-6, atol=2e-7)
    assert abs(ours - momentum_trajectory(keras_sgd)).max() > 0.01


BOUNDARIES = {
    64: (100_091, (600_547, 1_201_094, 1_601_458, 1_801_641)),
    1024: (6_255, (37_534, 75_068, 100_091, 112_602)),
}
"""Of ImageNet, by the batch: steps of the warm-up, and the last step of each rate."""


def check_learning_rate() -> None:
    """At the corners of warm-up and decay: section 3's numbers, and TensorFlow 1's function."""
    for batch_size, (num_warmup_steps, boundaries) in BOUNDARIES.items():
        rate = optimizer.LearningRate(dataclasses.replace(REFERENCE, batch_size=batch_size))
        assert (rate.num_warmup_steps, tuple(rate.boundaries)) == (num_warmup_steps, boundaries)
        peak = {64: 0.032, 1024: 0.512}[batch_size]
        corners = [num_warmup_steps + n for n in (-1, 0, 1)]
        corners += [boundary + n for boundary in boundaries for n in (-1, 0, 1)]
        for step in (0, 1, 2, num_warmup_steps // 3, *corners, 3_000_000):
            found = float(rate(tf.constant(step, tf.int64)))
            plain = plain_learning_rate(step, batch_size, 1_281_167, 0.128, 5, (30, 60, 80, 90))
            assert abs(found - plain) <= 2e-7 * plain, (batch_size, step)
            if step < num_warmup_steps:
                assert abs(found - peak * step / num_warmup_steps) <= 2e-7 * peak
                continue
            values = [peak * factor for factor in (1.0, 0.1, 0.01, 0.001, 0.0001)]
            old = tf.compat.v1.train.piecewise_constant(
                tf.constant(step, tf.int64), list(boundaries), values
            )
            value = old() if callable(old) else old
            assert abs(found - float(value)) <= 2e-7 * found, (batch_size, step)
        assert float(rate(tf.constant(0, tf.int64))) == 0
    boundary = BOUNDARIES[64][1][0]
    rate = optimizer.LearningRate(REFERENCE)
    found = [float(rate(tf.constant(boundary + n, tf.int64))) for n in (0, 1)]
    numpy.testing.assert_allclose(found, [0.032, 0.0032], rtol=1e-6)


# --- images ---------------------------------------------------------------------------------------


def check_resize() -> None:
    """TensorFlow 1's function bit for bit, the plain one, and not TensorFlow 2's."""
    for height, width, new_height, new_width in ((37, 53, 22, 22), (20, 31, 45, 70), (9, 9, 9, 9)):
        pixels = make_pixels(height, height, width)
        ours = images.resize(tf.constant(pixels), new_height, new_width).numpy()
        old = tf.compat.v1.image.resize(
            pixels[None], [new_height, new_width], align_corners=False
        ).numpy()
        numpy.testing.assert_array_equal(ours, old[0])
        plain = plain_resize(pixels, new_height, new_width)
        numpy.testing.assert_allclose(ours, plain, rtol=0, atol=1e-4)
        if height != new_height:
            assert abs(ours - tf.image.resize(pixels, [new_height, new_width])).numpy().max() > 10


@dataclass(frozen=True)
class Crops:
    """What train_image made of one picture with many seeds."""

    windows: NDArray[numpy.int32]  # [N, 4]: top, left, height, width
    images: FloatArray  # [N, S, S, 3]


def crops_of(encoded: bytes, config: Config, num_crops: int, first: int = 0) -> Crops:
    """Windows and images of the seeds (7, first), (7, first + 1), ..."""

    def crop(place: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        seed = tf.stack([tf.constant(7, tf.int64), place])
        decode = mock.Mock(side_effect=tf.image.decode_and_crop_jpeg)
        with mock.patch.object(tf.image, "decode_and_crop_jpeg", decode):
            image = images.train_image(tf.constant(encoded), seed, config)
        return tf.cast(decode.call_args.args[1], tf.int32), image

    dataset = tf.data.Dataset.range(first, first + num_crops).map(crop).batch(num_crops)
    windows, crops = next(iter(dataset))
    return Crops(windows.numpy(), crops.numpy())


def check_train_images() -> None:
    """A part of the picture, perhaps mirrored, is resized on the old grid, less the means."""
    means = numpy.array([123.68, 116.78, 103.94], dtype=numpy.float32)
    for number, (height, width) in enumerate(((60, 90), (97, 41))):
        encoded = encode(make_pixels(number, height, width))
        pixels = tf.io.decode_jpeg(encoded, channels=3).numpy()
        config = dataclasses.replace(REFERENCE, train_size=24)
        crops = crops_of(encoded, config, 40)
        num_mirrored = 0
        for (top, left, rows, columns), image in zip(crops.windows, crops.images, strict=True):
            part = pixels[top : top + rows, left : left + columns]
            assert part.shape == (rows, columns, 3)
            wanted = [plain_resize(x, 24, 24) - means for x in (part, part[:, ::-1])]
            differences = [abs(image - x).max() for x in wanted]
            assert min(differences) < 1e-4 < 1 < max(differences)
            num_mirrored += differences[1] < differences[0]
        assert 5 < num_mirrored < 35
        again = crops_of(encoded, config, 40)
        numpy.testing.assert_array_equal(again.images, crops.images)
        assert len({image.tobytes() for image in crops.images}) == 40

        straight = crops_of(encoded, dataclasses.replace(config, random_flip=False), 10)
        numpy.testing.assert_array_equal(straight.windows, crops.windows[:10])
        for (top, left, rows, columns), image in zip(
            straight.windows, straight.images, strict=True
        ):
            part = pixels[top : top + rows, left : left + columns]
            assert abs(image - (plain_resize(part, 24, 24) - means)).max() < 1e-4


def crop_measures(windows: NDArray[numpy.int32], height: int, width: int) -> dict[str, Any]:
    """What is compared of crops: the middle's place, area and shape."""
    top, left, rows, columns = windows.astype(float).T
    return {
        "middle, down": (top + rows / 2) / height,
        "middle, across": (left + columns / 2) / width,
        "area": rows * columns / (height * width),
        "aspect": columns / rows,
    }


def old_windows(height: int, width: int, num_crops: int, min_area: float) -> NDArray[numpy.int32]:
    """v0.5's own operation with its arguments: one box, the whole image."""

    def sample(_: tf.Tensor) -> tf.Tensor:
        begin, size, _ = tf.compat.v1.image.sample_distorted_bounding_box(
            [height, width, 3],
            bounding_boxes=[[[0.0, 0.0, 1.0, 1.0]]],
            seed=11,
            seed2=12,
            min_object_covered=0.1,
            aspect_ratio_range=[0.75, 1.33],
            area_range=[min_area, 1.0],
            max_attempts=100,
            use_image_if_no_bounding_boxes=True,
        )
        return tf.concat([begin[:2], size[:2]], axis=0)

    return next(iter(tf.data.Dataset.range(num_crops).map(sample).batch(num_crops))).numpy()


def check_crops() -> None:
    """Crops keep the bounds, and are distributed as those of v0.5's operation."""
    num_crops = 2_000
    config = dataclasses.replace(REFERENCE, train_size=2)
    for height, width in ((300, 400), (500, 333)):
        encoded = encode(make_pixels(0, height, width))
        windows = crops_of(encoded, config, num_crops).windows
        top, left, rows, columns = windows.T
        assert (windows[:, :2] >= 0).all() and (rows > 0).all() and (columns > 0).all()
        assert (top + rows <= height).all() and (left + columns <= width).all()
        found = crop_measures(windows, height, width)
        # A smaller crop than a tenth would not cover a tenth of the only box, the whole image.
        assert 0.1 <= found["area"].min() < 0.11 and 0.7 < found["area"].max() <= 1
        # Sides are rounded to whole pixels.
        narrowest, widest = (columns - 0.51) / rows, (columns + 0.51) / rows
        assert (widest >= 0.75).all() and (narrowest <= 1.33).all()
        assert found["aspect"].min() < 0.78 and found["aspect"].max() > 1.30
        expected = crop_measures(old_windows(height, width, num_crops, 0.05), height, width)
        other = crop_measures(old_windows(height, width, num_crops, 0.2), height, width)
        for name, values in found.items():
            assert scipy.stats.ks_2samp(values, expected[name]).pvalue > 1e-3, name
        assert scipy.stats.ks_2samp(found["area"], other["area"]).pvalue < 1e-6
        # Neighbours in the order have nothing to do with each other.
        for values in found.values():
            assert abs(numpy.corrcoef(values[1:], values[:-1])[0, 1]) < 5 / math.sqrt(num_crops)


def check_mirroring() -> None:
    """Half of the crops, whatever their place and shape."""
    height, width = 300, 400
    ramp = numpy.linspace(0, 255, width).astype(numpy.uint8)
    encoded = encode(numpy.broadcast_to(ramp[None, :, None], (height, width, 3)))
    crops = crops_of(encoded, dataclasses.replace(REFERENCE, train_size=4), 3_000)
    is_mirrored = crops.images[:, 0, 0, 0] > crops.images[:, 0, -1, 0]
    assert abs(is_mirrored.mean() - 0.5) < 5 * 0.5 / math.sqrt(3_000)
    for name, values in crop_measures(crops.windows, height, width).items():
        assert abs(numpy.corrcoef(values, is_mirrored)[0, 1]) < 5 / math.sqrt(3_000), name
    assert abs(numpy.corrcoef(is_mirrored[1:], is_mirrored[:-1])[0, 1]) < 5 / math.sqrt(3_000)


EVAL_SHAPES = [(256, 256), (256, 301), (500, 375), (375, 500), (333, 500), (224, 224), (91, 400)]


def float32_shape() -> tuple[int, int]:
    """A shape whose new side is another whole number in float32 than exactly."""
    for shorter in range(100, 600):
        for longer in range(shorter, shorter + 40):
            ratio = numpy.float32(256) / numpy.float32(shorter)
            if int(numpy.float32(longer) * ratio) != longer * 256 // shorter:
                return longer, shorter
    raise AssertionError("none found")


def check_eval_images() -> None:
    """Shorter side to 256 (truncated in float32), centre of 224, less the means."""
    for number, (height, width) in enumerate([*EVAL_SHAPES, float32_shape()]):
        encoded = encode(make_pixels(number, height, width))
        pixels = tf.io.decode_jpeg(encoded, channels=3).numpy()
        found = images.eval_image(tf.constant(encoded), REFERENCE).numpy()
        plain = plain_eval_image(pixels, 256, 224)
        assert found.shape == (224, 224, 3) and found.dtype == numpy.float32
        numpy.testing.assert_allclose(found, plain, rtol=0, atol=1e-3)
    grey = images.eval_image(tf.constant(encode(make_pixels(1, 300, 260)[..., 0])), REFERENCE)
    with_means = grey.numpy() + numpy.array([123.68, 116.78, 103.94], dtype=numpy.float32)
    numpy.testing.assert_allclose(with_means[..., 0], with_means[..., 1], rtol=0, atol=1e-4)
    numpy.testing.assert_allclose(with_means[..., 0], with_means[..., 2], rtol=0, atol=1e-4)
    assert with_means.std() > 10


# --- data -----------------------------------------------------------------------------------------

NUMBERED = dataclasses.replace(TINY, batch_size=32, train_size=12, eval_resize=13)
SHARD_SIZES = (17, 17, 17, 16, 16, 1, 40, 16, 16, 16, 3, 16, 16, 16, 16, 16, 16, 16, 9, 35)
"""More shards than are read at a time, of many sizes."""


def write_numbered(folder: Path, shard_sizes: Sequence[int] = SHARD_SIZES) -> data.Images:
    """Shards of small pictures, each with a label of its own: 1, 2, 3, ... in shard order."""
    names, label = [], 0
    for number, size in enumerate(shard_sizes):
        names.append(str(folder / f"train-{number:05d}-of-{len(shard_sizes):05d}"))
        with tf.io.TFRecordWriter(names[-1]) as writer:
            for _ in range(size):
                label += 1
                encoded = encode(make_pixels(label, 14 + label % 5, 13 + label % 7))
                writer.write(prepare.make_example(encoded, label, f"{label}.JPEG"))
    return data.Images(label, tuple(names))


def labels_of(batches: tf.data.Dataset) -> list[list[int]]:
    """Labels, batch by batch."""
    return [labels.numpy().tolist() for _, labels in batches]


def contents_of(batches: tf.data.Dataset) -> list[tuple[bytes, bytes]]:
    """Images and labels, batch by batch, to the bit."""
    return [(pixels.numpy().tobytes(), labels.numpy().tobytes()) for pixels, labels in batches]


def flat(batches: list[list[int]]) -> list[int]:
    """All numbers in a row."""
    return [number for batch in batches for number in batch]


def check_epoch_is_whole(numbered: data.Images) -> None:
    """Each image once in an epoch and once in an evaluation, whatever the batch."""
    everything = list(range(1, numbered.num_images + 1))
    orders = set()
    for batch_size in (1, 32, 50, numbered.num_images, 1000):
        config = dataclasses.replace(NUMBERED, batch_size=batch_size)
        batches = labels_of(data.train_batches(numbered, config, 1, 1, 0))
        sizes = [len(batch) for batch in batches]
        full, rest = divmod(numbered.num_images, batch_size)
        assert sizes == [batch_size] * full + [rest] * (rest > 0)
        assert sorted(flat(batches)) == everything
        orders.add(tuple(flat(batches)))
        assert sorted(flat(labels_of(data.eval_batches(numbered, config)))) == everything
    assert len(orders) == 1  # the order does not depend on the batch either


def check_orders_are_unrelated(numbered: data.Images) -> None:
    """Another epoch or seed has another order, of shards and within; the same has the same."""
    config = dataclasses.replace(NUMBERED, shuffle_buffer=200)
    orders = {
        place: flat(labels_of(data.train_batches(numbered, config, *place, 0)))
        for place in ((1, 1), (1, 2), (2, 1), (2, 2))
    }
    again = flat(labels_of(data.train_batches(numbered, config, 1, 1, 0)))
    assert again == orders[1, 1]
    bound = 5 / math.sqrt(numbered.num_images)
    lists = list(orders.values())
    for number, first in enumerate(lists):
        for second in lists[number + 1 :]:
            places = [numpy.argsort(order) for order in (first, second)]
            assert abs(numpy.corrcoef(places)[0, 1]) < 2 * bound
            assert sum(a == b for a, b in zip(first, second, strict=True)) < 10


def check_shards_are_read_in_turn(numbered: data.Images) -> None:
    """Without a buffer the order is that of sixteen shards in turn, shuffled by the epoch."""
    config = dataclasses.replace(NUMBERED, shuffle_buffer=1)
    starts = numpy.cumsum([0, *SHARD_SIZES]).tolist()
    shards = [list(range(a + 1, b + 1)) for a, b in itertools.pairwise(starts)]
    in_order = plain_interleave(shards, 16)
    assert flat(labels_of(data.eval_batches(numbered, config))) == in_order
    firsts = set()
    for epoch in (1, 2):
        order = flat(labels_of(data.train_batches(numbered, config, 5, epoch, 0)))
        assert order != in_order
        # The first record of each shard that is open from the start, in turn.
        opened = [next(k for k, shard in enumerate(shards) if n in shard) for n in order[:16]]
        assert [shards[k][0] for k in opened] == order[:16]
        rest = [k for k in range(len(shards)) if k not in opened]
        # The order of the last four is seen where they come in; one of 24 must fit.
        fits = [
            plain_interleave([shards[k] for k in (*opened, *tail)], 16) == order
            for tail in itertools.permutations(rest)
        ]
        assert any(fits)
        firsts.add(tuple(opened))
    assert len(firsts) == 2


def check_order_ignores_threads(numbered: data.Images) -> None:
    """Images and labels are the same bits, whatever works at the same time."""
    expected = contents_of(data.train_batches(numbered, NUMBERED, 3, 2, 0))
    expected_eval = contents_of(data.eval_batches(numbered, NUMBERED))
    for num_threads, parallel_calls in ((1, 1), (1, 7), (8, tf.data.AUTOTUNE), (5, 3)):
        with (
            mock.patch.object(data, "num_cores", lambda n=num_threads: n),
            mock.patch.object(tf.data, "AUTOTUNE", parallel_calls),
        ):
            assert contents_of(data.train_batches(numbered, NUMBERED, 3, 2, 0)) == expected
            assert contents_of(data.eval_batches(numbered, NUMBERED)) == expected_eval


def check_operations_keep_the_order(numbered: data.Images) -> None:
    """Each parallel operation is told to, also where TensorFlow as a whole is not (--compile)."""
    for batches in (
        data.train_batches(numbered, NUMBERED, 1, 1, 0),
        data.eval_batches(numbered, NUMBERED),
    ):
        assert batches.options().deterministic
        graph = tf.compat.v1.GraphDef.FromString(batches._as_serialized_graph().numpy())
        found = {
            node.op: node.attr["deterministic"].s
            for node in graph.node
            if "deterministic" in node.attr
        }
        assert found == {"ParallelInterleaveDatasetV4": b"true", "ParallelMapDatasetV2": b"true"}


def check_skipping(numbered: data.Images) -> None:
    """An epoch that begins at a later step is the tail of the whole one, to the bit."""
    whole = contents_of(data.train_batches(numbered, NUMBERED, 1, 3, 0))
    assert len(whole) == math.ceil(numbered.num_images / 32)
    for first_step in (1, 5, len(whole) - 1, len(whole)):
        tail = contents_of(data.train_batches(numbered, NUMBERED, 1, 3, first_step))
        assert tail == whole[first_step:]


@contextlib.contextmanager
def as_process(rank: int, num_processes: int) -> Iterator[None]:
    """This process plays one of several."""
    environment = {"RANK": str(rank), "WORLD_SIZE": str(num_processes)}
    with mock.patch.dict(os.environ, environment):
        yield


def check_shares(numbered: data.Images) -> None:
    """The processes' parts of a batch, one after the other, are the batch of one process."""
    for make in (
        lambda: data.train_batches(numbered, NUMBERED, 1, 1, 2),
        lambda: data.eval_batches(numbered, NUMBERED),
    ):
        whole = [(pixels.numpy(), labels.numpy()) for pixels, labels in make()]
        assert len(whole[-1][1]) == numbered.num_images % 32 > 8
        for num_processes in (2, 4):
            parts = []
            for rank in range(num_processes):
                with as_process(rank, num_processes):
                    parts.append([(pixels.numpy(), labels.numpy()) for pixels, labels in make()])
            assert {len(batches) for batches in parts} == {len(whole)}
            for expected, shares in zip(whole, zip(*parts, strict=True), strict=True):
                sizes = [len(labels) for _, labels in shares]
                assert max(sizes) - min(sizes) <= 1
                for column in (0, 1):
                    joined = numpy.concatenate([share[column] for share in shares])
                    numpy.testing.assert_array_equal(joined, expected[column])


# --- quality --------------------------------------------------------------------------------------


def tied_logits(seed: int, num_levels: int, num_images: int = 300) -> tuple[FloatArray, Any]:
    """Logits [N, 23] of only so many different values, and labels [N]."""
    stream = numpy.random.RandomState(seed)
    logits = stream.randint(0, num_levels, (num_images, 23)).astype(numpy.float32)
    return logits, stream.randint(0, 23, num_images).astype(numpy.int32)


def check_hits() -> None:
    """Images, top-1 and top-5 equal the plain ones, with ties and with what is no number."""
    for seed in range(4):
        for num_levels in (2, 8, 1_000_000):
            logits, labels = tied_logits(seed, num_levels)
            stream = numpy.random.RandomState(seed)
            for share, value in (
                (0.0, 0.0),
                (0.02, numpy.nan),
                (0.1, numpy.inf),
                (0.1, -numpy.inf),
            ):
                logits[stream.uniform(size=logits.shape) < share] = value
                found = evaluate.count_hits(tf.constant(logits), tf.constant(labels)).numpy()
                hits = [plain_hits(logits, labels.tolist(), k) for k in (1, 5)]
                assert found.tolist() == [300, *hits]
                assert found.dtype == numpy.int64
    logits, labels = tied_logits(9, 1_000_000)
    found = evaluate.count_hits(tf.constant(logits), tf.constant(labels)).numpy()
    for k, hits in zip((1, 5), found[1:], strict=True):
        metric = keras.metrics.SparseTopKCategoricalAccuracy(k)
        metric.update_state(labels, logits)
        assert round(float(metric.result()) * 300) == hits > 0


class TableModel(keras.Model):
    """Logits out of a table, by the number that an image's first pixel holds."""

    def __init__(self, table: FloatArray) -> None:
        super().__init__()
        self.table = tf.constant(table)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """[N, 1, 1, 3] -> [N, C]."""
        assert not training
        return tf.gather(self.table, tf.cast(inputs[:, 0, 0, 0], tf.int32))


def table_quality(logits: FloatArray, labels: Any, batch_size: int) -> dict[str, float]:
    """evaluate() over images that the table gives these logits, in batches of this size."""
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    numbers = numpy.broadcast_to(
        numpy.arange(len(labels), dtype=numpy.float32)[:, None, None, None], (len(labels), 1, 1, 3)
    )
    batches = tf.data.Dataset.from_tensor_slices((numbers, labels)).batch(batch_size)
    eval_step = evaluate.make_eval_step(TableModel(logits), strategy)
    return evaluate.evaluate(eval_step, strategy, batches, len(labels))


def check_evaluation() -> None:
    """Shares of all images, each once, for any batch."""
    logits, labels = tied_logits(1, 8)
    hits = [plain_hits(logits, labels.tolist(), k) for k in (1, 5)]
    assert 0 < hits[0] < hits[1] < 300
    for batch_size in (1, 7, 64, 299, 300, 1000):
        quality = table_quality(logits, labels, batch_size)
        assert quality == {"top_1": hits[0] / 300, "top_5": hits[1] / 300}


def check_constant_model_scores_nothing() -> None:
    """Where all logits are equal, or none is a number, the classes 1, 2, ... are no hits."""
    labels = numpy.arange(1, 11, dtype=numpy.int32)
    equal = table_quality(numpy.zeros((10, 11), numpy.float32), labels, 4)
    assert equal == {"top_1": 0.0, "top_5": 0.4}  # labels 1 to 4 stand behind class 0
    broken = table_quality(numpy.full((10, 11), numpy.nan, numpy.float32), labels, 4)
    assert broken == {"top_1": 0.0, "top_5": 0.0}
