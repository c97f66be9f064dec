"""A mixture of products: (1/M) sum_z prod_l p(x_l | z), the law of tokens that are drawn together given a latent z.

Shape legend: M draws of the latent, m masked tokens, V vocabulary, G blocks that the masked tokens belong to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hybrid.objectives.divergences import kl_forward


@dataclass(frozen=True)
class Mixture:
    """The law of the masked tokens of each block; its parts are products, one for each draw of the latent."""

    log_probs: Tensor  # (M, m, V)
    block: Tensor  # (m,) the block of each masked token
    n_blocks: int  # G

    @property
    def n_parts(self) -> int:
        """M."""
        return len(self.log_probs)

    def log_marginals(self) -> Tensor:
        """log (1/M) sum_z p(x_l | z) of each token, (m, V)."""
        return self.log_probs.logsumexp(0) - math.log(self.n_parts)

    def by_block(self, values: Tensor) -> Tensor:
        """Sum over the tokens of each block: (..., m) -> (..., G)."""
        return values.new_zeros(*values.shape[:-1], self.n_blocks).index_add(-1, self.block, values)

    def correlation(self, ids: Tensor) -> Tensor:
        """log of a text's probability, less the log of the product of its tokens' marginals: (m,) ids -> (G,) nats."""
        each = self.log_probs.gather(-1, ids.expand(self.n_parts, -1)[..., None])[..., 0]  # (M, m)
        joint = self.by_block(each).logsumexp(0) - math.log(self.n_parts)
        return joint - self.by_block(each.logsumexp(0) - math.log(self.n_parts))


def consistency(student: Mixture, samples: Tensor, log_marginals: Tensor) -> Tensor:
    """Cross-entropy of a law from its samples, up to a constant: (G,) nats.

    With x^i from the law q, whose marginals are q_l, and p the student,

        -(1/I) sum_i [log p(x^i) - sum_l log p_l(x^i_l)]  +  sum_l KL(q_l || p_l).

    That is the mean of -log p(x^i), with the product of the student's marginals as a control variate: its sampled
    cross-entropy is replaced by the exact one, which has the same mean. Without dependence nothing random is left.
    The expectation is KL(q || p), and what does not depend on p: it is least where p is q.

    Args:
        samples: (I, m) ids.
        log_marginals: (m, V) of the law q; without a gradient.
    """
    dependence = torch.stack([student.correlation(ids) for ids in samples]).mean(0)
    return student.by_block(kl_forward(log_marginals, student.log_marginals())) - dependence
