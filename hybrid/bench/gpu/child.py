"""The process that computes: it runs a stage when it is asked to, and sends each row as it is made."""

from __future__ import annotations

import gc
import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

from hybrid import cli
from hybrid.bench.gpu.machine import head
from hybrid.bench.gpu.stage import Bench, Stage
from hybrid.device import keep_freed_memory
from hybrid.options import bare

log = logging.getLogger(__name__)


class Head(NamedTuple):
    """The first message: what stages will run on."""

    facts: dict[str, str]


class Row(NamedTuple):
    """A row of a stage."""

    row: Any


class End(NamedTuple):
    """A stage is over."""

    outcome: str
    usable: bool  # whether the device still computes: after some errors of CUDA no call of a process succeeds


def serve(pipe: Connection, stages: Mapping[str, Stage], bench: Bench) -> None:
    """Run the stages whose names are received, until nobody listens or the device is lost."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    cli.set_up_logging()
    if bench.device.type == "cpu":
        keep_freed_memory()
    try:
        pipe.send(Head(head(bench)))
        usable = True
        while usable:
            end = run_stage(stages[pipe.recv()], bench, lambda row: pipe.send(Row(row)))
            pipe.send(end)
            usable = end.usable
    except (EOFError, BrokenPipeError):
        return


def run_stage(stage: Stage, bench: Bench, send: Callable[[Any], None]) -> End:
    """Send the rows of a stage, until it or its time is over."""
    started, n, outcome = time.monotonic(), 0, "done"
    try:
        if (lacks := stage.missing(bench)) is not None:
            return End(f"skipped: {lacks}", True)
        for row in stage.run(bench):
            send(row)
            n += 1
            if time.monotonic() - started > stage.seconds:
                outcome = f"stopped when its {stage.seconds:g} s were over, after {n} rows"
                break
    except (EOFError, BrokenPipeError):
        raise
    except Exception as error:
        log.exception("%s", type(stage).__name__)
        outcome = f"failed after {n} rows: {type(error).__name__}: {bare(error, 300)}"
    return End(outcome, _recover(bench))  # behind the handler, which kept what the stage had made


def _recover(bench: Bench) -> bool:
    """Give back what a stage has left, and return whether the device still computes."""
    gc.collect()
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()  # its limit of recompilations is one of the process
    if not bench.is_card:
        return True
    try:
        torch.cuda.synchronize(bench.device)
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True
