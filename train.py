"""Train a hybrid model.

    python train.py --config configs/quickstart.yaml                        # 4 minutes on 2 CPU cores, no download
    python train.py --config configs/quickstart.yaml objective.block_size=1 run.name=ar
    python train.py --config configs/quickstart.yaml trainer.resume=auto    # go on where it was stopped
    python train.py --config configs/quickstart.yaml --print-config         # every key and its value
    torchrun --nproc-per-node 8 train.py --config configs/quickstart.yaml   # one rank per GPU

Look at runs side by side with `tensorboard --logdir runs`.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from pathlib import Path

from hybrid import cli

log = logging.getLogger("hybrid.train")


def main() -> int:
    arguments = parse()
    from hybrid.config import check, load_config, to_yaml  # late: what is imported here can be interrupted in one line

    config = load_config(arguments.config, arguments.overrides)
    for warning in check(config):
        log.warning("%s", warning)
    if arguments.print_config:
        print(to_yaml(config), end="")
        return 0

    from hybrid.device import resolve_device
    from hybrid.distributed import Ranks, joined
    from hybrid.runs.preparation import Machine, prepare_data, prepare_model
    from hybrid.runs.resuming import ResumePlan
    from hybrid.runs.run import Run

    with joined(resolve_device(config.run.device, Ranks.from_environment())) as ranks:
        machine = Machine.of(config, ranks)  # device and precision
        plan = ResumePlan.of(config)  # from step 0, or from which checkpoint
        data = prepare_data(config, plan, ranks)  # text -> rows of token ids
        model = prepare_model(config, data, machine)  # as it is initialised
        run = Run(config, machine, plan, data, model)
        if not arguments.dry_run:
            run.open()  # its folder
            if run.train():
                log.info(
                    "%s",
                    next_steps(
                        run.folder, is_chat="turns" in data.description and data.tokenizer.chat_template is not None
                    ),
                )
        elif ranks.is_main:
            print(run.describe())
    return 0


def next_steps(folder: Path, is_chat: bool) -> str:
    """Say what to do with a trained model; `is_chat`: it was trained on conversations."""
    run, runs = (shlex.quote(str(path)) for path in (folder, folder.parent))
    what, how = ("talk to it", " --chat") if is_chat else ("write text", "")
    return f"{what}: python generate.py --checkpoint {run}{how}; see its curves: tensorboard --logdir {runs}"


def parse() -> argparse.Namespace:
    parser = cli.Parser(keys=_keys, description=__doc__, add_help=False)
    parser.add_argument("--config", metavar="FILE", help="a YAML file; without it, the defaults")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings over those of the file")
    parser.add_argument("--dry-run", action="store_true", help="check everything, prepare the data, and stop")
    parser.add_argument("--print-config", action="store_true", help="print the whole configuration and stop")
    parser.add_argument("-h", "--help", action="store_true", help="show this and every key")
    arguments = parser.parse_intermixed_args()  # settings may come before and after the flags
    if arguments.help:
        from hybrid.config import describe, load_config

        try:
            load_config(arguments.config, arguments.overrides, checked=False)  # whose imports register entries
        except ValueError as error:  # help is wanted most where something is wrong
            log.warning("%s", error)
        print(parser.format_help())
        print(describe())
        raise SystemExit(0)
    return arguments


def _keys() -> list[str]:
    from hybrid.config.schema import known_keys

    return list(known_keys())


if __name__ == "__main__":
    sys.exit(cli.run(main))
