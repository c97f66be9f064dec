"""The table of likelihoods: what every entry promises."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from toy import nll_of, random_tokens, toy_model

from hybrid.likelihoods import LIKELIHOODS, LikelihoodMethod
from hybrid.likelihoods.base import BOUND, EQUAL, NO_PROCEDURE
from hybrid.model import ModelConfig
from hybrid.options import build

OPTIONS = {"policy": {"decoder": "margin"}, "latent_bound": {"steps": 2, "latents": 3}}
CAUSAL = ("causal", "next_token")


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_contract_of_a_likelihood(name: str) -> None:
    """Frozen; its result bears its name; a row is float64 nats and given tokens are not counted; a block that is too
    long is refused. What is the likelihood of a procedure, or bounds it, is exact at block size 1, where there is one
    order, and the more tokens count, the larger."""
    entry, spec = LIKELIHOODS[name], {"name": name, **OPTIONS.get(name, {})}
    assert issubclass(entry, LikelihoodMethod) and entry.__doc__ and entry.relation in (EQUAL, BOUND, NO_PROCEDURE)
    assert dataclasses.is_dataclass(entry) and entry.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert build(LIKELIHOODS, spec, "method") == build(LIKELIHOODS, spec, "method")
    model = toy_model(*(() if entry.is_of(ModelConfig()) else CAUSAL))
    tokens, size = random_tokens(3, 14), min(entry.max_block_size or 4, 4)
    is_target = torch.arange(14).expand(3, -1) >= 5
    with torch.no_grad():
        whole, part = (nll_of(model, tokens, size, spec, draws=3, is_target=target) for target in (None, is_target))
        if entry.relation != NO_PROCEDURE or name == "best_order":
            exact = nll_of(model, tokens, 1, "exact").nll
            assert torch.allclose(nll_of(model, tokens, 1, spec, draws=2).nll, exact), "there is only one order"
            assert (part.nll < whole.nll).all()
        assert not nll_of(model, tokens, size, spec, draws=2, is_target=tokens < 0).nll.any()
        if not entry.is_of(ModelConfig()):
            with pytest.raises(ValueError, match=f"method: '{name}' needs a network of prediction=next_token, or"):
                nll_of(toy_model(), tokens, size, spec)
        for result, n in ((whole, 14), (part, 9)):
            assert result.method.partition(":")[0] == name and result.tokens.tolist() == [n] * 3
            assert result.nll.shape == result.stderr.shape == (3,)
            assert result.nll.dtype == result.stderr.dtype == torch.float64
        assert (whole.stderr >= 0).all()
        if entry.max_block_size is not None:
            with pytest.raises(ValueError, match=str(entry.max_block_size)):
                nll_of(model, tokens, entry.max_block_size + 1, spec)
        if entry.takes_all_draws and name != "exact":
            assert not nll_of(model, tokens, size, spec, draws="all").stderr.any()
