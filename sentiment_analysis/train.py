"""Train Seq-CNN on IMDB until its accuracy reaches the target.

    .venv/bin/python -m sentiment_analysis.train mini --seed 1

mini: movie snippets to an accuracy of 78.5 %, seconds on two cores. reference: IMDB to 90.6 %. See
README.md for the data, the recipe and known runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy
import torch
from mlperf_logging.mllog import constants
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from harness import torch_support
from harness.errors import UsageError
from harness.options import RunOptions, exit_with, leave, parse_command_line
from harness.progress import Progress
from harness.run import Run
from harness.seeds import derive_seed
from sentiment_analysis import data
from sentiment_analysis.config import PRESETS, Config, check_values
from sentiment_analysis.evaluate import evaluate
from sentiment_analysis.model import SequenceCNN
from sentiment_analysis.optimizer import LazyAdam
from sentiment_analysis.prepare import Reviews

STEPS_PER_CHECK = {"cpu": 1, "cuda": 20}
"""Steps between two looks at the losses, the signals and the clock: each makes a GPU wait."""

Forward = Callable[[Tensor, Sequence[Tensor]], Tensor]


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and train; returns the exit status."""
    try:
        config, options = parse_command_line("sentiment_analysis", PRESETS, arguments)
        return train(config, options)
    except UsageError as error:
        return exit_with(error)


def train(config: Config, options: RunOptions) -> int:
    """Train one model to the target of `config`; returns the exit status.

    Raises UsageError, with nothing written, where the options, the device or the data are wrong.
    """
    check_values(config)
    device = torch_support.choose_device(options)
    if options.num_workers:
        raise UsageError("batches are cut by the training process; leave --num-workers at 0")
    folder = data.prepared(config, options)
    data.load(config, folder)  # whole, or an error before anything is written
    sizes = data.sizes(config, folder)
    check_share(config, sizes)

    with Run("sentiment_analysis", config, options) as run:
        torch_support.set_up(device, options.seed)
        run.resume_from = torch_support.from_first_process(run.resume_from)

        # --- Model and optimiser: no data is touched ----------------------------------------
        model = make_model(config, sizes.num_words, options.seed).to(device)
        optimizer = LazyAdam(model, config)
        scaler = torch.GradScaler(device.type, enabled=options.precision == "fp16")
        forward = parallel_and_compiled(model, options, device)
        trainer_state: dict[str, Any] = {"model": model, "optimizer": optimizer, "scaler": scaler}
        steps_per_epoch = data.num_steps(config, sizes.num_train)
        log_recipe(run, config)
        run.describe(
            {
                "num_words": sizes.num_words,
                "num_parameters": sum(weights.numel() for weights in model.parameters()),
                "steps_per_epoch": steps_per_epoch,
                "memory_estimate_bytes": estimate_memory_bytes(model, config, sizes),
                "device": str(device),
                "num_processes": torch_support.num_processes(),
                "num_threads": torch.get_num_threads(),
            }
        )

        # --- Where to begin -----------------------------------------------------------------
        first_epoch, num_done = 1, 0  # num_done: steps of the first epoch that are done already
        if run.resume_from:
            state = torch_support.load(run.resume_from.path)
            for name, part in trainer_state.items():
                part.load_state_dict(state[name])
            first_epoch = run.resume_from.position["epoch"]
            num_done = run.resume_from.position["step_in_epoch"]

        # --- The clock runs -----------------------------------------------------------------
        run.start()
        with run.phase("input"):
            halves = data.load(config, folder)
        train_reviews, test_reviews = halves["train"], halves["test"]
        run.log.event("preproc_vocab_size", sizes.num_words)
        run.log.event(constants.TRAIN_SAMPLES, len(train_reviews))
        run.log.event(constants.EVAL_SAMPLES, len(test_reviews))
        progress = Progress(config, steps_per_epoch, run)

        for epoch in range(first_epoch, config.max_epochs + 1):
            if num_done == 0:
                run.epoch_start(epoch)
            batches = data.train_batches(
                train_reviews, config, options.seed, epoch, num_done, device
            )
            losses: list[Tensor] = []  # of the steps since the last look
            num_seen = 0  # reviews in them

            for step in range(num_done, steps_per_epoch):
                # Batch: this process's share of the step's reviews.
                with run.phase("input"):
                    batch = next(batches)
                size = min(config.batch_size, len(train_reviews) - step * config.batch_size)

                # Forward and backward. Each process's mean is over the whole batch, times the
                # number of processes, because DistributedDataParallel averages the gradients.
                set_dropout_seed(config, options.seed, run.step + len(losses))
                with torch_support.autocast(device, options.precision):
                    logits = forward(batch.words, batch.groups)
                loss = nn.functional.cross_entropy(
                    logits.float(), batch.labels, reduction="sum"
                ) * (torch_support.num_processes() / size)
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                optimizer.step(scaler, batch.step_words, run.step + len(losses) + 1)
                scaler.update()
                losses.append(loss.detach())
                num_seen += size

                # A look at what happened: losses, progress, checkpoint, signals. All processes
                # look at the same steps, together; the first alone writes.
                is_last = step + 1 == steps_per_epoch or run.step + len(losses) == options.num_steps
                if not (is_last or step == 0 or len(losses) == STEPS_PER_CHECK[device.type]):
                    continue
                values, stop = torch_support.mean_losses(losses, run.stop_requested)
                run.record_losses(values, num_seen)
                losses, num_seen = [], 0
                progress.update(epoch, len(values), values[-1])
                if stop or run.checkpoint_due():
                    save(run, trainer_state, epoch, step + 1)
                if run.step == options.num_steps:
                    with run.phase("evaluation"):  # no part of the pace of training
                        report_speed(run, model, train_reviews, test_reviews, device)
                run.obey(stop)

            # --- End of the epoch -----------------------------------------------------------
            num_done = 0
            run.epoch_stop(epoch)
            run.eval_start(epoch)
            quality = evaluate(model, test_reviews, config, device)
            reached = run.eval_stop(epoch, quality)
            progress.evaluated(epoch, quality)
            save(run, trainer_state, epoch + 1, 0)
            if reached:
                break
        progress.close()
    return run.exit_status


def check_share(config: Config, sizes: data.Sizes) -> None:
    """Raises UsageError where the last batch leaves a process without a review."""
    smallest = sizes.num_train % config.batch_size or config.batch_size
    if smallest < torch_support.num_processes():
        cause = f"a batch of {smallest} reviews leaves a process without any"
        raise UsageError(f"{cause}; give another --batch-size than {config.batch_size}")


def make_model(config: Config, num_words: int, seed: int) -> SequenceCNN:
    """The network with its initial weights."""
    weights_seed = derive_seed(seed, "weights")
    torch.manual_seed(weights_seed)
    model = SequenceCNN(
        num_words, config.embedding_size, config.num_filters, config.filter_widths, config.dropout
    )
    if config.initialization == "paddle_shared_stream":
        model.reset_parameters(shared_stream_seed=weights_seed)
    return model


def set_dropout_seed(config: Config, seed: int, step: int) -> None:
    """Where there is dropout, what a step leaves out is a function of seed, step and process."""
    if config.dropout:
        torch.manual_seed(derive_seed(seed, "dropout", step, torch_support.rank()))


def parallel_and_compiled(model: SequenceCNN, options: RunOptions, device: torch.device) -> Forward:
    """The forward pass as training calls it, warmed up on a made-up review.

    Over several processes it averages their gradients. With --compile its products are compiled,
    once for all numbers of words; the rest would be anew for each number of groups. The weights
    stay those of `model`.
    """
    forward: Forward = model
    if options.compile:
        model.responses = torch.compile(model.responses, dynamic=True)  # type: ignore[method-assign]
    if torch_support.num_processes() > 1:
        forward = DistributedDataParallel(model)
    words = torch.arange(min(8, len(model.embedding)), device=device)
    lengths = (5, 6)
    places = numpy.arange(sum(lengths)) % len(words)
    groups = data.make_windows(places, lengths, len(words), model.filter_widths, device)
    with torch_support.autocast(device, options.precision):
        logits = forward(words, groups)
    logits.float().sum().backward()
    model.zero_grad()
    return forward


def log_recipe(run: Run, config: Config) -> None:
    """The hyper-parameters under mlperf-logging's keys, and names of ours where it has none."""
    run.log.event(constants.GLOBAL_BATCH_SIZE, config.batch_size)
    run.log.event(constants.OPT_NAME, "lazy_adam")
    run.log.event(constants.OPT_BASE_LR, config.learning_rate)
    run.log.event(constants.OPT_ADAM_BETA_1, config.adam_beta1)
    run.log.event(constants.OPT_ADAM_BETA_2, config.adam_beta2)
    run.log.event(constants.OPT_ADAM_EPSILON, config.adam_epsilon)
    run.log.event("embedding_size", config.embedding_size)
    run.log.event("num_filters", config.num_filters)
    run.log.event("filter_widths", list(config.filter_widths))
    run.log.event("input_order", config.batching)
    run.log.event("eval_batch_size", config.eval_batch_size)


def estimate_memory_bytes(model: SequenceCNN, config: Config, sizes: data.Sizes) -> int:
    """What training holds on the device at its peak.

    Weights, gradients and Adam's two means; the table of what each word gives for each filter,
    with its gradient, for at most all words; the sums of a group's windows.
    """
    num_parameters = sum(weights.numel() for weights in model.parameters())
    words_of_batch = config.batch_size * sizes.num_train_words // sizes.num_train
    num_rows = min(sizes.num_words, words_of_batch)
    table = num_rows * sum(config.filter_widths) * config.num_filters
    sums = data.WINDOWS_PER_GROUP["cuda" if model.embedding.is_cuda else "cpu"] * config.num_filters
    return 4 * (4 * num_parameters + 2 * table + sums)


def save(run: Run, trainer_state: dict[str, Any], epoch: int, step_in_epoch: int) -> None:
    """Write a checkpoint (first process): `step_in_epoch` steps of `epoch` are done."""
    if run.is_main:
        with run.checkpoint(epoch, step_in_epoch, "pt") as file:
            parts = {name: part.state_dict() for name, part in trainer_state.items()}
            torch_support.save(parts, file)


def report_speed(
    run: Run,
    model: SequenceCNN,
    train_reviews: Reviews,
    test_reviews: Reviews,
    device: torch.device,
) -> None:
    """Print the pace of training and of the input pipeline alone, and the time to the target."""
    config: Any = run.config
    start_s = time.monotonic()
    num_batches = 0
    for _ in data.train_batches(train_reviews, config, run.options.seed, 1, 0, device):
        num_batches += 1
        if time.monotonic() - start_s > 1:
            break
    input_per_s = num_batches * config.batch_size / (time.monotonic() - start_s)
    start_s = time.monotonic()
    evaluate(model, test_reviews, config, device)
    evaluation_s = time.monotonic() - start_s
    run.report_speed(data.num_steps(config, len(train_reviews)), evaluation_s, input_per_s)


if __name__ == "__main__":
    leave(main())
