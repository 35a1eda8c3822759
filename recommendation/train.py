"""Train NeuMF on MovieLens until HR@10 reaches the target.

    .venv/bin/python -m recommendation.train mini --seed 1

mini: MovieLens 100K to HR@10 >= 0.20, about a minute on two cores. reference: MovieLens 20M to
HR@10 >= 0.635, about seven epochs. See README.md for the data, the recipe and known runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

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
from recommendation import data
from recommendation.config import PRESETS, Config, check_values
from recommendation.evaluate import EvaluationSet, evaluate
from recommendation.model import NeuMF

STEPS_PER_CHECK = {"cpu": 1, "cuda": 20}
"""Steps between two looks at the losses, the signals and the clock: each makes a GPU wait."""


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and train; returns the exit status."""
    try:
        config, options = parse_command_line("recommendation", PRESETS, arguments)
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
        raise UsageError("batches are made on the device, by no worker; leave --num-workers at 0")
    data.check_files(config, options)

    with Run("recommendation", config, options) as run:
        torch_support.set_up(device, options.seed)
        run.resume_from = torch_support.from_first_process(run.resume_from)

        # --- Model and optimiser: no data is touched ----------------------------------------
        num_users, num_items, num_positives = data.sizes(config, options)
        torch.manual_seed(derive_seed(options.seed, "weights"))
        model = NeuMF(num_users, num_items, config.num_factors, config.mlp_layers).to(device)
        optimizer = torch.optim.Adam(
            model.parameters(),
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            fused=True,
        )
        scaler = torch.GradScaler(device.type, enabled=options.precision == "fp16")
        forward = parallel_and_compiled(model, options, device)
        trainer_state: dict[str, Any] = {"model": model, "optimizer": optimizer, "scaler": scaler}
        log_recipe(run, config)
        num_parameters = sum(weights.numel() for weights in model.parameters())
        sizes = (num_users, num_positives, num_parameters)
        run.describe(
            {
                "num_users": num_users,
                "num_items": num_items,
                "num_parameters": num_parameters,
                "steps_per_epoch": data.num_steps(config, num_positives),
                "memory_estimate_bytes": data.estimate_memory_bytes(config, *sizes),
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
            interactions = data.load(config, options)
            training_set = data.TrainingSet(interactions, config, device)
            evaluation_set = EvaluationSet(interactions, device)
        num_examples = training_set.num_examples
        steps_per_epoch = data.num_steps(config, len(training_set.users))
        run.log.event(constants.TRAIN_SAMPLES, num_examples)
        run.log.event(constants.EVAL_SAMPLES, evaluation_set.num_users)
        progress = Progress(config, steps_per_epoch, run)

        reached = False
        if run.resume_from is None and options.num_steps is None:
            run.eval_start(0)
            quality = evaluate(model, evaluation_set, config.top_k)
            reached = run.eval_stop(0, quality)
            progress.evaluated(0, quality)
            save(run, trainer_state, 1, 0)

        for epoch in range(first_epoch, config.max_epochs + 1):
            if reached:
                break
            if num_done == 0:
                run.epoch_start(epoch)
            with run.phase("input"):
                examples = training_set.epoch(options.seed, epoch)
            losses: list[Tensor] = []  # of the steps since the last look
            num_seen = 0  # examples in them

            for step in range(num_done, steps_per_epoch):
                # Batch: this process's share of the step's examples.
                with run.phase("input"):
                    start = step * config.batch_size
                    size = min(config.batch_size, num_examples - start)
                    users, items, labels = examples.batch(*torch_support.share(start, size))

                # Forward and backward. Each process's mean is over the whole batch, times the
                # number of processes, because DistributedDataParallel averages the gradients.
                with torch_support.autocast(device, options.precision):
                    logits = forward(users, items)
                loss = nn.functional.binary_cross_entropy_with_logits(
                    logits.float(), labels, reduction="sum"
                ) * (torch_support.num_processes() / size)
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                losses.append(loss.detach())
                num_seen += size

                # A look at what happened: losses, progress, checkpoint, signals. All processes
                # look at the same steps, together; the first alone writes. The first step of an
                # epoch has a look of its own, so that the draw of the epoch is not in its pace.
                is_last = step + 1 == steps_per_epoch or run.step + len(losses) == options.num_steps
                is_look = is_last or step == 0 or len(losses) == STEPS_PER_CHECK[device.type]
                if not is_look:
                    continue
                values, stop = torch_support.mean_losses(losses, run.stop_requested)
                run.record_losses(values, num_seen)
                losses, num_seen = [], 0
                progress.update(epoch, len(values), values[-1])
                if stop or run.checkpoint_due():
                    save(run, trainer_state, epoch, step + 1)
                if run.step == options.num_steps:
                    with run.phase("evaluation"):  # no part of the pace of training
                        evaluation_s = time_evaluation(model, evaluation_set, config)
                    run.report_speed(steps_per_epoch, evaluation_s)
                run.obey(stop)

            # --- End of the epoch -----------------------------------------------------------
            num_done = 0
            run.epoch_stop(epoch)
            run.eval_start(epoch)
            quality = evaluate(model, evaluation_set, config.top_k)
            reached = run.eval_stop(epoch, quality)
            progress.evaluated(epoch, quality)
            save(run, trainer_state, epoch + 1, 0)
        progress.close()
    return run.exit_status


def parallel_and_compiled(
    model: NeuMF, options: RunOptions, device: torch.device
) -> Callable[[Tensor, Tensor], Tensor]:
    """The forward pass as training calls it, warmed up on made-up pairs.

    Over several processes it averages their gradients; with --compile it is compiled, once for
    all batch sizes. The weights stay those of `model`.
    """
    forward: Callable[[Tensor, Tensor], Tensor] = model
    if torch_support.num_processes() > 1:
        forward = DistributedDataParallel(model)
    if options.compile:
        forward = torch.compile(forward, dynamic=True)
    pairs = torch.zeros(64, dtype=torch.int32, device=device)
    with torch_support.autocast(device, options.precision):
        logits = forward(pairs, pairs)
    logits.float().sum().backward()
    model.zero_grad()
    return forward


def log_recipe(run: Run, config: Config) -> None:
    """The hyper-parameters under mlperf-logging's keys, and v0.5's where it has none."""
    run.log.event(constants.GLOBAL_BATCH_SIZE, config.batch_size)
    run.log.event(constants.OPT_NAME, constants.ADAM)
    run.log.event(constants.OPT_BASE_LR, config.learning_rate)
    run.log.event(constants.OPT_ADAM_BETA_1, config.adam_beta1)
    run.log.event(constants.OPT_ADAM_BETA_2, config.adam_beta2)
    run.log.event(constants.OPT_ADAM_EPSILON, config.adam_epsilon)
    run.log.event("model_hp_mf_dim", config.num_factors)
    run.log.event("model_hp_mlp_layer_sizes", list(config.mlp_layers))
    run.log.event("input_hp_num_neg", config.num_train_negatives)
    run.log.event("eval_hp_num_neg", config.num_eval_negatives)


def save(run: Run, trainer_state: dict[str, Any], epoch: int, step_in_epoch: int) -> None:
    """Write a checkpoint (first process): `step_in_epoch` steps of `epoch` are done."""
    if run.is_main:
        with run.checkpoint(epoch, step_in_epoch, "pt") as file:
            parts = {name: part.state_dict() for name, part in trainer_state.items()}
            torch_support.save(parts, file)


def time_evaluation(model: NeuMF, evaluation_set: EvaluationSet, config: Config) -> float:
    """Seconds that a whole evaluation would take, from one over part of the users."""
    num_mine = len(evaluation_set.users)
    num_timed = min(2000, num_mine)
    start_s = time.monotonic()
    evaluate(model, evaluation_set, config.top_k, max_users=num_timed)
    return (time.monotonic() - start_s) * num_mine / num_timed


if __name__ == "__main__":
    leave(main())
