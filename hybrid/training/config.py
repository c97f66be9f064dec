"""The options of the training loop: the group `trainer` of the configuration."""

from __future__ import annotations

from dataclasses import dataclass

from hybrid.device import PRECISIONS
from hybrid.options import option
from hybrid.training.parallel import PARALLEL


@dataclass
class TrainerConfig:
    steps: int = option(1000, "optimizer steps; every schedule counts them")
    minutes: float | None = option(None, "stop (and save) after this many minutes, whatever the step; null: no cap")
    batch_tokens: int = option(8192, "text tokens per optimizer step, over all ranks")
    micro_batch_tokens: int | None = option(None, "text tokens per forward of one rank; null: no accumulation")
    parallel: str = option("ddp", "of several ranks (torchrun): each holds the full model, or a shard (fsdp)", PARALLEL)
    precision: str = option("auto", "auto: bf16 autocast where the processor has it; tf32: of GPUs", PRECISIONS)
    compile: str = option("auto", "compile the layers (auto: on GPUs); it takes a minute", ("auto", "on", "off"))
    recompute: bool = option(False, "compute activations again in the backward pass: less memory, a third more work")
    init_from: str | None = option(
        None, "weights to start from: a run or checkpoint; a Hugging Face folder gives the keys of model, too"
    )
    resume: str = option("never", "never, auto (latest of this run, if any), or the path of a checkpoint")
    log_every: int = option(10, "steps between records of the training loss")
    eval_every: int = option(200, "steps between validations (0: only at the end)")
    sample_every: int = option(0, "steps between samples of text (0: only at the end)")
    save_every: int = option(500, "steps between checkpoints (0: only at the end)")
    keep_last: int = option(2, "latest checkpoints kept, beside the best")
    max_bad_steps: int = option(5, "consecutive non-finite steps that stop a run, counted when it logs or saves")
