"""Run the reference's own operators and store what they compute: paddle_fixture.npz.

The reference was written for PaddlePaddle's ragged ("LoD") tensors, whose operators still run in
PaddlePaddle 2.6.2 and are gone in 3. The tests compare our network, gradients, optimizer and
initial weights with the stored arrays, so that nothing of Paddle has to be installed for them.
Nothing else imports this file. To write the arrays again, with Python 3.11, from the root:

    python3.11 -m venv /tmp/paddle
    /tmp/paddle/bin/pip install 'paddlepaddle==2.6.2' 'numpy<2' setuptools
    OMP_NUM_THREADS=1 /tmp/paddle/bin/python sentiment_analysis/tests/make_paddle_fixture.py

Two things differ from the Paddle of 2018. Where that computed m / (sqrt(v) + epsilon), 2.6.2
computes m / (sqrt(v) + epsilon * sqrt(1 - beta_2^t)), as PyTorch does; the arrays have the latter.
And 2.6.2 gets the powers of beta wrong for the embedding; advance_beta_powers_last mends that.

The arrays, float32 unless they count something. <matrix> is one of embedding, filter_3, filter_4,
output_3, output_4, and <parameter> is a matrix or filter_bias_3, filter_bias_4, output_bias:

    tokens, lengths, labels           12 batches: [12, 36], [12, 6], [12, 6], int64
    initial_<parameter>               the weights before the first step, in Paddle's layout
    convolved_3, convolved_4          first batch, after bias and ELU: [36, 10]
    pooled_3, pooled_4                first batch, the maximum over each review: [6, 10]
    probabilities, loss               first batch: [6, 2], []
    gradient_<parameter>              first batch; that of the embedding is filled up with zeros
    gradient_embedding_rows           the rows that the embedding's sparse gradient held, int64
    losses                            each batch's loss before its own step: [12]
    step_<s>_<parameter>              the weights after s = 1, 2 and 12 steps
    step_<s>_<moment>_<parameter>     first_moment and second_moment of embedding and filter_3
    step_12_loss                      the first batch's loss after the last step: []
    edge_probabilities, edge_losses   the loss at probabilities of the label that include 0: [4]
    init_<matrix>                     drawn by Paddle itself for this network, program seed 7
    init_range_<matrix>               smallest and largest at the reference's size, seed 1: [2]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import paddle  # type: ignore[import-not-found]
from numpy.typing import NDArray

Array = NDArray[Any]

FIXTURE = Path(__file__).with_name("paddle_fixture.npz")

# N reviews of T tokens in all, V words, E numbers for each word, H filters of each width.
NUM_BATCHES = 12
LENGTHS = (1, 2, 3, 4, 7, 19)
VOCABULARY_SIZE = 23
EMBEDDING_SIZE = 12
NUM_FILTERS = 10
NUM_CLASSES = 2
REFERENCE_SIZES = (5147, 1024, 1024)
WORDS_PER_BATCH = 16
NEVER_SEEN_WORD = VOCABULARY_SIZE - 1

WIDTHS = (3, 4)
LEARNING_RATE = 5e-4
BETA_1 = 0.9
BETA_2 = 0.999
SEED = 20180329
PADDLE_SEED = 7
STORED_STEPS = (1, 2, 12)
EDGE_PROBABILITIES = (0.0, 1e-30, 0.25, 1.0)

MATRICES = ("embedding", "filter_3", "filter_4", "output_3", "output_4")
PARAMETERS = (*MATRICES, "filter_bias_3", "filter_bias_4", "output_bias")
WITH_MOMENTS = ("embedding", "filter_3")
# Paddle's endings of the names of the optimizer's variables.
MOMENTS = {"first_moment": "_moment1_0", "second_moment": "_moment2_0"}


class Network:
    """The reference's network with its loss and optimizer, as programs that Paddle can run."""

    def __init__(self, sizes: tuple[int, int, int], seed: int) -> None:
        vocabulary_size, embedding_size, num_filters = sizes
        self.startup = paddle.static.Program()
        self.training = paddle.static.Program()
        self.startup.random_seed = self.training.random_seed = seed
        self.scope = paddle.static.Scope()
        self.executor = paddle.static.Executor(paddle.CPUPlace())
        self.outputs: dict[str, Any] = {}

        named = paddle.ParamAttr
        sequence = paddle.static.nn.sequence_lod
        with (
            paddle.static.program_guard(self.training, self.startup),
            paddle.utils.unique_name.guard(),
        ):
            tokens = paddle.static.data("tokens", [-1], "int64", lod_level=1)
            labels = paddle.static.data("labels", [-1, 1], "int64")
            embedded = paddle.static.nn.embedding(
                tokens,
                [vocabulary_size, embedding_size],
                is_sparse=True,
                param_attr=named(name="embedding"),
            )
            for width in WIDTHS:
                convolved = sequence.sequence_conv(
                    embedded,
                    num_filters=num_filters,
                    filter_size=width,
                    param_attr=named(name=f"filter_{width}"),
                    bias_attr=named(name=f"filter_bias_{width}"),
                    act="elu",
                )
                self.outputs[f"convolved_{width}"] = convolved
                self.outputs[f"pooled_{width}"] = sequence.sequence_pool(convolved, "max")
            probabilities = paddle.static.nn.fc(
                [self.outputs[f"pooled_{width}"] for width in WIDTHS],
                NUM_CLASSES,
                weight_attr=[named(name=f"output_{width}") for width in WIDTHS],
                bias_attr=named(name="output_bias"),
                activation="softmax",
            )
            loss = paddle.mean(cross_entropy(probabilities, labels))
            self.outputs |= {"probabilities": probabilities, "loss": loss}
            self.evaluation = self.training.clone(for_test=True)
            paddle.optimizer.Adam(
                learning_rate=LEARNING_RATE,
                beta1=BETA_1,
                beta2=BETA_2,
                epsilon=1e-8,
                lazy_mode=True,
            ).minimize(loss)
            advance_beta_powers_last(self.training)
            # Or it would be gone after the run: a sparse gradient cannot be fetched.
            self.training.global_block().var("embedding@GRAD").persistable = True

    def start(self) -> None:
        """Let Paddle draw the weights and make the optimizer's moments."""
        self.executor.run(self.startup, scope=self.scope)

    def read(self, variable: str) -> Array:
        """A copy of a weight or of a moment."""
        return numpy.array(self.scope.find_var(variable).get_tensor())

    def write(self, variable: str, value: Array) -> None:
        """Replace a weight, which keeps its shape."""
        tensor = self.scope.find_var(variable).get_tensor()
        if tuple(tensor.shape()) != value.shape:
            raise ValueError(f"{variable} has shape {tensor.shape()}, not {value.shape}")
        tensor.set(value, paddle.CPUPlace())

    def train(self, batch: dict[str, Array], fetched: list[Any]) -> list[Array]:
        """One step; the fetched variables are those from before it."""
        return list(self._run(self.training, batch, fetched))

    def loss(self, batch: dict[str, Array]) -> Array:
        """The loss of a batch, without a step."""
        return self._run(self.evaluation, batch, [self.outputs["loss"].name])[0]

    def _run(self, program: Any, batch: dict[str, Array], fetched: list[Any]) -> list[Array]:
        tokens = paddle.base.create_lod_tensor(
            batch["tokens"], [batch["lengths"].tolist()], paddle.CPUPlace()
        )
        outputs = self.executor.run(
            program,
            feed={"tokens": tokens, "labels": batch["labels"][:, None]},
            fetch_list=fetched,
            scope=self.scope,
            return_numpy=False,
        )
        return [numpy.array(output) for output in outputs]

    def embedding_gradient(self) -> tuple[Array, Array]:
        """The last step's gradient [V, E] of the embedding, and the rows that it held.

        Paddle holds one row for each token; rows of the same word are added up here, as its
        optimizer does.
        """
        sparse = self.scope.find_var("embedding@GRAD").get_selected_rows()
        rows = numpy.array(sparse.rows(), dtype=numpy.int64)
        dense = numpy.zeros_like(self.read("embedding"))
        numpy.add.at(dense, rows, numpy.array(sparse.get_tensor()))
        return dense, numpy.unique(rows)


def cross_entropy(probabilities: Any, labels: Any) -> Any:
    """The operator of that name, which the reference calls and Paddle's functions no longer do."""
    helper = paddle.base.layer_helper.LayerHelper("cross_entropy")
    losses = helper.create_variable_for_type_inference(probabilities.dtype)
    helper.append_op(
        type="cross_entropy",
        inputs={"X": [probabilities], "Label": [labels]},
        outputs={"Y": [losses]},
        attrs={"soft_label": False, "ignore_index": -100},
    )
    return losses


def advance_beta_powers_last(program: Any) -> None:
    """Multiply Adam's powers of beta after all its updates, as Paddle did in 2018.

    2.6.2 does so inside each update, and on the CPU the one for sparse gradients does it before
    it reads them: the embedding's step t would be corrected as step t + 1, and its first step be
    a quarter too short (PaddlePaddle/Paddle#53052).
    """
    block = program.global_block()
    for update in [operator for operator in block.ops if operator.type == "adam"]:
        update._set_attr("use_global_beta_pow", True)
        for role, beta in (("Beta1Pow", BETA_1), ("Beta2Pow", BETA_2)):
            (power,) = (block.var(name) for name in update.input(role))
            block.append_op(
                type="scale", inputs={"X": [power]}, outputs={"Out": [power]}, attrs={"scale": beta}
            )


def draw_batches(generator: numpy.random.Generator) -> list[dict[str, Array]]:
    """12 batches: each has its own order of lengths, lacks some words and has both labels.

    The last word of the longest review occurs nowhere else in the batch: where no filter's
    maximum looks at it, its row of the gradient is there and is all zeros.
    """
    batches: list[dict[str, Array]] = []
    for _ in range(NUM_BATCHES):
        lengths = generator.permutation(LENGTHS)
        words = generator.permutation(NEVER_SEEN_WORD)[:WORDS_PER_BATCH]
        tokens = generator.choice(words[1:], size=lengths.sum())
        end_of_longest = lengths[: lengths.argmax() + 1].sum()
        tokens[end_of_longest - 1] = words[0]
        labels = generator.permutation(numpy.arange(len(LENGTHS)) % NUM_CLASSES)
        batches.append({"tokens": tokens, "lengths": lengths, "labels": labels})
    return batches


def draw_weights(generator: numpy.random.Generator) -> dict[str, Array]:
    """Weights of every parameter, biases among them, large enough that ELU bends."""
    sizes = {"embedding": (VOCABULARY_SIZE, EMBEDDING_SIZE)}
    for width in WIDTHS:
        sizes[f"filter_{width}"] = (width * EMBEDDING_SIZE, NUM_FILTERS)
        sizes[f"output_{width}"] = (NUM_FILTERS, NUM_CLASSES)
    weights = {
        name: generator.uniform(-0.5, 0.5, size=sizes[name]).astype(numpy.float32)
        for name in MATRICES
    }
    for name, size in (
        ("filter_bias_3", NUM_FILTERS),
        ("filter_bias_4", NUM_FILTERS),
        ("output_bias", NUM_CLASSES),
    ):
        weights[name] = generator.uniform(-0.2, 0.2, size=size).astype(numpy.float32)
    return weights


def train_and_record() -> dict[str, Array]:
    """The arrays of the 12 steps.

    Raises:
        RuntimeError: A row outside a batch moved, or no row inside one had a gradient of zeros.
    """
    generator = numpy.random.default_rng(SEED)
    batches = draw_batches(generator)
    weights = draw_weights(generator)
    network = Network((VOCABULARY_SIZE, EMBEDDING_SIZE, NUM_FILTERS), seed=0)
    network.start()
    for name, value in weights.items():
        network.write(name, value)

    arrays = {key: numpy.stack([batch[key] for batch in batches]) for key in batches[0]}
    arrays |= {f"initial_{name}": value for name, value in weights.items()}
    dense_gradients = [f"{name}@GRAD" for name in PARAMETERS if name != "embedding"]
    keys = [*network.outputs, *(f"gradient_{name[:-5]}" for name in dense_gradients)]
    lazily_updated = ("embedding", *(f"embedding{ending}" for ending in MOMENTS.values()))
    losses = []
    num_zero_rows = []
    for step, batch in enumerate(batches, start=1):
        before = [network.read(variable) for variable in lazily_updated]
        values = network.train(
            batch, [*(output.name for output in network.outputs.values()), *dense_gradients]
        )
        recorded = dict(zip(keys, values, strict=True))
        losses.append(recorded["loss"])
        gradient, rows = network.embedding_gradient()
        num_zero_rows.append(int((gradient[rows] == 0).all(axis=1).sum()))
        if step == 1:
            arrays |= recorded
            arrays |= {"gradient_embedding": gradient, "gradient_embedding_rows": rows}
        if step in STORED_STEPS:
            for name in PARAMETERS:
                arrays[f"step_{step}_{name}"] = network.read(name)
            for name in WITH_MOMENTS:
                for moment, ending in MOMENTS.items():
                    arrays[f"step_{step}_{moment}_{name}"] = network.read(name + ending)
        outside = numpy.setdiff1d(numpy.arange(VOCABULARY_SIZE), rows)
        for variable, old in zip(lazily_updated, before, strict=True):
            if not numpy.array_equal(old[outside], network.read(variable)[outside]):
                raise RuntimeError(f"step {step} moved rows of {variable} outside its batch")
    if num_zero_rows[0] == 0 or sum(num_zero_rows) == num_zero_rows[0]:
        raise RuntimeError(f"too few rows with a gradient of zeros, at each step: {num_zero_rows}")
    arrays["losses"] = numpy.stack(losses)
    arrays["step_12_loss"] = network.loss(batches[0])
    return arrays


def edge_losses() -> dict[str, Array]:
    """The loss where the label's probability is 0, or nearly."""
    program = paddle.static.Program()
    with paddle.static.program_guard(program):
        probabilities = paddle.static.data("probabilities", [-1, NUM_CLASSES], "float32")
        labels = paddle.static.data("labels", [-1, 1], "int64")
        losses = cross_entropy(probabilities, labels)
    of_label = numpy.array(EDGE_PROBABILITIES, dtype=numpy.float32)
    (values,) = paddle.static.Executor(paddle.CPUPlace()).run(
        program,
        feed={
            "probabilities": numpy.stack([of_label, 1 - of_label], axis=1),
            "labels": numpy.zeros((len(of_label), 1), dtype=numpy.int64),
        },
        fetch_list=[losses],
    )
    return {"edge_probabilities": of_label, "edge_losses": values[:, 0]}


def initial_weights() -> dict[str, Array]:
    """What Paddle draws: all of the small network, the range at the reference's size."""
    small = Network((VOCABULARY_SIZE, EMBEDDING_SIZE, NUM_FILTERS), seed=PADDLE_SEED)
    large = Network(REFERENCE_SIZES, seed=1)
    small.start()
    large.start()
    arrays = {f"init_{name}": small.read(name) for name in MATRICES}
    for name in MATRICES:
        matrix = large.read(name)
        arrays[f"init_range_{name}"] = numpy.array([matrix.min(), matrix.max()])
    return arrays


def main() -> None:
    """Write the fixture beside this file."""
    paddle.enable_static()
    arrays = train_and_record() | edge_losses() | initial_weights()
    numpy.savez_compressed(FIXTURE, **arrays)
    print(f"{len(arrays)} arrays, {FIXTURE.stat().st_size} bytes: {FIXTURE}")


if __name__ == "__main__":
    main()
