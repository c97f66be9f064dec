"""One run: a configuration becomes data, model, trainer and a run folder.

runs/NAME/
  config.yaml         the whole configuration        environment.json   versions, commit, machine, data
  metrics.jsonl       a JSON object a line            events.out.*       the same for TensorBoard
  checkpoints/        step-N, latest, best            samples/           text, by step
  tokenizer/
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any, cast

from hybrid.checkpoints import checkpoint
from hybrid.checkpoints.origin import SETTLED_BY_CONTENT, located, recorded_data, recorded_start, refuse_other_data
from hybrid.checkpoints.states import load_state, module_tensors
from hybrid.config import NO_MATTER, ROUNDING, Config, differences, load_config, resolve_block_sizes, to_yaml
from hybrid.data.dataset import Data, prepare
from hybrid.data.tokenizers import SUBWORD_FILE, Tokenizer
from hybrid.decoding import DECODERS
from hybrid.decoding.engine import Engine
from hybrid.device import keep_freed_memory, precision_context, resolve_device, resolve_precision
from hybrid.distributed import ALONE, Ranks
from hybrid.lm import load
from hybrid.model import Transformer
from hybrid.model.build import build_model, check_batch
from hybrid.model.layers import Layer
from hybrid.objectives import Objective
from hybrid.options import build, path_of, title
from hybrid.results.environment import environment
from hybrid.runs import charts
from hybrid.runs.run_folder import check_place, folder_of, is_begun, is_occupied, open_folder
from hybrid.training.optim import EMA, Optimizer
from hybrid.training.parallel import data_parallel, shard_model
from hybrid.training.step import Stepper
from hybrid.training.tracking import Tracker, Untracked
from hybrid.training.trainer import Trainer
from hybrid.training.validation import SampleWriter, Validator

log = logging.getLogger(__name__)
MAY_CHANGE = (*NO_MATTER, *ROUNDING, "trainer.", "eval.")
"""Settings that a resumed run may change without becoming another run."""


class Run:
    """Builds everything from a configuration; `open` claims the folder, `train` does the work.

    Raises:
        ValueError: whatever does not fit, before anything is written.
    """

    def __init__(self, config: Config, ranks: Ranks = ALONE):
        self.config, self.ranks = config, ranks
        self.device = resolve_device(config.run.device, ranks)
        if self.device.type == "cpu":
            keep_freed_memory()
        precision = resolve_precision(config.trainer.precision, self.device)
        self.precision = precision_context(precision, self.device)
        self.folder = folder_of(config.run)
        check_place(self.folder)
        self.differs: list[str] = []  # from the run that is resumed, and matters to its course
        self.resume_from = self._find_resume()
        # A run that was killed before its first save: nothing is lost by starting over in its folder.
        self.starts_over = config.trainer.resume == "auto" and self.resume_from is None and is_begun(self.folder)
        self._check_ranks()
        with ranks.first_on_each_machine():
            self.data: Data = located(prepare(config.data))
        self._compare_data()
        self.block_sizes = resolve_block_sizes(config.objective.block_size, config.data.seq_len)
        self.model = self._build_model(half=precision == "bf16")
        self._check_mask()
        if self.resume_from is not None:
            self.started_from = recorded_start(_run_of(self.resume_from))
        else:
            self.started_from = config.trainer.init_from and self._start_from(config.trainer.init_from)

    def _check_mask(self) -> None:
        """Raise a ValueError if the text holds a MASK that has no probability."""
        mask = self.model.banned_token_id
        if mask is not None and (n := self.data.train.count(mask) + self.data.validation.count(mask)):
            raise ValueError(
                f"model.mask_token_id: {mask} stands {n:,} times in the text, where MASK can't be predicted; take an "
                "id that no text has, or null for one behind the vocabulary"
            )

    def _build_model(self, half: bool) -> Transformer:
        is_sharded = self.ranks.world > 1 and self.config.trainer.parallel == "fsdp"
        shard = partial(shard_model, device=self.device, half=half) if is_sharded else None
        c, tokenizer = self.config, self.data.tokenizer
        model = build_model(
            c.model, tokenizer.vocab_size, tokenizer.end_of_text, self.device, seed=c.run.seed,
            copies=c.optim.copies, shard=shard, ranks=self.ranks.world,
        )  # fmt: skip
        self._check_memory()
        model.recompute = self.config.trainer.recompute
        choice = self.config.trainer.compile
        if choice == "on" or (choice == "auto" and self.device.type == "cuda"):
            for layer in model.layers:
                cast(Layer, layer).compile_parts()
        return model

    def _check_ranks(self) -> None:
        """Raise a ValueError if the batch can't be shared equally."""
        c, world = self.config, self.ranks.world
        rows = c.trainer.batch_tokens // c.data.seq_len
        if rows % world:
            near = max(rows // world, 1) * world * c.data.seq_len
            raise ValueError(
                f"trainer.batch_tokens: {c.trainer.batch_tokens} are {rows} rows of data.seq_len = {c.data.seq_len}, "
                f"which {world} ranks can't share equally; try {near}"
            )

    def _check_memory(self) -> None:
        """Raise a ValueError if a batch of training or of validation cannot fit."""
        c, n_rows = self.config, self.data.validation.n_rows
        key = "trainer.batch_tokens" if c.trainer.micro_batch_tokens is None else "trainer.micro_batch_tokens"
        tokens = min(c.trainer.micro_batch_tokens or c.trainer.batch_tokens, c.trainer.batch_tokens // self.ranks.world)
        check_batch(c.model, tokens, c.objective.draws, key, self.device, c.model.n_layers)
        rows = min(c.eval.batch_rows, c.eval.rows or n_rows, n_rows)
        check_batch(c.model, rows * c.data.seq_len, c.eval.draws, "eval.batch_rows", self.device, 1)

    def describe(self) -> str:
        """What would be trained, for `--dry-run`."""
        train, c = self.data.train, self.config
        epochs = c.trainer.steps * c.trainer.batch_tokens / (train.n_rows * train.seq_len)
        return (
            f"run      {self.folder}\n"
            f"data     {title(c.data.corpus)}: {train.n_tokens:,} training tokens, {self.data.validation.n_tokens:,} "
            f"for validation ({self.data.tokenizer.name}, {self.data.tokenizer.vocab_size:,} ids)\n"
            f"model    {self.model.n_parameters():,} parameters, {c.model.context}, {c.model.prediction}\n"
            f"blocks   {', '.join(map(str, self.block_sizes))} of {c.data.seq_len} tokens\n"
            f"training {c.trainer.steps:,} steps of {c.trainer.batch_tokens:,} tokens ({epochs:.1f} epochs) on "
            f"{self.device}{'' if self.ranks.world == 1 else f', {self.ranks.world} ranks ({c.trainer.parallel})'}"
        )

    def open(self) -> None:
        """Create the run folder, or go on in it.

        Raises:
            ValueError: it holds something and the run does not resume.
            OSError: it could not be written; one line.
        """
        if not self.ranks.is_main:
            return
        goes_on = self.resume_from is not None and _run_of(self.resume_from) == self.folder.absolute()
        if not goes_on and not self.starts_over and is_occupied(self.folder):
            way_out = "" if self.config.trainer.resume != "never" else "go on with trainer.resume=auto, "
            raise ValueError(
                f"run.folder: {self.folder} is not empty; {way_out}choose another run.name, or remove the folder"
            )
        facts = environment(self.device)
        facts |= {"ranks": self.ranks.world, "data": self.data.description, "parameters": self.model.n_parameters()}
        facts["init_from"] = self.started_from  # step and hash of a checkpoint
        open_folder(self.folder, to_yaml(self.config), facts, self.data.tokenizer)

    def train(self) -> None:
        log.info("%s", self.describe())
        last_step = -1 if self.starts_over else None  # nothing of before is kept
        if self.resume_from is not None:
            last_step = checkpoint.step_of(self.resume_from)
        self.ranks.wait()  # the first has opened the folder
        with Tracker(self.folder, last_step) if self.ranks.is_main else Untracked() as tracker:
            validate, sample = self._validator(), self._sampler()

            def conclude() -> None:
                charts.conclude(tracker, self.config, self.data.tokenizer, validate, trainer.final)
                if sample is not None and sample.engine.block_size > 1:
                    charts.show_orders(tracker, self.config.decoder, sample, trainer.step)

            trainer = Trainer(self.stepper(), tracker, self.folder, validate, sample, conclude)
            if self.resume_from is not None:
                trainer.restore(self.resume_from, self.ranks.gather(tracker.validation)[0])
            else:
                objective, sizes = trainer.stepper.objective, self._evaluated_sizes()
                charts.introduce(tracker, self.config, objective, self.block_sizes[0], sizes)
            trainer.train()

    def _evaluated_sizes(self) -> list[int]:
        c = self.config
        if c.eval.block_sizes is None:
            return self.block_sizes
        return resolve_block_sizes(c.eval.block_sizes, c.data.seq_len, "eval.block_sizes")

    def _validator(self) -> Validator:
        sizes = self._evaluated_sizes()
        return Validator(self.model, self.data.validation, sizes, self.config.eval, self.precision, self.ranks)

    def stepper(self) -> Stepper:
        """What makes the optimizer steps of this run."""
        c = self.config
        return Stepper(
            model=self.model,
            optimizer=Optimizer(self.model, c.optim),
            ema=EMA(self.model, c.optim.ema_decay) if c.optim.ema_decay else None,
            split=self.data.train,
            objective=Objective.of(c.objective),
            block_sizes=self.block_sizes,
            optim=c.optim,
            trainer=c.trainer,
            seed=c.run.seed,
            precision=self.precision,
            ranks=self.ranks,
            parallel=data_parallel(self.model, self.ranks, c.trainer.parallel),
        )

    def _sampler(self) -> SampleWriter | None:
        """None if no samples are wanted."""
        c = self.config
        engine = Engine(
            model=self.model,
            seq_len=c.data.seq_len,
            block_size=self.block_sizes[0],
            decoder=build(DECODERS, c.decoder, "decoder"),
            seed=c.run.seed,
            document_mask=c.data.document_mask,
            precision=self.precision,
        )
        sample = SampleWriter(engine, self.data.tokenizer, c.eval.sample_prompts, c.eval.sample_tokens, self.ranks)
        return sample if c.eval.sample_tokens and sample.prompts else None

    def _find_resume(self) -> Path | None:
        mode = self.config.trainer.resume
        if mode == "never":
            return None
        if mode == "auto":
            if not checkpoint.list_checkpoints(self.folder / "checkpoints"):
                return None  # never started, or stopped before its first save
            found = checkpoint.find_checkpoint(self.folder)
        else:
            found = checkpoint.find_checkpoint(path_of("trainer.resume", mode))
            checkpoint.step_of(found)
        before = _run_of(found) / "config.yaml"
        if before.is_file():
            self._compare(found, load_config(before, checked=False))
        return found

    def _compare_data(self) -> None:
        """Refuse to resume on another text, or with another tokenizer, whatever their files are called."""
        if self.resume_from is not None:
            refuse_other_data(_run_of(self.resume_from), self.data.description, self.config.data)
        for difference in self.differs:  # said when nothing refuses to go on any more
            log.warning("%s: the run goes on, but not as if it had never stopped", difference)

    def _compare(self, found: Path, before: Config) -> None:
        """Refuse to resume as another model, on other data, with another objective or optimizer."""
        changed = differences(before, self.config)
        content_decides = recorded_data(_run_of(found)) is not None  # `_compare_data`, as soon as there is data
        for key, (old, new) in changed.items():
            if not key.startswith(MAY_CHANGE) and not (content_decides and key in SETTLED_BY_CONTENT):
                raise ValueError(
                    f"{key}: {new!r}, but the run to resume has {old!r}; set it back, or start a new run with "
                    "trainer.init_from"
                )
            if key in ("trainer.steps", "trainer.batch_tokens", "run.seed"):
                self.differs.append(f"{key}: {new!r} instead of {old!r}")

    def _start_from(self, path: str) -> dict[str, Any] | None:
        """Take the weights of another run, whatever its block size, context or objective; says which they were."""
        other = load(path_of("trainer.init_from", path), device="cpu")
        mine, theirs = self.data.tokenizer, other.tokenizer
        if mine.fingerprint != theirs.fingerprint:
            own = path_of("trainer.init_from", path) / "tokenizer" / SUBWORD_FILE
            way_out = f"set data.tokenizer={own}" if own.is_file() else "train with its tokenizer"
            raise ValueError(
                f"trainer.init_from: {path!r} has another vocabulary ({_described(theirs)}) than data.tokenizer = "
                f"{self.config.data.tokenizer!r} ({_described(mine)}); {way_out}"
            )
        with checkpoint.reading(cast(Path, other.origin.folder)):
            load_state(self.model, module_tensors(other.model))
        log.info("weights of %s (%s)", path, other.config.run.name)
        return other.origin.checkpoint


def _described(tokenizer: Tokenizer) -> str:
    return f"{tokenizer.name}, {tokenizer.vocab_size} ids, fingerprint {tokenizer.fingerprint}"


def _run_of(checkpoint_folder: Path) -> Path:
    """The run folder that a step folder belongs to."""
    return checkpoint_folder.absolute().parent.parent
