"""What checkpoints vary in: both passes agree under every option, and each option is the formula that it names."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cached_pass import cached_hidden
from decoding_toy import engine
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import MODES, random_tokens, toy_model

from hybrid.model import ModelConfig, Transformer
from hybrid.model.fused import fuse
from hybrid.model.layers import Layer
from hybrid.model.masks import TwoStream
from hybrid.model.two_stream import two_stream_hidden

LLAMA3 = {"name": "llama3", "factor": 4.0, "original_length": 16}
YARN = {"name": "yarn", "factor": 4.0, "original_length": 16}
OPTIONS = {
    "plain": {},
    "wide heads": {"head_dim": 6},
    "layer norm": {"norm": "layer", "norm_eps": 1e-3},
    "gelu": {"mlp": "gelu"},
    "biases": {"qkv_bias": True, "mlp_bias": True},
    "no qk norm": {"qk_norm": False},
    "tied": {"tied_embeddings": True},
    "llama3": {"rope_scaling": LLAMA3, "rope_theta": 100.0},
    "yarn": {"rope_scaling": YARN},
    "mask inside": {"mask_token_id": 2},
    "mask inside, may be predicted": {"mask_token_id": 2, "ban_mask": False},
    "all at once": {
        "head_dim": 6, "norm": "layer", "mlp": "gelu", "qkv_bias": True, "mlp_bias": True, "tied_embeddings": True,
        "rope_scaling": YARN, "mask_token_id": 0, "n_kv_heads": 1,
    },
}  # fmt: skip


def varied(mode, name: str, seed: int = 0, **options) -> Transformer:
    """A toy model whose norms and biases are not those of a fresh one."""
    model = toy_model(*mode, seed=seed, **OPTIONS[name], **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return model


def clean_tokens(model: Transformer, *shape: int, seed: int = 0):
    tokens = random_tokens(*shape, seed=seed)
    return torch.where(tokens == model.mask_token_id, 5, tokens)  # text does not hold MASK


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(MODES), st.sampled_from(sorted(OPTIONS)), st.integers(2, 12), st.integers(1, 12), st.booleans())
def test_cached_blocks_equal_the_training_pass(mode, name, length, block_size, fused):
    """Fused and as trained, ragged, with fused commits: to 1e-12 in float64."""
    model = varied(mode, name, seed=length)
    block_size = min(block_size, length)
    tokens = clean_tokens(model, 2, length)
    masked = torch.rand(2, length, generator=torch.Generator().manual_seed(length)) < 0.6
    starts = [0, (length - 1) // block_size // 2]
    with torch.no_grad():
        expected = torch.full((2, length, model.config.dim), torch.nan, dtype=torch.float64)
        expected[masked] = two_stream_hidden(model, tokens, masked[:, None], block_size)
        got = cached_hidden(model, tokens, masked, block_size, starts, fuse=fused)
    for row in range(2):
        compared = masked[row].clone()
        compared[: starts[row] * block_size] = False
        torch.testing.assert_close(got[row, compared], expected[row, compared], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_fused_model_is_the_same_function(name):
    """Fused in place, its training pass and its logits too."""
    for mode in MODES:
        model = varied(mode, name)
        tokens = clean_tokens(model, 2, 11)
        masked = torch.rand(2, 2, 11, generator=torch.Generator().manual_seed(1)) < 0.5
        with torch.no_grad():
            before = model.head(two_stream_hidden(model, tokens, masked, 4))
            fuse(model)
            after = model.head(two_stream_hidden(model, tokens, masked, 4))
        assert not list(model.layers.parameters()), "fused weights are no parameters"
        torch.testing.assert_close(after, before, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_of_unseen_inputs_are_exactly_zero(name):
    n, block_size = 9, 3
    for context, prediction in MODES:
        model = varied((context, prediction), name)
        inputs: list[torch.Tensor] = []
        model.embedding.register_forward_hook(
            lambda module, arguments, output, inputs=inputs: (
                inputs.append(output.detach().requires_grad_()) or inputs[-1]
            )
        )
        masked = torch.ones(1, 1, n, dtype=torch.bool)
        hidden = two_stream_hidden(model, clean_tokens(model, 1, n), masked, block_size)
        n_clean = TwoStream.of(n, block_size, context, prediction).rows.n_clean
        for position in range(n):
            (gradient,) = torch.autograd.grad(hidden[position].sin().sum(), inputs[0], retain_graph=True)
            moved = gradient[0, :n_clean].abs().sum(-1) > 0
            visible = model.config.begin + position // block_size * block_size
            assert moved[:visible].all() and not moved[visible:].any()


def test_a_layer_is_its_formula():
    """LayerNorm with biases, GELU, biases everywhere and wide heads, against torch's own functions."""
    config = ModelConfig(
        dim=8, n_heads=2, head_dim=6, norm="layer", mlp="gelu", qkv_bias=True, mlp_bias=True, qk_norm=False
    )
    layer = Layer(config).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=torch.float64))
    x = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pattern = TwoStream.of(5, 5)
    zero = torch.zeros(1, 5, 1, 6, dtype=torch.float64)

    def attend(q, k, v, pattern):
        return F.scaled_dot_product_attention(q, k, v)

    got = layer(x, (zero + 1, zero), pattern, attend)
    w = dict(layer.named_parameters())
    y = F.layer_norm(x, (8,), w["attention_norm.weight"], w["attention_norm.bias"], 1e-5)
    q, k, v = (F.linear(y, w[f"w{c}.weight"], w[f"w{c}.bias"]).view(1, 5, 2, 6).transpose(1, 2) for c in "qkv")
    h = x + F.linear((q @ k.mT / 6**0.5).softmax(-1).matmul(v).transpose(1, 2).flatten(2), w["wo.weight"])
    y = F.layer_norm(h, (8,), w["mlp_norm.weight"], w["mlp_norm.bias"], 1e-5)
    up = F.linear(y, w["w_up.weight"], w["w_up.bias"])
    gelu = 0.5 * up * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (up + 0.044715 * up**3)))
    torch.testing.assert_close(got, h + F.linear(gelu, w["w_down.weight"], w["w_down.bias"]), rtol=0, atol=1e-12)


def test_what_does_not_fit_is_refused():
    for options, message in [
        ({"head_dim": 5}, r"model.head_dim: 5 is odd"),
        ({"norm_eps": 0.0}, r"model.norm_eps: 0.0 must be positive"),
        ({"ban_mask": False}, r"model.ban_mask: false needs model.mask_token_id"),
        ({"mask_token_id": 9}, r"model.mask_token_id: 9 must be one of the 7 ids"),
        ({"mask_token_id": 6}, r"not that of end of text \(6\)"),
        ({"rope_scaling": "linear"}, r"model.rope_scaling: 'linear' is not one of llama3, yarn"),
        ({"rope_scaling": "yarn", "rope_theta": 1.0}, r"model.rope_theta: 1.0 has no frequencies to stretch"),
        ({"rope_scaling": {"name": "yarn", "attention_factor": 0.0}}, r"rope_scaling.attention_factor: 0.0 must be"),
        ({"rope_scaling": {"name": "yarn", "factor": 0.5}}, r"model.rope_scaling.factor: 0.5 is too small"),
        ({"rope_scaling": {"name": "llama3", "low_freq_factor": 5.0}}, r"rope_scaling.low_freq_factor: 5.0 must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            Transformer(ModelConfig(dim=16, n_heads=4, **options), 7, 6)


def test_new_options_keep_the_names_and_order_of_weights():
    names = [name for name, _ in toy_model().named_parameters()]
    assert names[:12] == [
        "head_weight", "embedding.weight", "layers.0.attention_norm.weight", "layers.0.wq.weight", "layers.0.wk.weight",
        "layers.0.wv.weight", "layers.0.wo.weight", "layers.0.q_norm.weight", "layers.0.k_norm.weight",
        "layers.0.mlp_norm.weight", "layers.0.w_gate.weight", "layers.0.w_up.weight",
    ]  # fmt: skip


@pytest.mark.thin(2)
@pytest.mark.parametrize("name", OPTIONS)
def test_texts_are_the_same_cached_and_not_alone_and_in_a_batch(name):
    for mode in MODES:
        model = varied(mode, name, dtype=torch.float32)
        prompts = [[], [1, 5, 3], [5, 1, 4, 3, 1]]
        for spec in ("first_hitting", {"name": "confidence", "steps": 2}, "remdm"):
            batch = engine(model, 4, spec, seed=3).generate(prompts, 9).tokens
            assert engine(model, 4, spec, seed=3, cache=False).generate(prompts, 9).tokens == batch
            assert [engine(model, 4, spec, seed=3).generate([p], 9).tokens[0] for p in prompts] == batch
            assert not any(model.mask_token_id in row for row in batch), "MASK is never written"
