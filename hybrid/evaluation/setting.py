"""Choose what is compared: the decoders as they are typed, and how all of them generate."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hybrid.config import parse_options
from hybrid.decoding import DECODERS, GenerationConfig
from hybrid.decoding.decoder import suits
from hybrid.decoding.sampling import LAW
from hybrid.likelihoods import LIKELIHOODS, LikelihoodMethod
from hybrid.model import ModelConfig
from hybrid.options import at_least, build

ALL = "all"
_NEXT_OPTION = re.compile(r",(?=\s*\w+\s*=)")  # a comma inside a value is followed by something else


@dataclass(frozen=True)
class Setting:
    """How texts are generated, whatever the decoder."""

    samples: int
    new_tokens: int
    prompt_tokens: int = 0  # of rows of the split; 0: no prompt
    generation: GenerationConfig = field(default_factory=GenerationConfig)


SETTING_KEYS = ("samples", "new_tokens", "prompt_tokens", *LAW, "seed")
"""The numbers that eval.json says of a setting, by the names of the options of hybrid.evaluate."""


def setting_for(seq_len: int, new_tokens: int | None, prompt_tokens: int, *, samples: int, **options: Any) -> Setting:
    """Make a setting that fits into a context of `seq_len`; `new_tokens` None: until it is full.

    Args:
        options: those of `GenerationConfig`.

    Raises:
        ValueError: it does not fit, and then the option of the command line is named; or an option is out of range.
    """
    at_least("--prompt-tokens", prompt_tokens, 0)
    room = seq_len - prompt_tokens
    if room < 1:
        raise ValueError(f"--prompt-tokens: {prompt_tokens} fill the context of {seq_len} (data.seq_len); lower it")
    new_tokens = room if new_tokens is None else new_tokens
    at_least("--new-tokens", new_tokens, 1)
    if new_tokens > room:
        raise ValueError(
            f"--new-tokens: {new_tokens} behind {prompt_tokens} prompt tokens exceed the context of {seq_len} "
            f"(data.seq_len); at most {room}"
        )
    return Setting(samples, new_tokens, prompt_tokens, GenerationConfig(**options))


def choose_decoders(words: Iterable[str], key: str, config: ModelConfig | None = None) -> dict[str, Any]:
    """Build the decoders that are typed as `NAME` or `NAME:key=value,key=value`; `all` stands for those of the table
    that suit networks of this kind (None: of any).

    Raises:
        ValueError: an unknown decoder, or an option that it does not take.
    """
    suitable = [name for name, entry in DECODERS.items() if config is None or suits(entry, config)]
    return _chosen((label for word in words for label in (suitable if word == ALL else [word])), DECODERS, key)


def choose_likelihoods(words: Iterable[str], key: str) -> dict[str, LikelihoodMethod]:
    """Build the likelihoods that are typed as `NAME` or `NAME:key=value,key=value`; errors are those of a decoder."""
    return _chosen(words, LIKELIHOODS, key)


def _chosen(labels: Iterable[str], table: Mapping[str, type], key: str) -> dict[str, Any]:
    chosen = {}
    for label in labels:
        name, _, options = label.partition(":")
        spec = {"name": name, **parse_options(_NEXT_OPTION.split(options) if options else [], key)}
        chosen[label] = build(table, spec, key)
    return chosen
