"""The per-block masked ELBO: its estimators, and the loss of a batch.

With m_n the mean cross-entropy over the masked tokens when n of a block's L target tokens are masked at random,

    -log p(x^b | x^<b)  <=  sum_{n=1..L} E[m_n]

(Zheng et al. 2409.02908, prop. 3.1). An estimator draws which tokens to mask and gives each masked token a weight, such
that the expected weighted sum of cross-entropies is that bound. Add one to `OBJECTIVES` and it is a choice of
`objective.estimator`, documented by `--help` and tested for unbiasedness.

Shape legend: b rows, D noise draws, N text length, g blocks, B block size, L targets of a block, m masked tokens.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor

from hybrid.device import send
from hybrid.kernels.cross_entropy import weighted_cross_entropy
from hybrid.model import Transformer
from hybrid.model.two_stream import two_stream_hidden
from hybrid.noise import SCHEDULES, Keys, Schedule, block_uniforms, block_view, position_uniforms, target_ranks
from hybrid.options import build, option
from hybrid.proposals import PROPOSALS, Proposal, Published
from hybrid.weightings import WEIGHTINGS, Elbo, Weighting, weigh

if TYPE_CHECKING:
    from hybrid.data import Batch


@dataclass
class ObjectiveConfig:
    block_size: Any = option(8, "an integer, a list of them (one is drawn per batch), or seq_len")
    estimator: Any = option("count", "how the ELBO is estimated: an entry of OBJECTIVES")
    weighting: Any = option("elbo", "what is trained: an entry of WEIGHTINGS; validation is always the ELBO")
    proposal: Any = option("published", "count form, how many tokens to mask: an entry of PROPOSALS")
    complementary: bool = option(False, "count form: draws come in pairs that mask a set and the rest of its block")
    schedule: Any = option("linear", "time form: an entry of SCHEDULES")
    stratified: bool = option(True, "spread counts (or times) evenly over the global batch")
    draws: int = option(1, "noise draws that share one clean pass")
    ar_weight: float = option(0.0, "of an autoregressive loss on the same clean pass (needs model.context=causal)")


@dataclass(frozen=True)
class Masking:
    """Which tokens are masked, (b, D, N) booleans, and the weight (b, D, N) of each one's cross-entropy."""

    masked: Tensor
    weight: Tensor

    @classmethod
    def of_blocks(cls, masked: Tensor, weight: Tensor, length: int) -> Masking:
        """From (b, D, g, B) booleans and weights that broadcast against them; `length` is N."""
        flat = masked.flatten(2)[..., :length], weight.expand(masked.shape).flatten(2)[..., :length].double()
        return cls(*flat)


class Estimator(Protocol):
    """An estimator whose expectation is not the bound says so in `bias`."""

    def draw(self, keys: Keys, is_target: Tensor, block_size: int, draws: int, stratified: bool) -> Masking:
        """Noise for rows whose target tokens are True in `is_target` (b, N); only those are ever masked.

        Where no noise is left, one draw stands for all.
        """
        ...


@dataclass(frozen=True)
class Count:
    """Count form: n tokens of each block are masked, n from a proposal pi; weight 1 / (n pi(n)) each, so that the block
    gives m_n / pi(n). With the uniform proposal that is L m_n.

    At L = 1 it is the exact autoregressive NLL, without noise. The number of masked tokens is all that the model needs
    to know, and it can count: no time variable. Complementary draws 2k and 2k + 1 mask a set and the rest of its block,
    n from q(n) = (pi(n) + pi(L - n)) / 2, weight 1 / (n q(n)) each: every token is masked once per pair.
    """

    proposal: Any = option("uniform", "an entry of PROPOSALS")
    complementary: bool = option(False, "draws come in pairs of a set and the rest of its block")

    def __post_init__(self) -> None:
        build(PROPOSALS, self.proposal, "proposal")

    @cached_property
    def source(self) -> Proposal:
        """Built once, since it may learn."""
        return build(PROPOSALS, self.proposal, "proposal")

    def draw(self, keys: Keys, is_target: Tensor, block_size: int, draws: int, stratified: bool) -> Masking:
        if block_size == 1:  # nothing is random
            target = is_target[:, None]
            return Masking(target, target.double())
        if self.complementary and draws % 2:
            raise ValueError(f"objective.draws: {draws} is odd; complementary draws come in pairs, so make it even")
        n_sets = draws // 2 if self.complementary else draws
        rank = target_ranks(keys, is_target, block_size, n_sets)  # (b, S, g, B)
        targets = block_view(is_target, block_size, False).sum(-1)[:, None]  # (b, 1, g): L
        q = self._probabilities(targets, block_size)  # (b, 1, g, B + 1)
        u = block_uniforms(keys, rank.shape[2], n_sets, stratified)
        below = q.cumsum(-1)
        n = (u[..., None] * below[..., -1:] >= below).sum(-1).minimum(targets)  # (b, S, g)
        chosen, counts = [rank < n[..., None]], [n]
        if self.complementary:
            chosen.append((rank >= n[..., None]) & (rank < targets[..., None]))
            counts.append(targets - n)
        masked = torch.stack(chosen, dim=2).flatten(1, 2)  # (b, D, g, B)
        n = torch.stack(counts, dim=2).flatten(1, 2)
        probability = q.expand(*n.shape, -1).gather(-1, n[..., None])
        weight = 1 / (n[..., None].clamp(min=1) * probability)
        return Masking.of_blocks(masked, weight, is_target.shape[1])

    def _probabilities(self, targets: Tensor, block_size: int) -> Tensor:
        """(b, 1, g) numbers of targets -> (b, 1, g, B + 1) float64, the probability of masking n = 0..B of them."""
        sizes, index = targets.unique(return_inverse=True)
        table = torch.zeros(len(sizes), block_size + 1, dtype=torch.float64)
        for row, size in enumerate(sizes.tolist()):
            pi = self.source.probabilities(size, block_size)
            table[row, : size + 1] = (pi + pi.flip(0)) / 2 if self.complementary else pi
        return table.to(targets.device)[index]

    def learn(self, block_size: int, targets: Tensor, n: Tensor, losses: Tensor) -> None:
        """Show a step's blocks to a proposal that learns: three (b, D, g), L, n, and m_n with its weight omega_n."""
        if self.complementary and block_size > 1:
            # What the pair contributes; that of a full and an empty half is counted twice: half of it falls on n = 0.
            pair = losses.unflatten(1, (-1, 2)).sum(2, keepdim=True).expand(-1, -1, 2, -1).flatten(1, 2)
            losses = torch.where(n == targets, 2 * pair, pair)
        real = n > 0
        self.source.learn(block_size, targets.expand_as(n)[real], n[real], losses[real])  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Time:
    """Time form: t ~ U[0, 1] per block, each token masked with probability 1 - alpha(t), weight -alpha'/(1 - alpha).

    The number of masked tokens is binomial given t, and may be 0. Same expectation as the count form for every
    schedule, more variance.
    """

    schedule: Any = option("linear", "an entry of SCHEDULES")

    def draw(self, keys: Keys, is_target: Tensor, block_size: int, draws: int, stratified: bool) -> Masking:
        schedule: Schedule = build(SCHEDULES, self.schedule, "objective.schedule")
        length = is_target.shape[1]
        t = self.time(1 - block_uniforms(keys, -(-length // block_size), draws, stratified))
        coin = position_uniforms(keys, length, draws)
        probability = schedule.masked(t)[..., None]
        masked = block_view(coin, block_size, 2.0) < probability
        weight = schedule.rate(t)[..., None] / probability.clamp(min=1e-300)
        targets = block_view(is_target, block_size, False)[:, None]
        return Masking.of_blocks(masked & targets, weight, length)

    def time(self, u: Tensor) -> Tensor:
        """Uniforms in (0, 1] -> times; never 0, where the weight would be a division by 0."""
        return u


@dataclass(frozen=True)
class Clipped(Time):
    """Time form with t ~ U[low, high] and the same weight (BD3-LM's clipped schedules): less variance, but BIASED.

    Its expectation is not the bound: masks that are rare or common outside the interval are over- or underrated.
    """

    low: float = option(0.3, "earliest time, at least 0")
    high: float = option(0.8, "latest time, at most 1")
    bias: ClassVar[str] = "times outside of [low, high] are left out; its loss is not the ELBO"

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"low: {self.low} and high: {self.high} must be 0 <= low < high <= 1")

    def time(self, u: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * u


OBJECTIVES: dict[str, Any] = {"count": Count, "time": Time, "clipped": Clipped}


def build_estimator(config: ObjectiveConfig) -> Estimator:
    """The estimator of a configuration; it is handed those of the group's keys that it has fields for."""
    spec = {"name": config.estimator} if isinstance(config.estimator, str) else config.estimator
    entry = OBJECTIVES.get(spec.get("name", "")) if isinstance(spec, dict) else None
    if entry is not None:
        fields = {f.name for f in dataclasses.fields(entry)}
        given = {"schedule": config.schedule, "complementary": config.complementary, "proposal": config.proposal}
        if isinstance(build(PROPOSALS, config.proposal, "objective.proposal"), Published):
            given["proposal"] = build(WEIGHTINGS, config.weighting, "objective.weighting")
        spec = {**{name: value for name, value in given.items() if name in fields}, **spec}
    return build(OBJECTIVES, spec, "objective.estimator")


@dataclass(frozen=True)
class Loss:
    """Cross-entropies of the masked tokens of a batch, in the order of `masked.nonzero()`.

    `total` is the sum of weighted cross-entropies, averaged over draws: nats of the whole batch. Divided by the number
    of target tokens of the *global* batch it is the loss of this batch's share, whatever the accumulation or the ranks.
    `autoregressive` is the exact left-to-right NLL of the batch in nats, where it was asked for.
    """

    total: Tensor  # () with a gradient
    cross_entropy: Tensor  # (m,) float32 or float64, detached
    masking: Masking
    autoregressive: Tensor | None = None  # () with a gradient

    def by_block(self, block_size: int) -> tuple[Tensor, Tensor]:
        """(b, D, g): number of masked tokens n, and mean cross-entropy m_n (0 where n = 0), float64.

        They are where the masks are: with masks on the host, this waits for a GPU.
        """
        masked = self.masking.masked
        losses = torch.zeros(masked.shape, dtype=torch.float64, device=masked.device)
        losses[masked] = self.cross_entropy.to(masked.device, torch.float64)
        n = block_view(masked, block_size, False).sum(-1)
        return n, block_view(losses, block_size, 0.0).sum(-1) / n.clamp(min=1)

    def by_count(self, block_size: int) -> tuple[Tensor, Tensor]:
        """Sum of m_n, and number of blocks, for n = 0..B masked tokens in the block: two (B + 1,) float64."""
        n, mean = (t.flatten() for t in self.by_block(block_size))
        sums = torch.zeros(block_size + 1, dtype=torch.float64, device=n.device).index_add_(0, n, mean)
        return sums, torch.bincount(n, minlength=block_size + 1).double()


def masked_loss(
    model: Transformer, tokens: Tensor, masking: Masking, block_size: int, documents: Tensor | None = None,
    autoregressive: Tensor | None = None,
) -> Loss:  # fmt: skip
    """Run both streams and weigh the cross-entropies of the masked tokens (b, N).

    Tokens and masking may be on the host, wherever the model is: `two_stream_hidden`.

    Args:
        autoregressive: (b, N) booleans, tokens whose left-to-right NLL is wanted as well (`context: causal`).
    """
    hidden = two_stream_hidden(model, tokens, masking.masked, block_size, documents, autoregressive)
    row, _, position = masking.masked.nonzero(as_tuple=True)
    weights = send(masking.weight[masking.masked] / masking.masked.shape[1], hidden.device)
    targets = send(tokens[row, position], hidden.device)
    matrix, banned = model.head_matrix(), model.banned_token_id
    total, losses = weighted_cross_entropy(hidden[: len(row)], matrix, targets, weights, banned)
    left_to_right = None
    if autoregressive is not None:
        targets = send(tokens[autoregressive], hidden.device)
        ones = torch.ones_like(targets, dtype=weights.dtype)
        left_to_right, _ = weighted_cross_entropy(hidden[len(row) :], matrix, targets, ones, banned)
    return Loss(total, losses, masking, left_to_right)


@dataclass(frozen=True)
class Objective:
    """What a training step minimises: an estimator of the ELBO, a weighting, and perhaps an autoregressive loss."""

    estimator: Estimator
    weighting: Weighting = dataclasses.field(default_factory=Elbo)
    draws: int = 1
    stratified: bool = True
    ar_weight: float = 0.0

    @classmethod
    def of(cls, config: ObjectiveConfig) -> Objective:
        weighting = build(WEIGHTINGS, config.weighting, "objective.weighting")
        return cls(build_estimator(config), weighting, config.draws, config.stratified, config.ar_weight)

    @property
    def is_elbo(self) -> bool:
        """Whether the expectation of the loss is the ELBO."""
        return isinstance(self.weighting, Elbo) and not hasattr(self.estimator, "bias")

    def loss(self, model: Transformer, batch: Batch, keys: Keys, block_size: int) -> Loss:
        """Draw noise for a batch, where the batch is, and run the model on it."""
        masking = self.estimator.draw(keys, batch.is_target, block_size, self.draws, self.stratified)
        if not isinstance(self.weighting, Elbo):
            factor = weigh(self.weighting, masking.masked, batch.is_target, block_size)
            masking = Masking(masking.masked, masking.weight * factor)
        # At block size 1 the loss is the autoregressive one already.
        autoregressive = batch.is_target if self.ar_weight and block_size > 1 else None
        return masked_loss(model, batch.tokens, masking, block_size, batch.documents, autoregressive)

    @property
    def learner(self) -> Any:
        """The proposal, if it learns: it has `state` and `restore`; else None."""
        source = getattr(self.estimator, "source", None)
        return source if hasattr(source, "learn") else None

    def learn(self, block_size: int, blocks: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Show the losses of a step to a proposal that learns; `blocks` are those of `observed`, one per forward."""
        if self.learner is not None and block_size > 1:
            self.estimator.learn(block_size, *(torch.cat(parts) for parts in zip(*blocks, strict=True)))  # type: ignore[attr-defined]

    def observed(self, loss: Loss, is_target: Tensor, block_size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Three (b, D, g): targets of the block, masked tokens, and their mean loss times its weight omega_n."""
        n, mean = loss.by_block(block_size)
        targets = block_view(is_target, block_size, False).sum(-1)[:, None].expand_as(n)
        for size in targets.unique().tolist():
            here = targets == size
            mean[here] *= self.weighting.of_counts(size).to(mean.device)[n[here]]
        return targets, n, mean
