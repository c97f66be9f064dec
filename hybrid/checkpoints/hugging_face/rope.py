"""How rotary frequencies are stretched: their words for it and ours, both ways.

transformers 5 has all of it in `rope_parameters`; 4 has `rope_theta` beside `rope_scaling`, with a
`rope_type` or `type`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from hybrid.checkpoints.hugging_face.their_config import TheirConfig
from hybrid.model.config import ModelConfig
from hybrid.model.rope import ROPE_SCALINGS, Llama3, Yarn
from hybrid.options import bare, build, shown

_OF_ALL = {"rope_theta", "rope_type", "type", "partial_rotary_factor"}
_LLAMA3 = {
    "factor": "factor", "low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_length",
}  # fmt: skip
_YARN = {
    "factor": "factor", "original_max_position_embeddings": "original_length", "beta_fast": "beta_fast",
    "beta_slow": "beta_slow", "attention_factor": "attention_factor",
}  # fmt: skip


def rope_settings(theirs: TheirConfig) -> dict[str, Any]:
    """Return base and scaling of the rotary positions, by our keys."""
    given = theirs.object("rope_scaling" if theirs.values.get("rope_scaling") else "rope_parameters")
    kind = given.get("rope_type", str) or given.get("type", str, "default")
    if kind not in _READERS:
        raise ValueError(f"{given.where}: type {shown(kind)}: not covered; covered are {', '.join(_READERS)}")
    given.refuse("partial_rotary_factor", (1,), "the whole of a head is rotated")
    theta = given.get("rope_theta", float, theirs.get("rope_theta", float, 10000.0))
    if not 0 < theta < math.inf:
        raise ValueError(f"{theirs.where}: rope_theta: {theta} must be positive and finite")
    return {
        "model.rope_theta": theta,
        "model.rope_scaling": _READERS[kind](given, theirs),
    }


def their_rope(model: ModelConfig) -> dict[str, Any]:
    """Return the keys of a config.json, in the form of transformers 4, which 5 and other programs read, too.

    Raises:
        ValueError: a scaling that they do not have.
    """
    if model.rope_scaling is None:
        return {"rope_theta": model.rope_theta}
    scaling = build(ROPE_SCALINGS, model.rope_scaling, "model.rope_scaling")
    if not isinstance(scaling, (Llama3, Yarn)):
        raise ValueError(f"model.rope_scaling: {shown(model.rope_scaling)} has no name in a config.json")
    kind, names = ("llama3", _LLAMA3) if isinstance(scaling, Llama3) else ("yarn", _YARN)
    options = {name: getattr(scaling, ours) for name, ours in names.items()}
    stated = {name: value for name, value in options.items() if value is not None}
    return {"rope_theta": model.rope_theta, "rope_scaling": {"rope_type": kind, **stated}}


def _default(given: TheirConfig, theirs: TheirConfig) -> None:
    _refuse_others(given, set())


def _llama3(given: TheirConfig, theirs: TheirConfig) -> dict[str, Any]:
    _refuse_others(given, _LLAMA3)
    values = {ours: given.required(name, int if ours == "original_length" else float) for name, ours in _LLAMA3.items()}
    return {"name": "llama3", **values}


def _yarn(given: TheirConfig, theirs: TheirConfig) -> dict[str, Any]:
    _refuse_others(given, {*_YARN, "mscale", "mscale_all_dim", "truncate"})
    given.refuse("truncate", (True,), "the ramp begins and ends at whole frequencies")
    factor = given.required("factor", float)
    length = given.get("original_max_position_embeddings", int)
    scaling = {
        "name": "yarn",
        "factor": factor,
        "original_length": theirs.size("max_position_embeddings", 2048) if length is None else length,
        "attention_factor": given.get("attention_factor", float),
    }
    own, of_all = given.get("mscale", float), given.get("mscale_all_dim", float)
    if scaling["attention_factor"] is None and own and of_all:
        scaling["attention_factor"] = _growth(factor, own) / _growth(factor, of_all)
    betas = {key: given.get(key, float) for key in ("beta_fast", "beta_slow")}
    return scaling | {key: value for key, value in betas.items() if value}


def _growth(factor: float, mscale: float) -> float:
    """m(s) = 0.1 mscale ln(s) + 1: what YaRN multiplies queries and keys by."""
    return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0


def _refuse_others(given: TheirConfig, known: Mapping[str, Any] | set[str]) -> None:
    if other := sorted(set(given.values) - set(known) - _OF_ALL):
        covered = ", ".join(sorted({*known, "rope_theta", "rope_type"}))
        raise ValueError(f"{given.where}: {bare(', '.join(other))}: not covered; covered here are {covered}")


_READERS: dict[str, Callable[[TheirConfig, TheirConfig], dict[str, Any] | None]] = {
    "default": _default, "llama3": _llama3, "yarn": _yarn,
}  # fmt: skip
