"""Decoders as they are typed, and settings that fit the context."""

from __future__ import annotations

from typing import Any

import pytest

from hybrid.decoding import DECODERS, GenerationConfig
from hybrid.evaluation.setting import Setting, choose_decoders, setting_for


@pytest.mark.parametrize(
    "word, options",
    [
        ("confidence", {}),
        ("confidence:steps=4", {"steps": 4}),
        ("ancestral:steps=8,schedule={name: polynomial, power: 2}", {"steps": 8}),
    ],
)
def test_decoders_as_typed(word: str, options: dict[str, Any]) -> None:
    ((label, decoder),) = choose_decoders([word], "--decoders").items()
    assert label == word and isinstance(decoder, DECODERS[word.split(":")[0]])
    assert all(getattr(decoder, key) == value for key, value in options.items())


def test_a_setting_fits_the_context() -> None:
    assert setting_for(32, None, 4, samples=1).new_tokens == 28
    assert setting_for(32, 28, 4, samples=1) == Setting(1, 28, 4)
    assert setting_for(32, 28, 4, samples=1, top_k=3).generation == GenerationConfig(top_k=3)
    with pytest.raises(ValueError, match=r"^top_k: 0 "):
        setting_for(32, None, 4, samples=1, top_k=0)
