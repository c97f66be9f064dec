"""The configuration: composed of the dataclasses that the rooms own, loaded, merged, checked and printed.

    config = load_config("configs/quickstart.yaml", ["trainer.steps=100"])
    for warning in check(config): ...
    Path("config.yaml").write_text(to_yaml(config))

`schema` names the groups, `dialect` reads and writes YAML, `load` merges, `check` finds what does not fit together,
`show` prints.
"""

from hybrid.config.check import check, data_block_sizes, resolve_block_sizes
from hybrid.config.load import import_modules, load_config, parse_options
from hybrid.config.schema import NO_MATTER, ROUNDING, Config
from hybrid.config.show import describe, describe_table, differences, flatten, inline, to_yaml

__all__ = [
    "NO_MATTER",
    "ROUNDING",
    "Config",
    "check",
    "data_block_sizes",
    "describe",
    "describe_table",
    "differences",
    "flatten",
    "import_modules",
    "inline",
    "load_config",
    "parse_options",
    "resolve_block_sizes",
    "to_yaml",
]
