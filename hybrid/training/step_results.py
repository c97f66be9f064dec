"""Read the results of steps: means for the records, and whether they were finite."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from torch import nn

from hybrid.distributed import local
from hybrid.training.step import StepResult

log = logging.getLogger(__name__)


class Window:
    """Means over the steps since the last record."""

    def __init__(self) -> None:
        self.results: list[StepResult] = []
        self.started = time.perf_counter()

    def metrics(self, tokens_per_step: int) -> dict[str, float]:
        """Return tag -> mean over the finite steps; tokens per second count all steps."""
        good = [r for r in self.results if r.is_finite]
        metrics = {"perf/tokens_per_second": tokens_per_step * len(self.results) / (time.perf_counter() - self.started)}
        if good:
            for name in dict.fromkeys(name for r in good for name in r.names):
                metrics[f"train/{name}"] = _mean([r.losses[name] for r in good if name in r.names])
            metrics["optim/grad_norm"] = _mean([r.grad_norm for r in good])
            metrics |= {f"optim/{name}": rate for name, rate in good[-1].rates.items()}
            sizes = {r.block_size for r in good}
            for size in sizes if len(sizes) > 1 else ():
                of_size = [r for r in good if r.block_size == size]
                metrics[f"train/{of_size[0].names[0]}/b{size}"] = _mean([r.loss for r in of_size])
        return metrics


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


class BadSteps:
    """Counts the steps that were not finite, which have changed nothing; `most` of them in a row end the run.

    A step is counted when it is read, since that waits for the device, which may still be working on it.
    """

    def __init__(self, model: nn.Module, most: int):
        self.model, self.most = model, most
        self.skipped = self.in_a_row = 0
        self._unread: list[StepResult] = []

    def add(self, result: StepResult) -> None:
        self._unread.append(result)

    def read(self) -> None:
        """Wait for the steps that were made since the last time, and count those that were not finite.

        Raises:
            ValueError: too many in a row; the message says what to try.
        """
        unread, self._unread = self._unread, []
        for result in unread:
            if result.is_finite:
                self.in_a_row = 0
            else:
                self._count(result)

    def _count(self, result: StepResult) -> None:
        self.in_a_row += 1
        self.skipped += 1
        log.warning(
            "step %d skipped: loss %s, gradient norm %s", result.step, f"{result.loss:.4g}", f"{result.grad_norm:.4g}"
        )
        if self.in_a_row >= self.most:
            broken = [n for n, p in self.model.named_parameters() if not bool(local(p).isfinite().all())]
            where = f"the weights {', '.join(broken[:3])} are not finite" if broken else "the weights are finite"
            raise ValueError(
                f"trainer.max_bad_steps: {self.in_a_row} steps in a row had a non-finite loss or gradient (step "
                f"{result.step}, learning rate {result.rates['lr']:.2g}; {where}); lower optim.lr (or muon_lr), raise "
                "optim.warmup_steps, or set trainer.precision=fp32. The last good checkpoint is kept"
            )
