"""Generation with random numbers in MASK: when they are drawn, and what comes of keeping them."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from decoding_toy import engine, sample_counts
from torch import Tensor
from toy import MODES, latent_model, toy_model

from hybrid.decoding.denoiser import LiveBlocks, Network

PROMPTS = [[], [1, 5, 3], [5, 1, 4, 3, 1]]


@pytest.mark.parametrize(
    ("mode", "spec", "latent", "per"),
    [
        (MODES[0], "first_hitting", "fresh", "block"),
        (MODES[1], {"name": "p2", "steps": 3}, "keep", "position"),
        (MODES[2], {"name": "confidence", "steps": 2}, "fresh", "position"),
    ],
)
def test_texts_are_the_same_cached_and_not_alone_and_in_a_batch(mode: Any, spec: Any, latent: str, per: str) -> None:
    """And as static forwards."""
    model, prompts = latent_model(*mode, latent_per=per, dtype=torch.float32, n_layers=1), PROMPTS[1:]

    def texts(*prompts: list[int], **options: Any) -> list[list[int]]:
        return engine(model, 4, spec, seed=3, latent=latent, **options).generate(prompts, 7).tokens

    batch = texts(*prompts)
    assert texts(*prompts, cache=False) == texts(*prompts, graphs=True) == batch
    assert [texts(prompt)[0] for prompt in prompts] == batch


def test_all_branches_of_a_step_have_them() -> None:
    """Guidance without the prompt and a planner of other weights read the same numbers; `none` is the plain model."""
    model, planner = (latent_model(n_layers=1, latent_per="block", seed=seed) for seed in (0, 1))
    plain = toy_model(n_layers=1)
    seen: list[tuple[bool, Tensor | None]] = []

    class Seen(Network):
        def read(self, text: Tensor, live: LiveBlocks, tokens: Tensor, latent: Tensor | None = None) -> Tensor:
            seen.append((self.sees_prompts, latent))
            return super().read(text, live, tokens, latent)

    engine(model, 4, {"name": "p2", "steps": 1}, guidance=1.0, planner=planner, network=Seen).generate([[1, 2, 3]], 1)
    assert len(seen) == 3 and [sees for sees, _ in seen].count(False) == 1
    first = seen[0][1]
    assert first is not None and all(z is not None and torch.equal(z, first) for _, z in seen)
    assert first.shape == (1, 4, 3) and torch.equal(first[0, 0], first[0, 3]) and len(first.unique()) == 3
    without = engine(model, 4, seed=2, latent="none").generate(PROMPTS, 9).tokens
    assert without == engine(plain, 4, seed=2).generate(PROMPTS, 9).tokens
    assert without != engine(model, 4, seed=2).generate(PROMPTS, 9).tokens


class Exact(Network):
    """The source (a, b, b) of two fair bits. p(x | z) of its masked tokens has their exact law over z: the first bit
    that is missing is the sign of the first number, the second one that of the second."""

    def read(self, text: Tensor, live: LiveBlocks, tokens: Tensor, latent: Tensor | None = None) -> Tensor:
        self.nfe += 1
        assert latent is not None
        z = (latent[:, 0] > 0).long()
        known = [torch.where(tokens[:, i] == self.model.mask_token_id, -1, tokens[:, i]) for i in range(3)]
        a = torch.where(known[0] < 0, z[:, 0], known[0])
        b = torch.where(known[0] < 0, z[:, 1], z[:, 0])
        b = torch.where(known[1] < 0, torch.where(known[2] < 0, b, known[2]), known[1])
        states = torch.nn.functional.one_hot(torch.stack([a, b, b], 1), self.model.config.dim)
        return 100.0 * states.float()


def test_keeping_them_breaks_the_law() -> None:
    """Total variation to the source (a, b, b) with exact conditionals: 0 with fresh numbers, 1/2 with kept ones.

    A deviation of 0.06 in 2,000 texts has a probability below 1e-6.
    """
    model = toy_model(vocab=3, latent=2, latent_per="block", n_layers=1, dtype=torch.float32)
    with torch.no_grad():
        assert model.head_weight is not None
        model.head_weight.copy_(torch.eye(3, 16))
    source = torch.zeros(3, 3, 3)
    source[[0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 0, 1]] = 0.25
    spec = {"name": "left_to_right", "steps": 2, "plan": "cosine"}  # a, then both b
    distance = {}
    for latent in ("fresh", "keep"):
        counts = sample_counts(model, spec, 3, 3, 3, 2000, network=Exact, latent=latent)
        distance[latent] = float((counts / 2000 - source.flatten()).abs().sum()) / 2
    assert distance["fresh"] < 0.06 and distance["keep"] == pytest.approx(0.5, abs=0.06)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"latent: 'keep' has no effect on a model with model\.latent=0"):
        engine(toy_model(), 4, latent="keep")
    with pytest.raises(ValueError, match="latent: 'new' is not one of fresh, keep, none"):
        engine(latent_model(), 4, latent="new")


def test_what_reads_no_mask_says_so() -> None:
    """The autoregressive decoder, and a `next_token` network at block size 1."""
    model = latent_model("causal", "next_token")
    for size, decoder in ((4, "autoregressive"), (1, "first_hitting")):
        with pytest.warns(UserWarning, match="latent: 'keep' has no effect, since nothing is read off a MASK"):
            engine(model, size, decoder, latent="keep")
    for size, decoder in ((4, "first_hitting"), (4, "speculative")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            engine(model, size, decoder, latent="keep")
