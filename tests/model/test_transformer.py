"""The network against torch's own modules, and its parts against torch's functions."""

import itertools
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from toy import random_tokens, toy_model

from hybrid.model import ModelConfig, Transformer
from hybrid.model.attention import SDPA, Eager
from hybrid.model.kernels.elementwise import rotate
from hybrid.model.layers import RMSNorm
from hybrid.model.rope import Rope
from hybrid.model.two_stream import two_stream_hidden
from hybrid.objectives.cross_entropy import masked_loss
from hybrid.objectives.estimators import Count
from hybrid.objectives.noise import NoiseKeys


class GPT(nn.Module):
    """An ordinary autoregressive transformer, from torch's modules and nothing of ours."""

    def __init__(self, c: ModelConfig, vocab: int):
        super().__init__()
        self.c = c
        self.embedding = nn.Embedding(vocab + 1, c.dim)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "attention_norm": nn.RMSNorm(c.dim, eps=1e-5),
                    "wq": nn.Linear(c.dim, c.dim, bias=False),
                    "wk": nn.Linear(c.dim, c.kv_heads * c.head_width, bias=False),
                    "wv": nn.Linear(c.dim, c.kv_heads * c.head_width, bias=False),
                    "wo": nn.Linear(c.dim, c.dim, bias=False),
                    "q_norm": nn.RMSNorm(c.head_width, eps=1e-5),
                    "k_norm": nn.RMSNorm(c.head_width, eps=1e-5),
                    "mlp_norm": nn.RMSNorm(c.dim, eps=1e-5),
                    "w_gate": nn.Linear(c.dim, c.mlp_dim, bias=False),
                    "w_up": nn.Linear(c.dim, c.mlp_dim, bias=False),
                    "w_down": nn.Linear(c.mlp_dim, c.dim, bias=False),
                }
            )
            for _ in range(c.n_layers)
        )
        self.final_norm = nn.RMSNorm(c.dim, eps=1e-5)
        self.head_weight = nn.Parameter(torch.empty(vocab, c.dim))

    def rotate(self, x):  # (b, h, n, d), by complex numbers
        half = x.shape[-1] // 2
        angles = torch.outer(torch.arange(x.shape[2]).double(), 10000.0 ** -(torch.arange(half).double() / half))
        turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([turned.real, turned.imag], dim=-1)

    def forward(self, ids):
        x = self.embedding(ids)
        for layer in self.layers:
            y = layer["attention_norm"](x)
            q, k, v = (layer[w](y).unflatten(-1, (-1, self.c.head_width)).transpose(1, 2) for w in ("wq", "wk", "wv"))
            q, k = self.rotate(layer["q_norm"](q)), self.rotate(layer["k_norm"](k))
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = x + layer["wo"](out.transpose(1, 2).flatten(2))
            y = layer["mlp_norm"](x)
            x = x + layer["w_down"](F.silu(layer["w_gate"](y)) * layer["w_up"](y))
        return self.final_norm(x) @ self.head_weight.T


@pytest.mark.parametrize("context", ["causal", "block_causal"])
def test_next_token_at_block_size_one_trains_like_an_ordinary_gpt(context):
    """The same weights and data: the same loss at each of 20 optimizer steps, to rounding (float64)."""
    vocab, end = 11, 10
    ours = toy_model(context, "next_token", vocab=vocab)
    gpt = GPT(ours.config, vocab).double()
    gpt.load_state_dict(ours.state_dict())
    optimizers = [torch.optim.AdamW(m.parameters(), lr=3e-3) for m in (ours, gpt)]
    first, last = 0.0, 0.0
    for step in range(20):
        tokens = random_tokens(4, 12, vocab=3, seed=step)
        everything = torch.ones_like(tokens, dtype=torch.bool)
        masking = Count().draw(NoiseKeys(0, step, torch.arange(4), 0, 4), everything, 1, 1, True)
        loss = masked_loss(ours, tokens, masking, 1).total / tokens.numel()
        logits = gpt(F.pad(tokens[:, :-1], (1, 0), value=end))
        reference = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        torch.testing.assert_close(loss, reference, rtol=0, atol=1e-9)
        for optimizer, value in zip(optimizers, (loss, reference), strict=True):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        last = float(loss.detach())
        first = first or last
    assert last < 0.7 * first, "it trained"


def test_in_place_at_block_size_one_agrees_with_its_exact_likelihood():
    from toy import nll_of

    model = toy_model(dtype=torch.float32)
    tokens = random_tokens(4, 10)
    masking = Count().draw(
        NoiseKeys(0, 0, torch.arange(4), 0, 4), torch.ones_like(tokens, dtype=torch.bool), 1, 1, True
    )
    with torch.no_grad():
        loss = masked_loss(model, tokens, masking, 1).total
        exact = nll_of(model, tokens, 1, "exact").nll.sum()
    assert float(loss) == pytest.approx(float(exact), rel=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"qk_norm": False}, {"tied_embeddings": True}, {"n_kv_heads": 1}, {"n_kv_heads": 4}]
)
def test_variants_train_and_agree_between_backends(options):
    model = toy_model(**options)
    tokens = random_tokens(2, 11)
    masked = torch.rand(2, 1, 11, generator=torch.Generator().manual_seed(0)) < 0.5
    results = []
    for backend in (Eager(), SDPA()):
        model.attend = backend
        hidden = two_stream_hidden(model, tokens, masked, 4)
        loss = model.head(hidden).log_softmax(-1).square().mean()
        results.append((loss, torch.autograd.grad(loss, list(model.parameters()))))
    torch.testing.assert_close(results[0][0], results[1][0])
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_rows_that_are_read_have_a_backward_without_a_sort() -> None:
    """An index of tensors has one that adds to the same places perhaps, for which a GPU sorts the index."""

    class Adding(TorchDispatchMode):
        found: ClassVar[list[str]] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
            if "index_put" in str(func) and True in args[3:4]:
                self.found.append(str(func))
            return func(*args, **(kwargs or {}))

    x = torch.zeros(3, 2, requires_grad=True)
    with Adding():
        x[torch.tensor([0, 2])].sum().backward()
    assert len(Adding.found) == 1
    tokens = random_tokens(2, 8)
    for prediction in ("in_place", "next_token"):
        model = toy_model(prediction=prediction)
        masking = Count().draw(NoiseKeys(0, 0, torch.arange(2), 0, 2), torch.ones_like(tokens).bool(), 4, 1, True)
        with Adding():
            masked_loss(model, tokens, masking, 4).total.backward()
    assert len(Adding.found) == 1


def test_the_head_cannot_say_mask():
    for tied in (False, True):
        model = toy_model(tied_embeddings=tied)
        assert model.head(torch.randn(3, 16, dtype=torch.float64)).shape == (3, 7)
        assert model.embedding.num_embeddings == 8
        assert model.mask_token_id == 7


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rms_norm_is_torchs(dtype):
    norm = RMSNorm(24, 1e-5).to(torch.float64 if dtype == torch.float64 else torch.float32)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
    x = (torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    results = []
    for f in (norm, lambda t: F.rms_norm(t, (24,), norm.weight.to(t.dtype), 1e-5)):
        leaf = x.clone().requires_grad_()
        y = f(leaf)
        gradients = torch.autograd.grad(y, (leaf, norm.weight), torch.linspace(-1, 1, 24).expand_as(y).to(y.dtype))
        results.append((y, *gradients))
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 0.06}[dtype]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=tolerance, atol=tolerance)


def rotary_angles(positions, head_dim, theta, dtype):
    return Rope(head_dim, theta).angles(positions, int(positions.max()) + 1, positions.device, dtype)


def test_rms_norm_and_rotation_have_the_gradients_of_their_formulae():
    norm = RMSNorm(6, 1e-5).double()
    x = torch.randn(2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,))
    angles = rotary_angles(torch.arange(3)[None], 6, 10000.0, torch.float64)
    rows = x.unsqueeze(2).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: rotate(t, angles), (rows,))


def test_rotary_scores_depend_on_distance_alone():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 8, dtype=torch.float64, generator=generator) for _ in range(2))

    def score(i, j):
        a, b = (rotary_angles(torch.tensor([[p]]), 8, 10000.0, torch.float64) for p in (i, j))
        return float((rotate(q, a) * rotate(k, b)).sum())

    assert score(3, 5) == pytest.approx(score(1003, 1005), abs=1e-9)
    assert score(3, 5) != pytest.approx(score(3, 6), abs=1e-3)


def test_sizes_that_do_not_fit_are_refused():
    for options, message in [
        ({"dim": 10, "n_heads": 4}, r"model.n_heads: 4 does not divide model.dim 10"),
        ({"dim": 12, "n_heads": 4}, r"heads of even size"),
        ({"dim": 16, "n_heads": 4, "n_kv_heads": 3}, r"model.n_kv_heads: 3 does not divide model.n_heads 4"),
        ({"n_layers": 0}, r"model.n_layers: 0 is too small"),
    ]:
        with pytest.raises(ValueError, match=message):
            Transformer(ModelConfig(**options), 7, 6)


def test_a_fresh_model_is_nearly_uniform_whatever_its_shape():
    import math

    for dim, n_layers in itertools.product((32, 128), (2, 8)):
        torch.manual_seed(0)
        model = Transformer(ModelConfig(dim=dim, n_layers=n_layers), 50, 49)
        masked = torch.ones(2, 1, 16, dtype=torch.bool)
        tokens = random_tokens(2, 16, vocab=50)
        loss = F.cross_entropy(model.head(two_stream_hidden(model, tokens, masked, 4)), tokens.flatten())
        assert float(loss.detach()) == pytest.approx(math.log(50), abs=0.15)
