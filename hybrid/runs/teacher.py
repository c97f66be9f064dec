"""The teacher of a run: the trained model of `objective.teacher`, which stays as it is."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hybrid.checkpoints.identity import is_same_checkpoint, recorded_model
from hybrid.config import Config
from hybrid.data.tokenizers import Tokenizer
from hybrid.lm import LanguageModel, load
from hybrid.options import path_of

log = logging.getLogger(__name__)


def load_teacher(
    config: Config, tokenizer: Tokenizer, block_sizes: Sequence[int], device: torch.device, resumed: Path | None
) -> LanguageModel | None:
    """Load the teacher, frozen, onto the device of the training; None where the configuration has none.

    Args:
        resumed: the folder of the run that is resumed.

    Raises:
        ValueError: it cannot be loaded, its tokenizer is another, a block size is longer than its context, or it is
            not the teacher that the resumed run had.
    """
    path = config.objective.teacher
    if path is None:
        return None
    try:
        teacher = load(path_of("objective.teacher", path), str(device))
    except ValueError as error:
        reason = str(error).removeprefix("objective.teacher: ").removeprefix("checkpoint: ")
        raise ValueError(f"objective.teacher: {reason}") from None
    teacher.model.requires_grad_(False)
    theirs, ours = (
        f"{t.name}, {t.vocab_size} ids, fingerprint {t.fingerprint}" for t in (teacher.tokenizer, tokenizer)
    )
    if teacher.tokenizer.fingerprint != tokenizer.fingerprint:
        raise ValueError(
            f"objective.teacher: {path!r} has another tokenizer ({theirs}) than data.tokenizer = "
            f"{config.data.tokenizer!r} ({ours}); take a teacher that was trained with the same one"
        )
    rows = config.model.n_ids(tokenizer.vocab_size)
    if teacher.model.vocab_size != rows:
        raise ValueError(
            f"objective.teacher: {path!r} predicts {teacher.model.vocab_size} ids, the model {rows}; set "
            f"model.vocab_size={teacher.model.vocab_size}"
        )
    context = teacher.config.data.seq_len
    if max(block_sizes) > context:
        raise ValueError(
            f"objective.teacher: {path!r} was trained on rows of {context} tokens, in which no block of "
            f"{max(block_sizes)} fits (objective.block_size); take smaller blocks, or a teacher of longer rows"
        )
    if config.data.seq_len > context:
        log.warning("objective.teacher: it was trained on rows of %d tokens, data.seq_len is longer", context)
    if untrained := [size for size in block_sizes if size not in teacher.block_sizes]:
        log.warning("objective.teacher: it was not trained at block size %s", ", ".join(map(str, untrained)))
    if resumed is not None:
        _refuse_another(path, recorded_model(resumed, "teacher"), teacher.origin.checkpoint)
    log.info("learning from %s (%s)", path, teacher.config.run.name)
    return teacher


def _refuse_another(path: str, recorded: Any, now: Any) -> None:
    if is_same_checkpoint(recorded, now) is False:
        was, today = (f"step {dict(each).get('step')}" for each in (recorded, now))
        raise ValueError(
            f"objective.teacher: {path!r} is another model ({today}) than the run to resume has learned from ({was}); "
            "put that one back, or start a new run with trainer.init_from (a teacher that trains on is best named by "
            "the folder of one of its checkpoints)"
        )
