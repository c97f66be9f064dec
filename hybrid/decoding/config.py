"""The options of a generation, declared once: for `lm.generate`, `lm.stream`, the engine and generate.py."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, fields, replace
from typing import Any, TypeVar

import torch

from hybrid.arguments import SEEDS, flag, integer, number
from hybrid.decoding.sampling import Sampling
from hybrid.options import option, pick, shown

MAX_GUIDANCE = 1000
"""Far beyond what makes sense; much larger ones lose all digits of the logits."""

LATENT = ("fresh", "keep", "none")

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class GenerationConfig(Sampling):
    """How texts are generated.

    Raises:
        ValueError: an option of the wrong kind or out of range.
    """

    block_size: int | None = option(
        None,
        "tokens per block; None: the first with which the model was trained, of prompts with gaps the first of these "
        "with which they see what stands behind them",
    )
    decoder: Any = option("first_hitting", "a name of DECODERS, a mapping with its options, or an instance")
    _: KW_ONLY
    seed: int = option(0, "of all randomness")
    cache: bool = option(True, "False recomputes everything: the same tokens under the same seed, slowly")
    stop_at_end: bool = option(True, "a row ends with its first end-of-text, which is its last token")
    guidance: float = option(
        0.0,
        "how far to move away from what would be written without the prompt, at a second forward; 0: not at all",
    )
    planner: Any = option(
        None,
        "a model of the same tokenizer, or where it is saved, that chooses positions for decoders which ask for one "
        "(`p2`); None: the model itself",
    )
    slide: bool = option(
        False,
        "a text may grow beyond the context; a block then sees the last tokens that fit into it",
    )

    latent: str = option(
        "fresh",
        "of a model with random numbers in MASK (`model.latent`): drawn `fresh` at every step; or `keep` those of a "
        "block's first step, for which there is no bound; or `none` of them",
        LATENT,
    )
    graphs: bool | None = option(
        None,
        "forwards are recorded and replayed (CUDA graphs); without a GPU the same forwards are computed, slowly; None: "
        "on a GPU, over a cache",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "seed", integer("seed", self.seed, *SEEDS))  # one of numpy or torch becomes Python's
        for name in ("cache", "stop_at_end", "slide"):
            flag(name, getattr(self, name))
        pick("latent", self.latent, LATENT)
        if self.graphs is not None:
            flag("graphs", self.graphs)
        allowed = f"a finite number of at least 0 (no guidance) and at most {MAX_GUIDANCE}"
        number("guidance", self.guidance, lambda w: 0 <= w <= MAX_GUIDANCE, allowed)

    def check_latent(self, numbers: int) -> None:
        """Raise a ValueError if a model of so many random numbers in MASK has no use for `latent`."""
        if self.latent != "fresh" and not numbers:
            raise ValueError(f"latent: {self.latent!r} has no effect on a model with model.latent=0; leave it out")

    def records(self, device: torch.device) -> bool:
        """Return whether the forwards on `device` are recorded."""
        return self.cache and device.type == "cuda" if self.graphs is None else self.graphs

    @classmethod
    def of(cls, config: GenerationConfig | None, *values: Any, **options: Any) -> GenerationConfig:
        """`config` with some options changed; None: the defaults, of which `values` are the first."""
        if config is None:
            return cls(*values, **options)
        if not isinstance(config, GenerationConfig):
            raise ValueError(f"config: {shown(config)} is no GenerationConfig; options also go by their names")
        return replace(config, *values, **options)


def takes_options(function: Function) -> Function:
    """Show the options of `GenerationConfig` where `help` looks: in the signature of a method with `*values` and
    `**options`, and in place of `{options}` in its docstring."""
    both = [p for f in (function, GenerationConfig) for p in inspect.signature(f).parameters.values()]
    parameters = sorted((p for p in both if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)), key=lambda p: p.kind)
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    docs = {f.name: f.metadata["doc"] for f in fields(GenerationConfig)}
    lines = [f"{name}: {docs[name]}." for name in inspect.signature(GenerationConfig).parameters]
    wrapped = [textwrap.fill(line, 120, initial_indent=" " * 12, subsequent_indent=" " * 16) for line in lines]
    function.__doc__ = (function.__doc__ or "").replace("            {options}", "\n".join(wrapped))
    return function
