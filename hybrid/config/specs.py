"""The specs of a configuration: entries of tables, each by its name or a mapping with its options."""

from __future__ import annotations

from hybrid.config.schema import NULLABLE, OPEN, SPECS, Config, table, value_of
from hybrid.options import RemovedEntry, build, renamed


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
