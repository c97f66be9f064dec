"""The models of experiments: one that writes texts, its options, sizes and likelihood; or several seeds of one."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hybrid import cli
from hybrid.options import title

if TYPE_CHECKING:
    from torch import Tensor

    from hybrid.data.batches import PackedTokens
    from hybrid.lm import LanguageModel

MAY_DIFFER = ("run.", "trainer.resume")
NOISE_DRAWS = 8
"""Of the bound of a text."""


def add_options(parser: argparse.ArgumentParser, rows: int) -> None:
    """Add the options that describe texts and the result; `rows` is the default of --rows."""
    cli.add_model(parser, required=False, gives="; adds its texts to the result")
    parser.add_argument(
        "--block-size", type=int, metavar="B", help="block size of the texts (default: as it was trained)"
    )
    parser.add_argument("--rows", type=int, default=rows, metavar="R", help=f"texts per seed (default: {rows})")
    parser.add_argument("--length", type=int, metavar="N", help="tokens of a text (default: the model's seq_len)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="S", help="seeds (default: 0 1 2)")
    parser.add_argument("--output", metavar="FILE", help="write Markdown there and plots beside it")


def add_evaluated_texts(parser: argparse.ArgumentParser, samples: int, rows: int) -> None:
    """Add the options of texts that an evaluation model reads; `samples` and `rows` are the defaults."""
    cli.add_model(parser)
    parser.add_argument(
        "--judge", required=True, metavar="RUN",
        help="model that reads the texts: a run, or a local Hugging Face folder",
    )  # fmt: skip
    parser.add_argument(
        "--samples", type=int, default=samples, metavar="N", help=f"texts per seed (default: {samples})"
    )
    parser.add_argument("--new-tokens", type=int, default=128, metavar="N", help="tokens of each text (default: 128)")
    parser.add_argument(
        "--rows", type=int, default=rows, metavar="R",
        help=f"validation rows of the policy likelihood (default: {rows}; 0: all)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="S", help="seeds (default: 0 1 2)")
    parser.add_argument("--output", metavar="FILE", help="write Markdown there and plots beside it")
    parser.add_argument("--device", default="auto", metavar="D", help="cpu, cuda, ... (default: auto)")


def load_model(a: argparse.Namespace, device: str) -> LanguageModel:
    """Load the model of `a.checkpoint`, after the modules of `a.imports`.

    Raises:
        ValueError: there is none, or a module cannot be imported.
    """
    from hybrid.config import import_modules
    from hybrid.lm import load

    import_modules(a.imports, "--imports")
    return load(a.checkpoint, device=device)


def check_counts(a: argparse.Namespace, *names: str) -> None:
    """Raise a ValueError if an option that counts something, or an item of its list, is below 1."""
    for name in (*names, "rows", "length"):
        value = getattr(a, name)
        for item in value if isinstance(value, list) else [value]:
            if item is not None and item < 1:
                raise ValueError(f"--{name}: {item} must be at least 1")


def load_runs(paths: list[str], device: str) -> list[LanguageModel]:
    """Load the models of runs that differ in their seed alone.

    Raises:
        ValueError: they differ in more; names the keys.
    """
    from hybrid.config import differences
    from hybrid.lm import load

    models = [load(path, device=device) for path in paths]
    for path, lm in zip(paths, models, strict=True):
        changed = [key for key in differences(models[0].config, lm.config) if not key.startswith(MAY_DIFFER)]
        if changed:
            raise ValueError(f"--runs: {path} differs from {paths[0]} in {', '.join(changed)}; leave it out")
    return models


def validation_of(lm: LanguageModel) -> PackedTokens:
    """Prepare the validation split of the data that a model was trained on.

    Raises:
        ValueError: the corpus is gone, or holds another text now.
    """
    from hybrid.checkpoints.recorded_data import prepare_again

    return prepare_again(lm.config.data, lm.tokenizer, lm.origin.data).validation


@dataclass(frozen=True)
class Subject:
    """A model, and the block size and length of the texts that are asked of it."""

    lm: LanguageModel
    block_size: int
    length: int

    @classmethod
    def load(cls, a: argparse.Namespace, device: str) -> Subject:
        """Load the model of `a.checkpoint`, after the modules of `a.imports`.

        Raises:
            ValueError: no model, or sizes that it can't have.
        """
        lm = load_model(a, device)
        seq_len = lm.config.data.seq_len
        length = a.length or seq_len
        if length > seq_len:
            raise ValueError(
                f"--length: {length} exceeds the model's context of {seq_len} (data.seq_len); make it shorter"
            )
        lm.engine(block_size=a.block_size)  # warns of a size that was not trained, refuses an impossible one
        return cls(lm, a.block_size or lm.block_sizes[0], length)

    def nats(self, tokens: Tensor) -> float:
        """Bound the nats per token of texts (b, N) under the model, at the block size at which they were written."""
        return self._nats(tokens, min(self.block_size, tokens.shape[1]), "bound")

    def exact_nats(self, tokens: Tensor) -> float:
        """Compute the same at block size 1, where it is exact."""
        return self._nats(tokens, 1, "exact")

    def _nats(self, tokens: Tensor, block_size: int, method: str) -> float:
        likelihood = self.lm.nll(tokens, block_size=block_size, method=method, draws=NOISE_DRAWS)
        return float(likelihood.nll.sum() / likelihood.tokens.sum())

    def describe(self, rows: int) -> str:
        config = self.lm.config
        return (
            f"**Texts of a model**: `{config.run.name}` ({title(config.data.corpus)}, {self.lm.model.vocab_size:,} "
            f"tokens), {rows} texts of {self.length} tokens a seed, block size {self.block_size}. Steps: per block. "
            "Entropy: of the tokens of a text, in nats, mean over texts. Nats per token: of these texts under the "
            "model that wrote them, smaller is likelier."
        )
