"""Train Mask R-CNN on COCO 2017 until the precision of boxes and of masks reach their targets.

    .venv/bin/python -m object_detection.train mini --seed 1

mini: a small Mask R-CNN on generated shapes to AP50 >= 0.80 of both, two minutes on two
cores. reference: COCO 2017 to box AP >= 0.377 and mask AP >= 0.339, about 12 epochs. See README.md
for the data, the recipe and known runs.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
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
from object_detection import data
from object_detection.backbone_weights import load_backbone
from object_detection.config import PRESETS, Config, check_values
from object_detection.evaluate import evaluate
from object_detection.model import MaskRCNN
from object_detection.schedule import decay_steps, evaluation_steps, last_step, learning_rate
from object_detection.training_losses import TrainingLosses

STEPS_PER_CHECK = {"cpu": 1, "cuda": 20}
"""Steps between two looks at the losses, the signals and the clock: each makes a GPU wait."""

MEMORY_FORMAT = {"cpu": torch.contiguous_format, "cuda": torch.channels_last}
"""Order of pixels and channels in memory: a GPU's convolutions are faster with channels last."""

COMPILE_OPTIONS: dict[str, dict[str, str | int | bool]] = {
    "cpu": {"layout_optimization": False},
    "cuda": {},
}
"""Of --compile. With channels last, PyTorch 2.7's code for a CPU declares its sums twice."""

INPUT_MEASUREMENT_S = 3.0
"""Seconds for which --num-steps watches the input pipeline alone."""


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and train; returns the exit status."""
    try:
        config, options = parse_command_line("object_detection", PRESETS, arguments)
        return train(config, options)
    except UsageError as error:
        return exit_with(error)


def train(config: Config, options: RunOptions) -> int:
    """Train one model to the targets of `config`; returns the exit status.

    Raises UsageError, with nothing written, where the options, the device or the data are wrong.
    """
    check_values(config)
    check_batches(config)
    device = torch_support.choose_device(options)
    data.check_files(config, options)
    num_workers = data.num_workers(options, device)

    with Run("object_detection", config, options) as run:
        torch_support.set_up(device, options.seed, num_workers)
        run.resume_from = torch_support.from_first_process(run.resume_from)

        # --- Model and optimiser: no data is touched ----------------------------------------
        torch.manual_seed(derive_seed(options.seed, "weights"))
        model = MaskRCNN(config)
        if config.pretrained_backbone != "none" and not options.synthetic_data:
            load_backbone(model.backbone, data.backbone_file(config, options))
        model.to(device)
        model.to(memory_format=MEMORY_FORMAT[device.type])  # type: ignore[call-overload]
        optimizer = make_optimizer(model, config)
        scaler = torch.GradScaler(device.type, enabled=options.precision == "fp16")
        losses_of = parallel_and_compiled(model, config, options)
        no_sync = getattr(losses_of, "no_sync", contextlib.nullcontext)
        trainer_state: dict[str, Any] = {"model": model, "optimizer": optimizer, "scaler": scaler}
        steps_per_epoch = data.num_steps(config)
        evaluations = evaluation_steps(config, steps_per_epoch)
        log_recipe(run, config, steps_per_epoch)
        parameters = list(model.parameters())
        run.describe(
            {
                "num_parameters": sum(weights.numel() for weights in parameters),
                "num_trainable_parameters": sum(
                    weights.numel() for weights in parameters if weights.requires_grad
                ),
                "steps_per_epoch": steps_per_epoch,
                "memory_estimate_bytes": estimate_memory_bytes(model, config, options),
                "device": str(device),
                "num_processes": torch_support.num_processes(),
                "num_threads": torch.get_num_threads(),
                "num_workers": num_workers,
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
            train_images, eval_images = data.load(config, options)
        run.log.event(constants.TRAIN_SAMPLES, train_images.num_images)
        run.log.event(constants.EVAL_SAMPLES, eval_images.num_images)
        progress = Progress(config, steps_per_epoch, run)
        epochs = range(first_epoch, config.max_epochs + 1)
        batches = data.train_batches(
            train_images, config, options.seed, epochs, num_done, num_workers
        )
        is_over = False  # the targets are reached, or no evaluation is left

        def evaluate_if_due(epoch: int, next_epoch: int, next_step: int) -> bool:
            """Evaluate where this step asks for it; returns whether training is over."""
            if run.step not in evaluations:
                return False
            if run.step in {e["step"] for e in run.evaluations}:  # before an interruption
                return run.step == evaluations[-1]
            run.eval_start(epoch)
            quality = evaluate(model, eval_images, config, device, num_workers)
            reached = run.eval_stop(epoch, quality)
            progress.evaluated(epoch, quality)
            save(run, trainer_state, next_epoch, next_step)
            return reached or run.step == evaluations[-1]

        for epoch in epochs:
            if num_done == 0:
                run.epoch_start(epoch)
            losses: list[Tensor] = []  # of the steps since the last look
            num_seen = 0  # images in them

            for step in range(num_done, steps_per_epoch):
                # The last evaluation is after a number of steps, within an epoch.
                if step > 0 and (is_over := evaluate_if_due(epoch, epoch, step)):
                    break

                # Batch: this process's share of the step's images.
                with run.phase("input"):
                    batch = next(batches)
                size = min(config.batch_size, train_images.num_images - step * config.batch_size)

                # Forward and backward, in as many passes as the device's memory asks for. Each
                # process's loss is its part of the batch's mean, times the number of processes,
                # because DistributedDataParallel averages the gradients, in each one's last pass.
                optimizer.zero_grad()
                loss = torch.zeros((), device=device)
                num_left = len(batch.images)
                for part in batch.split(config.images_per_pass or num_left):
                    num_left -= len(part.images)
                    share = len(part.images) * torch_support.num_processes() / size
                    with no_sync() if num_left else contextlib.nullcontext():
                        with torch_support.autocast(device, options.precision):
                            part_loss = losses_of(part.to(device)).sum() * share
                        scaler.scale(part_loss).backward()
                    loss += part_loss.detach()
                rate = learning_rate(config, run.step + len(losses))
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["rate_factor"]
                if config.max_gradient_norm:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(parameters, config.max_gradient_norm)
                scaler.step(optimizer)
                scaler.update()
                losses.append(loss)
                num_seen += size

                # A look at what happened: losses, progress, checkpoint, signals. All processes
                # look at the same steps, together; the first alone writes. The first step of an
                # epoch has a look of its own, so that filling the buffers is not in its pace.
                num_steps = run.step + len(losses)
                is_last = step + 1 == steps_per_epoch or num_steps == options.num_steps
                is_last = is_last or num_steps in evaluations
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
                        report_speed(run, model, train_images, eval_images, device, num_workers)
                run.obey(stop)

            if is_over:
                break
            # --- End of the epoch -----------------------------------------------------------
            num_done = 0
            run.epoch_stop(epoch)
            if evaluate_if_due(epoch, epoch + 1, 0):
                break
        progress.close()
    return run.exit_status


def check_batches(config: Config) -> None:
    """Raises UsageError where a process would find no image in a batch."""
    last = config.num_train_images % config.batch_size or config.batch_size
    smallest, num_processes = min(config.batch_size, last), torch_support.num_processes()
    if smallest < num_processes:
        cause = f"a batch of {smallest} images is too small for {num_processes} processes"
        raise UsageError(f"{cause}; give another --batch-size than {config.batch_size}")


def make_optimizer(model: MaskRCNN, config: Config) -> torch.optim.Optimizer:
    """SGD; the loop sets the rate of each step. Biases learn faster and are not made smaller."""
    weights: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (biases if name.endswith("bias") else weights).append(parameter)
    groups = [
        {"params": weights, "weight_decay": config.weight_decay, "rate_factor": 1.0},
        {"params": biases, "weight_decay": 0.0, "rate_factor": config.bias_rate_factor},
    ]
    return torch.optim.SGD(groups, config.base_learning_rate, momentum=config.momentum, fused=True)


def parallel_and_compiled(model: MaskRCNN, config: Config, options: RunOptions) -> nn.Module:
    """What gives a batch's losses [5], warmed up on made-up batches.

    Over several processes it averages the gradients. With --compile, what is dense is compiled:
    backbone, pyramid and the proposals' convolutions. The first sizes that differ make it compile
    once more, then for images and batches of any size; here, off the clock. The weights stay those
    of `model`.
    """
    device = next(model.parameters()).device
    dense = torch.compile(model, options=COMPILE_OPTIONS[device.type]) if options.compile else None
    losses_of: nn.Module = TrainingLosses(model, config, dense)
    if torch_support.num_processes() > 1:
        losses_of = DistributedDataParallel(losses_of)
    long, short = config.max_size, config.min_size
    last = config.num_train_images % config.batch_size or config.batch_size
    for size in sorted({config.batch_size, last}, reverse=True):
        first, end = torch_support.share(0, size)
        num_images = min(end - first, config.images_per_pass or end - first)
        for width, height in sorted({(long, short), (short, long)}):
            batch = data.made_up_batch(config, num_images, width, height)
            with torch_support.autocast(device, options.precision):
                losses_of(batch.to(device)).sum().backward()
    model.zero_grad()
    return losses_of


def log_recipe(run: Run, config: Config, steps_per_epoch: int) -> None:
    """The hyper-parameters under mlperf-logging's keys, and v0.5's where it has none."""
    log = run.log.event
    log(constants.GLOBAL_BATCH_SIZE, config.batch_size)
    log(constants.OPT_NAME, "sgd")
    log(constants.OPT_BASE_LR, config.base_learning_rate)
    log(constants.OPT_LR_WARMUP_STEPS, config.warmup_steps)
    log(constants.OPT_LR_WARMUP_FACTOR, config.warmup_factor)
    log(constants.OPT_LR_DECAY_BOUNDARY_STEPS, decay_steps(config))
    log("opt_momentum", config.momentum)
    log(constants.OPT_WEIGHT_DECAY, config.weight_decay)
    log("min_image_size", config.min_size)
    log("max_image_size", config.max_size)
    log("random_flip_probability", config.flip_probability)
    log("rpn_pre_nms_top_n_train", config.train_pre_nms)
    log("rpn_pre_nms_top_n_test", config.test_pre_nms)
    log("rpn_post_nms_top_n_train", config.train_post_nms)
    log("rpn_post_nms_top_n_test", config.test_post_nms)
    log("nms_threshold", config.rpn_nms_iou)
    log("evaluation_steps", evaluation_steps(config, steps_per_epoch))


def estimate_memory_bytes(model: MaskRCNN, config: Config, options: RunOptions) -> int:
    """Weights, gradients and the optimiser's state, and what each dense layer gives for a batch."""
    num_values = 0

    def count(_: nn.Module, __: Any, output: Any) -> None:
        nonlocal num_values
        num_values += output.numel() if isinstance(output, Tensor) else 0

    shadow = MaskRCNN(config).to("meta").eval()
    for module in shadow.modules():
        if not list(module.children()):
            module.register_forward_hook(count)
    divisor = config.size_divisor
    height, width = (-(-s // divisor) * divisor for s in (config.min_size, config.max_size))
    shadow(torch.zeros(1, 3, height, width, device="meta"))
    num_images = math.ceil(config.batch_size / torch_support.num_processes())
    num_images = min(num_images, config.images_per_pass or num_images)
    value_bytes = 4 if options.precision == "fp32" else 2
    num_parameters = sum(weights.numel() for weights in model.parameters())
    return 4 * 3 * num_parameters + value_bytes * num_values * num_images


def save(run: Run, trainer_state: dict[str, Any], epoch: int, step_in_epoch: int) -> None:
    """Write a checkpoint (first process): `step_in_epoch` steps of `epoch` are done."""
    if run.is_main:
        with run.checkpoint(epoch, step_in_epoch, "pt") as file:
            parts = {name: part.state_dict() for name, part in trainer_state.items()}
            torch_support.save(parts, file)


def report_speed(
    run: Run,
    model: MaskRCNN,
    train_images: data.Images,
    eval_images: data.Images,
    device: torch.device,
    num_workers: int,
) -> None:
    """Print the pace of training and of the input pipeline alone, and the time to the target."""
    config: Any = run.config
    epochs = itertools.count(1)
    batches = data.train_batches(train_images, config, run.options.seed, epochs, 0, num_workers)
    next(batches)  # starts the workers
    num_images, input_s = 0, 0.0
    start_s = time.monotonic()
    while input_s < INPUT_MEASUREMENT_S:
        num_images += len(next(batches).images)
        input_s = time.monotonic() - start_s
    input_images_per_s = num_images * torch_support.num_processes() / input_s

    num_some = min(eval_images.num_images, 8 * config.eval_batch_size)
    start_s = time.monotonic()
    evaluate(model, eval_images, config, device, num_workers, max_images=num_some)
    evaluation_s = (time.monotonic() - start_s) * eval_images.num_images / num_some
    steps_per_epoch = data.num_steps(config)
    last = min(config.epochs_to_target * steps_per_epoch, last_step(config, steps_per_epoch))
    num_evaluations = sum(step <= last for step in evaluation_steps(config, steps_per_epoch))
    per_epoch_s = evaluation_s * num_evaluations / config.epochs_to_target
    run.report_speed(steps_per_epoch, per_epoch_s, input_images_per_s)


if __name__ == "__main__":
    leave(main())
