"""The training loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hybrid.options import option


@dataclass
class RunConfig:
    name: str = option("", "name of the run; empty: the config file's name")
    folder: str = option("runs", "where runs are kept; the run's own folder is FOLDER/NAME")
    seed: int = option(0, "seed of the initialisation, the data order and the noise")
    imports: Any = option([], "modules imported first, so that they can register their own table entries")
    device: str = option("auto", "cpu, cuda, cuda:1, ...; auto takes a GPU where there is one")


@dataclass
class TrainerConfig:
    steps: int = option(1000, "optimizer steps; every schedule counts them")
    minutes: float | None = option(None, "stop (and save) after this many minutes, whatever the step; null: no cap")
    batch_tokens: int = option(8192, "text tokens per optimizer step, over all ranks")
    micro_batch_tokens: int | None = option(None, "text tokens per forward of one rank; null: no accumulation")
    precision: str = option("auto", "auto: bf16 autocast where the processor has it", ("auto", "fp32", "bf16"))
    init_from: str | None = option(None, "run or checkpoint whose weights to start from")
    resume: str = option("never", "never, auto (latest of this run, if any), or the path of a checkpoint")
    log_every: int = option(10, "steps between records of the training loss")
    eval_every: int = option(200, "steps between validations (0: only at the end)")
    sample_every: int = option(0, "steps between samples of text (0: only at the end)")
    save_every: int = option(500, "steps between checkpoints (0: only at the end)")
    keep_last: int = option(2, "latest checkpoints kept, beside the best")
    max_bad_steps: int = option(5, "consecutive non-finite steps after which training stops")
