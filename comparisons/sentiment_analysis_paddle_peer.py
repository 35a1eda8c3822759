"""One run of PaddlePaddle in comparisons.sentiment_analysis: v0.5's own ragged operators.

In the environment of sentiment_analysis-paddle.txt, of ours it imports only what needs nothing but
NumPy. It is the program of v0.5, a list of reviews of any length as one LoD tensor.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy

sys.path.append(str(Path(__file__).parents[1]))  # the frame gives this program no PYTHONPATH
from comparisons.sentiment_analysis_work import (
    BETA_1,
    BETA_2,
    EPSILON,
    LEARNING_RATE,
    NUM_CLASSES,
    NUM_THREADS,
    WIDTHS,
    Batch,
    FloatArray,
    Work,
    draw_weights,
    measure,
    parse_arguments,
)


def main() -> None:
    """Measure and print the result."""
    work = parse_arguments()
    # Both before the import. One operator after another: its kernels have the threads.
    os.environ["FLAGS_paddle_num_threads"] = str(NUM_THREADS)  # noqa: SIM112  its own name
    os.environ["FLAGS_new_executor_serial_run"] = "1"  # noqa: SIM112  its own name
    import paddle  # type: ignore[import-not-found]

    paddle.enable_static()
    network = Network(work, paddle)

    def answer(batches: Sequence[Batch]) -> FloatArray:
        probabilities = numpy.concatenate([network.predict(batch) for batch in batches])
        logarithms = numpy.log(probabilities)
        return logarithms[:, 0] - logarithms[:, 1]

    parameters = network.training.all_parameters()
    shapes = {parameter.name: parameter.shape for parameter in parameters}
    (update, *_) = (
        operator for operator in network.training.global_block().ops if operator.type == "adam"
    )
    measure(
        work,
        step=network.train,
        answer=answer,
        facts={
            "num_words": shapes["embedding"][0],
            "embedding_size": shapes["embedding"][1],
            "num_filters": [shapes[f"filter_{width}"][1] for width in WIDTHS],
            "filter_widths": [
                shapes[f"filter_{width}"][0] // shapes["embedding"][1] for width in WIDTHS
            ],
            "num_parameters": sum(math.prod(shape) for shape in shapes.values()),
            "learning_rate": LEARNING_RATE,
            "adam_betas": [round(update.attr(name), 6) for name in ("beta1", "beta2")],  # float32
            "adam_epsilon": EPSILON,
            "num_threads": NUM_THREADS,
        },
    )


class Network:
    """v0.5's network with its loss and optimizer, as programs that Paddle can run."""

    def __init__(self, work: Work, paddle: Any) -> None:
        self.paddle, self.num_steps = paddle, 0
        startup, self.training = paddle.static.Program(), paddle.static.Program()
        self.executor = paddle.static.Executor(paddle.CPUPlace())
        named = paddle.ParamAttr
        sequence = paddle.static.nn.sequence_lod
        with paddle.static.program_guard(self.training, startup):
            tokens = paddle.static.data("tokens", [-1], "int64", lod_level=1)
            labels = paddle.static.data("labels", [-1, 1], "int64")
            embedded = paddle.static.nn.embedding(
                tokens,
                [work.num_words, work.embedding_size],
                is_sparse=True,
                param_attr=named(name="embedding"),
            )
            pooled = []
            for width in WIDTHS:
                convolved = sequence.sequence_conv(
                    embedded,
                    work.num_filters,
                    width,
                    param_attr=named(name=f"filter_{width}"),
                    bias_attr=named(name=f"filter_bias_{width}"),
                    act="elu",
                )
                pooled.append(sequence.sequence_pool(convolved, "max"))
            self.probabilities = paddle.static.nn.fc(
                pooled,
                NUM_CLASSES,
                weight_attr=[named(name=f"output_{width}") for width in WIDTHS],
                bias_attr=named(name="output_bias"),
                activation="softmax",
            )
            self.loss = paddle.nn.functional.cross_entropy(
                self.probabilities, labels, use_softmax=False
            )
            self.evaluation = self.training.clone(for_test=True)
            # 2.6.2 multiplies epsilon by the root of the bias correction, Paddle of 2018 did not.
            epsilon = paddle.static.data("epsilon", [1], "float32")
            adam = paddle.optimizer.Adam(LEARNING_RATE, BETA_1, BETA_2, epsilon, lazy_mode=True)
            adam.minimize(self.loss)
        advance_beta_powers_last(self.training)
        self.executor.run(startup)
        self.write_weights(work)

    def write_weights(self, work: Work) -> None:
        """Set the weights that all programs start from."""
        drawn = draw_weights(work)
        values = {"embedding": drawn.embedding, "output_bias": drawn.output_bias}
        for place, width in enumerate(WIDTHS):
            values[f"filter_{width}"] = drawn.filters[place]
            values[f"filter_bias_{width}"] = drawn.filter_biases[place]
            values[f"output_{width}"] = drawn.output[place]
        for name, value in values.items():
            tensor = self.paddle.static.global_scope().find_var(name).get_tensor()
            assert tuple(tensor.shape()) == value.shape, name
            tensor.set(value, self.paddle.CPUPlace())

    def train(self, batch: Batch) -> float:
        """A step; returns the loss from before it."""
        self.num_steps += 1
        epsilon = EPSILON / math.sqrt(1 - BETA_2**self.num_steps)
        feed = {"epsilon": numpy.array([epsilon], numpy.float32)}
        return float(self.run(self.training, batch, self.loss, feed))

    def predict(self, batch: Batch) -> FloatArray:
        """Probabilities [N, 2]."""
        return self.run(self.evaluation, batch, self.probabilities, {})

    def run(self, program: Any, batch: Batch, fetched: Any, feed: dict[str, Any]) -> FloatArray:
        """Run a program on a batch; returns what is fetched."""
        tokens = self.paddle.base.create_lod_tensor(
            numpy.concatenate(batch.texts),
            [[len(text) for text in batch.texts]],
            self.paddle.CPUPlace(),
        )
        feed = {"tokens": tokens, "labels": batch.labels[:, None], **feed}
        values: FloatArray
        (values,) = self.executor.run(program, feed=feed, fetch_list=[fetched])
        return values


def advance_beta_powers_last(program: Any) -> None:
    """Multiply Adam's powers of beta after all its updates, as Paddle did in 2018.

    2.6.2 multiplies those of the embedding before it reads them (PaddlePaddle/Paddle#53052).
    """
    block = program.global_block()
    for update in [operator for operator in block.ops if operator.type == "adam"]:
        update._set_attr("use_global_beta_pow", True)
        for role, beta in (("Beta1Pow", BETA_1), ("Beta2Pow", BETA_2)):
            power = block.var(update.input(role)[0])
            block.append_op(
                type="scale", inputs={"X": [power]}, outputs={"Out": [power]}, attrs={"scale": beta}
            )


if __name__ == "__main__":
    main()
