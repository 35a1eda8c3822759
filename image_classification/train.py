"""Train ResNet-50 on ImageNet until top-1 accuracy reaches the target.

    .venv/bin/python -m image_classification.train mini --seed 1

mini: a small ResNet on handwritten digits to top-1 >= 0.97, half a minute on two cores. reference:
ImageNet to top-1 >= 0.749, about 64 epochs. See README.md for the data, the recipe and known runs.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

# First: it imports TensorFlow without its start-up notes.
from harness import tensorflow_support  # isort: split

import keras
import numpy
import tensorflow as tf
from mlperf_logging.mllog import constants

from harness.errors import UsageError
from harness.options import RunOptions, exit_with, leave, parse_command_line
from harness.processes import num_processes, share
from harness.progress import Progress
from harness.run import Run
from harness.system import num_cores
from image_classification import data
from image_classification.config import PRESETS, Config, check_values
from image_classification.evaluate import evaluate, make_eval_step
from image_classification.model import is_regularized, resnet
from image_classification.optimizer import LearningRate, Momentum

STEPS_PER_CHECK = {"cpu": 1, "gpu": 20}
"""Steps between two looks at the losses, the signals and the clock: each makes a GPU wait."""

INPUT_MEASUREMENT_S = 3.0
"""Seconds for which --num-steps watches the input pipeline alone."""

Step = Callable[..., tf.Tensor]


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and train; returns the exit status."""
    try:
        config, options = parse_command_line("image_classification", PRESETS, arguments)
        return train(config, options)
    except UsageError as error:
        return exit_with(error)


def train(config: Config, options: RunOptions) -> int:
    """Train one model to the target of `config`; returns the exit status.

    Raises UsageError, with nothing written, where the options, the device or the data are wrong.
    """
    check_values(config)
    data.check_files(config, options)
    strategy = tensorflow_support.set_up(options)
    data.check_batches(config, strategy.num_replicas_in_sync)

    with Run("image_classification", config, options) as run:
        # --- Model and optimiser: no data is touched ----------------------------------------
        with strategy.scope():
            model = resnet(
                config.num_classes,
                config.num_blocks,
                config.num_filters,
                config.stem_kernel,
                config.stem_stride,
                config.train_size,
            )
            optimizer = Momentum(LearningRate(config), config.momentum)
            optimizer.build(model.trainable_variables)
        trainer_state = [*model.variables, *optimizer.variables]
        train_step = make_train_step(model, optimizer, strategy, config, options)
        eval_step = make_eval_step(model, strategy)
        warm_up(train_step, eval_step, trainer_state, strategy, config)
        log_recipe(run, config)
        device = "gpu" if tf.config.list_logical_devices("GPU") else "cpu"
        steps_per_epoch = data.num_steps(config)
        run.describe(
            {
                "num_parameters": sum(v.numpy().size for v in model.trainable_variables),
                "steps_per_epoch": steps_per_epoch,
                "memory_estimate_bytes": estimate_memory_bytes(model, config, options),
                "device": device,
                "num_processes": num_processes(),
                "num_replicas": strategy.num_replicas_in_sync,
                "num_threads": tf.config.threading.get_intra_op_parallelism_threads(),
                "num_input_threads": options.num_workers or num_cores(),
            }
        )

        # --- Where to begin -----------------------------------------------------------------
        first_epoch, num_done = tensorflow_support.resume(run, strategy, trainer_state)

        # --- The clock runs -----------------------------------------------------------------
        run.start()
        train_images, eval_images = data.load(config, options)
        run.log.event(constants.TRAIN_SAMPLES, train_images.num_images)
        run.log.event(constants.EVAL_SAMPLES, eval_images.num_images)
        progress = Progress(config, steps_per_epoch, run)

        for epoch in range(first_epoch, config.max_epochs + 1):
            if num_done == 0:
                run.epoch_start(epoch)
            with run.phase("input"):
                batches = iter(
                    data.train_batches(train_images, config, options.seed, epoch, num_done)
                )
            losses: list[tf.Tensor] = []  # of the steps since the last look
            num_seen = 0  # images in them

            for step in range(num_done, steps_per_epoch):
                with run.phase("input"):
                    images, labels = next(batches)
                start = step * config.batch_size
                size = min(config.batch_size, train_images.num_images - start)
                pieces = tensorflow_support.split(strategy, images, labels)
                stop = tf.constant(run.stop_requested)  # a Python bool would be traced anew
                losses.append(train_step(*pieces, tf.constant(size), stop))
                num_seen += size

                # A look at what happened: losses, progress, checkpoint, signals. All processes
                # look at the same steps, together; the first alone writes. The first step of an
                # epoch has a look of its own, so that filling the buffers is not in its pace.
                is_last = step + 1 == steps_per_epoch or run.step + len(losses) == options.num_steps
                if not (is_last or step == 0 or len(losses) == STEPS_PER_CHECK[device]):
                    continue
                values, stops = tf.stack(losses).numpy().T.tolist()
                run.record_losses(values, num_seen)
                losses, num_seen = [], 0
                progress.update(epoch, len(values), values[-1])
                if stops[-1] or run.checkpoint_due():
                    save(run, trainer_state, epoch, step + 1)
                if run.step == options.num_steps:
                    with run.phase("evaluation"):  # no part of the pace of training
                        report_speed(run, eval_step, strategy, train_images, eval_images)
                run.obey(stops[-1] > 0)

            # --- End of the epoch; of each fourth, with an evaluation ---------------------------
            num_done = 0
            run.epoch_stop(epoch)
            if epoch % config.epochs_between_evaluations:
                continue
            run.eval_start(epoch)
            tensorflow_support.copy_from_first(strategy, model.non_trainable_variables)
            batches = data.eval_batches(eval_images, config)
            quality = evaluate(eval_step, strategy, batches, eval_images.num_images)
            reached = run.eval_stop(epoch, quality)
            progress.evaluated(epoch, quality)
            save(run, trainer_state, epoch + 1, 0)
            if reached:
                break
        progress.close()
    return run.exit_status


def make_train_step(
    model: keras.Model,
    optimizer: Momentum,
    strategy: tf.distribute.Strategy,
    config: Config,
    options: RunOptions,
) -> Step:
    """A compiled function: images, labels, size of the whole batch, stop -> [loss, stops].

    The loss is the batch's mean cross-entropy and the L2 term. `stops` counts the replicas whose
    process was asked to stop. With --compile XLA compiles the forward and the backward pass.
    """
    variables = model.trainable_variables
    scale = config.loss_scale if options.precision == "fp16" else 1.0
    num_replicas = strategy.num_replicas_in_sync

    @tf.function(jit_compile=options.compile, reduce_retracing=True)
    def loss_and_gradients(
        images: tf.Tensor, labels: tf.Tensor, size: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        # Each replica's part of the loss; gradients and losses are added up over the replicas.
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            norms = [tf.nn.l2_loss(v.value) for v in variables if is_regularized(v)]
            loss = tf.reduce_sum(losses) / tf.cast(size, tf.float32)
            loss += config.l2_regularization * tf.add_n(norms) / num_replicas
            scaled = loss * scale
        gradients = tape.gradient(scaled, [v.value for v in variables])
        return loss, [gradient / scale for gradient in gradients]

    @tf.function(reduce_retracing=True)
    def train_step(
        images: tf.Tensor, labels: tf.Tensor, size: tf.Tensor, stop: tf.Tensor
    ) -> tf.Tensor:
        def replica_step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
            loss, gradients = loss_and_gradients(images, labels, size)
            optimizer.apply(gradients, variables)
            return tf.stack([loss, tf.cast(stop, tf.float32)])

        parts = strategy.run(replica_step, args=(images, labels))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, parts, axis=None)

    return train_step


def warm_up(
    train_step: Step,
    eval_step: Step,
    trainer_state: list[keras.Variable],
    strategy: tf.distribute.Strategy,
    config: Config,
) -> None:
    """Trace and compile both steps on a made-up batch of each size, and put everything back."""
    before = [variable.numpy() for variable in trainer_state]
    for step, num_images in (
        (train_step, config.num_train_images),
        (eval_step, config.num_eval_images),
    ):
        last = num_images % config.batch_size
        for size in {config.batch_size, last or config.batch_size}:
            first, last = share(size)  # which of them are this process's
            images = tf.zeros((last - first, config.train_size, config.train_size, 3))
            labels = tf.ones(last - first, tf.int32)
            pieces = tensorflow_support.split(strategy, images, labels)
            if step is train_step:
                pieces += (tf.constant(size), tf.constant(False))
            step(*pieces)
    for variable, value in zip(trainer_state, before, strict=True):
        variable.assign(value)


def estimate_memory_bytes(model: keras.Model, config: Config, options: RunOptions) -> int:
    """Weights, gradients and accumulators, and what each layer keeps for the backward pass."""
    parameters = sum(v.numpy().size for v in model.trainable_variables)
    activations = sum(numpy.prod(layer.output.shape[1:]) for layer in model.layers)
    value_bytes = 4 if options.precision == "fp32" else 2
    return int(3 * 4 * parameters + activations * value_bytes * config.batch_size)


def log_recipe(run: Run, config: Config) -> None:
    """The hyper-parameters under mlperf-logging's keys, and v0.5's where it has none."""
    log = run.log.event
    log(constants.GLOBAL_BATCH_SIZE, config.batch_size)
    log(constants.OPT_NAME, constants.SGD)
    log(constants.OPT_BASE_LR, config.base_learning_rate)
    log(constants.OPT_LR_WARMUP_EPOCHS, config.warmup_epochs)
    log(constants.OPT_LR_DECAY_BOUNDARY_EPOCHS, list(config.decay_epochs))
    log("opt_momentum", config.momentum)
    log("model_l2_regularization", config.l2_regularization)
    log("model_hp_num_filters", config.num_filters)
    log("model_hp_num_blocks", list(config.num_blocks))
    log("input_size", config.train_size)


def save(run: Run, trainer_state: list[keras.Variable], epoch: int, step_in_epoch: int) -> None:
    """Write a checkpoint (first process): `step_in_epoch` steps of `epoch` are done."""
    if run.is_main:
        with run.checkpoint(epoch, step_in_epoch, "npz") as file:
            tensorflow_support.save(trainer_state, file)


def report_speed(
    run: Run,
    eval_step: Step,
    strategy: tf.distribute.Strategy,
    train_images: data.Images,
    eval_images: data.Images,
) -> None:
    """Print the pace of training and of the input pipeline alone, and the time to the target."""
    config: Any = run.config
    batches = iter(data.train_batches(train_images, config, run.options.seed, 1, 0).repeat())
    next(batches)  # fills the buffers
    num_images, input_s = 0, 0.0
    start_s = time.monotonic()
    while input_s < INPUT_MEASUREMENT_S:
        num_images += len(next(batches)[0])
        input_s = time.monotonic() - start_s
    input_images_per_s = num_images * num_processes() / input_s
    batches = iter(data.eval_batches(eval_images, config))
    num_some = eval_images.num_images
    if num_some > config.batch_size:
        next(batches)
        num_some = min(num_some - config.batch_size, 4 * config.batch_size)
    start_s = time.monotonic()
    evaluate(eval_step, strategy, itertools.islice(batches, 4), num_some)
    evaluation_s = (time.monotonic() - start_s) * eval_images.num_images / num_some
    per_epoch_s = evaluation_s / config.epochs_between_evaluations
    run.report_speed(data.num_steps(config), per_epoch_s, input_images_per_s)


if __name__ == "__main__":
    leave(main())
