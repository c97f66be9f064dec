"""The loop of speculation: draft, check, keep what stands; each text goes on where it is.

Keys and values that stay are those of clean rows. What the check has read of a draft that does not stand is written
over by the next forward, like the rows of the draft.

Shape legend: r active rows, L length of a round, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from hybrid import rng
from hybrid.decoding.acceptance import Noise, checked, drafted, draw
from hybrid.decoding.decoder import probability
from hybrid.decoding.denoiser import LiveBlocks, Row
from hybrid.decoding.results import Change, GenerationState
from hybrid.decoding.sampling import Uniforms
from hybrid.decoding.session import Session, Watch
from hybrid.device import send
from hybrid.model.block_pass import BlockRows

FIRST, GROWTH = 4, 2
"""Length of a first draft that adapts itself, and what it grows by."""


class Lengths:
    """What a round of each text may write: the same always, or more where all drafts stood and less where not.

    Two more or one less are in balance where one of three drafts stands whole. Nothing but the earlier rounds of the
    same text decides, so that no text depends on its batch, and none on its own future.
    """

    def __init__(self, least: int, most: int, adapts: bool):
        self.least, self.most, self.adapts = min(least, most), most, adapts
        self._of: dict[int, int] = {}

    def __getitem__(self, row: Row) -> int:
        return self._of.get(row.index, max(min(FIRST, self.most), self.least) if self.adapts else self.most)

    def learn(self, row: Row, stood_whole: bool) -> None:
        """Take the outcome of a round that had a draft."""
        if self.adapts:
            self._of[row.index] = max(min(self[row] + (GROWTH if stood_whole else -1), self.most), self.least)


class Draft(LiveBlocks):
    """What a round may write in the active rows: no more than they want, in whatever company."""

    def __init__(self, session: Speculation, lengths: Sequence[int]):
        rows = session.active
        super().__init__(rows, session.text, session.is_given, max(lengths), session.end, session.mask)
        self.n_valid = [min(length, row.end - row.start) for length, row in zip(lengths, rows, strict=True)]


def picked(hidden: Tensor, index: Tensor) -> Tensor:
    """(r, q, dim), (r, n) -> (r, n, dim)"""
    return hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))


class Speculation(Session):
    """One generation in rounds.

    Args:
        length: tokens that a round writes at most; 1: plain autoregressive decoding.
        rule: one of `RULES`.
        adapt: a text's rounds may write less where its drafts do not stand.
    """

    branched: ClassVar[bool] = False  # its forwards have `length` branches of `length` rows

    def __init__(
        self, engine: Any, prompts: list[list[int]], max_new_tokens: int, row_keys: Sequence[int], watch: Watch | None,
        length: int, rule: str = "", adapt: bool = False,
    ):  # fmt: skip
        length = min(length, max(len(prompt) for prompt in prompts) + max_new_tokens)  # no text has more
        super().__init__(engine, prompts, max_new_tokens, row_keys, watch, block_size=1, margin=length,
            spare=length * length if self.branched else 0)  # fmt: skip
        self.length, self.rule = length, rule
        self.lengths = Lengths(least=3, most=length, adapts=adapt)  # of three tokens one is drafted
        for row in self.rows:
            row.end = len(row.prompt) + max_new_tokens
        self.network = self.networks.denoiser
        self.network.recorded = 1 + length
        self.kept = [0] * (length + 1) if length > 1 else []

    def write(self) -> Iterator[GenerationState]:
        n_round = 0
        while self.active:
            self._round(n_round)
            n_round += 1
            yield self.state()

    def _round(self, n_round: int) -> None:
        """Write the tokens of a round."""
        live = Draft(self, [self.lengths[row] for row in self.active])
        latent = self._latent(live.places, live.tokens.shape[1])
        first, drafts = self.network.read_behind(self.text, live, live.tokens, latent)
        sampling, noise = self.engine.config, self._noise(live, live.position, n_round)
        start = self._log_probs(first[:, None])
        tokens = live.tokens.clone()
        tokens[:, :1] = draw(sampling, start, noise.check[:, :1])
        n_valid = send(torch.tensor(live.n_valid), tokens.device)
        laws, stand = [start], torch.ones_like(n_valid)
        if max(live.n_valid) > 1:
            rest = noise.behind_the_first()
            q = self._log_probs(drafts[:, 1:-1])
            draft = drafted(self.rule, sampling, q, rest)
            tokens[:, 1:-1] = draft
            p = self._log_probs(self._check(live, tokens))
            is_draft = torch.arange(1, tokens.shape[1] - 1, device=tokens.device) < n_valid[:, None] - 1
            tokens[:, 1:], more = checked(self.rule, sampling, p, q, draft, is_draft, rest)
            laws, stand = [start, p], torch.minimum(1 + more, n_valid)
        counts = self._keep(live, tokens, stand, torch.cat(laws, dim=1) if self.watch is not None else None)
        for row, count, most in zip(live.rows, counts, live.n_valid, strict=True):
            if most > 2:
                self.lengths.learn(row, count == most)

    def _latent(self, places: list[tuple[int, int]], length: int) -> Tensor | None:
        """(p, length, model.latent) random numbers of MASK for drafts at some places, given which q is, or None."""
        model, config = self.network.model.config, self.engine.config
        if not model.latent or config.latent == "none":
            return None
        return Uniforms(config.seed, length).normals(model, places, 0, self.text.device)

    def _noise(self, live: Draft, position: Tensor, n_round: int) -> Noise:
        """Key the check at `position` (r, n) as plain decoding does, and what else the rule draws by the round."""
        row_key = send(torch.tensor([[row.row_key] for row in live.rows]), live.tokens.device)

        def uniform(purpose: int, step: int) -> Tensor:
            return rng.uniform(self.engine.config.seed, purpose, row_key, position, step)

        check = uniform(rng.TOKEN, 0)
        draft = uniform(rng.DRAFT, n_round) if self.rule in ("match", "rejection") else check
        return Noise(check, draft, uniform(rng.ACCEPT, n_round) if self.rule == "rejection" else check)

    def _log_probs(self, hidden: Tensor) -> Tensor:
        """(r, n, dim) -> (r, n, V) of what may be written, at temperature 1."""
        return self.network.writable(self.network.log_probs(hidden))

    def _check(self, live: Draft, tokens: Tensor) -> Tensor:
        """Return hidden states (r, L - 1, dim) that predict `tokens` but the first, each off the row before it."""
        network = self.network
        if not network.cached:
            network.cache.reset()
        before = network.unread(self.text, live)  # nothing, with a cache
        clean = [torch.cat([b, row[: n - 1]]) for b, row, n in zip(before, tokens, live.n_valid, strict=True)]
        rows = BlockRows(network.cache.lengths, clean, tokens, live.n_valid).without_live()
        network.nfe += 1
        hidden = network.clean_hidden(rows, network.sight_of(live))
        first = send(torch.tensor([len(b) for b in before]), tokens.device)[:, None]
        index = (first + torch.arange(tokens.shape[1] - 1, device=tokens.device)).clamp(max=rows.n_pending - 1)
        return picked(hidden, index)

    def _keep(self, live: Draft, tokens: Tensor, stand: Tensor, law: Tensor | None) -> list[int]:
        """Write the first `stand` (r,) of `tokens` (r, L) in each row, all but the last of which have been read; return
        `stand`."""
        network = self.network
        *columns, counts = torch.cat([tokens, stand[:, None]], dim=1).t().tolist()  # for which the host waits once
        texts = [list(row) for row in zip(*columns, strict=True)]
        if network.cached:
            begin, read = network.model.config.begin, zip(live.rows, counts, network.cache.lengths, strict=True)
            network.cache.commit([begin + row.start + count - 1 - n for row, count, n in read])
        stands = torch.arange(tokens.shape[1], device=tokens.device) < stand[:, None]
        self.text[live.index, live.position] = torch.where(stands, tokens, live.tokens)
        for k, (row, new, count) in enumerate(zip(live.rows, texts, counts, strict=True)):
            if law is not None and self.watch is not None:
                sure = probability(law[k, :count], tokens[k, :count]).tolist()
                places = range(row.start, row.start + count)
                self.watch(row.index, Change(network.nfe, list(zip(places, new, sure, strict=False)), []))
            first, end = max(row.start, len(row.prompt)), row.start + count
            self.finish(row, first, new[first - row.start : count], end)
            wanted = len(row.prompt) + row.n_new if end > len(row.prompt) else end  # up to the end of the text
            if self.length > 1:
                self.kept[wanted - row.start] += 1
            row.start = end
        self.drop_finished()
        return counts
