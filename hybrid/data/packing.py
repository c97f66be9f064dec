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
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from hybrid.data.corpora.files import HASHED_BYTES
from hybrid.data.corpora.source import Documents
from hybrid.data.encoding import RoundTrip
from hybrid.data.splitting import SPLITS, chunks, survey
from hybrid.data.tokenizers import Tokenizer, load_tokenizer
from hybrid.data.turns import ONE_BEHIND_THE_OTHER, Encoder, Turns
from hybrid.data.vocabulary import tokenizer_of
from hybrid.options import path_of, shown
from hybrid.progress import progress
from hybrid.storage.json_files import read_json
from hybrid.storage.temporaries import locked_folder, temporary_of

VERSION = 2  # raise it when the same corpus and settings give other arrays, so that old caches are left alone


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
    turns: dict[str, Any] | None = None  # of conversations, and of documents that are filled up: how, and to what unit

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
    turns: Turns = ONE_BEHIND_THE_OTHER,
    folder_of_turns: Path | None = None,
) -> None:
    """Build in a sibling folder and rename it, so that it is complete or not there.

    Args:
        turns: how documents with prompts are laid out.
        folder_of_turns: takes the place of `folder` if the documents are conversations, whose arrays `turns` decides.

    Raises:
        ValueError: a corpus that can't be split or encoded, or is no longer the one that `folder` is named after
            (`is_current`); a cache that can't be written.
    """
    work = temporary_of(folder.with_name(f"{folder.name}-{secrets.token_hex(4)}"))  # two threads may build it, too
    try:
        with locked_folder(work):
            documents = load(work / "scratch")
            found = survey(documents, recipe.corpus, recipe.validation_fraction)
            template = turns.template if getattr(documents, "has_conversations", False) else None
            if template is not None:
                folder = folder_of_turns or folder
            names = recipe.tokenizer, recipe.vocab_size
            tokenizer = tokenizer or tokenizer_of(*names, documents, found, template)
            if template is not None:
                tokenizer.chat_template = template
            tokenizer.save(work / "tokenizer")
            encoder = Encoder(tokenizer, turns.of_documents(template is not None, documents.has_prompts))
            splits = {name: _pack(work, name, documents, found.splits[name], encoder) for name in SPLITS}
            if not is_current():
                raise ValueError(
                    f"data.corpus: {shown(recipe.corpus)} (or data.tokenizer) changed while it was read; start again "
                    "when nothing writes to it"
                )
            shutil.rmtree(work / "scratch", ignore_errors=True)
            inner_ends = [split.pop("has_inner_ends") for split in splits.values()]
            meta = {"corpus_sha256": found.sha256, "splits": splits, "made_by": {"version": VERSION, **asdict(recipe)}}
            if template is not None or encoder.turns.unit > 1:
                how = {"how": encoder.turns.how, "unit": encoder.turns.unit}
                meta["turns"] = {**how, "has_inner_ends": any(inner_ends)}
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
        return Packed(load_tokenizer(folder / "tokenizer"), splits, meta["corpus_sha256"], meta.get("turns"))
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


def _pack(folder: Path, split: str, documents: Documents, indices: np.ndarray, encoder: Encoder) -> dict[str, Any]:
    """Write one split. Return what meta.json says of it."""
    tokenizer = encoder.tokenizer
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    n_tokens = n_bytes = target_tokens = target_bytes = 0
    round_trip, has_inner_ends = RoundTrip(tokenizer), False
    with ExitStack() as files:
        tokens = files.enter_context(_Array(folder / f"{split}.bin", dtype))
        arrays = [tokens]
        if documents.has_prompts:
            arrays.append(files.enter_context(_Array(folder / f"{split}.is_target.bin", np.dtype("u1"))))
        for chunk in progress(chunks(documents, indices), len(indices), f"packing {split}"):
            for encoded in encoder.encode([document for _, document in chunk]):
                round_trip.check(encoded)
                ids, is_target = encoder.lay_out(encoded, n_tokens)
                for array, values in zip(arrays, (ids, is_target), strict=False):
                    array.write(values)
                has_inner_ends = has_inner_ends or encoder.has_inner_ends(encoded)
                n_tokens += len(ids)
                target_tokens += int(is_target.sum())
                target_bytes += encoded.target_bytes
                n_bytes += len(encoded.text.encode())
    counts = Counts(len(indices), n_tokens, n_bytes, target_tokens, target_bytes)
    entries = {array.path.name: array.entry() for array in arrays}
    return {
        **counts._asdict(),
        "dtypes": {name: dtype for name, (dtype, _) in entries.items()},
        "sha256": {name: checksum for name, (_, checksum) in entries.items()},
        "given_back": round_trip.entry(),
        "has_inner_ends": has_inner_ends,
    }
