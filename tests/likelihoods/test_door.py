"""A likelihood of one's own: an entry of the table, and nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import Command

import hybrid
from hybrid.data.batches import PackedTokens
from hybrid.likelihoods import LIKELIHOODS, Likelihood, LikelihoodMethod, Rows
from hybrid.likelihoods.enumerated import mask_table
from hybrid.model.two_stream import two_stream_hidden


@dataclass(frozen=True)
class Pseudo(LikelihoodMethod):
    """The pseudo-likelihood: each token given all others that it may see (Salazar et al. 1910.14659)."""

    relation = "~"
    scale: float = 1.0

    def nll(self, model, rows, block_size, draws=1, seed=0):
        shape = rows.tokens.shape
        masked = torch.eye(shape[1], dtype=torch.bool).expand(len(rows.tokens), -1, -1)  # a draw masks one token
        hidden = two_stream_hidden(model, rows.tokens, masked, block_size, rows.documents)
        log_probs = model.head(hidden).log_softmax(-1).unflatten(0, shape).double()
        chosen = log_probs.gather(-1, rows.tokens[..., None]).squeeze(-1)
        return Likelihood.without_noise(-self.scale * (chosen * rows.is_target).sum(1), rows, "pseudo")


def test_lm_nll_and_evaluate_take_an_entry_of_ones_own(
    lm: hybrid.LanguageModel,
    split: PackedTokens,
    command: Command,
    copy_of_trained: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(LIKELIHOODS, "pseudo", Pseudo)
    tokens = split.rows(range(3)).tokens
    got = lm.nll(tokens, 4, "pseudo")
    with torch.no_grad():
        blocks = mask_table(lm.model, Rows.of(tokens), 4)
    expected = -sum(table[:, 1 << i, i] for table, _ in blocks for i in range(4))
    torch.testing.assert_close(got.nll, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(lm.nll(tokens, 4, {"name": "pseudo", "scale": 2.0}).nll, 2 * got.nll)
    assert torch.equal(lm.nll(tokens, 4, Pseudo(), is_target=tokens < 0).nll, torch.zeros(3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"method\.scael: pseudo has no such option .*did you mean 'scale'"):
        lm.nll(tokens, 4, {"name": "pseudo", "scael": 2.0})
    with pytest.raises(ValueError, match="draws: 'all' must be an integer of at least 1 for method='pseudo'"):
        lm.nll(tokens, 4, "pseudo", draws="all")
    words = ["--checkpoint", copy_of_trained, "--block-size", 4, "--rows", 3, "--draws", 1, "--orders", "all"]
    done = command("evaluate", *words)
    assert done.code == 0, done.err
    (line,) = [line for line in done.out.splitlines() if "pseudo" in line]
    *_, saved = json.loads((copy_of_trained / "eval.json").read_text())["results"]
    assert saved["likelihood"] == "pseudo" and f"~ {saved['nats_per_token']:>8.4f}" in line
    assert saved["nats_per_token"] == pytest.approx(float(got.nll.sum()) / 96, rel=1e-6)
    settings = json.loads((copy_of_trained / "eval.json").read_text())["settings"]
    assert not {"likelihoods", "imports"} & set(settings), "so that a sweep knows older results as the same"


def test_evaluate_is_asked_for_it_by_name_with_its_options(
    command: Command, copy_of_trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LIKELIHOODS, "pseudo", Pseudo)
    words = ["evaluate", "--checkpoint", copy_of_trained, "--rows", 3, "--draws", 1, "--likelihoods"]
    done = command(*words, "pseudo", "pseudo:scale=2.0", "enumerate", "--block-size", 1, 4)
    assert done.code == 0, done.err
    lines = json.loads((copy_of_trained / "eval.json").read_text())["results"]
    found = {(line["block_size"], line["likelihood"]): line["nats_per_token"] for line in lines}
    names = {1: ["exact", "pseudo", "pseudo:scale=2.0"], 4: ["bound", "pseudo", "pseudo:scale=2.0", "enumerate"]}
    assert list(found) == [(size, name) for size, of_size in names.items() for name in of_size]
    for size in (1, 4):
        assert found[size, "pseudo:scale=2.0"] == pytest.approx(2 * found[size, "pseudo"])
    assert [line for line in done.out.splitlines() if line.startswith("~")] == ["~  the likelihood of no procedure"]
    assert "--likelihoods.scael: pseudo has no such option" in command(*words, "pseudo:scael=2").error
    assert "--likelihoods: 'psuedo' is not one of" in command(*words, "psuedo").error
