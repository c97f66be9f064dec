"""Processes side by side: each writes to a log of its own, and the failure of one does not stop the others."""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hybrid.storage.temporaries import lock

log = logging.getLogger(__name__)
POLL = 0.2  # seconds


@dataclass(frozen=True)
class Job:
    """A command whose stdout and stderr are appended to `log`."""

    name: str
    command: Sequence[str]
    log: Path


@dataclass(frozen=True)
class Outcome:
    """How a job ended. `code` is None if it was not run, because another process holds its log."""

    code: int | None
    seconds: float

    @property
    def is_done(self) -> bool:
        return self.code == 0


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    slot: int
    started: float = field(default_factory=time.monotonic)


def work(
    jobs: Sequence[Job],
    slots: Sequence[Mapping[str, str]],
    done: Callable[[Job, Outcome], None] = lambda job, out: None,
) -> dict[str, Outcome]:
    """Run all jobs, as many at once as there are slots; `slots` are what each adds to the environment of its jobs.

    An interrupt (Ctrl-C; SIGTERM where `cli.run` makes a KeyboardInterrupt of it) is passed on to the running jobs,
    once; when they have ended it is raised here. A second one kills them.

    Args:
        done: told of each job as it ends.

    Returns:
        Outcomes by name, in the order of the jobs.
    """
    waiting, free = list(reversed(jobs)), list(range(len(slots)))
    running: list[_Running] = []
    outcomes: dict[str, Outcome] = {}

    def end(job: Job, outcome: Outcome) -> None:
        outcomes[job.name] = outcome
        done(job, outcome)

    try:
        while waiting or running:
            while waiting and free:
                job = waiting.pop()
                process = _start(job, slots[free[-1]])
                if process is None:
                    end(job, Outcome(None, 0.0))
                    continue
                log.info("%s: started, writes to %s", job.name, job.log)
                running.append(_Running(job, process, free.pop()))
            for one in [r for r in running if r.process.poll() is not None]:
                running.remove(one)
                free.append(one.slot)
                end(one.job, Outcome(one.process.returncode, time.monotonic() - one.started))
            time.sleep(POLL)
    except KeyboardInterrupt:
        _stop(running)
        raise
    return {job.name: outcomes[job.name] for job in jobs}


def _start(job: Job, environment: Mapping[str, str]) -> subprocess.Popen[bytes] | None:
    """Start a job; None if a process of an earlier sweep still holds the log: two must not train in one folder."""
    with open(job.log, "ab") as output:
        if lock(output.fileno(), wait=False) is False:
            return None
        # In a session of its own, so that Ctrl-C reaches it through `_stop` alone and not twice.
        return subprocess.Popen(
            job.command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, **environment}, start_new_session=True,
        )  # fmt: skip


def _stop(running: Sequence[_Running]) -> None:
    try:
        for one in running:
            log.warning("%s: is asked to stop", one.job.name)
            one.process.terminate()
        for one in running:
            one.process.wait()
    except KeyboardInterrupt:
        for one in running:
            one.process.kill()
            one.process.wait()


def slots(jobs: int, cores: int, gpus: int) -> list[dict[str, str]]:
    """Share the machine among `jobs` workers: what each adds to the environment of its jobs.

    It is a share of the cores, unless the user has set threads, and a GPU if there are several.
    """
    environments = []
    for number in range(jobs):
        environment = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(cores // jobs, 1))}
        if gpus > 1 and jobs > 1:
            environment["CUDA_VISIBLE_DEVICES"] = str(number % gpus)
        environments.append(environment)
    return environments


def last_line(path: Path) -> str:
    """Find the last line of a log, which tells why its job failed; a progress bar does not count."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    said = [line.strip() for line in lines if line.strip()]
    errors = [line for line in said if line.startswith("error:")]
    return errors[-1] if errors else said[-1] if said else ""
