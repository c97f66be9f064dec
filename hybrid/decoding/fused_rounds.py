"""Speculation in rounds of one forward, which checks a draft and makes the next one for each outcome of the check.

Behind each token of the draft, and before the first, stand MASKs for the case that no more of it stands
(`model/branches.py`). Which of these branches counts is known when the check is read; its tokens are drawn then, and
the head reads no other. The token behind what stands comes off the check, and the branch was made without it.

The first forward of a text has nothing to check: it is the one that drafts in rounds of two, and writes one token.

Shape legend: r active rows, n places that are checked, m MASKs of a branch, V vocabulary.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from hybrid.decoding.acceptance import Noise, checked, drafted, draw
from hybrid.decoding.speculation import Draft, Lengths, Speculation, picked
from hybrid.device import send
from hybrid.model.block_pass import BlockRows
from hybrid.model.branches import Branches


class Guess(NamedTuple):
    """A draft behind the last token that stands, which the next forward checks."""

    tokens: Tensor  # (r, m - 1)
    law: Tensor  # (r, m - 1, V): log-probabilities off which they were drawn
    noise: Noise  # (r, m) of these places and of the one behind them, for draft and check
    counts: list[int]  # of each row, how many of them it has


class Outcome(NamedTuple):
    """What a forward has said."""

    live: Draft
    tokens: Tensor  # (r, n)
    stand: Tensor  # (r,): how many of them
    law: Tensor  # (r, n, V) log-probabilities of the check
    hidden: Tensor  # (r, m - 1, dim), which predict the places behind what stands, but for the first


class FusedRounds(Speculation):
    """One generation in rounds of one forward; arguments as those of `Speculation`."""

    branched: ClassVar[bool] = True

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.network.recorded = self.length * (1 + self.length)
        self.lengths = Lengths(least=2, most=self.length, adapts=self.lengths.adapts)  # one token is drafted
        self.guess: Guess | None = None  # there is none before the first forward

    def _round(self, n_round: int) -> None:
        lengths, before = [self.lengths[row] for row in self.active], self.guess
        found = self._begun(lengths) if before is None else self._checked(before, lengths)
        live, stand = found.live, found.stand
        position = live.position[:, :1] + stand[:, None]
        position = position + torch.arange(found.hidden.shape[1] + 1, device=position.device)
        q = self._log_probs(found.hidden)
        noise = self._noise(live, position, n_round)
        tokens = drafted(self.rule, self.engine.config, q, noise)
        counts = self._keep(live, found.tokens, stand, found.law if self.watch is not None else None)
        for row, count, n in zip(live.rows, counts, before.counts if before else [0] * len(counts), strict=True):
            if n:
                self.lengths.learn(row, count == n + 1)
        going = [k for k, row in enumerate(live.rows) if row.finish_reason is None]
        if len(going) < len(live.rows):
            tokens, q, noise = tokens[going], q[going], noise.part(going, position.shape[1])
        # The last place of a text needs no draft.
        n_guessed = [min(lengths[k], live.rows[k].end - live.rows[k].start) - 1 for k in going]
        self.guess = Guess(tokens, q, noise, n_guessed)

    def _begun(self, lengths: list[int]) -> Outcome:
        """Read the prompts, and MASKs behind them."""
        live = Draft(self, lengths)
        latent = self._latent(live.places, live.tokens.shape[1])
        first, hidden = self.network.read_behind(self.text, live, live.tokens, latent)
        law, tokens = self._log_probs(first[:, None]), live.tokens.clone()
        tokens[:, :1] = draw(self.engine.config, law, self._noise(live, live.position, 0).check[:, :1])
        return Outcome(live, tokens, torch.ones_like(live.index[:, 0]), law, hidden[:, 1:])

    def _checked(self, guess: Guess, lengths: list[int]) -> Outcome:
        """Read a draft, and MASKs behind each part of it."""
        network, live = self.network, Draft(self, [1 + n for n in guess.counts])
        n, device = live.tokens.shape[1], live.tokens.device
        if not network.cached:
            network.cache.reset()
        before = network.unread(self.text, live)  # the last token, with a cache
        clean = [torch.cat([b, row[:k]]) for b, row, k in zip(before, guess.tokens, guess.counts, strict=True)]
        wanted = [row.end - row.start for row in live.rows]
        m = max(map(min, lengths, wanted)) if max(wanted) > 2 else 0  # of two tokens none is drafted again
        most, left = send(torch.tensor([lengths, wanted]), device).unsqueeze(-1)  # (r, 1) each
        k = torch.arange(n, device=device)
        sight = network.sight_of(live)
        sight = Branches(
            sight.block_size, sight.documents, sight.window,
            width=m, drafted=guess.counts, n_valid=torch.minimum(most, left - k).clamp(min=0),
        )  # fmt: skip
        masks = live.tokens.new_full((len(clean), n * m), network.model.mask_token_id)
        rows = BlockRows(network.cache.lengths, clean, masks, [n * m] * len(clean), self._latents(live, n, m))
        network.nfe += 1
        hidden = network.clean_hidden(rows, sight)
        last = send(torch.tensor([len(b) - 1 for b in before]), device)[:, None]
        law = self._log_probs(picked(hidden, (last + k).clamp(max=rows.n_pending - 1)))
        is_draft = k[:-1] < send(torch.tensor(guess.counts), device)[:, None]
        tokens, stand = checked(
            self.rule, self.engine.config, law, guess.law[:, : n - 1], guess.tokens[:, : n - 1], is_draft,
            guess.noise.part(slice(None), n),
        )  # fmt: skip
        branch = picked(hidden, rows.n_pending + (stand - 1)[:, None] * m + torch.arange(m, device=device))
        return Outcome(live, tokens, stand, law, branch[:, :-1] if network.model.config.begin else branch[:, 1:])

    def _latents(self, live: Draft, n: int, m: int) -> Tensor | None:
        """(r, n * m, model.latent) random numbers of MASK, of each branch those of a draft at its place."""
        places = [(key, start + k) for key, start in live.places for k in range(n)]
        latent = self._latent(places, m) if m else None
        return None if latent is None else latent.reshape(len(live.rows), n * m, -1)
