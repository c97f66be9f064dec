"""Rotary frequencies and how checkpoints stretch them."""

from __future__ import annotations

import pytest
import torch

from hybrid.config import check, load_config, to_yaml
from hybrid.model.rope import ROPE_SCALINGS, Rope
from hybrid.options import build


@pytest.mark.parametrize(
    "spec, parameters",
    [
        (
            {"name": "llama3", "factor": 8.0, "original_length": 64, "high_freq_factor": 4.0, "low_freq_factor": 1.0},
            {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64, "high_freq_factor": 4.0,
             "low_freq_factor": 1.0},
        ),
        (
            {"name": "yarn", "factor": 16.0, "original_length": 128},
            {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 128},
        ),
        (
            {"name": "yarn", "factor": 4.0, "original_length": 4096, "beta_fast": 16.0, "attention_factor": 1.0},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096, "beta_fast": 16.0,
             "attention_factor": 1.0},
        ),
    ],
)  # fmt: skip
def test_stretched_frequencies_are_those_of_transformers(spec, parameters):
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(
        hidden_size=128, num_attention_heads=2, head_dim=64, max_position_embeddings=2048,
        rope_parameters={"rope_theta": 10000.0, **parameters},
    )  # fmt: skip
    expected, factor = ROPE_INIT_FUNCTIONS[spec["name"]](config, torch.device("cpu"))
    rope = Rope(64, 10000.0, spec)
    torch.testing.assert_close(rope.frequencies, expected.double(), rtol=1e-6, atol=0)
    assert rope.factor == pytest.approx(factor)


def test_scalings_leave_short_wavelengths_alone_and_stretch_long_ones():
    plain = Rope(64, 10000.0).frequencies
    for name in ROPE_SCALINGS:
        stretched = Rope(64, 10000.0, {"name": name, "factor": 4.0, "original_length": 256}).frequencies
        assert stretched[0] == plain[0] and float(stretched[-1]) == pytest.approx(float(plain[-1]) / 4)
        assert (stretched <= plain).all() and (stretched >= plain / 4 * (1 - 1e-12)).all()


@pytest.mark.parametrize("name", ROPE_SCALINGS)
def test_scalings_are_built_from_their_defaults(name):
    build(ROPE_SCALINGS, name, "model.rope_scaling")


@pytest.mark.parametrize(
    "overrides, expected",
    [
        ([], None),
        (["model.rope_scaling=llama3"], "llama3"),
        (["model.rope_scaling=yarn", "model.rope_scaling.factor=2.0"], {"name": "yarn", "factor": 2.0}),
        (["model.rope_scaling={name: yarn, factor: 2.0}", "model.rope_scaling=null"], None),
    ],
)
def test_a_scaling_is_a_spec_or_null_in_a_configuration(overrides, expected, tmp_path):
    config = load_config(None, overrides)
    check(config)
    assert config.model.rope_scaling == expected
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "c.yaml").model.rope_scaling == expected


def test_a_scaling_that_is_none_is_refused_with_its_key():
    for override, message in [
        ("model.rope_scaling=lama3", r"model.rope_scaling: 'lama3' is not one of llama3, yarn \(did you mean 'llama3'"),
        ("model.rope_scaling={name: yarn, factr: 2.0}", r"model.rope_scaling.factr: yarn has no such option"),
        ("model.rope_scaling=[1]", r"model.rope_scaling: \[1\] is neither a name nor a mapping"),
    ]:
        with pytest.raises(ValueError, match=message):
            check(load_config(None, [override]))
