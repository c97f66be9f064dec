"""Score a text: one table of likelihoods, never confused with each other.

A new likelihood is a frozen dataclass with `nll` (see `base.LikelihoodMethod`) and a line in `LIKELIHOODS`: then
`lm.nll(method=...)` and `python -m hybrid.evaluate --likelihoods NAME` take it, and `--orders all` lists it.
"""

from hybrid.likelihoods.base import Likelihood, LikelihoodMethod, Rows
from hybrid.likelihoods.elbo import Bound
from hybrid.likelihoods.enumerated import BestOrder, Enumerate
from hybrid.likelihoods.exact import Causal, Exact
from hybrid.likelihoods.latent import LatentBound
from hybrid.likelihoods.orders import Importance, Policy

LIKELIHOODS: dict[str, type[LikelihoodMethod]] = {
    "bound": Bound,
    "exact": Exact,
    "causal": Causal,
    "enumerate": Enumerate,
    "importance": Importance,
    "policy": Policy,
    "best_order": BestOrder,
    "latent_bound": LatentBound,
}

__all__ = ["LIKELIHOODS", "Likelihood", "LikelihoodMethod", "Rows"]
