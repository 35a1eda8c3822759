"""Progress on stderr while a run trains: epoch, loss, quality against target, time left."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from tqdm import tqdm

from harness.options import BenchmarkConfig
from harness.run import Run
from harness.stop_rule import all_met


class Progress:
    """One bar over the steps that a run is expected to need, and a line after each evaluation.

    On a terminal the bar moves; in a file only the lines appear. It goes on to `max_epochs`
    where the expectation was too short.
    """

    def __init__(self, config: BenchmarkConfig, steps_per_epoch: int, run: Run) -> None:
        self._config = config
        self._steps_per_epoch = steps_per_epoch
        self._run = run
        self._quality = ""
        self._loss = ""
        self._bar = tqdm(
            total=round(config.epochs_to_target * steps_per_epoch),
            initial=run.step,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5,
            leave=False,
            disable=None if run.is_main else True,  # None: off where stderr is no terminal
        )

    def update(self, epoch: int, num_steps: int, loss: float) -> None:
        """`num_steps` more steps of `epoch` are done, the last with this loss."""
        if self._bar.n + num_steps > (self._bar.total or 0):
            self._bar.total = self._config.max_epochs * self._steps_per_epoch
        self._bar.set_description_str(f"epoch {epoch}", refresh=False)
        self._loss = f"loss {loss:.4f}, "
        self._bar.set_postfix_str(f"{self._loss}{self._quality}", refresh=False)
        self._bar.update(num_steps)

    def evaluated(self, epoch: int, quality: Mapping[str, float]) -> None:
        """Print the evaluation after `epoch` as a line of its own."""
        if not self._run.is_main:
            return
        shown = ", ".join(
            f"{target.name} {quality[target.name]:.4f} (target {target.value:g})"
            for target in self._config.quality_targets
        )
        self._quality = shown
        elapsed_s = self._run.clock.elapsed_s
        text = f"epoch {epoch}: {self._loss}{shown}, {elapsed_s:.1f} s"
        if epoch and not all_met(self._config.quality_targets, quality):
            expected = self._config.epochs_to_target
            if expected > epoch:
                text += f", about {elapsed_s / epoch * (expected - epoch):.0f} s left"
            else:
                left_s = elapsed_s / epoch * (self._config.max_epochs - epoch)
                text += f", at most {left_s:.0f} s left"
        tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()
