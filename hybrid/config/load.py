"""Merge defaults < YAML files (a `base` first) < `key=value` overrides into the typed `Config`, by OmegaConf.

OmegaConf merges and converts; what it is given has been checked key by key before, so that every error is one line of
ours. Interpolation is refused: a value is what is written, and a run's config.yaml tells the whole of it.
"""

from __future__ import annotations

import copy
import importlib
import os
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hybrid.config import dialect
from hybrid.config.check import check
from hybrid.config.schema import (
    NULLABLE,
    OPEN,
    SPECS,
    Config,
    check_specs,
    choices,
    groups,
    known_keys,
    table,
    use_new_names,
    value_of,
)  # fmt: skip
from hybrid.config.start import network_of, refuse_other_sizes
from hybrid.options import OWN, bare, convert, nearest, path_of, pick, shown, type_name

MOST_BASES = 30
LONGEST_TEXT = 4096


def load_config(path: str | Path | None = None, overrides: Iterable[str] = (), *, checked: bool = True) -> Config:
    """Load a configuration: defaults < the file at `path` (and its bases) < `overrides` like `trainer.steps=9`.

    `run.imports` are imported before names are looked up in tables. `run.name` defaults to the file's stem. `checked`
    also refuses values that are out of range or do not fit together (`check`, which in addition returns warnings), and
    takes what nothing gives of `model` from a folder of another's format that `trainer.init_from` names. Unchecked, as
    that of a trained model is loaded, it may name entries that tables no longer have.

    Raises:
        ValueError: one line naming key, value, what is allowed and the nearest match, or the file and its line.
    """
    files = [] if path is None else _files(path_of("config", path))
    layers = [*(_checked(layer, f"{file}: ") for file, layer in files), _checked(_from_overrides(overrides), "")]
    config = _merged(layers)
    config.run.name = config.run.name or (Path(path).stem if path is not None else "default")
    config.run.imports = import_modules(config.run.imports, "run.imports")
    if checked and (network := network_of(config.trainer.init_from)):
        theirs = _checked(network, f"{config.trainer.init_from}: ")
        config.model = _merged([theirs, *layers]).model
        refuse_other_sizes(config.model, _merged([theirs]).model, config.trainer.init_from, is_taken=True)
    for key in known_keys().values():
        if (allowed := choices(key)) is not None and (value := value_of(config, key.name)) is not None:
            pick(key.name, value, allowed, OWN if key.name == "model.attention" else "")
    if not checked:
        use_new_names(config)
    check_specs(config, of_old_run=not checked)
    if checked:
        check(config)
    return config


def parse_options(texts: Iterable[str], key: str = "decoder") -> dict[str, Any]:
    """`["steps=8", "threshold=0.9"]` -> `{"steps": 8, "threshold": 0.9}`, options of an entry named elsewhere.

    Raises:
        ValueError: one is not name=value, or its value is no YAML.
    """
    options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"{key}: option {shown(text)} is not name=value, e.g. steps=8")
        if name.strip() == "name":
            raise ValueError(f"{key}: {shown(text)} is no option; the name stands before the options, once")
        options[name.strip()] = dialect.parse(value, f"{key}: option {shown(text)}")
    return options


def _files(path: Path, after: tuple[Path, ...] = ()) -> list[tuple[Path, dict[str, Any]]]:
    """Read the file and its bases, the most basic first."""
    if os.path.realpath(path) in map(os.path.realpath, after):  # which also follows a link to itself, as far as it goes
        raise ValueError(f"{after[-1]}: base: a cycle: {' -> '.join(str(file) for file in (*after, path))}")
    if len(after) > MOST_BASES:
        raise ValueError(f"{after[0]}: base: a chain of more than {MOST_BASES} files")
    try:
        content = dialect.read(path)
    except ValueError as error:
        raise ValueError(f"{after[-1]}: base: {error}" if after else str(error)) from None
    if "config" in content:
        raise ValueError(f"{path}: this is a sweep, of many runs; start it with python -m hybrid.sweep --config {path}")
    if "base" not in content:
        return [(path, content)]
    if not isinstance(base := content.pop("base"), str) or not base or "\0" in base:
        raise ValueError(f"{path}: base: {shown(base)} is not the path of a YAML file")
    return [*_files(path.parent / path_of(f"{path}: base", base), (*after, path)), (path, content)]


def _from_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """One layer from all overrides, so that `decoder.steps=8 decoder.name=margin` may come in either order."""
    overrides = overrides if isinstance(overrides, str) or not isinstance(overrides, Iterable) else list(overrides)
    if not isinstance(overrides, list) or not all(isinstance(text, str) for text in overrides):
        raise ValueError(f"overrides: {shown(overrides)} is not a list of texts, e.g. ['trainer.steps=100']")
    layer: dict[str, Any] = {}
    for text in overrides:
        name, equals, value_text = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ValueError(f"override {shown(text)} is not key=value, e.g. trainer.steps=100")
        value = _override_value(name, value_text.strip(), text)
        *path, last = _split(name, value)
        inner = layer
        for part in path:
            inner[part] = inner = _opened(part, inner.get(part))
        inner[last] = _joined(inner.get(last), value, is_spec=name in SPECS)
    return layer


def _opened(name: str, present: Any) -> dict[str, Any]:
    """Copy what an earlier override has put at `name`, as a mapping that takes a further key."""
    present = {"name": present} if isinstance(present, str) else present
    if present is not None and not isinstance(present, dict):
        raise ValueError(f"{name}: {shown(present)} is not a mapping of keys")
    return dict(present or {})


def _split(name: str, value: Any) -> list[str]:
    """Split a dotted name into its path: a group, a key, or an option of a key that holds a spec."""
    for spec in SPECS:
        if name.startswith(f"{spec}."):
            return [*spec.split("."), name[len(spec) + 1 :]]
    if name not in known_keys() and name not in groups():
        raise _unknown(name, value)
    return name.split(".")


def _override_value(name: str, text: str, override: str) -> Any:
    """Read the value of an override; where a string is expected, as written, unless that is quoted or null.

    Raises:
        ValueError: it is not YAML, or empty where null would mean something else than a user wants.
    """
    key = known_keys().get(name)
    annotation = key.annotation if key is not None else Any
    wants_text = "str" in type_name(annotation).split(" or ") or (name in OPEN and not text.startswith("{"))
    if wants_text and not text.startswith(("'", '"')):
        allows_null = "null" in type_name(annotation).split(" or ")
        if allows_null and not text:
            raise ValueError(f"{name}: '' is empty (a variable of the shell that is not set?); for none write null")
        return None if allows_null and text == "null" else text
    return dialect.parse(text, f"override {shown(override)}")


def _checked(layer: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check that every key is known and every value of its type; errors begin with `where`."""
    checked: dict[str, Any] = {}
    try:
        _refuse_odd_texts("", layer)
        for group, values in layer.items():
            if group in SPECS:
                checked[group] = _spec(group, values)
            elif group not in groups():
                raise _unknown(str(group), values)
            elif isinstance(values, Mapping):
                checked[group] = {name: _value(f"{group}.{name}", value) for name, value in values.items()}
            elif values is not None:
                raise ValueError(f"{group}: {shown(values)} is not a mapping of keys; {_allowed(str(group))}")
    except ValueError as error:
        raise ValueError(f"{where}{error}") from None
    return checked


def _value(name: str, value: Any) -> Any:
    if name in SPECS:
        return _spec(name, value)
    key = known_keys().get(name)
    if key is None:
        raise _unknown(name, value)
    if key.annotation is Any and isinstance(value, Mapping):
        raise ValueError(f"{name}: {shown(value)} is a mapping, which this key does not take")
    return convert(name, value, key.annotation)


def _spec(name: str, value: Any) -> dict[str, Any] | None:
    if value is None and name in NULLABLE:
        return None
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, Mapping):
        names = ", ".join(sorted(table(SPECS[name])))
        raise ValueError(f"{name}: {shown(value)} is neither a name nor a mapping with one; names: {names}")
    return {str(option): inner for option, inner in value.items()}


def _merged(layers: list[dict[str, Any]]) -> Any:
    """Lay `layers` over the defaults, one over the other."""
    return OmegaConf.to_object(reduce(_merge, copy.deepcopy(layers), OmegaConf.structured(Config)))


def _merge(config: DictConfig, layer: dict[str, Any]) -> DictConfig:
    """`layer` over `config`; a spec that names another entry replaces the old one, whose options are not its own."""
    for name in SPECS:
        *path, last = name.split(".")
        holder = layer.get(path[0], {}) if path else layer
        if last in holder:
            present: Any = OmegaConf.to_container(OmegaConf.select(config, path[0])) if path else config
            joined = _joined(present[last], holder.pop(last))
            if joined is not None:
                joined = {"name": joined["name"], **joined}
                # Keys of type Any keep the short form; `decoder` is always a mapping.
                joined = joined["name"] if path and len(joined) == 1 else joined
            OmegaConf.update(config, name, joined, merge=False)
    try:
        return OmegaConf.merge(config, layer)  # pyright: ignore[reportReturnType]
    except OmegaConfBaseException as error:  # not reached by known means: the layer is checked
        key = getattr(error, "full_key", None) or "config"
        raise ValueError(f"{key}: {str(error).splitlines()[0]}") from None


def _joined(old: Any, new: Any, is_spec: bool = True) -> Any:
    """`new` over `old`, key by key if both are mappings; but a spec replaces one of another name as a whole."""
    if is_spec:
        old, new = ({"name": spec} if isinstance(spec, str) else spec for spec in (old, new))
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    if is_spec and "name" in old and new.get("name", old["name"]) != old["name"]:
        return dict(new)
    return {**old, **new}


def _refuse_odd_texts(name: str, value: Any) -> None:
    """OmegaConf would evaluate `${...}` (resolvers read the environment) and take `???` for a missing value. The system
    ends a name at a NUL, and what is not UTF-8 could not be written down."""
    if isinstance(value, str) and ("${" in value or value == "???"):
        raise ValueError(f"{name}: {shown(value)}: '${{' and '???' are not allowed in values; write the value itself")
    if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError(f"{name}: {shown(value)} is not UTF-8, so that no record could hold it; rename what it names")
    if isinstance(value, str) and not name.startswith("eval.sample_prompts"):  # any text may be continued
        if "\0" in value:
            raise ValueError(f"{name}: {shown(value)} holds a NUL, at which the system ends a name; leave it out")
        if len(value) > LONGEST_TEXT:
            raise ValueError(f"{name}: {shown(value)} is longer than any name or path ({LONGEST_TEXT:,} characters)")
    if isinstance(value, Mapping):
        for inner_name, inner in value.items():
            is_spec = inner_name == "name" and name in SPECS  # a name alone has become a mapping with a name
            _refuse_odd_texts(name if is_spec else f"{name}.{bare(str(inner_name))}".lstrip("."), inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _refuse_odd_texts(f"{name}[{index}]", inner)


def import_modules(modules: Any, key: str) -> list[str]:
    """Import modules (a list, or one name), which register entries of tables. Errors begin with `key`."""
    modules = [modules] if isinstance(modules, str) else modules
    if not isinstance(modules, list) or not all(isinstance(module, str) for module in modules):
        raise ValueError(f"{key}: {shown(modules)} is not a list of module names")
    for module in modules:
        if not all(part and part == part.strip() and "/" not in part for part in module.split(".")):
            raise ValueError(f"{key}: {shown(module)} is not the name of a module, e.g. my_decoders or pkg.module")
        try:
            importlib.import_module(module)
        except ImportError as error:
            is_missing = isinstance(error, ModuleNotFoundError) and error.name == module.split(".")[0]
            way_out = "; put it beside train.py, or its folder into PYTHONPATH" if is_missing else ""
            if module.endswith(".py"):
                raise ValueError(f"{key}: {shown(module)} is no module; name it without .py") from None
            raise ValueError(f"{key}: cannot import {shown(module)}: {bare(error, 300)}{way_out}") from None
        except (Exception, SystemExit) as error:  # whatever a user's module does when it is run
            what = f"{type(error).__name__}: {bare(error, 300)}".rstrip(": ")
            raise ValueError(f"{key}: importing {shown(module)} raised {what}") from error
    return modules


def _unknown(name: str, value: Any) -> ValueError:
    """Say of a key that does not exist what there is, and the nearest."""
    group, _, rest = name.partition(".")
    if group not in groups():
        same_leaf = [key for key in known_keys() if key.split(".")[-1] == name]
        hint = f" (did you mean {same_leaf[0]!r}?)" if same_leaf else nearest(name, known_keys()) if rest else ""
        hint = hint or nearest(group, groups())
        return ValueError(
            f"{bare(name)}: unknown group {shown(group)} (value {shown(value)}); groups: {', '.join(groups())}{hint}"
        )
    return ValueError(
        f"{bare(name)}: unknown key (value {shown(value)}); {_allowed(group)}{nearest(name, known_keys())}"
    )


def _allowed(group: str) -> str:
    return f"{group} has {', '.join(key.split('.')[-1] for key in known_keys() if key.startswith(f'{group}.'))}"
