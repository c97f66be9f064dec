"""Train a model that has been prepared, in a run folder.

runs/NAME/
  config.yaml         the whole configuration        environment.json   versions, commit, machine, data
  metrics.jsonl       a JSON object a line            events.out.*       the same for TensorBoard
  checkpoints/        step-N, latest, best            samples/           text, by step
  tokenizer/
"""

from __future__ import annotations

import logging

from hybrid.config import Config, resolve_block_sizes, to_yaml
from hybrid.data.preparing import Data
from hybrid.decoding import GenerationConfig
from hybrid.decoding.engine import Engine
from hybrid.distributed import ALONE, Ranks
from hybrid.model import Transformer
from hybrid.objectives import build_objective
from hybrid.options import title
from hybrid.results.environment import environment
from hybrid.runs import charts
from hybrid.runs.preparation import Machine, load_initial_weights, prepare_data, prepare_model
from hybrid.runs.resuming import ResumePlan
from hybrid.runs.run_folder import open_folder
from hybrid.runs.teacher import load_teacher
from hybrid.training.optim import EMA, Optimizer
from hybrid.training.parallel import data_parallel
from hybrid.training.signals import StopSignal
from hybrid.training.step import Stepper
from hybrid.training.tracking import Tracker, Untracked
from hybrid.training.trainer import Trainer
from hybrid.training.validation import SampleWriter, Validator

log = logging.getLogger(__name__)


class Run:
    """Trains a model that has been prepared: `open` claims the folder, `train` does the work.

    Raises:
        ValueError: the weights of trainer.init_from do not fit; nothing has been written then.
    """

    def __init__(self, config: Config, machine: Machine, plan: ResumePlan, data: Data, model: Transformer):
        self.config, self.machine, self.plan, self.data, self.model = config, machine, plan, data, model
        self.folder, self.ranks = plan.folder, machine.ranks
        self.block_sizes = resolve_block_sizes(config.objective.block_size, config.data.seq_len)
        self.teacher = load_teacher(config, data.tokenizer, self.block_sizes, machine.device, plan.run)
        self.started_from = plan.recorded_start  # step and hash of a checkpoint
        if plan.checkpoint is None:
            self.started_from = load_initial_weights(model, config, data.tokenizer)

    @classmethod
    def of(cls, config: Config, ranks: Ranks = ALONE) -> Run:
        """Prepare everything from a configuration, stage by stage as train.py does.

        Raises:
            ValueError: whatever does not fit, before anything is written.
        """
        machine = Machine.of(config, ranks)
        plan = ResumePlan.of(config)
        data = prepare_data(config, plan, ranks)
        return cls(config, machine, plan, data, prepare_model(config, data, machine))

    def describe(self) -> str:
        """Say what would be trained, for `--dry-run`."""
        train, c = self.data.train, self.config
        epochs = c.trainer.steps * c.trainer.batch_tokens / (train.n_rows * train.seq_len)
        ranks = "" if self.ranks.world == 1 else f", {self.ranks.world} ranks ({c.trainer.parallel})"
        return (
            f"run      {self.folder}\n"
            f"data     {title(c.data.corpus)}: {train.n_tokens:,} training tokens, {self.data.validation.n_tokens:,} "
            f"for validation ({self.data.tokenizer.name}, {self.data.tokenizer.vocab_size:,} ids)\n"
            f"model    {self.model.n_parameters():,} parameters, {c.model.context}, {c.model.prediction}\n"
            f"blocks   {', '.join(map(str, self.block_sizes))} of {c.data.seq_len} tokens\n"
            f"training {c.trainer.steps:,} steps of {c.trainer.batch_tokens:,} tokens ({epochs:.1f} epochs) on "
            f"{self.machine.device}{ranks}"
        )

    def open(self) -> None:
        """Create the run folder, or go on in it.

        Raises:
            ValueError: it holds something and the run does not resume.
            OSError: it could not be written; one line.
        """
        if not self.ranks.is_main:
            return
        self.plan.check_folder()
        facts = environment(self.machine.device)
        facts |= {"ranks": self.ranks.world, "data": self.data.description, "parameters": self.model.n_parameters()}
        facts["init_from"] = self.started_from
        facts["teacher"] = self.teacher and self.teacher.origin.checkpoint
        open_folder(self.folder, to_yaml(self.config), facts, self.data.tokenizer)

    def train(self) -> bool:
        """Train to the end, or to a signal, and return which; everything is in the run folder then."""
        log.info("%s", self.describe())
        self.ranks.wait()  # the first has opened the folder
        with Tracker(self.folder, self.plan.last_step) if self.ranks.is_main else Untracked() as tracker:
            trainer = self.trainer(tracker)
            if self.plan.checkpoint is not None:
                trainer.restore(self.plan.checkpoint, self.ranks.gather(tracker.validation)[0])
            else:
                sizes = self._evaluated_sizes()
                charts.log_start(tracker, self.config, trainer.stepper.objective, self.block_sizes[0], sizes)
            return trainer.train()

    def trainer(self, tracker: Tracker) -> Trainer:
        """Make the loop of this run, before its first step."""
        stop = StopSignal(self.ranks)
        validate, sample = self._validator(stop), self._sample_writer()

        def log_end() -> None:
            charts.log_end(tracker, self.config, self.data.tokenizer, validate, trainer.validation)
            if sample is not None and sample.engine.block_size > 1:
                charts.log_unmasking_orders(tracker, self.config.decoder, sample, trainer.step)

        trainer = Trainer(self.stepper(), tracker, self.folder, validate, sample, log_end, stop)
        return trainer

    def stepper(self) -> Stepper:
        """Make what makes the optimizer steps of this run."""
        c = self.config
        return Stepper(
            model=self.model,
            optimizer=Optimizer(self.model, c.optim),
            ema=EMA(self.model, c.optim.ema_decay) if c.optim.ema_decay else None,
            split=self.data.train,
            objective=build_objective(c.objective, self.teacher and self.teacher.model),
            block_sizes=self.block_sizes,
            optim=c.optim,
            trainer=c.trainer,
            seed=c.run.seed,
            precision=self.machine.autocast,
            ranks=self.ranks,
            parallel=data_parallel(self.model, self.ranks, c.trainer.parallel),
        )

    def _evaluated_sizes(self) -> list[int]:
        c = self.config
        if c.eval.block_sizes is None:
            return self.block_sizes
        return resolve_block_sizes(c.eval.block_sizes, c.data.seq_len, "eval.block_sizes")

    def _validator(self, stop: StopSignal) -> Validator:
        sizes, split = self._evaluated_sizes(), self.data.validation
        return Validator(self.model, split, sizes, self.config.eval, self.machine.autocast, self.ranks, stop.heed)

    def _sample_writer(self) -> SampleWriter | None:
        """Make what writes samples; None if none are wanted."""
        c = self.config
        engine = Engine(
            model=self.model,
            seq_len=c.data.seq_len,
            config=GenerationConfig(self.block_sizes[0], c.decoder, seed=c.run.seed),
            document_mask=c.data.document_mask,
            precision=self.machine.autocast,
        )
        sample = SampleWriter(engine, self.data.tokenizer, c.eval.sample_prompts, c.eval.sample_tokens, self.ranks)
        return sample if c.eval.sample_tokens and sample.prompts else None
