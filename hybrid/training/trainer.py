"""The training loop: when to log, evaluate, sample, save and stop.

Everything random in a step is a function of the seed and its number (step.py), so a resumed run needs nothing but
weights, optimizer and step.
"""

from __future__ import annotations

import io
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybrid.checkpoints import finding
from hybrid.progress import TrainingProgress, announced
from hybrid.storage.atomic import write_text_atomic
from hybrid.training import snapshot
from hybrid.training.optim import averaged
from hybrid.training.signals import Stopped, StopSignal
from hybrid.training.step import Stepper
from hybrid.training.step_results import BadSteps, Window
from hybrid.training.tracking import Tracker

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Trainer:
    """Runs the loop around `Stepper`."""

    stepper: Stepper
    tracker: Tracker
    folder: Path
    validate: Callable[[], dict[str, Any]]  # -> metrics, among them val/nelbo; it may raise Stopped
    sample: Callable[[], tuple[str, dict[str, float]]] | None = None  # -> text, metrics
    log_end: Callable[[], None] | None = None  # logs what is logged once, at the end, with the averaged weights
    stop: StopSignal = field(default_factory=StopSignal)

    def __post_init__(self) -> None:
        self.config = self.stepper.trainer
        self.checkpoints = self.folder / "checkpoints"
        self.step = 0  # steps done
        self.bad = BadSteps(self.stepper.model, self.config.max_bad_steps)
        self.validation: dict[str, Any] = {}  # the last one, and the step it is of
        self._saved: Path | None = None  # the checkpoint of this moment
        self._sampled: int | None = None  # the step of the last samples

    def restore(self, path: Path, validation: Mapping[str, Any] | None = None) -> None:
        """Continue from a checkpoint of this run: weights, optimizer, averages, step.

        Args:
            validation: the last record with a validation; if it is of this very step, it is not validated again.

        Raises:
            ValueError: what is saved there does not fit; one line that names it.
        """
        self.step, self.bad.skipped, self.bad.in_a_row = snapshot.restore(self.stepper, path)
        if finding.is_latest(self.checkpoints, path):
            self._saved = path
        if validation is not None and validation["step"] == self.step:
            nelbo = validation["val/nelbo"]
            self.validation = {**validation, "val/nelbo": nelbo if isinstance(nelbo, float) else math.nan}
            self._sampled = self.step if any(tag.startswith("gen/") for tag in validation) else None
        if self._saved is not None:
            self._tidy(path)  # a kill may have come between saving and this
        log.info("resumed at step %d from %s", self.step, path)

    def save(self) -> Path:
        """Write a checkpoint of this moment (atomically), and forget old ones.

        Raises:
            ValueError: something is not finite, or the last steps were not (`BadSteps.read`).
            OSError: it could not be written; what was saved before is unchanged.
        """
        self.bad.read()
        if not self.folder.is_dir():
            raise ValueError(f"run.folder: {self.folder} is gone, removed while the run was training")
        self.tracker.flush()  # what is shown of the steps before a checkpoint is not shown again
        counts = snapshot.Counts(self.step, self.bad.skipped, self.bad.in_a_row)
        self._saved = snapshot.write(self.stepper, self.checkpoints, counts)
        self._tidy(self._saved)
        return self._saved

    def _tidy(self, path: Path) -> None:
        snapshot.tidy(self.checkpoints, path, self._bound, self.config.keep_last, self.stepper.ranks)

    @property
    def _bound(self) -> float | None:
        """val/nelbo of this very moment; None: it has not been evaluated."""
        return self.validation["val/nelbo"] if self.validation.get("step") == self.step else None

    def train(self) -> bool:
        """Train to the last step, the time cap or a signal, and return whether it was no signal; what was done is
        saved in any case.

        Raises:
            ValueError: several non-finite steps in a row; the message says what to try.
        """
        config = self.config
        deadline = math.inf if config.minutes is None else time.monotonic() + 60 * config.minutes
        with self.stop:
            unseen = None if self.stepper.ranks.is_main else io.StringIO()
            with TrainingProgress(config.steps, self.step, stream=unseen) as progress:
                self._loop(progress, deadline)
            stopped = self.stop.is_seen()
            path = self._saved or self.save()  # before anything else can go wrong or be interrupted
            if not stopped and self.step < config.steps:
                text = "trainer.minutes: stopped at step %d of %d; the learning rate had not finished its schedule"
                log.warning(text, self.step, config.steps)
            if stopped or not self._evaluate_last(path):
                name = self.stop.name or "another rank"
                log.warning("stopped by %s at step %d, saved; go on with trainer.resume=auto", name, self.step)
                return False
        return True

    def _loop(self, progress: TrainingProgress, deadline: float) -> None:
        config, window = self.config, Window()
        while self.step < config.steps and not self.stop.is_seen(time.monotonic() >= deadline):
            result = self.stepper(self.step)
            self.bad.add(result)
            window.results.append(result)
            self.step += 1
            self._saved = None
            is_logged = self.step % config.log_every == 0 or self.step == config.steps
            progress.update(self.step, config.batch_tokens, result.loss if is_logged else None)
            if is_logged:
                self.bad.read()
                metrics = window.metrics(config.batch_tokens)
                self.tracker.log(self.step, {**metrics, "optim/skipped_steps": self.bad.skipped})
                window = Window()
            if self.step == config.steps:
                break
            validates, samples = _is_due(self.step, config.eval_every), _is_due(self.step, config.sample_every)
            if validates or samples:
                self.evaluate(validates, samples)
            is_best = validates and snapshot.is_best(self.checkpoints, self._bound)
            saves = is_best or _is_due(self.step, config.save_every)
            if saves:
                self.save()
            if validates or samples or saves:  # none of it counts as training time
                window = Window()

    def _evaluate_last(self, path: Path) -> bool:
        """Evaluate at the end, but nothing twice; return whether a signal did not cut it short."""
        validates = self.validation.get("step") != self.step
        samples = self.sample is not None and self._sampled != self.step
        is_whole = self.stop.cuts_short = (
            True  # a run that resumes makes up for this evaluation, and for no earlier one
        )
        if validates or samples:
            is_whole = self.evaluate(validates, samples, is_last=True)
        else:
            log.info("the run had ended at step %d already; nothing is left to do", self.step)
        self._tidy(path)
        return is_whole

    def evaluate(self, validates: bool = True, samples: bool = False, is_last: bool = False) -> bool:
        """Validate and sample with the averaged weights, where there are any, and log what they give.

        Return whether all of it was done: the last validation, if a signal cuts it short, is not logged, nor is what
        is due behind it.
        """
        with averaged(self.stepper.model, self.stepper.ema):
            metrics: dict[str, Any] = {}
            if validates:
                try:
                    with announced(f"step {self.step}: validating ...", self.stepper.ranks.is_main):
                        metrics = self.validate()
                except Stopped:
                    return False
                self.validation = {**metrics, "step": self.step}
                log.info("step %d: val/nelbo %.4f nats per token", self.step, metrics["val/nelbo"])
            if samples and self.sample is not None:
                text, of_samples = self.sample()
                if self.stepper.ranks.is_main:
                    write_text_atomic(self.folder / "samples" / f"step-{self.step:08d}.txt", text)
                self.tracker.text("samples", text, self.step)
                metrics |= of_samples
            if samples:
                self._sampled = self.step
            if is_last and self.log_end is not None:  # before the last record: a kill in between loses nothing
                self.log_end()
        if metrics:
            self.tracker.log(self.step, metrics, is_last=is_last)
        return True


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
