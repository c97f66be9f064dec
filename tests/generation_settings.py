"""Every decoder, and every option of a generation that changes how networks are asked: settings, and their texts."""

from __future__ import annotations

from typing import Any

from decoding_toy import context_of, engine

from hybrid.decoding import DECODERS, LeftToRight
from hybrid.decoding.decoder import View
from hybrid.decoding.engine import Engine
from hybrid.model import Transformer

PROMPTS = [[1, 2, 3, 0, 5], [], [4, 4]]
VOCAB = MASK = 9


class Drawing:
    """Draws the leftmost masked token itself, from a reading of its own."""

    def start(self, view: View) -> None:
        return None

    def select(self, view: View, state: None) -> tuple[Any, ...]:
        place = view.is_masked & (view.is_masked.cumsum(-1) == 1)
        return place, None, view.tokens.masked_scatter(place, view.sample(view.read(view.tokens, place), place))


class AllAtOnce(LeftToRight):
    """Reveals more than the order says that it is made of."""

    def select(self, view: View, state: Any) -> tuple[Any, None]:
        return view.is_masked, None


def few_steps(name: str) -> dict[str, Any]:
    """A decoder with its own options, but for a large number of steps."""
    has_many = isinstance(getattr(DECODERS[name], "steps", None), int)
    return {"name": name, "steps": 4} if has_many else {"name": name}


SETTINGS: dict[str, dict[str, Any]] = {
    **{name: {"decoder": few_steps(name)} for name in DECODERS if context_of(name) != "causal"},
    "threshold": {"decoder": {"name": "confidence", "threshold": 0.5}},
    "many_a_step": {"decoder": {"name": "margin", "steps": 2, "plan": "cosine"}},
    "confident_remdm": {"decoder": {"name": "remdm", "steps": 4, "sigma": "confidence", "eta": 0.9}},
    "no_remasking": {"decoder": {"name": "p2", "steps": 3, "eta": 0.0}},
    "own_draws": {"decoder": Drawing()},
    "own_select": {"decoder": AllAtOnce()},
    "guidance": {"decoder": "confidence", "guidance": 1.5},
    "planner": {"decoder": {"name": "p2", "steps": 3}, "planner": True},
    "uncached": {"decoder": "first_hitting", "cache": False},
    "documents": {"decoder": "first_hitting", "document_mask": True},
    "sliding": {"decoder": "first_hitting", "slide": True, "seq_len": 8},
    "truncated": {"decoder": "first_hitting", "top_k": 3, "top_p": 0.9, "temperature": 0.7},
    "gumbel": {"decoder": "first_hitting", "noise": "gumbel"},
    "greedy": {"decoder": "left_to_right", "temperature": 0.0},
    "autoregressive": {"decoder": "first_hitting", "block_size": 1},
    "infilling": {"decoder": "first_hitting", "block_size": 8, "prompts": [[1, MASK, MASK, 2], [3, MASK, 4]]},
}


def engine_of(model: Transformer, weigher: Transformer, **setting: Any) -> tuple[Engine, list[list[int]]]:
    """Return an engine, and the prompts that it is to go on with."""
    block_size, prompts = setting.pop("block_size", 4), setting.pop("prompts", PROMPTS)
    if setting.pop("planner", False):
        setting["planner"] = weigher
    return engine(model, block_size, setting.pop("decoder"), **setting), prompts


def texts(model: Transformer, weigher: Transformer, **setting: Any) -> tuple[list[list[int]], int]:
    """Return texts of seven new tokens, and what they cost."""
    made, prompts = engine_of(model, weigher, **setting)
    result = made.generate(prompts, 7)
    return result.sequences, result.nfe
