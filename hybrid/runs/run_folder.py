"""Open the folder of a run: whether there is a place for it, and whether a run has begun in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybrid.config.schema import RunConfig
from hybrid.data.tokenizers import Tokenizer
from hybrid.options import path_of, shown
from hybrid.storage.atomic import write_text_atomic
from hybrid.storage.json_files import to_json
from hybrid.storage.temporaries import remove_leftovers, target_of

CONFIG = "config.yaml"
_ROOM = 100
"""Bytes that the longest path in a run folder has beyond that of the folder, and some to spare."""


def folder_of(run: RunConfig) -> Path:
    """Return where a run is kept. Raises a ValueError for a home folder that there is not."""
    return path_of("run.folder", run.folder) / run.name


def check_place(folder: Path) -> None:
    """Refuse a run folder that cannot be made, or not be written.

    Raises:
        ValueError: a file is in its place, its name is longer than the file system takes, or it is read-only.
    """
    there, name = folder.absolute(), shown(str(folder), 200)
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise ValueError(f"run.folder: {name} cannot be made: {shown(str(there), 200)} is not a folder; choose another")
    longest = os.pathconf(there, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    is_long = any(len(os.fsencode(part)) > longest for part in folder.parts)
    if is_long or len(os.fsencode(folder.absolute())) + _ROOM > 4096:
        limit = f"a name has at most {longest} bytes" if is_long else "a path has at most 4096 bytes"
        raise ValueError(f"run.name: {name} is longer than the file system takes ({limit}); choose a shorter name")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"run.folder: {name} cannot be made: {shown(str(there), 200)} is read-only for this user")


def is_begun(folder: Path) -> bool:
    """Return whether a run has begun here, if only to write its configuration, the first thing that it writes."""
    if (folder / CONFIG).is_file():
        return True
    found = list(folder.iterdir()) if folder.is_dir() else []
    return bool(found) and all(target_of(path) == CONFIG for path in found)


def is_occupied(folder: Path) -> bool:
    """Return whether something is in the folder, but for what a killed process left before it had written anything."""
    remove_leftovers(folder, CONFIG)
    return folder.is_dir() and any(folder.iterdir())


def open_folder(folder: Path, config: str, facts: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    """Write what a run folder begins with, and remove what killed processes have left in it.

    Args:
        config: text of config.yaml.
        facts: content of environment.json.

    Raises:
        ValueError: something that JSON or UTF-8 cannot hold; nothing has been written then.
        OSError: the folder could not be made or written; one line.
    """
    environment = to_json(facts, indent=2) + "\n"
    for what in (config, environment):
        try:
            what.encode("utf-8")
        except UnicodeEncodeError as error:
            near = what[max(error.start - 40, 0) : error.end + 20]
            raise ValueError(f"run: a text or the name of a file is not UTF-8, near {near!r}; rename it") from None
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder, CONFIG, sole_writer=True)
    remove_leftovers(folder)
    write_text_atomic(folder / CONFIG, config)  # first: by it a run that was killed is known
    (folder / "samples").mkdir(exist_ok=True)
    remove_leftovers(folder / "samples", sole_writer=True)
    write_text_atomic(folder / "environment.json", environment)
    tokenizer.save(folder / "tokenizer")
