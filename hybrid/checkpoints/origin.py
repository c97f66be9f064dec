"""What results were made from: recorded beside them, and compared whenever they are used again.

environment.json    of a run: `data` (hashes of corpus and tokenizer, sizes of the splits, where the corpus lies) and
                    `init_from` (step and hash of the checkpoint whose weights it started from)
model.json          of a saved model: `data`, as above
eval.json           of an evaluation: `checkpoint` (step and hash of what was evaluated), `data`, and the judge's own
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from glob import has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid.checkpoints import checkpoint
from hybrid.data.corpora.files import digest
from hybrid.data.corpora.named import is_embedded
from hybrid.data.dataset import Data, DataConfig, prepare
from hybrid.data.tokenizers import SUBWORD_FILE, load_tokenizer
from hybrid.options import title
from hybrid.storage.atomic import MANIFEST, read_json, sha256_of

if TYPE_CHECKING:
    from hybrid.data.tokenizers import Tokenizer

log = logging.getLogger(__name__)

SETTLED_BY_CONTENT = ("data.corpus", "data.format", "data.tokenizer")
"""Settings that may change where the text and the tokenizer behind them are the same."""

_SIZES = ("documents", "tokens", "target_tokens")
"""Of a split: they tell another way of packing the same text."""


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


def identity_of(folder: Path) -> dict[str, Any] | None:
    """Step (None: a saved model) and hash of the content of a checkpoint's folder; None if its manifest cannot tell.

    The files themselves are not read: whoever loads a checkpoint verifies them.
    """
    try:
        files = {str(name): str(entry["sha256"]) for name, entry in read_json(folder / MANIFEST)["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    try:
        step = checkpoint.step_of(folder)
    except ValueError:
        step = None
    return {"step": step, "sha256": digest(*(part for item in sorted(files.items()) for part in item))}


def latest_identity(path: Path) -> dict[str, Any] | None:
    """`identity_of` what `hybrid.load` takes of a run, or of a saved model; None if there is nothing that tells."""
    folder = path / "checkpoints"
    saved = checkpoint.list_checkpoints(folder if folder.is_dir() else path)
    return identity_of(saved[-1] if saved else path)


def is_foreign(path: Path) -> bool:
    """Whether a folder is a Hugging Face model's, and none of ours."""
    return (path / "config.json").is_file() and not (path / "config.yaml").is_file()


def foreign_identity(path: Path) -> dict[str, Any]:
    """`identity_of` the folder of a Hugging Face model: the hash of its settings, tokenizer and weights."""
    stats = {p: p.stat() for p in sorted(path.glob("*")) if p.suffix in (".json", ".safetensors") and p.is_file()}
    return {"step": None, "sha256": _hash_of(tuple((p, s.st_size, s.st_mtime_ns) for p, s in stats.items()))}


@cache  # gigabytes, perhaps, and the same for many runs
def _hash_of(files: tuple[tuple[Path, int, int], ...]) -> str:
    return digest(*(part for path, _, _ in files for part in (path.name, sha256_of(path))))


def model_identity(path: Path) -> dict[str, Any] | None:
    """Of the model, ours or not, that is in a folder now."""
    return foreign_identity(path) if is_foreign(path) else latest_identity(path)


def recorded_start(run: Path) -> Any:
    """Which checkpoint's weights a run has started from, as it says itself; None if it does not."""
    try:
        return read_json(run / "environment.json").get("init_from")
    except (ValueError, AttributeError):
        return None


def is_same_checkpoint(one: Any, other: Any) -> bool | None:
    """Whether two identities are of the same weights; None if one is not known."""
    hashes = [each.get("sha256") if isinstance(each, Mapping) else None for each in (one, other)]
    return None if None in hashes else hashes[0] == hashes[1]


# ---------------------------------------------------------------------------------------------------------------------
# Data


def located(data: Data) -> Data:
    """With `corpus_path` in its description: where a corpus of local files lies, whatever folder one is in."""
    path = _absolute(data.description["corpus"])
    return dataclasses.replace(data, description={**data.description, "corpus_path": path})


def _absolute(corpus: Any) -> str | None:
    """Of a file, folder or glob; None of what is embedded, or on the Hub. A home folder's name is left out."""
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
    """What the folder of a run or of a saved model says of the data of its training; None if it does not say."""
    for name in ("environment.json", "model.json"):
        try:
            found = read_json(folder / name)["data"]
            if isinstance(found["corpus_sha256"], str) and isinstance(found["tokenizer_fingerprint"], str):
                return dict(found)
        except (ValueError, KeyError, TypeError):
            continue
    return None


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
    """Of a run's tokenizer, as it is saved with it; where that is damaged, as it is recorded."""
    try:
        return load_tokenizer(run / "tokenizer").fingerprint
    except ValueError:
        return None if recorded is None else recorded["tokenizer_fingerprint"]


def prepare_again(
    config: DataConfig, tokenizer: Tokenizer, recorded: Mapping[str, Any] | None, way_out: str = ""
) -> Data:
    """The data that a model was trained on, wherever one calls from: its corpus is looked for where it lay then.

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
    places = [recorded.get("corpus_path"), config.corpus]
    errors = []
    for place in (p for i, p in enumerate(places) if p is not None and p not in places[:i]):
        try:
            data = prepare(dataclasses.replace(config, corpus=place), tokenizer)
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


# ---------------------------------------------------------------------------------------------------------------------
# Models


@dataclass(frozen=True)
class Origin:
    """Where a model was loaded from: which checkpoint, and what its folder says of the data of its training."""

    checkpoint: dict[str, Any] | None = None  # step and sha256; None: not known
    data: dict[str, Any] | None = None
    folder: Path | None = None  # of the checkpoint
    weights: str = "model"  # the group of its tensors

    @classmethod
    def read(cls, folder: Path, home: Path, weights: str) -> Origin:
        """Of a checkpoint's `folder`, and the one that has the configuration of its model."""
        return cls(identity_of(folder), recorded_data(home), folder, weights)
