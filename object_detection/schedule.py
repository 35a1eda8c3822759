"""The learning rate of each step, the last step, and the steps after which is evaluated."""

from __future__ import annotations

from object_detection.config import Config

DECAY = 0.1
"""Factor on the learning rate at each decay."""


def scaled(iterations: int, config: Config) -> int:
    """Steps of this batch size in place of `iterations` of base_batch_size images."""
    return round(iterations * config.base_batch_size / config.batch_size)


def decay_steps(config: Config) -> list[int]:
    """Iterations, counted from 1, from which on the rate is lower, for each fall."""
    return [scaled(iterations, config) for iterations in config.decay_iterations]


def learning_rate(config: Config, step: int) -> float:
    """Rate of a step, counted from 0: proportional to the batch, after a linear warm-up.

    v0.5 counts iterations from 1.
    """
    iteration = step + 1
    rate = config.base_learning_rate * config.batch_size / config.base_batch_size
    rate *= DECAY ** sum(iteration >= boundary for boundary in decay_steps(config))
    if iteration < config.warmup_steps:
        done = iteration / config.warmup_steps
        rate *= config.warmup_factor * (1 - done) + done
    return rate


def last_step(config: Config, steps_per_epoch: int) -> int:
    """Number of steps after which a run ends without its target."""
    return min(scaled(config.max_iterations, config), config.max_epochs * steps_per_epoch)


def evaluation_steps(config: Config, steps_per_epoch: int) -> list[int]:
    """Number of steps done at each evaluation: at the ends of epochs, and after the last step."""
    last = last_step(config, steps_per_epoch)
    ends = range(config.first_evaluation * steps_per_epoch, last, steps_per_epoch)
    return [*ends, last]
