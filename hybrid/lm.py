"""LanguageModel: a trained model with its tokenizer and configuration, to score and generate with.

lm = hybrid.load("runs/quickstart")
lm.nll(torch.tensor([lm.tokenizer.encode("Return the")]), draws=8).nll
lm.generate("Return the", max_new_tokens=64).sequences
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybrid.arguments import SEEDS, integer, prompt_ids, target_flags, text_rows
from hybrid.checkpoints.finding import reading
from hybrid.checkpoints.importers import Origin, open_model
from hybrid.checkpoints.module_state import load_state
from hybrid.checkpoints.saved_model import card_of, facts_of, save_model, taken_for, weights_as_trained
from hybrid.checkpoints.stored_model import StoredModel
from hybrid.config import Config, load_config, resolve_block_sizes, to_yaml
from hybrid.config.dialect import as_text
from hybrid.data.batches import document_numbers
from hybrid.data.tokenizers import Tokenizer
from hybrid.decoding import DECODERS
from hybrid.decoding.config import GenerationConfig, takes_options
from hybrid.decoding.decoder import has_own_loop, name_of
from hybrid.decoding.engine import Engine
from hybrid.decoding.prompts import check_no_gap, infilling_size
from hybrid.decoding.results import Generation, GenerationState
from hybrid.decoding.speculative import warn_of_speculation
from hybrid.device import HALVES, autocast_dtype, precision_context, resolve_device, resolve_dtype, resolve_precision
from hybrid.likelihoods import Likelihood, Rows
from hybrid.likelihoods.arguments import chosen_likelihood, number_of_draws, with_decoder
from hybrid.likelihoods.base import checked
from hybrid.model import Transformer
from hybrid.model.build import build_model
from hybrid.model.fused import for_inference
from hybrid.model.two_stream import two_stream_hidden
from hybrid.options import build, path_of, title

log = logging.getLogger(__name__)
Prompts = str | Sequence[str] | Sequence[Sequence[int]] | Sequence[Tensor] | Tensor


@dataclass
class LanguageModel:
    """What `hybrid.load` returns."""

    config: Config
    tokenizer: Tokenizer
    model: Transformer
    precision: str = "fp32"
    origin: Origin = field(default_factory=Origin)

    def __post_init__(self) -> None:
        self.tokenizer.n_padding = self.model.vocab_size - self.tokenizer.vocab_size

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
            tokens: int64 (batch, length), of the text alone: a `next_token` model puts its begin token before them
                itself. One that stands in them, too, is a token of the text like any other.
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
        chosen = chosen_likelihood(method)
        seed = integer("seed", seed, *SEEDS)
        draws = number_of_draws(draws, chosen, method)
        if decoder is not None:
            chosen = with_decoder(chosen, decoder, method)
        rows = Rows.of(tokens, self._check_targets(is_target, tokens), self._documents(tokens))
        self._fuse()
        with torch.no_grad(), precision_context(self.precision, self.device)():
            return checked(chosen.nll(self.model, rows, size, draws, seed), chosen, rows)

    def logits(self, tokens: Tensor, block_size: int | None = None) -> Tensor:
        """(batch, length, vocab): each position predicted with its whole block masked, given the blocks before it."""
        tokens = self._check_tokens(tokens)
        size = self._block_size(block_size, tokens.shape[1])
        self._fuse()
        with torch.no_grad(), precision_context(self.precision, self.device)():
            masked = torch.ones_like(tokens, dtype=torch.bool)[:, None]
            hidden = two_stream_hidden(self.model, tokens, masked, size, self._documents(tokens))
            return self.model.head(hidden).unflatten(0, tokens.shape)

    @takes_options
    def engine(
        self, *values: Any, config: GenerationConfig | None = None, prompts: Sequence[Sequence[int]] = (),
        **options: Any,
    ) -> Engine:  # fmt: skip
        """Make the engine that `generate` and `stream` run; with it all gaps of `prompts` see what follows them."""
        config = GenerationConfig.of(config, *values, **options)
        decoder, size, reads_blocks = build(DECODERS, config.decoder, "decoder"), config.block_size, True
        if has_own_loop(decoder):
            check_no_gap(prompts, self.mask_token_id, name_of(config.decoder))
            warn_of_speculation(decoder, config, self.model.config, self.block_sizes, self.config.objective.ar_weight)
            reads_blocks = size != 1 and getattr(decoder, "length", 1) is None  # a draft is a block
        size = self._block_size(self._infilling_size(prompts, size), self.config.data.seq_len, reads_blocks)
        planner = None if config.planner is None else self._planner(config.planner, size)
        return Engine(
            model=self.model,
            seq_len=self.config.data.seq_len,
            config=replace(config, block_size=size, planner=planner),
            document_mask=self.config.data.document_mask,
            precision=precision_context(self.precision, self.device),
        )

    @takes_options
    def generate(
        self, prompts: Prompts, max_new_tokens: int, *values: Any, config: GenerationConfig | None = None,
        **options: Any,
    ) -> Generation:  # fmt: skip
        """Continue each prompt by at most `max_new_tokens`, and fill its gaps.

        Args:
            prompts: a list of prompts, each a list of token ids or a string; they may be empty and of different
                lengths. Also a tensor of ids (prompts, length), or a single string. `mask_token_id` among the ids is a
                gap: a token to be written in view of what stands before and behind it. The begin token of a
                `next_token` model does not belong to a prompt: it is put before, and would be read twice.
            config: all options at once; those given beside it take precedence.
            {options}

        Returns:
            the new tokens only, a list per prompt; the whole texts, their gaps filled (`sequences`); why each ended;
            the number of forwards; seconds.

        Raises:
            ValueError: a prompt that does not fit into the context, a gap that does not stand in one block with what is
                behind it, or an option out of range.
        """
        rows = prompt_ids(prompts, self.tokenizer.encode)
        return self.engine(*values, config=config, prompts=rows, **options).generate(rows, max_new_tokens)

    @takes_options
    def stream(
        self, prompts: Prompts, max_new_tokens: int, *values: Any, config: GenerationConfig | None = None,
        **options: Any,
    ) -> Iterator[GenerationState]:  # fmt: skip
        """Like `generate`, step by step; unknown tokens are `mask_token_id`."""
        rows = prompt_ids(prompts, self.tokenizer.encode)
        return self.engine(*values, config=config, prompts=rows, **options).stream(rows, max_new_tokens)

    def _infilling_size(self, prompts: Sequence[Sequence[int]], block_size: int | None) -> int | None:
        """`block_size`; None becomes the first trained one with which all gaps of the prompts see what follows them."""
        if not any(self.mask_token_id in prompt for prompt in prompts):
            return block_size
        trained = self.block_sizes
        sizes = trained if block_size is None else [self._possible_size(block_size)]
        limits = (self.mask_token_id, self.config.model.prediction, sizes, self.config.data.seq_len)
        return infilling_size(prompts, *limits, others=trained)

    def _fuse(self) -> None:
        """Fuse a loaded model, as generation does: likelihoods do not depend on whether it has generated before."""
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
        facts = facts_of(self.model, self.tokenizer, self.config.data.seq_len, self.block_sizes)
        made_from = {"checkpoint": self.origin.checkpoint, "data": self.origin.data}
        card = card_of(self.config.run.name, title(self.config.data.corpus), facts)
        weights = weights_as_trained(self.model, self.origin)
        save_model(target, weights, to_yaml(self.config), self.tokenizer, facts, made_from, card)
        return target

    def _block_size(self, value: int | None, length: int, is_read: bool = True) -> int:
        """Choose the block size that is meant, with a warning if it was not trained and is read."""
        if value is None:
            return min(self.block_sizes[0], length)
        value = self._possible_size(value)
        if is_read and value not in self.block_sizes:
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
                where, dtype = str(self.device), self.model.embedding.weight.dtype
                planner = load(path_of("planner", planner), where, self.precision, dtype)
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
        model = self.model
        return text_rows(tokens, self.config.data.seq_len, model.vocab_size, model.banned_token_id).to(self.device)

    def _check_targets(self, is_target: Tensor | None, tokens: Tensor) -> Tensor | None:
        return None if is_target is None else target_flags(is_target, tokens).to(self.device)

    def _documents(self, tokens: Tensor) -> Tensor | None:
        if not self.config.data.document_mask:
            return None
        return document_numbers(tokens, self.tokenizer.end_of_text)


def load(
    path: str | Path, device: str = "auto", precision: str | None = None, dtype: str | torch.dtype | None = None
) -> LanguageModel:
    """Load a run folder, a checkpoint of a run, a folder written by `LanguageModel.save`, or one in another format that
    an entry of `hybrid.checkpoints.IMPORTERS` reads; what such a one was taken for is logged.

    Of a run it is the latest checkpoint; `RUN/checkpoints/best` is the one with the lowest bound. Averaged weights
    (EMA) are taken where there are any. Nothing is unpickled.

    The first likelihood or text fuses the weights of `.model` in place, so that memory holds them once; `save` still
    writes them as they were trained. To train `.model` further, set `.model.train()` before: it then keeps them.

    Args:
        precision: in which the network multiplies, one of `hybrid.device.PRECISIONS`; None: fp32, or as `dtype` says.
        dtype: in which the weights are kept, `float32`, `bfloat16` or `float16`, whatever the file has; None: float32.
            Weights of 16 bits are multiplied as they are: with them no other precision is taken.

    Raises:
        ValueError: nothing usable there, or a checkpoint of another architecture; one line that says what to do.
    """
    kept, precision = resolve_dtype(dtype, precision)
    stored, origin = open_model(path_of("path", path))
    where = resolve_device(str(device) if isinstance(device, torch.device) else device, key="device")
    precision = precision if precision in HALVES else resolve_precision(precision, where)
    assert origin.folder is not None
    config, tokenizer = config_of(stored, origin.folder), stored.tokenizer
    model = build_model(config.model, tokenizer.vocab_size, tokenizer.end_of_text, where, dtype=kept).eval()
    with reading(origin.folder):
        load_state(model, stored.tensors)
    model.is_expendable = True
    lm = LanguageModel(config, tokenizer, model, precision, origin)
    if origin.importer is not None:
        log.info("%s: %s", path, taken_for(origin, model, config.data.seq_len, lm.block_sizes))
    return lm


def config_of(stored: StoredModel, folder: Path) -> Config:
    """Return the configuration of a stored model; files that it names may be gone by now."""
    if isinstance(stored.settings, Path):
        return load_config(stored.settings, checked=False)
    settings = {"run.name": folder.name, **stored.settings}
    with reading(folder):
        config = load_config(None, [f"{key}={as_text(value)}" for key, value in settings.items()], checked=False)
        config.model.check()
    return config
