"""Training as a whole: the real loop of train.py, looked on, beside an independent one in PyTorch.

The independent loop has torchvision's bottlenecks, torch.optim.SGD and TensorFlow 1's
piecewise_constant. What must hold of both is in the `check_` functions, as in checks.py;
test_mutations.py calls them on code that was made wrong on purpose.

Both compute in float64. In float32 their ways part after some ten steps, whatever the rate: an
activation that rounding moves across 0 changes a gradient of so small a network by up to 4 %. So
`float32` is read as `float64` in the sources of model.py and train.py; TensorFlow's kernel of batch
normalisation, which has no float64, is replaced by its definition (checks.check_training_forward
holds the kernel itself).
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import importlib.util
import itertools
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import keras
import numpy
import tensorflow as tf
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from harness import tensorflow_support
from harness.options import RunOptions
from harness.stop_rule import QualityTarget
from image_classification import data, evaluate, images, model, optimizer, prepare, train
from image_classification.config import TINY, Config
from image_classification.tests import checks

Weights = list[NDArray[numpy.float64]]

SMALL = dataclasses.replace(
    TINY,
    quality_targets=(QualityTarget("top_1", 2.0),),  # never reached
    checkpoint_interval_s=1e9,
    num_classes=7,
    num_train_images=104,
    num_eval_images=40,
    num_filters=8,
    num_blocks=(2, 1),
    stem_kernel=7,
    stem_stride=2,
    train_size=32,
    eval_resize=36,
    base_learning_rate=0.2,
    warmup_epochs=1,
    decay_epochs=(4, 9),
    l2_regularization=0.02,
    max_epochs=16,
)
"""A recipe in which everything matters within 100 steps: seven an epoch, the last of them short; a
block without a projection, a strided stage; warm-up, two falls of the rate, much L2."""

# --- the independent loop -------------------------------------------------------------------------


class PlainResNet(nn.Module):
    """torchvision's bottlenecks behind a stem of any width, with TensorFlow's max pool."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, kernel = config.num_filters, config.stem_kernel
        self.stem = nn.Conv2d(
            3, width, kernel, config.stem_stride, padding=(kernel - 1) // 2, bias=False
        )
        self.stem_norm = nn.BatchNorm2d(width)
        self.pool = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(3, 2))
        blocks = []
        channels = width
        for stage, num_blocks in enumerate(config.num_blocks):
            planes = width * 2**stage
            for block in range(num_blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                projection = None
                if block == 0:
                    projection = nn.Sequential(
                        nn.Conv2d(channels, 4 * planes, 1, stride, bias=False),
                        nn.BatchNorm2d(4 * planes),
                    )
                blocks.append(Bottleneck(channels, planes, stride, projection))
                channels = 4 * planes
        self.blocks = nn.ModuleList(blocks)
        self.dense = nn.Linear(channels, config.num_classes)
        self.double()

    def forward(self, batch: Tensor) -> Tensor:
        """[N, 3, S, S] -> logits [N, C]."""
        x = self.pool(torch.relu(self.stem_norm(self.stem(batch))))
        for block in self.blocks:
            x = block(x)
        return self.dense(x.mean(dim=(2, 3)))

    def convolutions(self) -> list[nn.Conv2d]:
        """In the order of ours: a block's projection comes first."""
        found = [self.stem]
        for block in self.blocks:
            found += [block.downsample[0]] if block.downsample is not None else []
            found += [block.conv1, block.conv2, block.conv3]
        return found

    def norms(self) -> list[nn.BatchNorm2d]:
        """Likewise."""
        found = [self.stem_norm]
        for block in self.blocks:
            found += [block.downsample[1]] if block.downsample is not None else []
            found += [block.bn1, block.bn2, block.bn3]
        return found

    def trained(self) -> list[Tensor]:
        """Convolutions, dense kernel and bias, scales, offsets."""
        weights = [layer.weight for layer in self.convolutions()]
        weights += [self.dense.weight, self.dense.bias]
        return [
            *weights,
            *(layer.weight for layer in self.norms()),
            *(layer.bias for layer in self.norms()),
        ]

    def statistics(self) -> list[Tensor]:
        """Running means, then running variances."""
        means = [layer.running_mean for layer in self.norms()]
        return [x for x in [*means, *(n.running_var for n in self.norms())] if x is not None]

    def put(self, trained: Weights, statistics: Weights) -> None:
        """Take over weights and statistics."""
        with torch.no_grad():
            for tensor, values in zip(
                [*self.trained(), *self.statistics()], [*trained, *statistics], strict=True
            ):
                tensor.copy_(torch.from_numpy(values))


@dataclass
class PlainStep:
    """What one step of the independent loop saw, and left behind."""

    loss: float
    gradients: Weights
    trained: Weights
    statistics: Weights


class PlainTraining:
    """PyTorch's SGD on the mean cross-entropy and the L2 term; TensorFlow 1's rates."""

    def __init__(self, config: Config, trained: Weights, statistics: Weights) -> None:
        self.config = config
        self.network = PlainResNet(config)
        self.network.put(trained, statistics)
        self.sgd = torch.optim.SGD(self.network.parameters(), lr=0.0, momentum=config.momentum)
        self.num_steps = 0

    def rate(self) -> float:
        """Of the next step."""
        config = self.config
        peak = config.base_learning_rate * config.batch_size / 256
        batches_per_epoch = config.num_train_images / config.batch_size
        num_warmup_steps = int(config.warmup_epochs * batches_per_epoch)
        if self.num_steps < num_warmup_steps:
            return peak * self.num_steps / num_warmup_steps
        rates = [peak / 10**number for number in range(len(config.decay_epochs) + 1)]
        boundaries = [int(batches_per_epoch * epoch) for epoch in config.decay_epochs]
        place = tf.constant(self.num_steps, tf.int64)
        found = tf.compat.v1.train.piecewise_constant(
            place, boundaries, [tf.constant(rate) for rate in rates]
        )
        return float(found() if callable(found) else found)

    def step(self, batch: NDArray[Any], labels: NDArray[Any], num_parts: int = 1) -> PlainStep:
        """Train on a batch [N, S, S, 3].

        In several parts each normalises by itself; the running statistics are the first one's.
        """
        self.network.train()
        self.sgd.zero_grad()
        total = 0.0
        first: Weights = []
        bounds = [len(labels) * number // num_parts for number in range(num_parts + 1)]
        for begin, end in itertools.pairwise(bounds):
            part = torch.from_numpy(batch[begin:end].transpose(0, 3, 1, 2).astype(numpy.float64))
            logits = self.network(part)
            target = torch.from_numpy(labels[begin:end].astype(numpy.int64))
            loss = nn.functional.cross_entropy(logits, target, reduction="sum") / len(labels)
            loss.backward()
            total += loss.item()
            first = first or arrays(self.network.statistics())
        regularized = [layer.weight for layer in self.network.convolutions()]
        regularized += [self.network.dense.weight, self.network.dense.bias]
        squares = torch.stack([(weights**2).sum() for weights in regularized]).sum()
        term = self.config.l2_regularization * squares / 2
        term.backward()
        gradients = [w.grad.numpy().copy() for w in self.network.trained() if w.grad is not None]
        self.sgd.param_groups[0]["lr"] = self.rate()
        self.sgd.step()
        self.num_steps += 1
        trained = arrays(self.network.trained())
        self.network.put(trained, first)
        return PlainStep(total + term.item(), gradients, trained, first)

    def hits(self, batch: NDArray[Any], labels: NDArray[Any]) -> int:
        """Images of a batch whose likeliest class is the right one, in evaluation."""
        self.network.eval()
        with torch.no_grad():
            logits = self.network(torch.from_numpy(batch.transpose(0, 3, 1, 2)).double())
        return int((logits.argmax(dim=1).numpy() == labels).sum())


def arrays(tensors: Sequence[Tensor]) -> Weights:
    """Copies in NumPy."""
    return [tensor.detach().numpy().copy() for tensor in tensors]


# --- changed sources ------------------------------------------------------------------------------

MODULES = (data, evaluate, images, model, optimizer, prepare, train)


def put_into_place(
    module: ModuleType, source: str, stack: contextlib.ExitStack, folder: Path
) -> None:
    """Load `source` and let its classes, functions and numbers stand for those of `module`.

    Until the stack is closed, wherever our code refers to them.
    """
    path = folder / f"changed_{module.__name__.rpartition('.')[2]}.py"
    while path.exists():
        path = path.with_stem(f"{path.stem}_again")
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    changed = importlib.util.module_from_spec(spec)
    stack.enter_context(mock.patch.dict(sys.modules, {path.stem: changed}))
    spec.loader.exec_module(changed)
    for name, original in list(vars(module).items()):
        replacement = vars(changed).get(name)
        if name.startswith("__") or replacement is original:
            continue
        for place in MODULES:
            if vars(place).get(name) is original:
                stack.enter_context(mock.patch.object(place, name, replacement))


def source_in_place(function: Any) -> str:
    """Source of the module that a function now comes from, changed or not."""
    return Path(str(sys.modules[function.__module__].__file__)).read_text()


def defined_batch_norm(
    x: Any, scale: Any, offset: Any, mean: Any, variance: Any, **options: Any
) -> tuple[Any, ...]:
    """What FusedBatchNormV3 computes, by its definition, in any precision."""
    part = options["exponential_avg_factor"]
    mean, variance = tf.convert_to_tensor(mean), tf.convert_to_tensor(variance)
    if options["is_training"]:
        new_mean, new_variance = tf.nn.moments(x, axes=[0, 1, 2])
        num_values = tf.cast(tf.size(x) / tf.size(new_mean), x.dtype)
        unbiased = new_variance * num_values / (num_values - 1)
        mean, variance = mean + part * (new_mean - mean), variance + part * (unbiased - variance)
    else:
        new_mean, new_variance = mean, variance
    outputs = (x - new_mean) * tf.math.rsqrt(new_variance + options["epsilon"]) * scale + offset
    return outputs, mean, variance


def read_as_float64(stack: contextlib.ExitStack, folder: Path) -> None:
    """From here on the network and the loop compute in float64."""
    for module, function in ((model, model.resnet), (train, train.train)):
        source = source_in_place(function).replace("float32", "float64")
        put_into_place(module, source, stack, folder)
    rate = optimizer.LearningRate.__call__
    for place, name, replacement in (
        (optimizer.LearningRate, "__call__", lambda *args: tf.cast(rate(*args), tf.float64)),
        (tf.raw_ops, "FusedBatchNormV3", defined_batch_norm),
    ):
        stack.enter_context(mock.patch.object(place, name, replacement))
    stack.enter_context(mock.patch.dict(tensorflow_support.POLICIES, {"fp32": "float64"}))
    stack.callback(keras.config.set_dtype_policy, keras.config.dtype_policy())


# --- the real loop, looked on ---------------------------------------------------------------------


def ordered(network: keras.Model) -> tuple[list[keras.Variable], list[keras.Variable]]:
    """Trained variables and statistics of our network, in PlainResNet's order."""
    convolutions = checks.layers_of(network, "Conv2D")
    norms = checks.layers_of(network, "BatchNormalization")
    (dense,) = checks.layers_of(network, "Dense")
    trained = [
        *(layer.kernel for layer in convolutions),
        dense.kernel,
        dense.bias,
        *(layer.scale for layer in norms),
        *(layer.offset for layer in norms),
    ]
    statistics = [layer.running_mean for layer in norms]
    return trained, [*statistics, *(layer.running_variance for layer in norms)]


def as_torch(values: Any) -> NDArray[numpy.float64]:
    """Kernels from [height, width, in, out] or [in, out] to PyTorch's order, as float64."""
    array = numpy.asarray(values, dtype=numpy.float64)
    return array.transpose({4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[array.ndim])


@dataclass
class Recording:
    """What a training did; weights in PlainResNet's order."""

    trained: Weights = field(default_factory=list)  # before the first step
    statistics: Weights = field(default_factory=list)
    batches: list[tuple[NDArray[Any], NDArray[Any]]] = field(default_factory=list)
    steps: list[PlainStep] = field(default_factory=list)


def record_training(config: Config, num_steps: int, seed: int = 1) -> Recording:
    """Run the real loop of train.py on made-up images, in float64, and look on."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        read_as_float64(stack, folder)
        # A changed loop lives in a module of its own.
        recording = look_on(sys.modules[train.train.__module__], stack)
        options = RunOptions(
            seed=seed, data_dir=folder, results_dir=folder, device="cpu", num_steps=num_steps
        )
        if train.train(config, options):
            raise RuntimeError("the training crashed")  # which is no wrong science caught
        (path,) = folder.rglob("losses.csv")
        with path.open() as file:
            losses = [float(loss) for _, loss in csv.reader(file)]
    assert losses == [step.loss for step in recording.steps]
    return recording


def look_on(loop: ModuleType, stack: contextlib.ExitStack) -> Recording:
    """Fill the recording that is returned while train.py's loop runs."""
    recording = Recording()
    make_step, warm_up, build_itself = loop.make_train_step, loop.warm_up, loop.Momentum.build
    update = loop.Momentum.update_step
    gradients: dict[int, tf.Variable] = {}
    networks: list[keras.Model] = []

    def build(self: Any, variables: Sequence[keras.Variable]) -> None:
        gradients.update({n: tf.Variable(v.value * 0) for n, v in enumerate(variables)})
        build_itself(self, variables)

    def update_step(self: Any, gradient: Any, variable: Any, rate: Any) -> None:
        gradients[self._get_variable_index(variable)].assign(gradient)
        update(self, gradient, variable, rate)

    def make_recorded_step(model: keras.Model, *rest: Any) -> Callable[..., Any]:
        step = make_step(model, *rest)
        networks[:] = [model]

        def recorded(batch: Any, labels: Any, *others: Any) -> Any:
            result = step(batch, labels, *others)
            if recording.trained:  # the warm-up is over
                trained, statistics = ordered(model)
                numbers = {id(v): n for n, v in enumerate(model.trainable_variables)}
                recording.batches.append((batch.numpy(), labels.numpy()))
                recording.steps.append(
                    PlainStep(
                        float(result[0]),
                        [as_torch(gradients[numbers[id(v)]]) for v in trained],
                        [as_torch(v) for v in trained],
                        [as_torch(v) for v in statistics],
                    )
                )
            return result

        return recorded

    def recorded_warm_up(*arguments: Any) -> None:
        warm_up(*arguments)
        trained, statistics = ordered(networks[0])
        recording.trained = [as_torch(variable) for variable in trained]
        recording.statistics = [as_torch(variable) for variable in statistics]

    for place, name, replacement in (
        (loop, "make_train_step", make_recorded_step),
        (loop, "warm_up", recorded_warm_up),
        (loop.Momentum, "build", build),
        (loop.Momentum, "update_step", update_step),
        (loop, "INPUT_MEASUREMENT_S", 0.01),
    ):
        stack.enter_context(mock.patch.object(place, name, replacement))
    return recording


# --- checks ---------------------------------------------------------------------------------------


def norm(tensors: Weights) -> float:
    """Euclidean norm over all of them together."""
    return float(numpy.sqrt(sum((tensor**2).sum() for tensor in tensors)))


def distance(ours: Weights, plain: Weights) -> float:
    """Norm of the difference."""
    return norm([one - other for one, other in zip(ours, plain, strict=True)])


def check_trajectory(num_steps: int = 30, bound: float = 1e-6) -> list[float]:
    """Our loop and the independent one go the same way, from the same weights and batches.

    Returns the largest relative differences of loss, gradient norm, weights (against how far they
    have come from their first values) and running statistics.
    """
    recording = record_training(SMALL, num_steps)
    assert len(recording.steps) == num_steps
    check_batches(recording)
    plain = PlainTraining(SMALL, recording.trained, recording.statistics)
    worst = [0.0] * 4
    for number, (ours, batch) in enumerate(zip(recording.steps, recording.batches, strict=True)):
        step = plain.step(*batch)
        way = distance(step.trained, recording.trained)
        assert (way == 0) == (number == 0)  # the rate of the first step is 0
        found = [
            abs(ours.loss / step.loss - 1),
            abs(norm(ours.gradients) / norm(step.gradients) - 1),
            distance(ours.trained, step.trained) / (way or 1),
            distance(ours.statistics, step.statistics) / norm(step.statistics),
        ]
        worst = [max(pair) for pair in zip(worst, found, strict=True)]
        assert max(found) <= bound, (
            f"step {number + 1}: loss, gradient norm, weights, statistics {found}"
        )
    return worst


def check_batches(recording: Recording) -> None:
    """The steps saw the pipeline's batches, epoch after epoch to the last, each its own crops.

    Two of hundreds of crops of so small a picture may be the same by chance.
    """
    train_images, _ = data.load(SMALL, RunOptions())
    whole = -(-SMALL.num_train_images // SMALL.batch_size)
    pictures: list[bytes] = []
    for number, (batch, labels) in enumerate(recording.batches):
        epoch, step = number // whole + 1, number % whole
        if step == 0:
            batches = iter(data.train_batches(train_images, SMALL, 1, epoch, 0))
        expected, expected_labels = next(batches)
        assert labels.tolist() == expected_labels.numpy().tolist()
        assert (batch == expected.numpy()).all()
        assert len(labels) == (SMALL.batch_size if step + 1 < whole else 8)
        pictures += [picture.tobytes() for picture in batch]
    assert len(set(pictures)) >= 0.99 * len(pictures)


def check_augmentation() -> None:
    """Each picture is cut otherwise in another epoch, with another seed, and in another place."""
    picture = data.make_up(SMALL, "train", 1).made_up[0]
    many = data.Images(40, made_up=(picture,))
    cuts = [
        b"".join(batch.numpy().tobytes() for batch, _ in data.train_batches(many, SMALL, *place, 0))
        for place in ((1, 1), (1, 2), (2, 1))
    ]
    size = len(cuts[0]) // 40
    parts = [cut[begin : begin + size] for cut in cuts for begin in range(0, len(cut), size)]
    assert len(parts) == len(set(parts)) == 3 * 40


def check_mixing() -> None:
    """Another epoch or another seed has another order, without any shards."""
    config = dataclasses.replace(TINY, num_classes=201, shuffle_buffer=200)
    pictures = data.make_up(config, "train", 200)
    orders = [
        [n for _, labels in data.train_batches(pictures, config, *place, 0) for n in labels.numpy()]
        for place in ((1, 1), (1, 2), (2, 1))
    ]
    assert all(sorted(order) == list(range(1, 201)) for order in orders)
    for first, second in itertools.combinations(orders, 2):
        assert abs(numpy.corrcoef(first, second)[0, 1]) < 5 / numpy.sqrt(200)


class TwoReplicas:
    """Stands for a strategy of two replicas, of which one is here."""

    num_replicas_in_sync = 2

    def run(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """What this replica returns."""
        return function(*args)

    def reduce(self, operation: Any, value: Any, axis: Any) -> Any:
        """This replica's share of the sum."""
        assert operation == tf.distribute.ReduceOp.SUM and axis is None
        return value


def check_replicas() -> None:
    """Losses and gradients of two replicas, added up, are those of the batch in two parts.

    The shares are unequal, and the loss is scaled while gradients are computed.
    """
    config = dataclasses.replace(SMALL, num_blocks=(1,))
    batch = checks.make_images(config, 13)
    labels = numpy.arange(13, dtype=numpy.int32) % config.num_classes
    losses, gradients = [], []
    with contextlib.ExitStack() as stack:
        read_as_float64(stack, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        keras.config.set_dtype_policy("float64")
        for begin, end in ((0, 6), (6, 13)):
            network = checks.make_network(config)
            trained, statistics = ordered(network)
            first = [[as_torch(v) for v in group] for group in (trained, statistics)]
            rule = optimizer.Momentum(optimizer.LearningRate(config), config.momentum)
            rule.build(network.trainable_variables)
            step = train.make_train_step(
                network, rule, TwoReplicas(), config, RunOptions(precision="fp16")
            )
            share = tf.constant(batch[begin:end]), tf.constant(labels[begin:end])
            loss, stops = step(*share, tf.constant(13), tf.constant(begin > 0)).numpy()
            assert stops == (begin > 0)
            losses.append(loss)
            # After one step what has accumulated is the gradient.
            places = {id(v): n for n, v in enumerate(network.trainable_variables)}
            gradients.append([as_torch(rule.accumulators[places[id(v)]]) for v in trained])
    expected = PlainTraining(config, *first).step(batch, labels, num_parts=2)
    summed = [one + other for one, other in zip(*gradients, strict=True)]
    assert abs(sum(losses) / expected.loss - 1) < 1e-9
    assert distance(summed, expected.gradients) < 1e-9 * norm(expected.gradients)
