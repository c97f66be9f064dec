"""Record which data a model was trained on, compare it with what is there now, and prepare it again.

environment.json    of a run: `data` (hashes of corpus and tokenizer, sizes of the splits, where the corpus lies)
model.json          of a saved model: `data`, as above
hybrid.json         of one that was written in the format of others: the same
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping
from glob import has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid.data.config import DataConfig
from hybrid.data.corpora.locating import is_embedded
from hybrid.data.preparing import Data, prepare
from hybrid.data.tokenizers import SUBWORD_FILE, load_tokenizer
from hybrid.options import title
from hybrid.storage.json_files import read_json

if TYPE_CHECKING:
    from hybrid.data.tokenizers import Tokenizer

log = logging.getLogger(__name__)

SETTLED_BY_CONTENT = ("data.corpus", "data.format", "data.tokenizer")
"""Settings that may change where the text and the tokenizer behind them are the same."""
MOST_IN_UNIT = 2**20
"""Tokens that the turns of a conversation are filled up to a multiple of."""
_SIZES = ("documents", "tokens", "target_tokens")
"""Of a split: they tell another way of packing the same text."""


def located(data: Data) -> Data:
    """Add `corpus_path` to the description: where a corpus of local files lies, whatever folder one is in."""
    path = _absolute(data.description["corpus"])
    return dataclasses.replace(data, description={**data.description, "corpus_path": path})


def _absolute(corpus: Any) -> str | None:
    """Return the absolute path of a file, folder or glob; None of what is embedded or on the Hub. ~ is the home."""
    if not isinstance(corpus, str) or is_embedded(corpus):
        return None
    path = Path(os.path.abspath(Path(corpus).expanduser()))
    if not path.exists() and not has_magic(corpus):
        return None
    home = Path(os.path.expanduser("~"))
    if home.is_absolute() and home != Path(home.anchor) and path.is_relative_to(home):
        return str(Path("~", path.relative_to(home)))
    return str(path)


def recorded_data(folder: Path) -> dict[str, Any] | None:
    """Return what the folder of a run or saved model says of the data of its training; None if it does not say."""
    for name in ("environment.json", "model.json", "hybrid.json"):
        try:
            found = read_json(folder / name)["data"]
            hashes = found["corpus_sha256"], found["tokenizer_fingerprint"]
            if all(isinstance(value, str) for value in hashes) and _is_unit((found.get("turns") or {}).get("unit", 1)):
                return dict(found)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return None


def _is_unit(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MOST_IN_UNIT


def refuse_other_data(run: Path, now: Mapping[str, Any], config: DataConfig) -> None:
    """Compare what a run was trained on with what its settings give `now` (a description of data).

    Raises:
        ValueError: another text or another tokenizer; says what to do. Of a run that does not record them there is a
            warning instead.
    """
    recorded = recorded_data(run)
    if recorded is None:
        log.warning("%s: does not record on which data it was trained; whether it is still the same is not known", run)
    elif recorded["corpus_sha256"] != now["corpus_sha256"]:
        raise ValueError(
            f"data.corpus: {title(config.corpus)} is not the text that {run} was trained on "
            f"({_hashes(recorded, now)}); put that text back, or start a new run under another run.name "
            "(trainer.init_from takes its weights)"
        )
    fingerprint = _fingerprint(run, recorded)
    if fingerprint not in (None, now["tokenizer_fingerprint"]):
        own = run / "tokenizer" / SUBWORD_FILE
        way_out = f"set data.tokenizer={own}" if own.is_file() else "put its text or its tokenizer back"
        raise ValueError(
            f"data.tokenizer: {config.tokenizer} gives another tokenizer ({now['tokenizer_fingerprint']}) than {run} "
            f"was trained with ({fingerprint}); {way_out}, or start a new run under another run.name"
        )
    if recorded is not None and recorded.get("corpus") != now["corpus"]:
        log.info("data.corpus: %s holds the text that %s was trained on", title(config.corpus), run)
    if recorded is not None and _sizes(recorded) != _sizes(now):
        log.warning("%s: its text is cut into other tokens now; it goes on, but not as if it had never stopped", run)


def _fingerprint(run: Path, recorded: Mapping[str, Any] | None) -> str | None:
    """Return the fingerprint of a run's tokenizer, as it is saved with it; where that is damaged, as it is recorded."""
    try:
        return load_tokenizer(run / "tokenizer").fingerprint
    except ValueError:
        return None if recorded is None else recorded["tokenizer_fingerprint"]


def prepare_again(
    config: DataConfig, tokenizer: Tokenizer, recorded: Mapping[str, Any] | None, way_out: str = ""
) -> Data:
    """Prepare the data that a model was trained on, wherever one calls from: its corpus is sought where it lay then.

    Args:
        recorded: what its folder says of that data; None: nothing, and nothing is compared.
        way_out: what to do, beside putting the text back.

    Raises:
        ValueError: the corpus is gone, or another text is there now.
    """
    if recorded is None:
        log.warning(
            "data.corpus: on which text the model was trained is not recorded; %s may be another", config.corpus
        )
        return prepare(config, tokenizer)
    unit = dict(recorded.get("turns") or {}).get("unit", 1)
    places = [recorded.get("corpus_path"), config.corpus]
    errors = []
    for place in (p for i, p in enumerate(places) if p is not None and p not in places[:i]):
        try:
            data = prepare(dataclasses.replace(config, corpus=place), tokenizer, [unit])
        except ValueError as error:  # it is gone, or holds what the tokenizer does not know
            said = f"data.corpus: {title(place)} can't be read as the text that the model was trained on: {error}"
            errors.append(ValueError(f"{said}{way_out}"))
            continue
        if data.description["corpus_sha256"] == recorded["corpus_sha256"]:
            if _sizes(recorded) != _sizes(data.description):
                log.warning("data.corpus: the text is cut into other tokens now than in training")
            data = located(data)
            data.description["corpus"] = config.corpus
            return data
        errors.append(
            ValueError(
                f"data.corpus: {title(place)} is not the text that the model was trained on "
                f"({_hashes(recorded, data.description)}); put that text back{way_out}"
            )
        )
    raise errors[0]


def _hashes(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return f"sha256 {now['corpus_sha256'][:12]}... now, {recorded['corpus_sha256'][:12]}... in training"


def _sizes(description: Mapping[str, Any]) -> list[Any]:
    splits = [description.get(name) for name in ("train", "validation")]
    return [split.get(key) if isinstance(split, Mapping) else None for split in splits for key in _SIZES]
