"""Write a trained model in the format of others: a Hugging Face folder, as Llama, Qwen2, Qwen3 or SDAR.

    python -m hybrid.export runs/ar exported/ar
    python -m hybrid.export runs/block/checkpoints/best exported/block --dtype bfloat16

Such a folder loads here, too, as exactly the model that it was: hybrid.json in it has all settings.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid import cli

if TYPE_CHECKING:
    from hybrid.checkpoints.hugging_face.writing import OurModel
    from hybrid.checkpoints.importers import Origin
    from hybrid.config import Config

log = logging.getLogger("hybrid.export")
DTYPES = ("float32", "bfloat16", "float16")


def main() -> None:
    arguments = parse()
    from hybrid.checkpoints.hugging_face.card import Card
    from hybrid.checkpoints.hugging_face.writing import write_folder
    from hybrid.checkpoints.streamed_tensors import shown_bytes
    from hybrid.config import import_modules
    from hybrid.storage.overwriting import refuse_overwriting

    import_modules(arguments.imports, "--imports")
    folder = Path(arguments.folder)
    refuse_overwriting(folder, is_empty_folder, "is not an empty folder", "FOLDER", "folder")
    config, origin, ours = opened(Path(arguments.checkpoint))
    facts = training_of(config) if is_known(origin) else {"taken from": f"a checkpoint of {origin.importer}"}
    card = Card.of(config.run.name, facts, ours, origin.checkpoint, Path(arguments.checkpoint))
    written = write_folder(ours, folder, arguments.dtype, card.markdown)
    size = shown_bytes(written.n_bytes)
    log.info("wrote %s: %s, %s in %s", folder, written.family.architecture, size, written.dtype)


def opened(path: Path) -> tuple[Config, Origin, OurModel]:
    """Open the model that a path means, without a network: its weights stay on the disk.

    Raises:
        ValueError: nothing usable is there; one line.
    """
    from hybrid.checkpoints.hugging_face.writing import OurModel
    from hybrid.checkpoints.importers import open_model
    from hybrid.config import resolve_block_sizes
    from hybrid.lm import config_of

    stored, origin = open_model(path)
    assert origin.folder is not None
    config = config_of(stored, origin.folder)
    seq_len = config.data.seq_len
    sizes = resolve_block_sizes(config.objective.block_size, seq_len)
    settings = dataclasses.asdict(config)
    ours = OurModel(settings, config.model, seq_len, sizes, stored.tokenizer, stored.tensors, origin.data)
    return config, origin, ours


def is_known(origin: Origin) -> bool:
    """Return whether the configuration of a model says how it was trained: it is ours, or has a record of ours."""
    from hybrid.checkpoints.hugging_face.record import RECORD

    return origin.importer is None or (origin.folder is not None and (origin.folder / RECORD).is_file())


def training_of(config: Config) -> dict[str, Any]:
    """Return what the card says of the training."""
    from hybrid.options import title

    objective = config.objective
    ar_loss = f", ar_weight {objective.ar_weight}" if objective.ar_weight else ""
    return {
        "trained on": title(config.data.corpus),
        "objective": f"{title(objective.name)}, weighting {title(objective.weighting)}{ar_loss}",
        "decoder": title(config.decoder),
    }


def is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not os.listdir(path)


def parse() -> argparse.Namespace:
    parser = cli.Parser(prog="python -m hybrid.export", description=__doc__)
    parser.add_argument("checkpoint", metavar="RUN", help="a run, a checkpoint, or a saved or imported model")
    parser.add_argument("folder", metavar="FOLDER", help="a folder that is not there yet")
    parser.add_argument("--format", choices=("hf",), default="hf", help="of the folder (default: hf, Hugging Face)")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default: as they are stored)")
    parser.add_argument(
        "--imports", nargs="+", default=[], metavar="MODULE",
        help="modules imported first, which register entries of your own (run.imports of the run is imported too)",
    )  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(cli.run(main))
