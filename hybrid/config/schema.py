"""Declare the groups of the configuration, and the tables whose entries some keys name."""

from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from hybrid.data.config import DataConfig
from hybrid.model import ModelConfig
from hybrid.objectives import ObjectiveConfig
from hybrid.options import RemovedEntry, build, option, renamed
from hybrid.training.config import TrainerConfig
from hybrid.training.optim import OptimConfig
from hybrid.training.validation import EvalConfig


@dataclass
class RunConfig:
    name: str = option("", "name of the run; empty: the config file's name")
    folder: str = option("runs", "where runs are kept; the run's own folder is FOLDER/NAME")
    seed: int = option(0, "seed of the initialisation, the data order and the noise")
    imports: Any = option([], "modules imported first, so that they can register their own table entries")
    device: str = option("auto", "cpu, cuda, cuda:1, ...; auto takes a GPU where there is one")


@dataclass
class Config:
    """Everything that a run depends on; each group is declared by the room that reads it."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    decoder: dict[str, Any] = option({"name": "first_hitting"}, "how samples are decoded: an entry of DECODERS")
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


# Keys whose value is a spec (hybrid.options): where the table is. Imported late, so that --help of another script and
# the user's own entries (run.imports) come first.
SPECS = {
    "data.corpus": ("hybrid.data.corpora", "CORPORA"),
    "decoder": ("hybrid.decoding", "DECODERS"),
    "model.rope_scaling": ("hybrid.model.rope", "ROPE_SCALINGS"),
    "objective.name": ("hybrid.objectives", "OBJECTIVES"),
    "objective.estimator": ("hybrid.objectives", "ESTIMATORS"),
    "objective.proposal": ("hybrid.objectives.proposals", "PROPOSALS"),
    "objective.schedule": ("hybrid.objectives.schedules", "SCHEDULES"),
    "objective.weighting": ("hybrid.objectives.weightings", "WEIGHTINGS"),
}
OPEN = ("data.corpus",)
"""Those whose value may also be a text that is no name of the table (there: files, the Hub)."""

NULLABLE = ("model.rope_scaling",)
"""Those that may be null."""

NO_MATTER = (
    "run.", "decoder", "data.cache_dir", "trainer.resume", "trainer.log_every", "trainer.eval_every",
    "trainer.sample_every", "trainer.save_every", "trainer.keep_last", "trainer.max_bad_steps",
)  # fmt: skip
"""What keys begin with that change nothing in what is learned, but for the seed; nor in how it is evaluated."""
ROUNDING = ("model.attention", "trainer.compile", "trainer.parallel", "trainer.recompute", "trainer.micro_batch_tokens")
"""Those that change it by rounding alone."""

BACKENDS = ("hybrid.model.attention", "BACKENDS")


def table(address: tuple[str, str]) -> Mapping[str, type]:
    """Return the table at (module, name), with what the user has registered in it by now."""
    module, name = address
    return getattr(importlib.import_module(module), name)


def value_of(config: Config, name: str) -> Any:
    """Return the value of a key given by its dotted name."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def check_specs(config: Config, of_old_run: bool = False) -> None:
    """Raise a ValueError for a spec that names nothing, or an option that its entry does not take.

    Args:
        of_old_run: entries that were removed since may be named.
    """
    for name, address in SPECS.items():
        spec = value_of(config, name)
        if not (name in OPEN and isinstance(spec, str)) and not (name in NULLABLE and spec is None):
            try:
                build(table(address), spec, name)
            except RemovedEntry:
                if not of_old_run:
                    raise


def use_new_names(config: Config) -> None:
    """Call entries that tables had twice by the name that stayed."""
    for name in SPECS:
        *path, last = name.split(".")
        setattr(value_of(config, path[0]) if path else config, last, renamed(name, value_of(config, name)))


class Key(NamedTuple):
    """One key of the configuration: `trainer.steps`, its type, default, one-line doc and choices (None: many)."""

    name: str
    annotation: Any
    default: Any
    doc: str
    choices: tuple[str, ...] | None


@cache
def known_keys() -> dict[str, Key]:
    """Return every key by its dotted name, in the order of declaration. One dict for all callers: only read it."""
    return {key.name: key for key in _keys(Config(), "")}


def groups() -> list[str]:
    """The names of the groups, `decoder` among them."""
    return [f.name for f in dataclasses.fields(Config)]


def choices(key: Key) -> tuple[str, ...] | None:
    """The choices of a key, with the user's own attention backends among them."""
    if key.name != "model.attention" or key.choices is None:
        return key.choices
    return tuple(dict.fromkeys((*key.choices, *table(BACKENDS))))


def _keys(group: Any, prefix: str) -> Iterator[Key]:
    hints = typing.get_type_hints(type(group))
    for f in dataclasses.fields(group):
        default = getattr(group, f.name)
        if dataclasses.is_dataclass(default):
            yield from _keys(default, f"{f.name}.")
        else:
            doc = f.metadata.get("doc", "")
            yield Key(f"{prefix}{f.name}", hints[f.name], default, doc, f.metadata.get("choices"))
