"""Prepare data: a corpus becomes two arrays of tokens, which are cut into rows.

    corpus -> documents -> train | validation -> tokens, each document closed by end-of-text -> rows of seq_len

The arrays are cached on disk and memory-mapped. Shapes: L = seq_len.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hybrid.data.batches import PackedTokens
from hybrid.data.chat import PLAIN
from hybrid.data.config import DataConfig
from hybrid.data.corpora.locating import locate
from hybrid.data.corpora.reading import read_text
from hybrid.data.corpora.source import Documents, KnownEntropy, Source
from hybrid.data.packing import VERSION, Counts, Packed, Recipe, Split, build, cache_folder, open_packed
from hybrid.data.splitting import SPLITS
from hybrid.data.tokenizers import TOKENIZERS, ChatTemplate, Tokenizer
from hybrid.data.tokenizers.published import tokenizer_file
from hybrid.data.turns import Turns
from hybrid.options import path_of, shown
from hybrid.storage.hashing import digest
from hybrid.storage.temporaries import remove_leftovers

LEAST_OF_TRAINING = 0.75  # of the share of the tokens that training should have: a warning if there is less


class ShortSplit(ValueError):
    """A split holds less than one row; rows of `most` tokens would fit into each."""

    def __init__(self, message: str, most: int) -> None:
        super().__init__(message)
        self.most = most


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
        """Join both splits, in memory: to evaluate a corpus that was not trained on."""
        a, b = self.train, self.validation
        masks = None
        if a.is_target is not None or b.is_target is not None:
            masks = np.concatenate(
                [np.ones(len(s.tokens), np.uint8) if s.is_target is None else s.is_target for s in (a, b)]
            )
        counts = Counts(*(x + y for x, y in zip(a.counts, b.counts, strict=True)))
        tokens = np.concatenate([a.tokens, b.tokens])
        return PackedTokens(tokens, masks, counts, a.seq_len, a.end_of_text, a.document_mask, a.is_lossless)


def prepare(config: DataConfig, tokenizer: Tokenizer | None = None, block_sizes: Sequence[int] = (1,)) -> Data:
    """Load the packed tokens from the cache, or build them.

    Two processes may do so at once. A damaged cache is built again.

    Args:
        tokenizer: that of a trained model: no other is made.
        block_sizes: of the blocks that turns of a conversation are kept apart in.

    Raises:
        ValueError: names the key, its value and the way out: bad settings, a corpus that is missing, empty, unreadable
            or too small for both splits, a cache folder that can't be written.
    """
    if tokenizer is None:
        config.check()
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
    turns = Turns(template_of(config, tokenizer), config.turns, tuple(block_sizes), config.seq_len)
    plain, laid_out = cache / fingerprint, cache / _fingerprint_of_turns(fingerprint, turns)
    folders = (plain, laid_out) if config.turns in ("auto", "mix") else (laid_out,)
    recipe = Recipe(config.corpus, config.tokenizer, config.vocab_size, config.validation_fraction)
    packed = _opened(folders)
    for _ in range(3):  # another process may be replacing a damaged folder at the same moment
        if packed is None:
            build(folders[0], partial(_load, source), recipe, tokenizer, is_current, turns, laid_out)
            packed = _opened(folders)
    assert packed is not None, f"{folders} do not hold what was just built"
    _check_turns(packed, config)
    _warn_of_losses(packed, config.tokenizer)
    if tokenizer is None:  # else the model is trained
        _warn_of_little_training(packed, config.validation_fraction)
    splits = {name: _rows(split, packed, config) for name, split in packed.splits.items()}
    for name, split in splits.items():
        if split.n_rows == 0:
            raise ShortSplit(
                f"data.seq_len: {config.seq_len} is more than the {split.n_tokens} tokens of the {name} split of "
                f"{shown(config.corpus)}; lower data.seq_len, change data.validation_fraction or use a larger corpus",
                most=min(split.n_tokens for split in splits.values()),
            )
    return Data(
        packed.tokenizer, splits["train"], splits["validation"], _describe(config, packed, fingerprint, splits, source)
    )


def template_of(config: DataConfig, tokenizer: Tokenizer | None) -> ChatTemplate:
    """Return the template of conversations: that of a trained model, `data.chat_template`, the tokenizer's own, or a
    plain one."""
    found = None if tokenizer is None else tokenizer.chat_template
    if tokenizer is None and config.tokenizer not in TOKENIZERS:
        file, _ = tokenizer_file(path_of("data.tokenizer", config.tokenizer))
        found = ChatTemplate.read(file.parent)
    if config.chat_template is not None and (tokenizer is None or found is None):
        names = PLAIN.names if found is None else found.names
        source = read_text(path_of("data.chat_template", config.chat_template), "data.chat_template")
        return ChatTemplate(source, names)
    return found or PLAIN


def _opened(folders: Sequence[Path]) -> Packed | None:
    return next((packed for packed in map(open_packed, folders) if packed is not None), None)


def _fingerprint_of_turns(fingerprint: str, turns: Turns) -> str:
    """Hash what decides the arrays of conversations, beside all that decides those of other documents."""
    unit, template = math.lcm(*turns.block_sizes), turns.template
    made_by = [fingerprint, turns.how, unit, unit == turns.seq_len, template.source, dict(template.names)]
    return digest(json.dumps(made_by))[:20]


def _check_turns(packed: Packed, config: DataConfig) -> None:
    """Raise a ValueError for settings under which the turns of conversations are not what they were packed for."""
    if packed.turns is None:
        return
    if config.seq_len % packed.turns["unit"]:
        raise ValueError(
            f"data.seq_len: {config.seq_len} is no multiple of {packed.turns['unit']}, at multiples of which a turn "
            "begins (objective.block_size); take another data.seq_len, or data.turns=mix"
        )
    if config.document_mask and packed.turns["has_inner_ends"]:
        raise ValueError(
            "data.document_mask: True would hide the earlier turns of a conversation from the later ones, since an end "
            "of text stands between them; set it to false"
        )


def _load(source: Source, folder: Path) -> Documents:
    """Load the documents of a source.

    Raises:
        ValueError: they are none; the message names the source.
    """
    documents = source.load(folder)
    if not all(hasattr(documents, name) for name in ("has_prompts", "__len__", "read")):
        raise ValueError(
            f"data.corpus: load of {type(source).__name__} gave a {type(documents).__name__}; it must be Documents, "
            "e.g. hybrid.data.corpora.InMemory([Document(text), ...])"
        )
    return documents


def _fingerprint(config: DataConfig, source: Source, given: Tokenizer | None) -> str:
    """Hash everything that decides the arrays; rows are cut later, so `seq_len` is no part of it."""
    if given is not None:
        tokenizer = ["given", given.fingerprint]
    elif (tokenizer_class := TOKENIZERS.get(config.tokenizer)) is None:
        file, end_of_text = tokenizer_file(path_of("data.tokenizer", config.tokenizer))
        tokenizer = ["file", digest(file.read_bytes()), *([] if end_of_text is None else [end_of_text])]
    else:
        tokenizer = [config.tokenizer, config.vocab_size if tokenizer_class.sized else None]
    made_by = [VERSION, type(source).__name__, source.identity(), tokenizer, config.validation_fraction]
    return digest(json.dumps(made_by))[:20]


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
    if packed.turns is not None:
        description["turns"] = {name: packed.turns[name] for name in ("how", "unit")}
    by_document = all(split.has_a_document_per_row for split in splits.values())
    if isinstance(source, KnownEntropy) and by_document and packed.is_lossless:
        # The end of text is certain.
        description["entropy_per_token"] = source.entropy() / config.seq_len
        texts = [tokenizer.decode(row[:-1]) for row in splits["validation"].tokens.reshape(-1, config.seq_len).tolist()]
        description["validation"]["source_nats_per_token"] = -float(source.log_prob(texts).mean()) / config.seq_len
    return description


def _warn_of_losses(packed: Packed, tokenizer: str) -> None:
    """Warn of a text that cannot be told from its tokens: their bits are not those of the text."""
    if packed.is_lossless:
        return
    given_back = [split.given_back for split in packed.splits.values()]
    checked, lost = (sum(entry[name] for entry in given_back) for name in ("checked", "lost"))
    example = next(entry["example"] for entry in given_back if entry["example"])
    warnings.warn(
        f"data.tokenizer: {shown(tokenizer)} does not give the text back: {lost:,} of {checked:,} documents looked at "
        f"come back changed ({example}); there are no bits per byte, and nats per token are those of the changed text",
        stacklevel=3,
    )


def _warn_of_little_training(packed: Packed, validation_fraction: float) -> None:
    """Warn of a split that leaves little to train on: documents are split by number, whatever their length."""
    train, validation = (packed.splits[name].counts.tokens for name in SPLITS)
    if train < LEAST_OF_TRAINING * (1 - validation_fraction) * (train + validation):
        warnings.warn(
            f"data.validation_fraction: {validation_fraction} leaves {train:,} tokens to train on and {validation:,} "
            "to validate, because whole documents are split and these are few or of unequal length; cut long documents "
            "into several, add some, or try another data.validation_fraction",
            stacklevel=3,
        )
