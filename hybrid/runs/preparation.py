"""Prepare a run, stage by stage: a machine, then data, then a model; each refuses what does not fit."""

from __future__ import annotations

import logging
from collections import ChainMap
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from hybrid.checkpoints import finding
from hybrid.checkpoints.importers import open_model
from hybrid.checkpoints.module_state import load_state
from hybrid.checkpoints.recorded_data import located
from hybrid.config import Config, data_block_sizes, load_config
from hybrid.config.start import refuse_other_sizes
from hybrid.data.preparing import Data, prepare
from hybrid.data.tokenizers import SUBWORD_FILE, Tokenizer
from hybrid.device import keep_freed_memory, precision_context, resolve_device, resolve_precision
from hybrid.distributed import ALONE, Ranks
from hybrid.model import ModelConfig, Transformer
from hybrid.model.build import build_model, check_batch, compile_layers, compiles
from hybrid.objectives.build import noisy_copies
from hybrid.options import path_of, shown
from hybrid.runs.resuming import ResumePlan
from hybrid.training.parallel import shard_model

log = logging.getLogger(__name__)

LATENT = "latent_weight"
"""Name of the weights of `model.latent`, which an older model lacks."""


@dataclass(frozen=True)
class Machine:
    """What a run computes on: a device, a precision, and the ranks of its job."""

    device: torch.device
    precision: str
    autocast: Callable[[], AbstractContextManager]
    ranks: Ranks = ALONE

    @classmethod
    def of(cls, config: Config, ranks: Ranks = ALONE) -> Machine:
        """Choose device and precision. Raises a ValueError for what this machine does not have."""
        device = resolve_device(config.run.device, ranks)
        if device.type == "cpu":
            keep_freed_memory()
        precision = resolve_precision(config.trainer.precision, device)
        return cls(device, precision, precision_context(precision, device), ranks)


def prepare_data(config: Config, plan: ResumePlan, ranks: Ranks = ALONE) -> Data:
    """Turn the corpus into rows of tokens; one process of each machine does so, the others find it done.

    Raises:
        ValueError: the batch cannot be shared by the ranks, the corpus cannot be read, or the run that is continued was
            trained on another text.
    """
    _check_ranks(config, ranks)
    with ranks.first_on_each_machine():
        data = located(prepare(config.data, block_sizes=data_block_sizes(config)))
    plan.check_data(data.description, config.data)
    return data


def prepare_model(config: Config, data: Data, machine: Machine) -> Transformer:
    """Build the model as it is initialised, compiled and sharded as the trainer's options say.

    Raises:
        ValueError: the device cannot hold the model or a batch, or the text holds a MASK that has no probability.
    """
    c, tokenizer = config, data.tokenizer
    is_sharded = machine.ranks.world > 1 and c.trainer.parallel == "fsdp"
    shard = partial(shard_model, device=machine.device, half=machine.precision == "bf16") if is_sharded else None
    model = build_model(
        c.model, tokenizer.vocab_size, tokenizer.end_of_text, machine.device, seed=c.run.seed,
        copies=c.optim.copies, shard=shard, ranks=machine.ranks.world,
    )  # fmt: skip
    tokenizer.n_padding = model.vocab_size - tokenizer.vocab_size
    _check_memory(config, data.validation.n_rows, machine)
    model.recompute = c.trainer.recompute
    if compiles(c.trainer.compile, machine.device):
        compile_layers(model)
    _check_mask(model.banned_token_id, data)
    return model


def load_initial_weights(model: Transformer, config: Config, tokenizer: Tokenizer) -> dict[str, Any] | None:
    """Take the weights of `trainer.init_from`, whatever its block size, context or objective. In another's format, its
    embedding has the row of MASK already: the mean of the others, if it has none of its own.

    Returns:
        step and hash of the checkpoint; None: there is none, or it does not tell.

    Raises:
        ValueError: they are of another architecture or another vocabulary.
    """
    path = config.trainer.init_from
    if path is None:
        return None
    folder = path_of("trainer.init_from", path)
    stored, origin = open_model(folder)
    if tokenizer.fingerprint != stored.tokenizer.fingerprint:
        ours = folder / "tokenizer" / SUBWORD_FILE
        is_imported = origin.importer is not None and (folder / SUBWORD_FILE).is_file()
        own = folder if is_imported else ours if ours.is_file() else None
        way_out = "train with its tokenizer" if own is None else f"set data.tokenizer={own}"
        raise ValueError(
            f"trainer.init_from: {path!r} has another vocabulary ({_described(stored.tokenizer)}) than data.tokenizer "
            f"= {config.data.tokenizer!r} ({_described(tokenizer)}); {way_out}"
        )
    if isinstance(stored.settings, Mapping):
        _warn_of_another_network(config.model, stored.settings, path)
    try:
        with finding.reading(cast(Path, origin.folder)):
            load_state(model, _with_latent(model, stored.tensors, path))
    except ValueError:
        if isinstance(stored.settings, Path):  # the keys say more than the names of weights
            refuse_other_sizes(config.model, load_config(stored.settings, checked=False).model, path, is_taken=False)
        raise
    log.info("weights of %s", path)
    return origin.checkpoint


def _with_latent(model: Transformer, tensors: Mapping[str, Tensor], path: str) -> Mapping[str, Tensor]:
    """Add the weights of a latent to a model that lacks them: at zero, where they change nothing."""
    if model.latent_weight is None or LATENT in tensors:
        return tensors
    log.info("model.latent = %d: %s has no such weights, so they start at zero", model.config.latent, path)
    zeros = torch.zeros(model.latent_weight.shape)
    return cast(Mapping[str, Tensor], ChainMap({LATENT: zeros}, cast(dict[str, Tensor], tensors)))


def _warn_of_another_network(model: ModelConfig, theirs: Mapping[str, Any], path: str) -> None:
    """Warn of settings that make other numbers of the same weights; what a start may change is not among them."""
    free = ("context", "prediction", "end_token_ids", "ban_mask", "attention")
    for key, value in theirs.items():
        group, _, name = key.partition(".")
        if group == "model" and name not in free and getattr(model, name) != value:
            log.warning(
                "%s = %s is %s in trainer.init_from = %s, whose weights are made for that",
                key, shown(getattr(model, name)), shown(value), path,
            )  # fmt: skip


def _described(tokenizer: Tokenizer) -> str:
    return f"{tokenizer.name}, {tokenizer.vocab_size} ids, fingerprint {tokenizer.fingerprint}"


def _check_ranks(config: Config, ranks: Ranks) -> None:
    """Raise a ValueError if the batch cannot be shared equally."""
    c, world = config, ranks.world
    rows = c.trainer.batch_tokens // c.data.seq_len
    if rows % world:
        near = max(rows // world, 1) * world * c.data.seq_len
        raise ValueError(
            f"trainer.batch_tokens: {c.trainer.batch_tokens} are {rows} rows of data.seq_len = {c.data.seq_len}, "
            f"which {world} ranks can't share equally; try {near}"
        )


def _check_memory(config: Config, n_validation_rows: int, machine: Machine) -> None:
    """Raise a ValueError if a batch of training or of validation cannot fit."""
    c, trainer = config, config.trainer
    key = "trainer.batch_tokens" if trainer.micro_batch_tokens is None else "trainer.micro_batch_tokens"
    tokens = min(trainer.micro_batch_tokens or trainer.batch_tokens, trainer.batch_tokens // machine.ranks.world)
    check_batch(c.model, tokens, noisy_copies(c.objective), key, machine.device, c.model.n_layers)
    rows = min(c.eval.batch_rows, c.eval.rows or n_validation_rows, n_validation_rows)
    check_batch(c.model, rows * c.data.seq_len, c.eval.draws, "eval.batch_rows", machine.device, 1)


def _check_mask(mask: int | None, data: Data) -> None:
    """Raise a ValueError if the text holds a MASK that has no probability."""
    if mask is not None and (n := data.train.count(mask) + data.validation.count(mask)):
        raise ValueError(
            f"model.mask_token_id: {mask} stands {n:,} times in the text, where MASK can't be predicted; take an "
            "id that no text has, or null for one behind the vocabulary"
        )
