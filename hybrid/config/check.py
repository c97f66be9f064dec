"""Refuse settings that do not fit together, before any work starts, and warn of those that are ignored."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from hybrid.config.schema import SPECS, Config, check_specs, known_keys, table, value_of
from hybrid.data.corpora.locating import is_embedded
from hybrid.device import parse_device
from hybrid.objectives.build import build_estimator, check_entry, draws_latent, fields_of
from hybrid.objectives.estimators import Count
from hybrid.objectives.objective import is_elbo
from hybrid.objectives.weightings import Elbo
from hybrid.options import at_least, at_most, build, path_of, shown, title

# Smallest values. Keys that may be null are checked when they are not.
_AT_LEAST: dict[str, float] = {
    "run.seed": 0,
    "data.seq_len": 2,
    "data.vocab_size": 1,
    "model.dim": 2,
    "model.n_layers": 1,
    "model.n_heads": 1,
    "model.n_kv_heads": 1,
    "model.head_dim": 2,
    "model.hidden_dim": 1,
    "model.vocab_size": 1,
    "model.begin_token_id": 0,
    "model.mask_token_id": 0,
    "model.latent": 0,
    "objective.draws": 1,
    "objective.ar_weight": 0,
    "optim.weight_decay": 0,
    "optim.warmup_steps": 0,
    "optim.grad_clip": 0,
    "trainer.steps": 1,
    "trainer.log_every": 1,
    "trainer.eval_every": 0,
    "trainer.sample_every": 0,
    "trainer.save_every": 0,
    "trainer.keep_last": 1,
    "trainer.max_bad_steps": 1,
    "eval.rows": 0,
    "eval.draws": 1,
    "eval.batch_rows": 1,
    "eval.sample_tokens": 0,
}
# Largest values: beyond them a number is a slip of the hand, and what it asks for would take all memory or all time.
_AT_MOST: dict[str, float] = {
    "run.seed": 2**63 - 1,
    "data.seq_len": 2**24,
    "data.vocab_size": 2**24,
    "model.dim": 2**20,
    "model.n_layers": 10_000,
    "model.n_heads": 2**16,
    "model.n_kv_heads": 2**16,
    "model.head_dim": 2**16,
    "model.hidden_dim": 2**24,
    "model.vocab_size": 2**24,
    "model.begin_token_id": 2**24 - 1,
    "model.mask_token_id": 2**24 - 1,
    "model.latent": 2**16,
    "objective.draws": 2**16,
    "optim.warmup_steps": 10**12,
    "trainer.steps": 10**12,
    "trainer.batch_tokens": 2**40,
    "trainer.micro_batch_tokens": 2**40,
    "trainer.log_every": 10**12,
    "trainer.eval_every": 10**12,
    "trainer.sample_every": 10**12,
    "trainer.save_every": 10**12,
    "trainer.keep_last": 10**12,
    "trainer.max_bad_steps": 10**12,
    "eval.rows": 10**12,
    "eval.draws": 2**16,
    "eval.batch_rows": 2**20,
    "eval.sample_tokens": 2**24,
}
_POSITIVE = ("model.norm_eps", "model.rope_theta", "optim.lr", "optim.muon_lr", "trainer.minutes")
_FRACTIONS = ("optim.decay_fraction", "optim.final_lr_ratio")
_BELOW_ONE = ("optim.beta1", "optim.beta2", "optim.momentum", "optim.ema_decay")


def check(config: Config) -> list[str]:
    """Refuse values that are out of range or do not fit together; return a warning for each setting that is ignored.

    Raises:
        ValueError: one line naming the keys, their values and the way out.
    """
    _check_ranges(config)
    _check_run(config)
    config.model.check()
    config.data.check()
    _check_tokens(config)
    check_specs(config)
    estimator = config.objective.estimator
    for name in ("schedule", "proposal"):
        if isinstance(estimator, dict) and name in estimator:
            build(table(SPECS[f"objective.{name}"]), estimator[name], f"objective.estimator.{name}")
    sizes = resolve_block_sizes(config.objective.block_size, config.data.seq_len)
    _check_objective(config, sizes)
    if config.eval.block_sizes is not None:
        resolve_block_sizes(config.eval.block_sizes, config.data.seq_len, "eval.block_sizes")
    warnings = _bias(config)
    warnings += [f"{name} = {shown(value_of(config, name))} is ignored: {why}" for name, why in _ignored(config)]
    if config.optim.warmup_steps > config.trainer.steps:
        warnings.append(
            f"optim.warmup_steps = {config.optim.warmup_steps} is more than trainer.steps = {config.trainer.steps}: "
            "the learning rate never reaches its peak"
        )
    return warnings


def resolve_block_sizes(value: Any, seq_len: int, key: str = "objective.block_size") -> list[int]:
    """Resolve the block sizes that `value` means: an integer, `seq_len`, or a list of these.

    Raises:
        ValueError: not of this form, out of 1..seq_len, an empty list, or one size twice.
    """
    sizes = [_block_size(size, seq_len, key) for size in (value if isinstance(value, list) else [value])]
    if not sizes:
        raise ValueError(f"{key}: [] is empty; give a block size, e.g. {key}=8, or a list, e.g. {key}=[1,8]")
    if len(set(sizes)) < len(sizes):
        raise ValueError(f"{key}: {shown(value)} has a block size twice (data.seq_len = {seq_len}); give each once")
    return sizes


def data_block_sizes(config: Config) -> list[int]:
    """Return the sizes of all blocks that a run lays over its rows: those that are trained or validated."""
    sizes = resolve_block_sizes(config.objective.block_size, config.data.seq_len)
    if config.eval.block_sizes is not None:
        sizes += resolve_block_sizes(config.eval.block_sizes, config.data.seq_len, "eval.block_sizes")
    return sorted(set(sizes))


def _block_size(value: Any, seq_len: int, key: str) -> int:
    if value == "seq_len":
        return seq_len
    if type(value) is not int:
        raise ValueError(f"{key}: {shown(value)} is not a block size; give an integer from 1 to {seq_len}, or seq_len")
    if value < 1:
        raise ValueError(f"{key}: {shown(value)} is too small; a block has from 1 to {seq_len} tokens (data.seq_len)")
    if value > seq_len:
        raise ValueError(
            f"{key}: {shown(value)} is larger than data.seq_len = {seq_len}; "
            f"make it smaller (or seq_len, which is fully masked), or data.seq_len larger"
        )
    return value


def _check_ranges(config: Config) -> None:
    for name in known_keys():
        value = value_of(config, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}: {shown(value)} is not a finite number")
    for name, minimum in _AT_LEAST.items():
        value = value_of(config, name)
        if value is not None:
            at_least(name, value, minimum)
    for name, maximum in _AT_MOST.items():
        value = value_of(config, name)
        if value is not None:
            at_most(name, value, maximum)
    for name in _POSITIVE:
        value = value_of(config, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name}: {shown(value)} must be positive")
    for name in _FRACTIONS:
        if not 0 <= value_of(config, name) <= 1:
            raise ValueError(f"{name}: {shown(value_of(config, name))} is not a fraction; it must be from 0 to 1")
    for name in _BELOW_ONE:
        if not 0 <= value_of(config, name) < 1:
            raise ValueError(f"{name}: {shown(value_of(config, name))} must be at least 0 and below 1")


def _check_run(config: Config) -> None:
    run, prompts = config.run, config.eval.sample_prompts
    if (
        not run.name
        or run.name.startswith("/")
        or any(
            part in ("", ".", "..") or part.startswith("~")
            for part in run.name.split("/")  # a shell takes ~ for a home
        )
    ):
        raise ValueError(f"run.name: {shown(run.name)} does not name a folder inside run.folder = {shown(run.folder)}")
    if not run.folder:
        raise ValueError("run.folder: '' is not a folder; the default is 'runs'")
    path_of("run.folder", run.folder)
    for key, value, default in (
        ("trainer.init_from", config.trainer.init_from, "null"), ("trainer.resume", config.trainer.resume, "never"),
        ("objective.teacher", config.objective.teacher, "null"),
    ):  # fmt: skip
        if value == "":
            raise ValueError(f"{key}: '' is empty (a variable of the shell that is not set?); the default is {default}")
        if value is not None:
            path_of(key, value)
    if run.device != "auto":
        parse_device(run.device)
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"eval.sample_prompts: {shown(prompts)} is not a list of texts, e.g. ['', 'The ']")


def _check_objective(config: Config, block_sizes: list[int]) -> None:
    objective = config.objective
    check_entry(objective, config.model, block_sizes)
    if objective.ar_weight > 0 and config.model.context != "causal":
        raise ValueError(
            f"objective.ar_weight: {objective.ar_weight} needs model.context=causal, not {config.model.context!r}: "
            "clean rows that see later tokens cannot predict them"
        )
    if objective.complementary and objective.draws % 2:
        raise ValueError(
            f"objective.draws: {objective.draws} is odd; objective.complementary takes them in pairs, so make it even"
        )
    estimator = build_estimator(objective)
    if isinstance(estimator, Count):
        for size in block_sizes:
            estimator.source.probabilities(size, size)  # refuses a number of weights that is not the block size


def _bias(config: Config) -> list[str]:
    """Write a line for each part of the objective that makes it another one than the ELBO."""
    objective, estimator = config.objective, build_estimator(config.objective)
    if not is_elbo(build(table(SPECS["objective.name"]), objective.name, "objective.name")):
        return [f"objective.name = {title(objective.name)} is not the ELBO: what it trains is no bound, val/nelbo is"]
    lines = []
    if hasattr(estimator, "bias"):
        name = objective.estimator if isinstance(objective.estimator, str) else objective.estimator["name"]
        lines.append(f"objective.estimator = {name} is biased: {estimator.bias}")  # pyright: ignore
    weighting = build(table(SPECS["objective.weighting"]), objective.weighting, "objective.weighting")
    if not isinstance(weighting, Elbo):
        name = objective.weighting if isinstance(objective.weighting, str) else objective.weighting["name"]
        lines.append(f"objective.weighting = {name} is not the ELBO: train/loss is no bound, val/nelbo is")
    return lines


def _check_tokens(config: Config) -> None:
    seq_len, batch, micro = config.data.seq_len, config.trainer.batch_tokens, config.trainer.micro_batch_tokens
    _whole_rows("trainer.batch_tokens", batch, seq_len)
    if micro is not None:
        _whole_rows("trainer.micro_batch_tokens", micro, seq_len)
        if batch % micro:
            raise ValueError(f"trainer.micro_batch_tokens: {micro} does not divide trainer.batch_tokens = {batch}")


def _whole_rows(name: str, tokens: int, seq_len: int) -> None:
    if tokens < seq_len or tokens % seq_len:
        below = tokens // seq_len * seq_len
        near = f"{below} or {below + seq_len}" if below > 0 else f"{seq_len}"
        raise ValueError(f"{name}: {tokens} is not a whole number of rows of data.seq_len = {seq_len}; try {near}")


def _ignored(config: Config) -> list[tuple[str, str]]:
    """(key, reason) of each setting that differs from its default and has no effect."""
    optim, objective = config.optim, config.objective
    estimator = objective.estimator if isinstance(objective.estimator, dict) else {"name": objective.estimator}
    entry = table(SPECS["objective.estimator"])[estimator["name"]]
    fields = {f.name for f in dataclasses.fields(entry)}  # pyright: ignore[reportArgumentType]
    read = fields_of(objective)
    embedded = (f"data.corpus = {shown(config.data.corpus)} is embedded", is_embedded(config.data.corpus))
    reasons = {
        "data.vocab_size": ("data.tokenizer is not bpe", config.data.tokenizer != "bpe"),
        "model.latent": (f"objective.name = {title(objective.name)} draws none of it", not draws_latent(objective)),
        "model.latent_per": ("model.latent is 0", not config.model.latent),
        "model.begin_token_id": ("model.prediction is not next_token", not config.model.begin),
        "data.format": embedded,
        "data.split": embedded,
        "data.column": embedded,
        "data.chat_template": embedded,
        **{
            f"objective.{name}": (
                f"objective.estimator = {shown(objective.estimator)} does not read it",
                name not in fields or name in estimator,
            )
            for name in ("schedule", "proposal", "complementary")
        },
        **{
            f"objective.{name}": (f"objective.name = {title(objective.name)} does not read it", name not in read)
            for name in ("estimator", "weighting", "stratified", "draws", "ar_weight")
        },
        "optim.muon_lr": ("optim.name is not muon", optim.name != "muon"),
        "optim.momentum": ("optim.name is not muon", optim.name != "muon"),
        "optim.decay_fraction": ("optim.schedule is not wsd", optim.schedule != "wsd"),
        "optim.final_lr_ratio": ("optim.schedule is constant", optim.schedule == "constant"),
    }
    defaults = known_keys()
    return [
        (name, why)
        for name, (why, is_idle) in reasons.items()
        if is_idle and value_of(config, name) != defaults[name].default
    ]
