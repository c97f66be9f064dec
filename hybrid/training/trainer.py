"""The training loop: when to log, evaluate, sample, save and stop.

Everything random in a step is a function of the seed and its number (stepper.py), so a resumed run needs nothing but
weights, optimizer and step.
"""

from __future__ import annotations

import io
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from hybrid.checkpoints import checkpoint
from hybrid.distributed import local
from hybrid.progress import TrainingProgress
from hybrid.storage.atomic import write_text_atomic
from hybrid.training import snapshot
from hybrid.training.parallel import reshard
from hybrid.training.step import Stepper, StepResult
from hybrid.training.tracking import Tracker

log = logging.getLogger(__name__)


class Window:
    """Means over the steps since the last record; `loss` is the name of what is trained."""

    def __init__(self, loss: str) -> None:
        self.loss = loss
        self.results: list[StepResult] = []
        self.started = time.perf_counter()

    def metrics(self, tokens_per_step: int) -> dict[str, float]:
        good = [r for r in self.results if r.is_finite]
        metrics = {"perf/tokens_per_second": tokens_per_step * len(self.results) / (time.perf_counter() - self.started)}
        if good:
            metrics[self.loss] = _mean([r.loss for r in good])
            left_to_right = [r.ar_nll for r in good if r.ar_nll is not None]
            if left_to_right:
                metrics["train/ar_nll"] = _mean(left_to_right)
            metrics["optim/grad_norm"] = _mean([r.grad_norm for r in good])
            metrics |= {f"optim/{name}": rate for name, rate in good[-1].rates.items()}
            sizes = {r.block_size for r in good}
            for size in sizes if len(sizes) > 1 else ():
                metrics[f"{self.loss}/b{size}"] = _mean([r.loss for r in good if r.block_size == size])
        return metrics


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


class Trainer:
    """The loop around `Stepper`.

    Args:
        validate: -> metrics, among them val/nelbo.
        sample: -> (text, figures), or None.
        conclude: shows what is shown once, at the end, with the averaged weights.
    """

    def __init__(
        self,
        stepper: Stepper,
        tracker: Tracker,
        folder: Path,
        validate: Callable[[], dict[str, Any]],
        sample: Callable[[], tuple[str, dict[str, float]]] | None = None,
        conclude: Callable[[], None] | None = None,
    ):
        self.stepper, self.tracker, self.folder = stepper, tracker, folder
        self.validate, self.sample, self.conclude = validate, sample, conclude
        self.config = stepper.trainer
        self.checkpoints = folder / "checkpoints"
        self.step = 0  # steps done
        self.skipped = 0
        self.final: dict[str, Any] = {}  # the last validation, and the step it is of
        self._saved: Path | None = None  # the checkpoint of this moment
        self._sampled: int | None = None  # the step of the last samples
        self._bad = 0  # steps in a row that were not finite
        self._unread: list[StepResult] = []  # steps that the device may still be working on
        self._signal: int | None = None
        # Only what is an estimate of the ELBO is called so.
        self.loss_name = "train/nelbo" if stepper.objective.is_elbo else "train/loss"

    def restore(self, path: Path, validation: Mapping[str, Any] | None = None) -> None:
        """Continue from a checkpoint of this run: weights, optimizer, averages, step.

        Args:
            validation: the last record with a validation; if it is of this very step, it is not validated again.

        Raises a ValueError if what is saved there does not fit; one line that names it.
        """
        self.step, self.skipped, self._bad = snapshot.restore(self.stepper, path)
        if checkpoint.is_latest(self.checkpoints, path):
            self._saved = path
        if validation is not None and validation["step"] == self.step:
            nelbo = validation["val/nelbo"]
            self.final = {**validation, "val/nelbo": nelbo if isinstance(nelbo, float) else math.nan}
            self._sampled = self.step if any(tag.startswith("gen/") for tag in validation) else None
        if self._saved is not None:
            self._tidy(path)  # a kill may have come between saving and this
        log.info("resumed at step %d from %s", self.step, path)

    def save(self) -> Path:
        """Write a checkpoint of this moment (atomically), and forget old ones.

        Raises:
            ValueError: something is not finite, or the last steps were not (`_read`).
            OSError: it could not be written; what was saved before is unchanged.
        """
        self._read()
        if not self.folder.is_dir():
            raise ValueError(f"run.folder: {self.folder} is gone, removed while the run was training")
        self.tracker.flush()  # what is shown of the steps before a checkpoint is not shown again
        counts = snapshot.Counts(self.step, self.skipped, self._bad)
        self._saved = snapshot.write(self.stepper, self.checkpoints, counts)
        self._tidy(self._saved)
        return self._saved

    def _tidy(self, path: Path) -> None:
        """Mark the checkpoint of this step if it is the best, and forget old ones."""
        ranks, is_best = self.stepper.ranks, self._is_best()
        ranks.wait()  # all of them have looked
        if ranks.is_main:
            if is_best:
                checkpoint.mark_best(self.checkpoints, path, self.final["val/nelbo"])
            checkpoint.prune(self.checkpoints, self.config.keep_last)
        ranks.wait()

    def _is_best(self) -> bool:
        """Whether this moment has been evaluated, with a lower bound than any checkpoint's before."""
        if self.final.get("step") != self.step or not math.isfinite(self.final["val/nelbo"]):
            return False
        best = checkpoint.read_best(self.checkpoints)
        return best is None or self.final["val/nelbo"] < best[1]

    def train(self) -> None:
        """Train to the last step, the time cap or a signal; what was done is saved in any case.

        Raises:
            ValueError: several non-finite steps in a row; the message says what to try.
        """
        config = self.config
        deadline = math.inf if config.minutes is None else time.monotonic() + 60 * config.minutes
        old = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            unseen = None if self.stepper.ranks.is_main else io.StringIO()
            with TrainingProgress(config.steps, self.step, stream=unseen) as progress:
                self._loop(progress, deadline)
            stopped = self._is_stopped()
            path = self._saved or self.save()  # before anything else can go wrong or be interrupted
            if stopped:
                name = "another rank" if self._signal is None else signal.Signals(self._signal).name
                log.warning("stopped by %s at step %d, saved; go on with trainer.resume=auto", name, self.step)
                return
            if self.step < config.steps:
                text = "trainer.minutes: stopped at step %d of %d; the learning rate had not finished its schedule"
                log.warning(text, self.step, config.steps)
            self._look_back(path)
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _look_back(self, path: Path) -> None:
        """Look for the last time, but at nothing twice."""
        evaluate = self.final.get("step") != self.step
        sample = self.sample is not None and self._sampled != self.step
        if evaluate or sample:
            self.look(evaluate, sample, is_last=True)
        else:
            log.info("the run had ended at step %d already; nothing is left to do", self.step)
        self._tidy(path)

    def _loop(self, progress: TrainingProgress, deadline: float) -> None:
        config, window = self.config, Window(self.loss_name)
        while self.step < config.steps and not self._is_stopped(time.monotonic() >= deadline):
            result = self.stepper(self.step)
            self._unread.append(result)
            window.results.append(result)
            self.step += 1
            self._saved = None
            is_logged = self.step % config.log_every == 0 or self.step == config.steps
            progress.update(self.step, config.batch_tokens, result.loss if is_logged else None)
            if is_logged:
                self._read()
                metrics = window.metrics(config.batch_tokens)
                self.tracker.log(self.step, {**metrics, "optim/skipped_steps": self.skipped})
                window = Window(self.loss_name)
            if self.step == config.steps:
                break
            looks = _due(self.step, config.eval_every), _due(self.step, config.sample_every)
            if any(looks):
                self.look(*looks)
            saves = _due(self.step, config.save_every) or (looks[0] and self._is_best())
            if saves:
                self.save()
            if any(looks) or saves:  # neither counts as training time
                window = Window(self.loss_name)

    def _is_stopped(self, is_late: bool = False) -> bool:
        """Whether any rank was told to stop or finds it late: all must do the same."""
        return self.stepper.ranks.any(is_late or self._signal is not None)

    def _read(self) -> None:
        """Wait for the steps that were made since the last time, and see whether they were finite."""
        unread, self._unread = self._unread, []
        for result in unread:
            self._note(result)

    def _note(self, result: StepResult) -> None:
        """Count non-finite steps, which have changed nothing; several in a row end the run."""
        if result.is_finite:
            self._bad = 0
            return
        self._bad += 1
        self.skipped += 1
        log.warning(
            "step %d skipped: loss %s, gradient norm %s", result.step, f"{result.loss:.4g}", f"{result.grad_norm:.4g}"
        )
        if self._bad >= self.config.max_bad_steps:
            broken = [n for n, p in self.stepper.model.named_parameters() if not bool(local(p).isfinite().all())]
            where = f"the weights {', '.join(broken[:3])} are not finite" if broken else "the weights are finite"
            raise ValueError(
                f"trainer.max_bad_steps: {self._bad} steps in a row had a non-finite loss or gradient (step "
                f"{result.step}, learning rate {result.rates['lr']:.2g}; {where}); lower optim.lr (or muon_lr), raise "
                "optim.warmup_steps, or set trainer.precision=fp32. The last good checkpoint is kept"
            )

    def look(self, evaluate: bool = True, sample: bool = False, is_last: bool = False) -> None:
        """Evaluate and sample with the averaged weights, where there are any."""
        with self.averaged():
            metrics: dict[str, Any] = {}
            if evaluate:
                metrics = self.validate()
                self.final = {**metrics, "step": self.step}
                log.info("step %d: val/nelbo %.4f nats per token", self.step, metrics["val/nelbo"])
            if sample and self.sample is not None:
                text, figures = self.sample()
                if self.stepper.ranks.is_main:
                    write_text_atomic(self.folder / "samples" / f"step-{self.step:08d}.txt", text)
                self.tracker.text("samples", text, self.step)
                metrics |= figures
            if sample:
                self._sampled = self.step
            if is_last and self.conclude is not None:  # before the last record: a kill in between loses nothing
                self.conclude()
        if metrics:
            self.tracker.log(self.step, metrics, is_last=is_last)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model has the averaged weights inside the block, where there are any."""
        ema = self.stepper.ema
        with ema.applied() if ema is not None else nullcontext():
            yield
        reshard(self.stepper.model)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._signal is not None:  # a second one means it
            raise KeyboardInterrupt
        self._signal = number


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
