"""Plan a sweep: the product of arms and of `key=a,b,c`, each run with a name that tells it from the others.

A sweep file names a run's configuration and what is varied over it:

    config: ../quickstart.yaml            # of all runs
    set: {trainer.steps: 300}             # over that file, for all runs
    arms:                                 # settings that change together, by the name of the arm
      ar: {model.prediction: next_token, model.context: causal, objective.block_size: 1}
      b4: {objective.block_size: 4}
    grid: {run.seed: [0, 1, 2]}           # every combination
    evaluate: {block_size: [1, 4], rows: 128}   # options of hybrid.evaluate, for every finished run

Any other file is the configuration of a run, whose grid is that of the command line.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.config import Config, check, dialect, inline, load_config
from hybrid.evaluate import parse as parse_evaluation
from hybrid.evaluate import require_libraries
from hybrid.options import nearest, path_of

_KEYS = {"config": str, "set": dict, "arms": dict, "grid": dict, "evaluate": dict}


@dataclass(frozen=True)
class Planned:
    """One run: its name in the sweep's folder, and what it is."""

    name: str
    config: Config
    warnings: list[str]


@dataclass(frozen=True)
class Plan:
    """The runs of a sweep, and the options of `hybrid.evaluate` for each of them (None: they are not evaluated)."""

    runs: list[Planned]
    evaluate: list[str] | None


def plan(file: Path, overrides: Iterable[str], folder: Path) -> Plan:
    """List the runs of a sweep file, or of a run's configuration.

    Args:
        overrides: over those of the file; `key=a,b,c` is an axis.

    Raises:
        ValueError: a key of the file that does not exist, a run whose settings do not fit together, two of one name.
    """
    sweep = read(file)
    axes = {str(key): values for key, values in sweep.get("grid", {}).items()}
    common, fixed = sweep.get("set", {}), {}
    for key, values in map(axis, overrides):
        axes.pop(key, None)
        fixed.pop(key, None)
        if len(values) == 1:  # it keeps its place in the order of names only if it tells runs apart
            fixed[key] = values[0]
        else:
            axes[key] = values
    arms = sweep.get("arms", {"": {}})
    _check(axes, [common, *arms.values(), fixed], file)
    runs = []
    for values in itertools.product(*axes.values()):  # all arms of a seed before the next, to compare early
        for arm, settings in arms.items():
            point = dict(zip(axes, values, strict=True))
            name = run_name(str(arm), point)
            own = {**common, **settings, **fixed, **point}
            own |= {"run.name": name, "run.folder": str(folder), "trainer.resume": "auto"}
            try:
                config = load_config(sweep["config"], [f"{key}={inline(value)}" for key, value in own.items()])
            except ValueError as error:
                raise ValueError(f"run {name}: {error}") from None
            runs.append(Planned(name, config, check(config)))
    names = [run.name for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{file}: two runs would be named {twice[0]!r}; a value is given twice, or rename an arm")
    words = evaluation_words(sweep["evaluate"], folder) if "evaluate" in sweep else None
    if words is not None:
        # What hybrid.evaluate would refuse after hours of training.
        require_libraries(parse_evaluation(["--checkpoint", "RUN", *words]))
    return Plan(runs, words)


def read(file: Path) -> dict[str, Any]:
    """Read a sweep file and resolve the path of its `config`; of another file, `{"config": file}`."""
    content = dialect.read(file)
    if not any(key in content for key in ("config", "arms", "grid")):
        return {"config": file}
    for key, value in content.items():
        if key not in _KEYS:
            raise ValueError(f"{file}: unknown key {key!r}; a sweep has {', '.join(_KEYS)}{nearest(key, _KEYS)}")
        if not isinstance(value, _KEYS[key]):
            raise ValueError(f"{file}: {key}: {value!r} is not a {'path' if key == 'config' else 'mapping'}")
    for arm, settings in content.get("arms", {}).items():
        if not isinstance(settings, dict):
            raise ValueError(f"{file}: arms.{arm}: {settings!r} is not a mapping of keys, like objective.block_size: 4")
    if "config" not in content:
        raise ValueError(f"{file}: config: missing; name the configuration of the runs, such as ../quickstart.yaml")
    return {**content, "config": file.parent / path_of(f"{file}: config", content["config"])}


def axis(override: str) -> tuple[str, list[Any]]:
    """Split `key=a,b,c` into key and values, written as in a YAML list: `4`, `[1, 4]`, `{name: power, exponent: 1}`."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"override {override!r} is not key=value or key=value,value, e.g. objective.block_size=1,4,16")
    return key.strip(), dialect.parse(f"[{text}]", f"override {override!r}")


def _check(axes: Mapping[str, Any], settings: Iterable[Mapping[str, Any]], file: Path) -> None:
    for key in itertools.chain(axes, *settings):
        if key in ("run.name", "run.folder", "trainer.resume"):
            raise ValueError(f"{key}: a sweep sets it for each run; leave it out (--folder says where the runs go)")
    for key, values in axes.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{file}: grid.{key}: {values!r} is not a list of values")


def run_name(arm: str, point: Mapping[str, Any]) -> str:
    """Name a run, such as `b4-seed-0`: the arm, then each key of the grid without its group.

    Keys with the same last part keep their groups.
    """
    last = [key.rpartition(".")[2] for key in point]
    parts = [slug(arm)] if arm else []
    for (key, value), short in zip(point.items(), last, strict=True):
        parts.append(f"{slug(short if last.count(short) == 1 else key)}-{slug(inline(value))}")
    return "-".join(parts) or "run"


def slug(text: str) -> str:
    """Turn a text into a part of the name of a folder."""
    return re.sub(r"[^\w.]+", "-", text).strip("-")


def evaluation_words(options: Mapping[str, Any], folder: Path) -> list[str]:
    """`{block_size: [1, 4], rows: 8}` -> `--block-size 1 4 --rows 8`; `judge` may name a run of the sweep."""
    words = []
    for name, value in options.items():
        if name in ("checkpoint", "output"):
            raise ValueError(f"evaluate.{name}: a sweep sets it for each run; leave it out")
        if name == "judge" and not (judge := path_of("evaluate.judge", str(value))).exists():
            value = folder / judge
        flag = f"--{str(name).replace('_', '-')}"
        if isinstance(value, bool):
            words += [flag] if value else []
        else:
            words += [flag, *(str(v) for v in (value if isinstance(value, list) else [value]))]
    return words
