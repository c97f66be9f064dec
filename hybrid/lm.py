"""LanguageModel: a trained model with its tokenizer and configuration, to score and generate with.

lm = hybrid.load("runs/quickstart")
lm.nll(torch.tensor([lm.tokenizer.encode("Return the ")]), draws=8).nll
lm.generate("Return the ", max_new_tokens=64).sequences
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybrid.arguments import SEEDS, integer, prompt_ids
from hybrid.checkpoints import checkpoint
from hybrid.checkpoints.card import card_of
from hybrid.checkpoints.origin import Origin, identity_of
from hybrid.checkpoints.states import load_state, module_tensors
from hybrid.checkpoints.tensors import has_group, load_group, save_tensors
from hybrid.config import Config, load_config, resolve_block_sizes, to_yaml
from hybrid.data.dataset import document_numbers
from hybrid.data.tokenizers import Tokenizer, load_tokenizer
from hybrid.decoding import DECODERS, Sampling
from hybrid.decoding.engine import Engine
from hybrid.decoding.prompts import infilling_size
from hybrid.decoding.results import Generation, Progress
from hybrid.device import PRECISIONS, autocast_dtype, precision_context, resolve_device
from hybrid.likelihoods import LIKELIHOODS, Likelihood, LikelihoodMethod, Rows
from hybrid.likelihoods.orders import Policy
from hybrid.model import Transformer
from hybrid.model.build import build_model
from hybrid.model.fused import for_inference, is_fused
from hybrid.model.two_stream import two_stream_hidden
from hybrid.options import build, path_of, pick, shown, title
from hybrid.storage.atomic import new_folder, write_json_atomic

MAX_DRAWS = 1 << 16
"""Of `nll`: all of them are held at once."""


Prompts = str | Sequence[str] | Sequence[Sequence[int]] | Sequence[Tensor] | Tensor


@dataclass
class LanguageModel:
    """What `hybrid.load` returns."""

    config: Config
    tokenizer: Tokenizer
    model: Transformer
    precision: str = "fp32"
    origin: Origin = field(default_factory=Origin)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def mask_token_id(self) -> int:
        return self.model.mask_token_id

    @property
    def block_sizes(self) -> list[int]:
        """Those it was trained with."""
        return resolve_block_sizes(self.config.objective.block_size, self.config.data.seq_len)

    def nll(
        self, tokens: Tensor, block_size: int | None = None, method: Any = "bound", draws: int | str = 1, seed: int = 0,
        is_target: Tensor | None = None, decoder: Any = None,
    ) -> Likelihood:  # fmt: skip
        """Negative log-likelihood of each row, in nats.

        Args:
            tokens: int64 (batch, length).
            block_size: None: the one it was trained with.
            method: a name of `hybrid.likelihoods.LIKELIHOODS`, a mapping with its options, or an instance.
            draws: independent noise draws of the bound, or "all" to enumerate every mask; orders of `importance`.
            is_target: bool (batch, length), the tokens that count: -log p(these | the others). Given tokens of an
                earlier block, or of the same, are seen; those of later blocks are not. None: all count.
            decoder: of `policy`: as for `generate`, or a list of which the best is taken for each block.

        Raises:
            ValueError: tokens that do not fit, or a method that this block size or decoder does not allow.
        """
        tokens = self._check_tokens(tokens)
        size = self._block_size(block_size, tokens.shape[1])
        chosen = _likelihood(method)
        seed = integer("seed", seed, *SEEDS)
        draws = _number_of_draws(draws, chosen, method)
        if decoder is not None:
            if not isinstance(chosen, Policy):
                raise ValueError(f"decoder: only method='policy' reads it, not {method!r}; leave it out")
            chosen = Policy(decoder)
        rows = Rows.of(tokens, self._check_targets(is_target, tokens), self._documents(tokens))
        self._fuse()
        with torch.no_grad(), precision_context(self.precision, self.device)():
            return chosen.nll(self.model, rows, size, draws, seed)

    def logits(self, tokens: Tensor, block_size: int | None = None) -> Tensor:
        """(batch, length, vocab): each position predicted with its whole block masked, given the blocks before it."""
        tokens = self._check_tokens(tokens)
        size = self._block_size(block_size, tokens.shape[1])
        self._fuse()
        with torch.no_grad(), precision_context(self.precision, self.device)():
            masked = torch.ones_like(tokens, dtype=torch.bool)[:, None]
            hidden = two_stream_hidden(self.model, tokens, masked, size, self._documents(tokens))
            return self.model.head(hidden).unflatten(0, tokens.shape)

    def engine(
        self, block_size: int | None = None, decoder: Any = "first_hitting", temperature: float = 1.0,
        top_k: int | None = None, top_p: float | None = None, seed: int = 0, cache: bool = True,
        stop_at_end: bool = True, guidance: float = 0.0, planner: LanguageModel | str | Path | None = None,
        slide: bool = False,
    ) -> Engine:  # fmt: skip
        """The engine that `generate` and `stream` run."""
        size = self._block_size(block_size, self.config.data.seq_len)
        return Engine(
            model=self.model,
            seq_len=self.config.data.seq_len,
            block_size=size,
            decoder=build(DECODERS, decoder, "decoder"),
            sampling=Sampling(temperature, top_k, top_p),
            seed=seed,
            cache=cache,
            stop_at_end=stop_at_end,
            document_mask=self.config.data.document_mask,
            precision=precision_context(self.precision, self.device),
            guidance=guidance,
            planner=None if planner is None else self._planner(planner, size),
            slide=slide,
        )

    def generate(
        self, prompts: Prompts, max_new_tokens: int, block_size: int | None = None,
        decoder: Any = "first_hitting", temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None,
        seed: int = 0, cache: bool = True, stop_at_end: bool = True, guidance: float = 0.0,
        planner: LanguageModel | str | Path | None = None, slide: bool = False,
    ) -> Generation:  # fmt: skip
        """Continue each prompt by at most `max_new_tokens`, and fill its gaps.

        Args:
            prompts: a list of prompts, each a list of token ids or a string; they may be empty and of different
                lengths. Also a tensor of ids (prompts, length), or a single string. `mask_token_id` among the ids is a
                gap: a token to be written in view of what stands before and behind it.
            block_size: None: the first that it was trained with; where prompts have gaps, the first of these with
                which they see what stands behind them.
            decoder: a name, a mapping with its options, or an instance.
            cache: False recomputes everything: the same tokens under the same seed, slowly.
            stop_at_end: a row ends with its first end-of-text, which is its last token.
            guidance: how far to move away from what the model would write without the prompt; 0: not at all. Costs a
                second forward.
            planner: a model of the same tokenizer, or where it is saved, that chooses positions for decoders which ask
                for one (`p2`); None: the model itself.
            slide: a text may grow beyond `data.seq_len`; a block then sees the last tokens that fit into it.

        Returns:
            the new tokens only, a list per prompt; the whole texts, their gaps filled (`sequences`); why each ended;
            the number of forwards; seconds.

        Raises:
            ValueError: a prompt that does not fit into the context, a gap that does not stand in one block with what is
                behind it, or an option out of range.
        """
        prompts = prompt_ids(prompts, self.tokenizer.encode)
        block_size = self.infilling_size(prompts, block_size)
        engine = self.engine(
            block_size, decoder, temperature, top_k, top_p, seed, cache, stop_at_end, guidance, planner, slide
        )
        return engine.generate(prompts, max_new_tokens)

    def stream(
        self, prompts: Prompts, max_new_tokens: int, block_size: int | None = None, decoder: Any = "first_hitting",
        **options: Any,
    ) -> Iterator[Progress]:  # fmt: skip
        """Like `generate`, whose other options it takes, step by step; unknown tokens are `mask_token_id`."""
        prompts = prompt_ids(prompts, self.tokenizer.encode)
        block_size = self.infilling_size(prompts, block_size)
        return self.engine(block_size, decoder, **options).stream(prompts, max_new_tokens)

    def infilling_size(self, prompts: Sequence[Sequence[int]], block_size: int | None) -> int | None:
        """`block_size`; None becomes the first trained one with which all gaps of the prompts see what follows them.

        Raises:
            ValueError: there is none, or it is not `block_size`; the message says which would do.
        """
        if not any(self.mask_token_id in prompt for prompt in prompts):
            return block_size
        trained = self.block_sizes
        sizes = trained if block_size is None else [self._possible_size(block_size)]
        limits = (self.mask_token_id, self.config.model.prediction, sizes, self.config.data.seq_len)
        return infilling_size(prompts, *limits, others=trained)

    def _fuse(self) -> None:
        """Of a loaded model, as generation does it: likelihoods do not depend on whether it has generated before."""
        if self.model.is_expendable and not self.model.training:
            with precision_context(self.precision, self.device)():
                for_inference(self.model, autocast_dtype(self.model.embedding.weight))

    def save(self, folder: str | Path) -> Path:
        """Write weights (safetensors), configuration, tokenizer and a model card into a new folder, atomically.

        Raises:
            ValueError: no path, or the folder exists and holds something else.
            OSError: it could not be written.
        """
        target = path_of("folder", folder)
        with new_folder(target) as temporary:
            save_tensors(self._weights(), temporary / "model.safetensors")
            (temporary / "config.yaml").write_text(to_yaml(self.config), encoding="utf-8")
            self.tokenizer.save(temporary / "tokenizer")
            facts, made_from = self._facts(), {"checkpoint": self.origin.checkpoint, "data": self.origin.data}
            write_json_atomic(temporary / "model.json", {**facts, **made_from})
            (temporary / "README.md").write_text(
                card_of(self.config.run.name, title(self.config.data.corpus), facts), encoding="utf-8"
            )
        return target

    def _facts(self) -> dict[str, Any]:
        """What model.json says of the model."""
        return {
            "parameters": self.model.n_parameters(),
            "vocab_size": self.model.vocab_size,
            "mask_token_id": self.mask_token_id,
            "end_of_text": self.tokenizer.end_of_text,
            "seq_len": self.config.data.seq_len,
            "block_sizes": self.block_sizes,
            "context": self.config.model.context,
            "prediction": self.config.model.prediction,
        }

    def _weights(self) -> Mapping[str, Tensor]:
        """As they were trained: a model that has generated has fused them, so they are read once more."""
        if not is_fused(self.model):
            return module_tensors(self.model)
        folder, group = self.origin.folder, self.origin.weights
        assert folder is not None, "a model that was not loaded is never fused in place"
        if identity_of(folder) != self.origin.checkpoint:
            raise ValueError(f"save: the weights were loaded from {folder}, which has changed since; load them again")
        return load_group(folder, group)

    def _block_size(self, value: int | None, length: int) -> int:
        """The block size that is meant, with a warning if it was not trained."""
        if value is None:
            return min(self.block_sizes[0], length)
        value = self._possible_size(value)
        if value not in self.block_sizes:
            known = ", ".join(map(str, self.block_sizes))
            warnings.warn(f"block_size: {value} was not trained (trained: {known})", stacklevel=3)
        return value

    def _possible_size(self, value: Any) -> int:
        """Raise a ValueError for what is no block size."""
        if isinstance(value, (list, bool)) or not isinstance(value, (str, int)):
            value = integer("block_size", value, 1, self.config.data.seq_len)  # of numpy or torch, or none at all
        return resolve_block_sizes(value, self.config.data.seq_len, "block_size")[0]

    def _planner(self, planner: LanguageModel | str | Path, block_size: int) -> Transformer:
        if not isinstance(planner, LanguageModel):
            try:
                planner = load(path_of("planner", planner), str(self.device), self.precision)
            except ValueError as error:
                reason = str(error).removeprefix("planner: ").removeprefix("checkpoint: ")
                raise ValueError(f"planner: {reason}") from None
        theirs, ours = (f"{lm.tokenizer.name} {lm.tokenizer.fingerprint}" for lm in (planner, self))
        if theirs != ours:
            raise ValueError(
                f"planner: its tokenizer ({theirs}) is not that of the model ({ours}); take a model that was trained "
                "with the same one"
            )
        if planner.config.data.seq_len < self.config.data.seq_len:
            warnings.warn(f"planner: it was trained on rows of {planner.config.data.seq_len} tokens", stacklevel=4)
        if block_size not in planner.block_sizes:
            known = ", ".join(map(str, planner.block_sizes))
            warnings.warn(f"planner: it was not trained at block size {block_size} (trained: {known})", stacklevel=4)
        return planner.model

    def _check_tokens(self, tokens: Tensor) -> Tensor:
        if not isinstance(tokens, Tensor) or tokens.ndim != 2 or tokens.dtype != torch.int64 or tokens.numel() == 0:
            got = f"{list(tokens.shape)} {tokens.dtype}" if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ValueError(f"tokens: {got} is not a non-empty int64 tensor [batch, length]")
        if tokens.shape[1] > self.config.data.seq_len:
            raise ValueError(
                f"tokens: rows of {tokens.shape[1]} exceed the context of {self.config.data.seq_len} (data.seq_len); "
                "cut them"
            )
        bad = (tokens < 0) | (tokens >= self.model.vocab_size)
        if bad.any():
            raise ValueError(
                f"tokens: {int(tokens[bad][0])} is not in the vocabulary (0 to {self.model.vocab_size - 1})"
            )
        banned = self.model.banned_token_id
        if banned is not None and (tokens == banned).any():
            raise ValueError(f"tokens: {banned} is MASK, which texts do not hold; give what stands there")
        return tokens.to(self.device)

    def _check_targets(self, is_target: Tensor | None, tokens: Tensor) -> Tensor | None:
        if is_target is None:
            return None
        if not isinstance(is_target, Tensor) or is_target.dtype != torch.bool or is_target.shape != tokens.shape:
            got = f"{list(is_target.shape)} {is_target.dtype}" if isinstance(is_target, Tensor) else shown(is_target)
            raise ValueError(f"is_target: {got} is not a bool tensor {list(tokens.shape)}, as tokens is")
        return is_target.to(self.device)

    def _documents(self, tokens: Tensor) -> Tensor | None:
        if not self.config.data.document_mask:
            return None
        return document_numbers(tokens, self.tokenizer.end_of_text)


def _likelihood(method: Any) -> LikelihoodMethod:
    """The entry of LIKELIHOODS that is meant, or an instance of one."""
    if not isinstance(method, (Mapping, LikelihoodMethod)):
        pick("method", method, LIKELIHOODS)
    return build(LIKELIHOODS, method, "method")


def _number_of_draws(draws: int | str, likelihood: LikelihoodMethod, method: Any) -> int | str:
    """Raise a ValueError for what is no number of draws, nor "all" where that is possible."""
    if draws == "all" and likelihood.takes_all_draws:
        return draws
    allowed = ", or 'all'" if likelihood.takes_all_draws else f" for method={method!r}"
    number = integer("draws", draws, 1, also=allowed)
    if number > MAX_DRAWS:
        raise ValueError(f"draws: {shown(draws)} is too large; at most {MAX_DRAWS}")
    return number


def load(path: str | Path, device: str = "auto", precision: str = "fp32") -> LanguageModel:
    """Load a run folder, a checkpoint of a run, or a folder written by `LanguageModel.save`.

    Averaged weights (EMA) are taken where there are any. Nothing is unpickled.

    The first likelihood or text fuses the weights of `.model` in place, so that memory holds them once; `save` still
    writes them as they were trained. To train `.model` further, set `.model.train()` before: it then keeps them.

    Raises:
        ValueError: nothing usable there, or a checkpoint of another architecture; one line that says what to do.
    """
    found = checkpoint.find_checkpoint(path_of("path", path)).absolute()
    where = resolve_device(str(device) if isinstance(device, torch.device) else device, key="device")
    pick("precision", precision, PRECISIONS)
    home = next((p for p in (found, found.parent.parent) if (p / "config.yaml").is_file()), None)
    if home is None:
        raise ValueError(f"checkpoint: {found} has no config.yaml beside it; give the run folder that it belongs to")
    config = load_config(home / "config.yaml", checked=False)  # files that it names may be gone by now
    tokenizer = load_tokenizer(home / "tokenizer")
    model = build_model(config.model, tokenizer.vocab_size, tokenizer.end_of_text, where).eval()
    weights = "ema" if has_group(found, "ema") else "model"
    with checkpoint.reading(found):
        load_state(model, load_group(found, weights))
    model.is_expendable = True
    return LanguageModel(config, tokenizer, model, precision, Origin.read(found, home, weights))
