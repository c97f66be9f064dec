"""Packing: documents become one array of tokens per split, in a folder that is complete or not there.

<split>.bin            tokens, little-endian uint16 or uint32: document, end of text, document, end of text, ...
<split>.is_target.bin  uint8 per token; only where documents have prompts
tokenizer/             what `Tokenizer.save` writes
meta.json              counts, types, checksums, whether the tokens give the text back, and the settings that made it
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from hybrid.data.corpora.files import HASHED_BYTES
from hybrid.data.corpora.source import Documents
from hybrid.data.encoding import RoundTrip, encode_documents
from hybrid.data.splitting import SPLITS, Survey, chunks, survey
from hybrid.data.tokenizers import TOKENIZERS, SubwordTokenizer, Tokenizer, load_tokenizer
from hybrid.options import path_of, shown
from hybrid.progress import progress
from hybrid.storage.json_files import read_json
from hybrid.storage.temporaries import locked_folder, temporary_of

VERSION = 2  # raise it when the same corpus and settings give other arrays, so that old caches are left alone
TRAINING_CHARACTERS = 2**28  # a subword vocabulary is trained on no more than this much text


@dataclass(frozen=True)
class Recipe:
    """The settings that decide what is built from a corpus."""

    corpus: str | dict[str, Any]  # for messages
    tokenizer: str
    vocab_size: int
    validation_fraction: float


class Counts(NamedTuple):
    """Of one split. Bytes are those of the text in UTF-8: an end-of-text token has none."""

    documents: int
    tokens: int
    bytes: int
    target_tokens: int
    target_bytes: int


class Split(NamedTuple):
    tokens: np.ndarray  # uint16 or uint32 [tokens], memory-mapped
    is_target: np.ndarray | None  # uint8 [tokens]; None where every token is a target
    counts: Counts
    given_back: dict[str, Any]  # documents `checked`, those `lost`, and an `example` or null


class Packed(NamedTuple):
    tokenizer: Tokenizer
    splits: dict[str, Split]
    corpus_sha256: str

    @property
    def is_lossless(self) -> bool:
        """Return whether every document that was checked comes back from its tokens."""
        return not any(split.given_back["lost"] for split in self.splits.values())


def cache_folder(named: str = "") -> Path:
    """Return `named`, else $HYBRID_CACHE, else the usual place. Raises ValueError if it is in no home that there is."""
    chosen = named or os.environ.get("HYBRID_CACHE") or "~/.cache/hybrid"
    try:
        return path_of("data.cache_dir", chosen)
    except ValueError as error:
        raise ValueError(f"{error}; set data.cache_dir or $HYBRID_CACHE to a folder that can be written") from None


def build(
    folder: Path,
    load: Callable[[Path], Documents],
    recipe: Recipe,
    tokenizer: Tokenizer | None = None,
    is_current: Callable[[], bool] = lambda: True,
) -> None:
    """Build in a sibling folder and rename it, so that `folder` is complete or not there.

    Raises:
        ValueError: a corpus that can't be split or encoded, or is no longer the one that `folder` is named after
            (`is_current`); a cache that can't be written.
    """
    work = temporary_of(folder.with_name(f"{folder.name}-{secrets.token_hex(4)}"))  # two threads may build it, too
    try:
        with locked_folder(work):
            documents = load(work / "scratch")
            found = survey(documents, recipe.corpus, recipe.validation_fraction)
            tokenizer = tokenizer or _tokenizer(recipe, documents, found)
            tokenizer.save(work / "tokenizer")
            splits = {name: _pack(work, name, documents, found.splits[name], tokenizer) for name in SPLITS}
            if not is_current():
                raise ValueError(
                    f"data.corpus: {shown(recipe.corpus)} (or data.tokenizer) changed while it was read; start again "
                    "when nothing writes to it"
                )
            shutil.rmtree(work / "scratch", ignore_errors=True)
            meta = {"corpus_sha256": found.sha256, "splits": splits, "made_by": {"version": VERSION, **asdict(recipe)}}
            (work / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
            _publish(work, folder)
    except OSError as error:
        raise ValueError(
            f"data.cache_dir: could not build the token cache in {str(folder.parent)!r} ({error}); free some space, or "
            "set data.cache_dir (or $HYBRID_CACHE) to a folder that can be written"
        ) from None


def _publish(work: Path, folder: Path) -> None:
    for _ in range(10):
        try:
            os.rename(work, folder)
            return
        except OSError:
            if not folder.exists():
                raise
        if open_packed(folder) is not None:
            return  # another process was faster
        damaged = temporary_of(folder.with_name(f"{folder.name}-{secrets.token_hex(4)}-damaged"))
        try:
            os.rename(folder, damaged)
        except FileNotFoundError:
            continue  # another process is replacing it
        shutil.rmtree(damaged, ignore_errors=True)


def open_packed(folder: Path) -> Packed | None:
    """Open what `build` left in `folder`; None if it isn't there or is damaged."""
    try:
        meta = read_json(folder / "meta.json")
        splits = {}
        for name in SPLITS:
            entry = meta["splits"][name]
            counts = Counts(**{field: entry[field] for field in Counts._fields})
            arrays = {
                file: _map(folder / file, dtype, counts.tokens, entry["sha256"][file])
                for file, dtype in entry["dtypes"].items()
            }
            splits[name] = Split(
                arrays[f"{name}.bin"], arrays.get(f"{name}.is_target.bin"), counts, entry["given_back"]
            )
        return Packed(load_tokenizer(folder / "tokenizer"), splits, meta["corpus_sha256"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _map(path: Path, dtype: str, length: int, checksum: str) -> np.ndarray:
    array = np.memmap(path, dtype=dtype, mode="r")
    if len(array) != length:
        raise ValueError(f"{path}: {len(array)} entries instead of {length}")
    # A checksum of many gigabytes at every start would cost more than it is worth.
    if array.nbytes <= HASHED_BYTES and sha256(path.read_bytes()).hexdigest() != checksum:
        raise ValueError(f"{path}: its content changed")
    return array


def _tokenizer(recipe: Recipe, documents: Documents, found: Survey) -> Tokenizer:
    if recipe.tokenizer not in TOKENIZERS:
        return SubwordTokenizer.from_file(recipe.tokenizer)
    tokenizer_class = TOKENIZERS[recipe.tokenizer]
    if tokenizer_class.needs_all_text:
        return tokenizer_class.train(_texts(documents, np.concatenate(list(found.splits.values()))), recipe.vocab_size)
    texts = _texts(documents, found.splits["train"], TRAINING_CHARACTERS)
    return tokenizer_class.train(texts, recipe.vocab_size)


def _texts(documents: Documents, indices: np.ndarray, most: float = float("inf")) -> Iterator[str]:
    characters = 0
    for chunk in chunks(documents, indices):
        for _, document in chunk:
            yield from (document.prompt or "", document.text)
            characters += len(document.text)
        if characters >= most:
            return


class _Array:
    """A flat array that is written piece by piece."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.path, self.dtype = path, dtype
        self._sha256 = sha256()
        self._file = open(path, "wb")  # noqa: SIM115, closed by __exit__

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, values: Sequence[int] | np.ndarray) -> None:
        data = np.ascontiguousarray(values, dtype=self.dtype).data
        self._sha256.update(data)
        self._file.write(data)

    def entry(self) -> tuple[str, str]:
        return self.dtype.str, self._sha256.hexdigest()


def _pack(folder: Path, split: str, documents: Documents, indices: np.ndarray, tokenizer: Tokenizer) -> dict[str, Any]:
    """Write one split. Return what meta.json says of it."""
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    n_tokens = n_bytes = target_tokens = target_bytes = 0
    round_trip = RoundTrip(tokenizer)
    with ExitStack() as files:
        tokens = files.enter_context(_Array(folder / f"{split}.bin", dtype))
        arrays = [tokens]
        if documents.has_prompts:
            arrays.append(files.enter_context(_Array(folder / f"{split}.is_target.bin", np.dtype("u1"))))
        for chunk in progress(chunks(documents, indices), len(indices), f"packing {split}"):
            batch = [document for _, document in chunk]
            for document, encoded in zip(batch, encode_documents(batch, tokenizer), strict=True):
                round_trip.check(document, encoded)
                tokens.write(encoded.ids)
                tokens.write([tokenizer.end_of_text])
                n_targets = len(encoded.ids) - encoded.n_prompt + 1
                for is_target in arrays[1:]:
                    is_target.write(np.repeat([0, 1], [encoded.n_prompt, n_targets]))
                n_tokens += len(encoded.ids) + 1
                target_tokens += n_targets
                target_bytes += len(document.text.encode())
                n_bytes += len(((document.prompt or "") + document.text).encode())
    counts = Counts(len(indices), n_tokens, n_bytes, target_tokens, target_bytes)
    entries = {array.path.name: array.entry() for array in arrays}
    return {
        **counts._asdict(),
        "dtypes": {name: dtype for name, (dtype, _) in entries.items()},
        "sha256": {name: checksum for name, (_, checksum) in entries.items()},
        "given_back": round_trip.entry(),
    }
