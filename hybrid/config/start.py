"""The network of a model in another's format that a run starts from: it has no config.yaml of ours to be taken from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hybrid.options import path_of


def network_of(init_from: str | None) -> dict[str, Any]:
    """Return `{"model": {key: value, ...}}` of the folder that `trainer.init_from` names.

    It is empty if none is named, if it is one of ours, or not there.

    Raises:
        ValueError: the folder cannot be read; one line that names it.
    """
    if not init_from:
        return {}
    from hybrid.checkpoints.importers import importer_of, open_model  # late, so that --help is quick

    folder = path_of("trainer.init_from", init_from)
    if importer_of(folder) is None:
        return {}
    settings = open_model(folder)[0].settings
    assert isinstance(settings, Mapping)
    return {"model": {key.removeprefix("model."): v for key, v in settings.items() if key.startswith("model.")}}
