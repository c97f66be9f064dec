"""The masked cross-entropy: exact at block size 1, by count, by hand, with an autoregressive part."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from estimates import noise_of
from toy import MODES, nll_of, random_tokens, toy_model

from hybrid.data.batches import Batch
from hybrid.likelihoods import Rows
from hybrid.likelihoods.enumerated import mask_table
from hybrid.model.masks import TwoStream
from hybrid.model.two_stream import two_stream_hidden
from hybrid.objectives.cross_entropy import MaskedCrossEntropy, MaskedLoss, masked_loss
from hybrid.objectives.estimators import Count, Masking
from hybrid.objectives.noise import NoiseKeys


@pytest.mark.parametrize("mode", MODES)
def test_block_size_one_is_the_autoregressive_cross_entropy(mode):
    """The same number whatever the noise, and equal to the sum of the log-probabilities of the next token."""
    model = toy_model(*mode)
    tokens = random_tokens(3, 9)
    everything = torch.ones_like(tokens, dtype=torch.bool)
    losses = [
        float(masked_loss(model, tokens, Count().draw(noise_of(3, step), everything, 1, 1, True), 1).total.detach())
        for step in range(4)
    ]
    assert len(set(losses)) == 1, "no noise is left at block size 1"
    log_probs = torch.stack(
        [
            model.head(_next_hidden(model, tokens, position)).log_softmax(-1).gather(1, tokens[:, position, None])[:, 0]
            for position in range(9)
        ]
    )
    assert losses[0] == pytest.approx(-float(log_probs.detach().sum()), abs=1e-10)


def _next_hidden(model, tokens, position):
    """State that predicts `position` from the tokens before it, in a forward of its own."""

    cut = tokens[:, : position + 1]
    masked = torch.zeros(len(tokens), 1, position + 1, dtype=torch.bool)
    masked[..., -1] = True
    return two_stream_hidden(model, cut, masked, 1)


@pytest.mark.parametrize("prediction", ["in_place", "next_token"])
def test_the_autoregressive_loss_shares_the_clean_pass(prediction):
    """Its value is the NLL of the causal rows, the ELBO part is as without it, and both gradients add up; documents
    included."""
    model = toy_model("causal", prediction)
    tokens = random_tokens(3, 10)
    is_target = torch.rand(3, 10, generator=torch.Generator().manual_seed(1)) < 0.8
    documents = torch.tensor([[0] * 6 + [1] * 4, [0] * 10, [0, 1, 2, 2, 2, 2, 2, 3, 3, 3]])
    batch = Batch(tokens, is_target, documents)

    def gradient(total):
        parameters = list(model.parameters())
        return torch.cat([g.flatten() for g in torch.autograd.grad(total, parameters)])

    alone = MaskedCrossEntropy(Count(), draws=2).loss(model, batch, noise_of(3), 4)
    both = MaskedCrossEntropy(Count(), draws=2, ar_weight=0.5).loss(model, batch, noise_of(3), 4)
    if prediction == "in_place":
        by_hand = _nll_of_causal_rows(model, batch)
    else:
        by_hand = MaskedCrossEntropy(Count()).loss(model, batch, noise_of(3), 1).total
    torch.testing.assert_close(both.logged["nelbo"], alone.total.detach())
    assert both.logged["ar_nll"] == both.autoregressive and set(alone.logged) == {"nelbo"}
    torch.testing.assert_close(both.autoregressive, by_hand)
    torch.testing.assert_close(nll_of(model, tokens, 4, "causal", 1, 0, documents, is_target).nll.sum(), by_hand)
    torch.testing.assert_close(both.total, alone.total + 0.5 * by_hand)
    torch.testing.assert_close(gradient(both.total), gradient(alone.total) + 0.5 * gradient(by_hand))


def test_what_the_autoregressive_loss_is_at_block_size_1():
    """Of next_token it is the loss already; of in_place, which reads MASKs there, it is another one."""
    batch = Batch(random_tokens(3, 10), torch.ones(3, 10, dtype=torch.bool), None)
    objective = MaskedCrossEntropy(Count(), ar_weight=0.5)
    assert objective.loss(toy_model("causal", "next_token"), batch, noise_of(3), 1).autoregressive is None
    model = toy_model("causal")
    got = objective.loss(model, batch, noise_of(3), 1)
    torch.testing.assert_close(got.autoregressive, _nll_of_causal_rows(model, batch))
    assert got.logged["nelbo"] != got.logged["ar_nll"]


def _nll_of_causal_rows(model, batch):
    """Each document by itself through a plain causal pass, its first token off a MASK that sees nothing."""
    alone = model(torch.tensor([[model.mask_token_id]]), TwoStream.of(1, 1))
    total = torch.zeros((), dtype=torch.float64)
    for row, tokens in enumerate(batch.tokens):
        document = torch.zeros_like(tokens) if batch.documents is None else batch.documents[row]
        for number in document.unique().tolist():
            text, counts = tokens[document == number], batch.is_target[row][document == number]
            causal = model(text[None], TwoStream.of(len(text), 1, "causal", "next_token"))[:, :-1]
            logits = model.head(torch.cat([alone, causal], dim=1))[0]
            total = total + F.cross_entropy(logits, text, reduction="none")[counts].sum()
    return total


def test_a_prompt_is_given_and_its_answer_scored():
    """With is_target, the count form is the bound of the answer given the prompt tokens of its own block."""
    model, tokens = toy_model(vocab=4), random_tokens(2, 4, vocab=4)
    is_target = torch.tensor([[False, True, False, True]] * 2)
    got = nll_of(model, tokens, 4, draws="all", is_target=is_target).nll
    (table, _), *_ = mask_table(model, Rows.of(tokens), 4)
    both, first, second = 0b1010, 0b0010, 0b1000
    by_hand = -(table[:, first, 1] + table[:, second, 3]) / 2 - (table[:, both, 1] + table[:, both, 3]) / 2
    torch.testing.assert_close(got, by_hand)


def test_losses_by_count_are_those_of_the_masks():
    model, tokens = toy_model(), random_tokens(3, 10)
    masking = Count().draw(noise_of(3), torch.ones_like(tokens, dtype=torch.bool), 4, 2, True)
    loss = masked_loss(model, tokens, masking, 4)
    sums, counts = loss.by_count(4)
    assert counts.sum() == 3 * 2 * 3
    assert counts[0] == 0
    # L m_n summed over blocks is the loss again; blocks of 4, 4 and 2 tokens.
    losses = torch.zeros(masking.masked.shape, dtype=torch.float64)
    losses[masking.masked] = loss.cross_entropy
    by_hand = [[], [], [], [], []]
    for row, draw, block in itertools.product(range(3), range(2), range(3)):
        part = masking.masked[row, draw, 4 * block : 4 * block + 4]
        by_hand[int(part.sum())].append(float(losses[row, draw, 4 * block : 4 * block + 4][part].mean()))
    for n in range(1, 5):
        assert counts[n] == len(by_hand[n])
        assert float(sums[n]) == pytest.approx(sum(by_hand[n]))


def test_cross_entropy_is_torchs():
    model, tokens = toy_model(), random_tokens(2, 5)
    masked = torch.ones(2, 1, 5, dtype=torch.bool)
    loss = masked_loss(model, tokens, Masking(masked, masked.double()), 5)
    expected = F.cross_entropy(
        model.head(two_stream_hidden(model, tokens, masked, 5)), tokens.flatten(), reduction="sum"
    )
    torch.testing.assert_close(loss.total, expected)


def test_losses_by_block_and_by_count_by_hand():
    """Two draws of one row of five tokens in blocks of three; the last block is short."""
    masked = torch.tensor([[[True, False, True, False, True], [False, False, False, True, True]]])
    loss = MaskedLoss(torch.tensor(0.0), torch.tensor([1.0, 3.0, 5.0, 2.0, 8.0]), Masking(masked, masked.double()))
    n, mean = loss.by_block(3)
    assert n.tolist() == [[[2, 1], [0, 2]]] and mean.tolist() == [[[2.0, 5.0], [0.0, 5.0]]]
    sums, counts = loss.by_count(3)
    assert sums.tolist() == [0.0, 5.0, 7.0, 0.0] and counts.tolist() == [1, 1, 2, 0]


def test_a_loss_is_a_mean_over_draws_and_documents_are_kept_apart():
    """At block size 1 nothing is random; draws of a longer block are those that `Bound` averages."""
    model, tokens = toy_model(), random_tokens(3, 8)
    everything = torch.ones_like(tokens, dtype=torch.bool)
    documents = (torch.arange(8) >= 4).long().expand(3, -1)
    for of in (None, documents):
        batch = Batch(tokens, everything, of)
        noise = NoiseKeys.of_rows(0, torch.arange(3))
        got = MaskedCrossEntropy(Count(), draws=5).loss(model, batch, noise, 4).total
        expected = nll_of(model, tokens, 4, draws=5, keys=torch.arange(3), documents=of).nll.sum()
        torch.testing.assert_close(got, expected)
    apart, joined = (
        MaskedCrossEntropy(Count()).loss(model, Batch(tokens, everything, of), noise_of(3), 1)
        for of in (documents, None)
    )
    halves = [nll_of(model, part, 1, "exact").nll.sum() for part in (tokens[:, :4], tokens[:, 4:])]
    torch.testing.assert_close(apart.total, sum(halves))
    assert abs(float((joined.total - apart.total).detach())) > 0.1
