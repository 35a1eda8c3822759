"""The learning rate of each step, and the steps after which is evaluated."""

from __future__ import annotations

from single_stage_detector.config import Config

DECAY = 0.1
"""Factor on the learning rate at each decay."""


def scaled(iterations: int, config: Config) -> int:
    """Steps of this batch size in place of `iterations` of base_batch_size images."""
    return round(iterations * config.base_batch_size / config.batch_size)


def decay_steps(config: Config, steps_per_epoch: int) -> list[int]:
    """Number of steps after which the rate falls, for each fall."""
    if config.decay_epochs:
        return [round(epoch * steps_per_epoch) for epoch in config.decay_epochs]
    return [scaled(iterations, config) for iterations in config.decay_iterations]


def learning_rate(config: Config, step: int, steps_per_epoch: int) -> float:
    """Rate of a step, counted from 0: proportional to the batch, after the warm-up as v0.6 has it.

    Source: mlperf/training v0.6, base - (warmup - step) * base / (warmup * 2**warmup_factor).
    """
    rate = config.base_learning_rate * config.batch_size / config.base_batch_size
    num_decays = sum(step >= boundary for boundary in decay_steps(config, steps_per_epoch))
    rate *= DECAY**num_decays
    if step < config.warmup_steps:
        rate *= 1 - (1 - step / config.warmup_steps) / 2**config.warmup_factor
    return rate


def evaluation_steps(config: Config, steps_per_epoch: int) -> list[int]:
    """Number of steps done at each evaluation; none of them lies beyond max_epochs.

    v0.5 names the iteration, counted from 0, after whose step it evaluates: one more is done then.
    """
    if config.evaluation_epochs:
        steps = [epoch * steps_per_epoch for epoch in config.evaluation_epochs]
    else:
        steps = [scaled(iteration, config) + 1 for iteration in config.evaluation_iterations]
    return sorted({step for step in steps if step <= config.max_epochs * steps_per_epoch})
