"""Data: a corpus becomes two arrays of tokens, which are cut into rows.

    corpus -> documents -> train | validation -> tokens, each document closed by end-of-text -> rows of seq_len

The arrays are cached on disk and memory-mapped. Shapes: R rows, L = seq_len.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybrid.data.corpora.files import digest
from hybrid.data.corpora.listing import FORMATS
from hybrid.data.corpora.named import KnownEntropy, Source, locate, refuse_no_name, refuse_not_utf8
from hybrid.data.doubts import warn_of_little_training, warn_of_losses
from hybrid.data.packing import VERSION, Counts, Packed, Recipe, Split, build, cache_folder, open_packed
from hybrid.data.tokenizers import TOKENIZERS, Tokenizer
from hybrid.options import at_least, option, path_of, pick, shown
from hybrid.storage.temporaries import remove_leftovers


@dataclass
class DataConfig:
    corpus: Any = option("pydocs", "embedded (below; a mapping gives its options), or a file, glob, folder or Hub id")
    format: str = option(
        "auto",
        "of local files; auto: by suffix, also before .gz or .zst. A text file is one document, UTF-8 taken as it is",
        FORMATS,
    )
    revision: str | None = option(None, "Hub: the commit to use, 40 digits (required there)")
    subset: str | None = option(None, "Hub: name of the configuration")
    split: str = option("train", "Hub, or a folder of save_to_disk: the split to take documents from")
    column: str = option("text", "jsonl, parquet, Hub: the column of text; without it, prompt and completion")
    validation_fraction: float = option(0.05, "share of the documents kept for validation, chosen by their hash")
    tokenizer: str = option("byte", f"{' | '.join(TOKENIZERS)}, or the path of a tokenizer.json")
    vocab_size: int = option(4096, "bpe: ids, end of text among them")
    seq_len: int = option(256, "tokens in a row")
    document_mask: bool = option(False, "no attention from one document of a row to another")
    cache_dir: str = option("", "where packed tokens are kept; empty: $HYBRID_CACHE, else ~/.cache/hybrid")


@dataclass(frozen=True)
class Batch:
    """Rows of tokens.

    Attributes:
        tokens: int64 [R, L].
        is_target: bool [R, L]; False where a token is given (a prompt), not learned.
        documents: int64 [R, L], from 0 in each row, an end-of-text belonging to the document it closes; None
            without document masking.
    """

    tokens: Tensor
    is_target: Tensor
    documents: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        documents = None if self.documents is None else self.documents.to(device)
        return Batch(self.tokens.to(device), self.is_target.to(device), documents)


def document_numbers(tokens: Tensor, end_of_text: int) -> Tensor:
    """The document of each token of rows [R, L], from 0 in each row: end-of-text tokens before it."""
    ends = (tokens == end_of_text).long()
    return ends.cumsum(dim=1) - ends


class PackedTokens:
    """One split: documents one after the other, cut into rows of `seq_len`; a last, shorter row is left out."""

    def __init__(
        self,
        tokens: np.ndarray,
        is_target: np.ndarray | None,
        counts: Counts,
        seq_len: int,
        end_of_text: int,
        document_mask: bool = False,
        is_lossless: bool = True,
    ) -> None:
        self.tokens = tokens  # unsigned [n_tokens]
        self.is_target = is_target  # uint8 [n_tokens], None where every token is a target
        self.counts = counts
        self.seq_len = seq_len
        self.end_of_text = end_of_text
        self.document_mask = document_mask
        self.is_lossless = is_lossless  # whether the tokenizer gives the text back

    @property
    def n_rows(self) -> int:
        return len(self.tokens) // self.seq_len

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def n_bytes(self) -> int:
        return self.counts.bytes

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes per target token."""
        return self.counts.target_bytes / self.counts.target_tokens

    def bits_per_byte(self, nats_per_token: float) -> float | None:
        """nats per token / ln 2 / bytes_per_token; None where the tokens are not the text, so have other bits."""
        return nats_per_token / math.log(2) / self.bytes_per_token if self.is_lossless else None

    @property
    def has_a_document_per_row(self) -> bool:
        """Whether every row is one document, whole."""
        ends = self.tokens[self.seq_len - 1 :: self.seq_len]
        return self.n_tokens == self.counts.documents * self.seq_len and bool((ends == self.end_of_text).all())

    def count(self, token: int) -> int:
        """How often an id stands in the text."""
        size = 1 << 24  # at a time
        return sum(int((self.tokens[i : i + size] == token).sum()) for i in range(0, self.n_tokens, size))

    def rows(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """Rows [R, L] by index (0 to n_rows - 1). Raises IndexError for another index."""
        starts = np.asarray(indices, dtype=np.int64).reshape(-1, 1)
        if starts.size and not (starts.min() >= 0 and starts.max() < self.n_rows):
            raise IndexError(f"rows {starts.min()} to {starts.max()} of {self.n_rows}")
        positions = starts * self.seq_len + np.arange(self.seq_len)
        tokens = torch.from_numpy(self.tokens[positions].astype(np.int64))
        if self.is_target is None:
            is_target = torch.ones_like(tokens, dtype=torch.bool)
        else:
            is_target = torch.from_numpy(self.is_target[positions].astype(bool))
        documents = None
        if self.document_mask:
            documents = document_numbers(tokens, self.end_of_text)
        return Batch(tokens, is_target, documents)


@dataclass(frozen=True)
class Data:
    """What training needs.

    Attributes:
        description: JSON values that record which data it was, and whether its tokens give the text back
            (`is_lossless`). If the corpus knows the law of its documents and a row is one document, they have
            `entropy_per_token` (nats per target token), which no model's expected bound is below, and
            `validation.source_nats_per_token`, what the source itself gives the validation split: the entropy, and the
            chance of these rows.
    """

    tokenizer: Tokenizer
    train: PackedTokens
    validation: PackedTokens
    description: dict[str, Any]

    def everything(self) -> PackedTokens:
        """Both splits in one, in memory: to evaluate a corpus that was not trained on."""
        a, b = self.train, self.validation
        masks = None
        if a.is_target is not None or b.is_target is not None:
            masks = np.concatenate(
                [np.ones(len(s.tokens), np.uint8) if s.is_target is None else s.is_target for s in (a, b)]
            )
        counts = Counts(*(x + y for x, y in zip(a.counts, b.counts, strict=True)))
        tokens = np.concatenate([a.tokens, b.tokens])
        return PackedTokens(tokens, masks, counts, a.seq_len, a.end_of_text, a.document_mask, a.is_lossless)


def check(config: DataConfig) -> None:
    """Raise a ValueError for a value that no corpus could make right; reads no data."""
    refuse_no_name(config.corpus)
    for key in ("tokenizer", "cache_dir", "column"):
        refuse_not_utf8(f"data.{key}", getattr(config, key))
    pick("data.format", config.format, FORMATS)
    at_least("data.seq_len", config.seq_len, 1)
    if not 0 < config.validation_fraction < 1:
        raise ValueError(f"data.validation_fraction: {config.validation_fraction!r} must lie between 0 and 1; try 0.05")
    if config.tokenizer == "bpe":
        at_least("data.vocab_size", config.vocab_size, 257)  # 256 bytes and end of text
    elif config.tokenizer not in TOKENIZERS and not os.path.isfile(path_of("data.tokenizer", config.tokenizer)):
        try:
            pick("data.tokenizer", config.tokenizer, TOKENIZERS)
        except ValueError as error:
            raise ValueError(f"{error}, nor the path of a tokenizer.json") from None


def _fingerprint(config: DataConfig, source: Source, given: Tokenizer | None) -> str:
    """Of everything that decides the arrays; rows are cut later, so `seq_len` is no part of it."""
    if given is not None:
        tokenizer = ["given", given.fingerprint]
    elif (tokenizer_class := TOKENIZERS.get(config.tokenizer)) is None:
        tokenizer = ["file", digest(path_of("data.tokenizer", config.tokenizer).read_bytes())]
    else:
        tokenizer = [config.tokenizer, config.vocab_size if tokenizer_class.sized else None]
    made_by = [VERSION, type(source).__name__, source.identity(), tokenizer, config.validation_fraction]
    return digest(json.dumps(made_by))[:20]


def prepare(config: DataConfig, tokenizer: Tokenizer | None = None) -> Data:
    """Load the packed tokens from the cache, or build them.

    Two processes may do so at once. A damaged cache is built again. With `tokenizer`, that of a trained model, no other
    is made.

    Raises:
        ValueError: names the key, its value and the way out: bad settings, a corpus that is missing, empty, unreadable
            or too small for both splits, a cache folder that can't be written.
    """
    if tokenizer is None:
        check(config)
    cache = cache_folder(config.cache_dir)
    remove_leftovers(cache)

    with_hub = config.revision, config.subset, config.split, str(cache / "hub")

    def find() -> tuple[Source, str]:
        source = locate(config.corpus, config.format, config.column, *with_hub)
        return source, _fingerprint(config, source, tokenizer)

    def is_current() -> bool:
        with warnings.catch_warnings(action="ignore"):  # said already
            return find()[1] == fingerprint

    source, fingerprint = find()
    recipe = Recipe(config.corpus, config.tokenizer, config.vocab_size, config.validation_fraction)
    packed = open_packed(cache / fingerprint)
    for _ in range(3):  # another process may be replacing a damaged folder at the same moment
        if packed is None:
            build(cache / fingerprint, source.load, recipe, tokenizer, is_current)
            packed = open_packed(cache / fingerprint)
    assert packed is not None, f"{cache / fingerprint} does not hold what was just built"
    warn_of_losses(packed, config.tokenizer)
    warn_of_little_training(packed, config.validation_fraction)
    splits = {name: _rows(split, packed, config) for name, split in packed.splits.items()}
    for name, split in splits.items():
        if split.n_rows == 0:
            raise ValueError(
                f"data.seq_len: {config.seq_len} is more than the {split.n_tokens} tokens of the {name} split of "
                f"{shown(config.corpus)}; lower data.seq_len, change data.validation_fraction or use a larger corpus"
            )
    return Data(
        packed.tokenizer, splits["train"], splits["validation"], _describe(config, packed, fingerprint, splits, source)
    )


def _rows(split: Split, packed: Packed, config: DataConfig) -> PackedTokens:
    row = config.seq_len, packed.tokenizer.end_of_text, config.document_mask
    return PackedTokens(split.tokens, split.is_target, split.counts, *row, packed.is_lossless)


def _describe(
    config: DataConfig, packed: Packed, fingerprint: str, splits: dict[str, PackedTokens], source: Source
) -> dict[str, Any]:
    tokenizer = packed.tokenizer
    description = {
        "corpus": config.corpus,
        "corpus_sha256": packed.corpus_sha256,
        "revision": config.revision,
        "fingerprint": fingerprint,
        "tokenizer": tokenizer.name,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "is_lossless": packed.is_lossless,
        "vocab_size": tokenizer.vocab_size,
        **{name: {**split.counts._asdict(), "rows": split.n_rows} for name, split in splits.items()},
    }
    by_document = all(split.has_a_document_per_row for split in splits.values())
    if isinstance(source, KnownEntropy) and by_document and packed.is_lossless:
        # The end of text is certain.
        description["entropy_per_token"] = source.entropy() / config.seq_len
        texts = [tokenizer.decode(row[:-1]) for row in splits["validation"].tokens.reshape(-1, config.seq_len).tolist()]
        description["validation"]["source_nats_per_token"] = -float(source.log_prob(texts).mean()) / config.seq_len
    return description
