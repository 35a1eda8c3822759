"""Train SSD300 on COCO 2017 until its boxes' average precision reaches the target.

    .venv/bin/python -m single_stage_detector.train mini --seed 1

mini: a small SSD on generated shapes to AP50 >= 0.85, two minutes on two cores. reference: COCO
2017 to AP >= 0.212, about 49 epochs. See README.md for the data, the recipe and known runs.
"""

from __future__ import annotations

import itertools
import math
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
from single_stage_detector import data
from single_stage_detector.backbone_weights import load_backbone
from single_stage_detector.config import PRESETS, Config, check_values
from single_stage_detector.default_boxes import DefaultBoxes, map_sizes
from single_stage_detector.evaluate import evaluate
from single_stage_detector.loss import encode_targets, image_losses
from single_stage_detector.model import SSD, normalize_pixels
from single_stage_detector.schedule import decay_steps, evaluation_steps, learning_rate

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
        config, options = parse_command_line("single_stage_detector", PRESETS, arguments)
        return train(config, options)
    except UsageError as error:
        return exit_with(error)


def train(config: Config, options: RunOptions) -> int:
    """Train one model to the target of `config`; returns the exit status.

    Raises UsageError, with nothing written, where the options or the device are wrong or data is
    missing.
    """
    check_values(config)
    check_sizes(config)
    device = torch_support.choose_device(options)
    data.check_files(config, options)
    num_workers = data.num_workers(options, device)

    with Run("single_stage_detector", config, options) as run:
        torch_support.set_up(device, options.seed, num_workers)
        run.resume_from = torch_support.from_first_process(run.resume_from)

        # --- Model and optimiser: no data is touched ----------------------------------------
        torch.manual_seed(derive_seed(options.seed, "weights"))
        model = SSD(config)
        if config.pretrained_backbone and not options.synthetic_data:
            load_backbone(model.backbone, data.backbone_file(options))
        model.to(device)
        model.to(memory_format=MEMORY_FORMAT[device.type])  # type: ignore[call-overload]
        default_boxes = DefaultBoxes(config).to(device)
        optimizer = make_optimizer(model, config)
        scaler = torch.GradScaler(device.type, enabled=options.precision == "fp16")
        forward = parallel_and_compiled(model, config, options, device)
        trainer_state: dict[str, Any] = {"model": model, "optimizer": optimizer, "scaler": scaler}
        steps_per_epoch = data.num_steps(config)
        evaluations = evaluation_steps(config, steps_per_epoch)
        log_recipe(run, config, default_boxes, steps_per_epoch)
        run.describe(
            {
                "num_parameters": sum(weights.numel() for weights in model.parameters()),
                "num_default_boxes": len(default_boxes.corners),
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
        is_over = False  # the target is reached, or no evaluation is left

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
                # v0.5 evaluates after given numbers of steps, within an epoch.
                if step > 0 and (is_over := evaluate_if_due(epoch, epoch, step)):
                    break

                # Batch: this process's share of the step's images.
                with run.phase("input"):
                    batch = next(batches).to(device)
                size = min(config.batch_size, train_images.num_images - step * config.batch_size)

                # Forward and backward. Each process's mean is over the whole batch, times the
                # number of processes, because DistributedDataParallel averages the gradients.
                with torch_support.autocast(device, options.precision):
                    images = normalize_pixels(batch.images)
                    box_deltas, class_logits = forward(
                        images.contiguous(memory_format=MEMORY_FORMAT[device.type])
                    )
                targets = encode_targets(default_boxes, batch.boxes, batch.labels)
                errors = image_losses(box_deltas.float(), class_logits.float(), *targets)
                loss = errors.sum() * (torch_support.num_processes() / size)
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                rate = learning_rate(config, run.step + len(losses), steps_per_epoch)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                if config.max_gradient_norm:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), config.max_gradient_norm)
                scaler.step(optimizer)
                scaler.update()
                losses.append(loss.detach())
                num_seen += size

                # A look at what happened: losses, progress, checkpoint, signals. All processes
                # look at the same steps, together; the first alone writes. The first step of an
                # epoch has a look of its own, so that starting the loaders is not in the pace.
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


def check_sizes(config: Config) -> None:
    """Raises UsageError where a map would have no cell, or a process too few images in a batch.

    Batch normalisation of a map of one cell needs two images to have a variance.
    """
    if min(map_sizes(config.input_size, config.extra_layers)) < 1:
        cause = f"input_size {config.input_size} leaves nothing for the last of the extra layers"
        raise UsageError(f"{cause}; give a larger --input-size")
    least = 2 if config.extra_batch_norm else 1
    last = config.num_train_images % config.batch_size or config.batch_size
    smallest = min(config.batch_size, last)
    num_processes = torch_support.num_processes()
    if smallest // num_processes < least:
        cause = f"a batch of {smallest} images leaves a process fewer than {least}"
        raise UsageError(f"{cause}; give another --batch-size than {config.batch_size}")


def make_optimizer(model: SSD, config: Config) -> torch.optim.Optimizer:
    """The optimiser of all weights; the loop sets the learning rate of each step."""
    if config.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), weight_decay=config.weight_decay, fused=True)
    return torch.optim.SGD(
        model.parameters(),
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=True,
    )


def parallel_and_compiled(
    model: SSD, config: Config, options: RunOptions, device: torch.device
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The network as training calls it, warmed up on made-up images of each batch size.

    Over several processes it averages their gradients; with --compile it is compiled. The weights
    stay those of `model`, and so do its running statistics.
    """
    forward: Callable[[Tensor], tuple[Tensor, Tensor]] = model
    if torch_support.num_processes() > 1:
        forward = DistributedDataParallel(model)
    if options.compile:
        forward = torch.compile(forward, dynamic=False, options=COMPILE_OPTIONS[device.type])
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    last = config.num_train_images % config.batch_size or config.batch_size
    for size in sorted({config.batch_size, last}):
        begin, end = torch_support.share(0, size)
        images = torch.zeros(end - begin, 3, config.input_size, config.input_size, device=device)
        images = images.contiguous(memory_format=MEMORY_FORMAT[device.type])
        with torch_support.autocast(device, options.precision):
            box_deltas, class_logits = forward(images)
        (box_deltas.float().sum() + class_logits.float().sum()).backward()
    model.zero_grad()
    for name, buffer in model.named_buffers():
        buffer.copy_(before[name])
    return forward


def log_recipe(run: Run, config: Config, default_boxes: DefaultBoxes, steps_per_epoch: int) -> None:
    """The hyper-parameters under mlperf-logging's keys, and v0.5's where it has none."""
    log = run.log.event
    log(constants.GLOBAL_BATCH_SIZE, config.batch_size)
    log(constants.OPT_NAME, config.optimizer)
    log(constants.OPT_BASE_LR, config.base_learning_rate)
    log(constants.OPT_LR_WARMUP_STEPS, config.warmup_steps)
    log(constants.OPT_LR_WARMUP_FACTOR, config.warmup_factor)
    log(constants.OPT_LR_DECAY_BOUNDARY_STEPS, decay_steps(config, steps_per_epoch))
    log("opt_momentum", config.momentum)
    log(constants.OPT_WEIGHT_DECAY, config.weight_decay)
    log("input_size", config.input_size)
    log("num_cropping_iterations", config.crop_trials)
    log("feature_sizes", map_sizes(config.input_size, config.extra_layers))
    log("num_default_boxes", len(default_boxes.corners))
    log("nms_threshold", config.nms_iou)
    log("nms_max_detections", config.max_detections)
    log("evaluation_steps", evaluation_steps(config, steps_per_epoch))


def estimate_memory_bytes(model: SSD, config: Config, options: RunOptions) -> int:
    """Weights, gradients and the optimiser's state, and what each layer gives for a batch."""
    num_values = 0

    def count(_: nn.Module, __: Any, output: Any) -> None:
        nonlocal num_values
        num_values += output.numel()

    shadow = SSD(config).to("meta").eval()
    for module in shadow.modules():
        if not list(module.children()):
            module.register_forward_hook(count)
    shadow(torch.zeros(1, 3, config.input_size, config.input_size, device="meta"))
    num_images = math.ceil(config.batch_size / torch_support.num_processes())
    value_bytes = 4 if options.precision == "fp32" else 2
    num_copies = 4 if config.optimizer == "adamw" else 3
    num_parameters = sum(weights.numel() for weights in model.parameters())
    return 4 * num_copies * num_parameters + value_bytes * num_values * num_images


def save(run: Run, trainer_state: dict[str, Any], epoch: int, step_in_epoch: int) -> None:
    """Write a checkpoint (first process): `step_in_epoch` steps of `epoch` are done."""
    if run.is_main:
        with run.checkpoint(epoch, step_in_epoch, "pt") as file:
            parts = {name: part.state_dict() for name, part in trainer_state.items()}
            torch_support.save(parts, file)


def report_speed(
    run: Run,
    model: SSD,
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

    num_some = min(eval_images.num_images, 8 * config.batch_size)
    start_s = time.monotonic()
    evaluate(model, eval_images, config, device, num_workers, max_images=num_some)
    evaluation_s = (time.monotonic() - start_s) * eval_images.num_images / num_some
    steps_per_epoch = data.num_steps(config)
    last_step = config.epochs_to_target * steps_per_epoch + 1
    steps = evaluation_steps(config, steps_per_epoch)
    num_evaluations = sum(step <= last_step for step in steps)
    per_epoch_s = evaluation_s * num_evaluations / config.epochs_to_target
    run.report_speed(steps_per_epoch, per_epoch_s, input_images_per_s)


if __name__ == "__main__":
    leave(main())
