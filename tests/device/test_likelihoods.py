"""Likelihoods on a GPU: devices never mix, the numbers are those of a CPU, and waits are where a table says."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pretended_device import pretended_gpu
from torch import Tensor
from toy import MODES, nll_of, random_tokens, toy_model

from hybrid.likelihoods import LIKELIHOODS
from hybrid.model import Transformer

WAITS = {
    ("likelihoods/base.py", "Rows.content_keys"): "noise is keyed by the content of a row, which the host hashes",
    ("objectives/estimators.py", "Count._probabilities"): "the masks are drawn where the rows are; a table per length",
    ("model/masks.py", "TwoStreamRows.read_masked"): "how many tokens are masked is the size of what the head gets",
    ("model/masks.py", "TwoStreamRows.read_autoregressive"): "likewise, how many tokens count",
    ("likelihoods/exact.py", "Causal.nll"): "likewise",
    ("objectives/cross_entropy.py", "masked_loss"): "likewise",
    ("likelihoods/elbo.py", "monte_carlo"): "likewise",
    ("likelihoods/exact.py", "per_row"): "losses go back to where the masks are",
    ("likelihoods/enumerated.py", "mask_table"): "likewise, a group of masks at a time",
    ("likelihoods/orders.py", "_of_random_orders"): "likewise, a step of all orders at a time",
    ("likelihoods/orders.py", "_Walk.follow"): "how much a step reveals, and whether it takes something back",
    ("decoding/unmasking.py", "UnmaskingSchedule.counts"): "how many steps the decoder takes",
}
"""Where the host may wait: (file, function), and for what."""

METHODS: dict[str, Any] = {name: name for name in LIKELIHOODS} | {
    "policy": {"name": "policy", "decoder": ["margin", {"name": "entropy", "threshold": -0.5}]},
    "left_to_right": {"name": "policy", "decoder": "left_to_right"},
}


def score(model: Transformer, device: str, method: Any) -> tuple[Tensor, Tensor]:
    """Nats and standard errors of rows of two documents, of which some tokens are given."""
    is_target, documents = random_tokens(3, 10, vocab=4, seed=1) > 0, torch.arange(10).expand(3, -1) // 7
    found = nll_of(
        model, random_tokens(3, 10).to(device), 1 if method == "exact" else 4, method, draws=2,
        documents=documents.to(device), is_target=is_target.to(device),
    )  # fmt: skip
    return found.nll.cpu(), found.stderr.cpu()


@pytest.mark.thin(6)
@pytest.mark.parametrize("mode", MODES, ids="-".join)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_numbers_are_those_of_a_cpu_and_the_host_waits_only_where_it_may(method: Any, mode: tuple[str, str]) -> None:
    model = toy_model(*mode, n_layers=1)
    if method == "causal" and not LIKELIHOODS[method].is_of(model.config):
        pytest.skip("its clean rows see what they would predict")
    expected = score(copy.deepcopy(model), "cpu", method)
    with pretended_gpu() as gpu:
        got = score(model.to("cuda"), "cuda", method)
        assert gpu.places() - WAITS.keys() == set()
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=0)


@pytest.mark.slow
def test_every_entry_of_the_table_is_a_wait() -> None:
    """Take out of the table what no longer waits."""
    places = set()
    for method in METHODS.values():
        with pretended_gpu() as gpu:
            score(toy_model("causal", n_layers=1).to("cuda"), "cuda", method)
        places |= gpu.places()
    assert WAITS.keys() - places == set()
