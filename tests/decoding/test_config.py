"""The options of a generation: one declaration for the handle, the engine and generate.py."""

from __future__ import annotations

import inspect
import sys
from dataclasses import fields

import pytest
from conftest import _module

import hybrid
from hybrid.decoding import GenerationConfig

NAMES = [f.name for f in fields(GenerationConfig)]


def test_a_config_is_what_its_options_are(lm: hybrid.LanguageModel) -> None:
    prompts = [[1, 2], []]
    config = GenerationConfig(4, "margin", temperature=0.7, seed=3)
    by_name = lm.generate(prompts, 9, block_size=4, decoder="margin", temperature=0.7, seed=3)
    assert lm.generate(prompts, 9, config=config).tokens == by_name.tokens
    assert lm.generate(prompts, 9, 4, "margin", temperature=0.7, seed=3).tokens == by_name.tokens
    *_, last = lm.stream(prompts, 9, config=config)
    assert last.tokens == by_name.tokens
    other = lm.generate(prompts, 9, config=config, seed=4)
    assert other.tokens == lm.generate(prompts, 9, 4, "margin", temperature=0.7, seed=4).tokens != by_name.tokens
    assert lm.engine(config=config).config == config
    with pytest.raises(ValueError, match=r"config: \{'seed': 3\} is no GenerationConfig"):
        lm.generate(prompts, 9, config={"seed": 3})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["generate", "stream", "engine"])
def test_help_shows_every_option(name: str) -> None:
    function = getattr(hybrid.LanguageModel, name)
    shown = inspect.signature(function).parameters
    for f in fields(GenerationConfig):
        assert shown[f.name].default == f.default
        assert name != "generate" or f"\n            {f.name}: {f.metadata['doc'][:20]}" in function.__doc__


def test_every_option_can_be_typed_and_none_has_a_second_default(monkeypatch: pytest.MonkeyPatch) -> None:
    parse = _module("generate.py").parse
    monkeypatch.setattr(sys, "argv", ["generate.py", "--checkpoint", "x"])
    assert {name: getattr(parse(), name) for name in NAMES} == dict.fromkeys(NAMES)
    typed = {
        "stop_at_end": ["--ignore-end-of-text"],
        "cache": ["--no-cache"],
        "slide": ["--slide"],
        "graphs": ["--graphs"],
    }
    for name in NAMES:
        words = typed.get(name, [f"--{name.replace('_', '-')}", "1"])
        monkeypatch.setattr(sys, "argv", ["generate.py", "--checkpoint", "x", *words])
        assert getattr(parse(), name) is not None
