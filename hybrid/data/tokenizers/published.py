"""What a published model says of its tokens, in the two files of settings that lie beside its tokenizer.json."""

from __future__ import annotations

from pathlib import Path

from hybrid.options import convert
from hybrid.storage.json_files import read_object

SUBWORD_FILE = "tokenizer.json"
CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"


def configured_ids(folder: Path, key: str) -> list[int]:
    """Return the ids that a key, `bos_token_id` or `eos_token_id`, names in either file, an id or a list of them.

    Those of config.json come first; the first of all is what our tokenizer calls end of text.

    Raises:
        ValueError: a file is no JSON object, or the key holds something else; one line.
    """
    found: list[int] = []
    for name in (CONFIG, GENERATION_CONFIG):
        if (folder / name).is_file():
            value = read_object(folder / name).get(key)
            value = convert(f"{name}: {key}", value, int | list[int] | None)
            found += value if isinstance(value, list) else [] if value is None else [value]
    return list(dict.fromkeys(found))


def tokenizer_file(path: Path) -> tuple[Path, int | None]:
    """Return the tokenizer.json that a path means, and the id that ends a text: known where it is a model's folder.

    Raises:
        ValueError: as `configured_ids`.
    """
    if not path.is_dir():
        return path, None
    return path / SUBWORD_FILE, next(iter(configured_ids(path, "eos_token_id")), None)
