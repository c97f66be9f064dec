"""Read how far each run of a sweep is, from its folder; and whether it is the run that is asked for."""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.checkpoints import finding
from hybrid.checkpoints.identity import identity_at, is_same_checkpoint, recorded_model
from hybrid.checkpoints.recorded_data import recorded_data, refuse_other_data
from hybrid.config import NO_MATTER, Config, data_block_sizes, differences, load_config
from hybrid.device import default_precision, resolve_device
from hybrid.options import path_of
from hybrid.results.table import Table, column
from hybrid.runs.resuming import MAY_CHANGE
from hybrid.runs.run_folder import folder_of
from hybrid.storage.json_files import read_json
from hybrid.sweep.plan import Planned
from hybrid.training.metrics import METRICS_FILE, last_validation, read_metrics

log = logging.getLogger(__name__)
# Settings that a run may change when it is resumed, but not and still be the run that the sweep asks for.
_MUST_AGREE = ("trainer.batch_tokens", "trainer.init_from", "trainer.precision", "run.seed")
# Settings that no result depends on; how long a run takes is compared where it is known how far it is.
_NO_MATTER = (*NO_MATTER, "trainer.steps", "trainer.minutes", "eval.sample", "eval.batch_rows")
# Options of hybrid.evaluate that say where something is; what it is is compared by its hash.
_PATHS = ("checkpoint", "judge")
Prepared = MutableMapping[str, Mapping[str, Any] | None]
"""Descriptions of data that were prepared already, by the settings of the data."""


@dataclass(frozen=True)
class State:
    """Steps done, whether that is all, and the last validation."""

    step: int
    is_finished: bool
    nelbo: float | None = None  # nats per token
    bits_per_byte: float | None = None
    seconds: float | None = None


def states_of(runs: Sequence[Planned]) -> dict[str, State]:
    """Find the state of each run, by name."""
    prepared: Prepared = {}
    return {run.name: state_of(run, prepared=prepared) for run in runs}


def state_of(
    run: Planned, who: str = "the sweep", strict: bool = False, prepared: Prepared | None = None
) -> State:  # fmt: skip
    """Read the folder of a run.

    Args:
        who: wants it.
        strict: no setting may differ on which any result depends, if only by rounding.

    Raises:
        ValueError: it holds a run with other settings, trained on another text, from other weights, or for longer.
    """
    folder = folder_of(run.config.run)
    if not (folder / "config.yaml").is_file():
        return State(0, False)
    before = load_config(folder / "config.yaml", checked=False)
    for key, (old, new) in differences(before, run.config).items():
        is_length = key in ("trainer.steps", "trainer.minutes")
        if key.startswith(_NO_MATTER) and key not in _MUST_AGREE and not (strict and is_length):
            continue
        if strict or not key.startswith(MAY_CHANGE) or key in _MUST_AGREE:
            raise _other(folder, f"has {key} = {old!r}", who, repr(new))
        log.warning("%s: has %s = %r, and %s wants %r; what it has done stays as it is", folder, key, old, who, new)
    step = finding.steps_done(folder)
    if not step:
        return State(0, False)
    _refuse_other_origin(folder, run.config, who, {} if prepared is None else prepared)
    records = read_metrics(folder) if (folder / METRICS_FILE).is_file() else []
    seconds = records[-1]["time"] if records else None
    last = last_validation(records)
    trainer = run.config.trainer
    is_whole = step >= trainer.steps
    if is_whole and before.trainer.steps != trainer.steps:
        raise _other(folder, f"has trainer.steps = {before.trainer.steps}", who, repr(trainer.steps))
    is_over = is_whole or (trainer.minutes is not None and (seconds or 0) >= 60 * trainer.minutes)
    if is_over and not is_whole and before.trainer.minutes not in (None, trainer.minutes):
        raise _other(folder, f"has trainer.minutes = {before.trainer.minutes}", who, repr(trainer.minutes))
    if not is_over and before.trainer.steps != trainer.steps:
        log.warning(
            "%s: %d of its steps were made on the way to %d; it goes on to %d, but not as if it had been planned so",
            folder, step, before.trainer.steps, trainer.steps,
        )  # fmt: skip
    if last is None or last["step"] < step or not is_over:  # the last validation comes after the last checkpoint
        return State(step, False, seconds=seconds)
    return State(step, True, last["val/nelbo"], last.get("val/bits_per_byte"), seconds)


def _other(folder: Path, has: str, who: str, wanted: str) -> ValueError:
    return ValueError(
        f"{folder}: {has}, and {who} wants {wanted}; choose another --folder or remove the run"
    )  # fmt: skip


def _refuse_other_origin(folder: Path, config: Config, who: str, prepared: Prepared) -> None:
    """Refuse a run of another origin than is asked for, which settings do not tell.

    It is the text behind the name of a corpus, and the weights behind the path of a run.
    """
    from hybrid.data.preparing import prepare

    sizes = data_block_sizes(config)
    key = repr((config.data, sizes))
    if key not in prepared:
        try:
            with warnings.catch_warnings(action="ignore"):  # the training says them
                prepared[key] = prepare(config.data, block_sizes=sizes).description
        except ValueError as error:  # gone, perhaps; what is finished does not need it
            log.warning("whether the runs have the data of today is not known: %s", error)
            prepared[key] = None
    data = prepared[key]
    if data is not None:
        refuse_other_data(folder, data, config.data)
    others = (
        ("trainer.init_from", config.trainer.init_from, "started"),
        ("objective.teacher", config.objective.teacher, "learned"),
    )
    for key, path, did in others:
        if path is None:
            continue
        recorded, today = recorded_model(folder, key.partition(".")[2]), identity_at(path_of(key, path))
        if is_same_checkpoint(recorded, today) is False:
            was, now = (f"step {dict(each or {}).get('step')}" for each in (recorded, today))
            raise _other(folder, f"{did} from {path} at {was}", who, f"what is there now, {now}")


def is_evaluated(folder: Path, words: Iterable[str]) -> bool:
    """Return whether eval.json is what hybrid.evaluate gives today: same options, checkpoint, models and text.

    Raises:
        ValueError: an option that hybrid.evaluate does not take.
    """
    from hybrid.evaluate import parse, settings_of

    arguments = parse(list(words))
    arguments.precision = arguments.precision or default_precision(resolve_device(arguments.device), arguments.dtype)
    try:
        content = read_json(folder / "eval.json")
        found, wanted = (
            {k: v for k, v in s.items() if k not in _PATHS} for s in (content["settings"], settings_of(arguments))
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return False
    judge = content.get("judge") if isinstance(content.get("judge"), Mapping) else {}
    judged_by = judge.get("checkpoint"), None if arguments.judge is None else identity_at(Path(arguments.judge))
    same = is_same_checkpoint(content.get("checkpoint"), identity_at(folder)), is_same_checkpoint(*judged_by)
    if found != wanted or False in same or bool(judge) is (arguments.judge is None):
        return False
    if same[0] is None:
        log.warning("%s: eval.json does not tell which checkpoint was evaluated; it is taken for the latest", folder)
    recorded = content.get("data")
    return isinstance(recorded, Mapping) and recorded.get("corpus_sha256") == _text_of(folder, arguments)


def _text_of(folder: Path, arguments: argparse.Namespace) -> str | None:
    """Hash the text that hybrid.evaluate would read now."""
    from hybrid.data.preparing import prepare
    from hybrid.data.tokenizers import load_tokenizer
    from hybrid.evaluation.other_text import other_corpus

    if arguments.data is None:  # it reads no other than that of the training
        return (recorded_data(folder) or {}).get("corpus_sha256")
    data = other_corpus(load_config(folder / "config.yaml", checked=False).data, arguments)
    with warnings.catch_warnings(action="ignore"):
        return prepare(data, load_tokenizer(folder / "tokenizer")).description["corpus_sha256"]


@dataclass(frozen=True)
class Row:
    """How far one run is."""

    run: str = column("run")
    state: str = column("state")
    steps: int = column("steps")
    nelbo: float | None = column("validation nats/token", ".4f")
    bits_per_byte: float | None = column("bits/byte", ".4f")
    seconds: float | None = column("minutes", lambda seconds: f"{seconds / 60:.1f}")


def table(runs: Iterable[Planned], states: Mapping[str, State], failures: Mapping[str, str] | None = None) -> str:
    """Write plain text, one line per run.

    Its losses are those of the last validation of the training; hybrid.evaluate may have read other rows.
    """
    rows = []
    for run in runs:
        s = states[run.name]
        word = "finished" if s.is_finished else f"stopped at {s.step:,}" if s.step else "new"
        if run.name in (failures or {}):
            word = "FAILED"
        rows.append(Row(run.name, word, run.config.trainer.steps, s.nelbo, s.bits_per_byte, s.seconds))
    said = [f"{name}: {why}" for name, why in (failures or {}).items()]
    return "\n".join([Table(rows).text(left=(0, 1)), *said])
