"""A command of this repository in a forked child of a warm process: what it printed, how it ended, what it used.

A fork has torch and all else imported already, so that hundreds of commands take minutes. The parent must not have
started threads of its own.
"""

from __future__ import annotations

import importlib
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from conftest import ROOT

from hybrid import cli

PROGRAMS = {
    "train.py": "train",
    "generate.py": "generate",
    "-m hybrid.evaluate": "hybrid.evaluate",
    "-m hybrid.report": "hybrid.report.__main__",
    "-m hybrid.sweep": "hybrid.sweep.__main__",
}
"""What is written after `python`, and the module whose `main` it calls."""

SECONDS = 12  # of the processor: a child that takes more is ended by SIGXCPU
MEMORY = 6 * 2**30  # bytes of addresses beyond those of the parent: a guard for the machine, above any limit tested
FILE = 2**30  # bytes of one file, likewise


@dataclass(frozen=True)
class Ended:
    """How a child ended; a negative code is the signal that ended it. `seconds` are those of the processor."""

    code: int
    out: str
    err: str
    seconds: float = 0.0
    megabytes: float = 0.0
    is_late: bool = False


class Child:
    """A running fork that calls `work` in `folder`, with files for its standard streams."""

    def __init__(self, work: Callable[[], int], folder: Path, stdin: bytes = b"") -> None:
        self.streams = streams_of(folder, stdin)
        sys.stdout.flush()
        sys.stderr.flush()
        ready, told = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(ready)
            self._work(work, folder, told)  # does not return
        os.close(told)
        os.read(ready, 1)
        os.close(ready)
        self.started = time.monotonic()

    def _work(self, work: Callable[[], int], folder: Path, told: int) -> None:
        code = 1
        try:
            os.setsid()
            os.chdir(folder)
            for number, (path, flags) in enumerate(
                zip(self.streams, (os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT), strict=True)
            ):
                os.dup2(os.open(path, flags), number)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
            resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE))
            limit = _addresses() + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            os.write(told, b".")
            os.close(told)
            code = work()
        except SystemExit as exit:
            code = exit.code if isinstance(exit.code, int) else 0 if exit.code is None else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def kill(self, kind: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal; a child that has ended is not waited for yet, so its number is still its own."""
        os.kill(self.pid, kind)

    def wait(self, seconds: float = 60.0) -> Ended:
        """Wait for its end; kill it and what it started after so many seconds."""
        end, is_late = self.started + seconds, False
        while True:
            pid, status, used = os.wait4(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > end and not is_late:
                is_late = True
                os.killpg(self.pid, signal.SIGKILL)
            time.sleep(0.002)
        out, err = (path.read_bytes().decode("utf-8", "backslashreplace") for path in self.streams[1:])
        for path in self.streams:
            path.unlink()
        code = os.waitstatus_to_exitcode(status)
        return Ended(code, out, err, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, is_late)


class Process(Child):
    """The same for `python program words` in a process of its own, which imports everything itself."""

    def __init__(self, program: str, words: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
        self.streams = streams_of(folder, b"")
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with open(self.streams[1], "wb") as out, open(self.streams[2], "wb") as err:
            process = subprocess.Popen(
                [sys.executable, str(ROOT / program), *words], cwd=folder, stdin=subprocess.DEVNULL, stdout=out,
                stderr=err, env={**os.environ, **environment, "PYTHONPATH": path}, start_new_session=True,
            )  # fmt: skip
        self.pid, self.started = process.pid, time.monotonic()
        process.returncode = 0  # it is `wait` that waits for it


def streams_of(folder: Path, stdin: bytes) -> list[Path]:
    """Files beside a folder for the standard streams of what runs in it."""
    streams = [folder.with_name(f"{folder.name}.{name}") for name in ("in", "out", "err")]
    streams[0].write_bytes(stdin)
    return streams


def command(program: str, words: Sequence[str], environment: dict[str, str]) -> Callable[[], int]:
    """What a child does to be `python program words`."""

    def work() -> int:
        os.environ.update(environment)
        os.environ.pop("HYBRID_TRACEBACK", None)
        sys.argv = [program, *words]
        warnings.resetwarnings()
        return cli.run(importlib.import_module(PROGRAMS[program]).main)

    return work


def warm_up() -> None:
    """Import what the commands import; one thread."""
    import torch

    torch.set_num_threads(1)
    for name in (
        *PROGRAMS.values(),
        "hybrid.runs.run",
        "hybrid.text.trace",
        "hybrid.text.console",
        "hybrid.evaluation.comparison",
    ):
        importlib.import_module(name)
    for name in ("hybrid.evaluation.scores", "hybrid.sweep.plan", "hybrid.sweep.state", "hybrid.report.page"):
        importlib.import_module(name)
    for name in ("datasets", "matplotlib.figure", "pyarrow.parquet", "tokenizers", "torch.utils.tensorboard"):
        importlib.import_module(name)


def _addresses() -> int:
    """Bytes of addresses that this process has."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 2**40
