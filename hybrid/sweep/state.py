"""How far each run of a sweep is, as its folder tells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hybrid import checkpoint
from hybrid.atomic import read_json
from hybrid.config import differences, load_config
from hybrid.run import MAY_CHANGE
from hybrid.sweep.plan import Planned
from hybrid.tables import aligned, formatted
from hybrid.tracking import METRICS, last_validation, read_metrics

# Settings that a run may change when it is resumed, but not and still be the run that the sweep asks for.
_MUST_AGREE = ("trainer.batch_tokens", "trainer.init_from", "trainer.precision", "run.seed")


@dataclass(frozen=True)
class State:
    """Steps done, whether that is all, and the last validation."""

    step: int
    is_finished: bool
    nelbo: float | None = None  # nats per token
    bits_per_byte: float | None = None
    seconds: float | None = None


def state_of(run: Planned) -> State:
    """Read the folder of a run.

    Raises:
        ValueError: it holds a run with other settings.
    """
    folder = Path(run.config.run.folder) / run.name
    if not (folder / "config.yaml").is_file():
        return State(0, False)
    changed = differences(load_config(folder / "config.yaml", checked=False), run.config)
    for key, (old, new) in changed.items():
        if not key.startswith(MAY_CHANGE) or key in _MUST_AGREE:
            raise ValueError(
                f"{folder}: has {key} = {old!r}, and the sweep wants {new!r}; choose another --folder or remove the run"
            )
    step = checkpoint.steps_done(folder)
    if not step:
        return State(0, False)
    records = read_metrics(folder) if (folder / METRICS).is_file() else []
    seconds = records[-1]["time"] if records else None
    last = last_validation(records)
    trainer = run.config.trainer
    is_over = step >= trainer.steps or (trainer.minutes is not None and (seconds or 0) >= 60 * trainer.minutes)
    if last is None or last["step"] < step or not is_over:  # the last validation comes after the last checkpoint
        return State(step, False, seconds=seconds)
    return State(step, True, last["val/nelbo"], last.get("val/bits_per_byte"), seconds)


def is_evaluated(folder: Path, words: Iterable[str]) -> bool:
    """Whether eval.json is the result of hybrid.evaluate with these options.

    Raises:
        ValueError: an option that hybrid.evaluate does not take.
    """
    from hybrid.evaluate import parse, settings_of

    settings = settings_of(parse(list(words)))
    path = folder / "eval.json"
    return path.is_file() and read_json(path)["settings"] == settings


def table(runs: Iterable[Planned], states: Mapping[str, State], failures: Mapping[str, str] | None = None) -> str:
    """Plain text, one line per run. Its losses are the last validation of the training; hybrid.evaluate may have read
    other rows.
    """
    rows = [["run", "state", "steps", "validation nats/token", "bits/byte", "minutes"]]
    for run in runs:
        s = states[run.name]
        word = "finished" if s.is_finished else f"stopped at {s.step:,}" if s.step else "new"
        if run.name in (failures or {}):
            word = "FAILED"
        rows.append(
            [
                run.name,
                word,
                f"{run.config.trainer.steps:,}",
                formatted(s.nelbo, ".4f"),
                formatted(s.bits_per_byte, ".4f"),
                formatted(None if s.seconds is None else s.seconds / 60, ".1f"),
            ]
        )
    said = [f"{name}: {why}" for name, why in (failures or {}).items()]
    return "\n".join([aligned(rows, left=(0, 1)), *said])
