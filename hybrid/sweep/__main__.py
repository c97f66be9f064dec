"""Train a grid of runs, evaluate them, and say how they ended.

    python -m hybrid.sweep --config configs/sweeps/quick.yaml
    python -m hybrid.sweep --config configs/quickstart.yaml objective.block_size=1,4,16 run.seed=0,1,2 --jobs 2
    python -m hybrid.sweep --config configs/sweeps/block_size.yaml --dry-run

Each run has a folder with a name that tells it from the others, and a log beside it. Started again, the same command
skips the runs that are finished and goes on with those that were stopped; one that fails stops no other. Look at the
result with `python -m hybrid.report FOLDER`, or with `tensorboard --logdir FOLDER`.

Exit codes: 0 all runs are finished, 1 some failed, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hybrid import cli

if TYPE_CHECKING:
    from hybrid.sweep.jobs import Job, Outcome
    from hybrid.sweep.plan import Plan, Planned
    from hybrid.sweep.state import State

log = logging.getLogger("hybrid.sweep")
FAILED = 1


def main() -> int:
    arguments = parse()
    from hybrid.sweep import plan, state

    file = Path(arguments.config)
    folder = Path(arguments.folder or f"runs/sweeps/{file.stem}")
    planned = plan.plan(file, arguments.overrides, folder)
    for warning in dict.fromkeys(w for run in planned.runs for w in run.warnings):
        log.warning("%s", warning)
    states = state.states_of(planned.runs)
    if arguments.dry_run:
        print(state.table(planned.runs, states))
        return 0
    for run in planned.runs:
        refuse_foreign_settings(run, folder)
    folder.mkdir(parents=True, exist_ok=True)
    failures = train(planned.runs, states, arguments.jobs)
    failures |= evaluate(planned, failures, arguments.jobs)
    print(state.table(planned.runs, state.states_of(planned.runs), failures))
    log.info("compare them with: python -m hybrid.report %s", shlex.quote(str(folder)))
    return FAILED if failures else 0


def train(runs: list[Planned], states: dict[str, State], n_jobs: int) -> dict[str, str]:
    """Train what is not finished; return why some failed, by name."""
    from hybrid.config import to_yaml
    from hybrid.storage.atomic import write_text_atomic
    from hybrid.sweep.jobs import Job

    jobs, script = [], str(train_script())
    for run in runs:
        if states[run.name].is_finished:
            log.info("%s: finished already", run.name)
            continue
        folder = Path(run.config.run.folder)
        refuse_foreign_settings(run, folder)
        write_text_atomic(folder / f"{run.name}.yaml", to_yaml(run.config))
        command = [sys.executable, script, "--config", str(folder / f"{run.name}.yaml")]
        jobs.append(Job(run.name, command, folder / f"{run.name}.log"))
    return work_through(jobs, n_jobs, "trained")


def refuse_foreign_settings(run: Planned, folder: Path) -> None:
    """Raise a ValueError if the settings of a run would replace a file that is not those of such a run before."""
    from hybrid.config import dialect, load_config
    from hybrid.storage.overwriting import refuse_overwriting

    def is_ours(path: Path) -> bool:
        try:
            whole = dialect.read(path).keys() >= {"run", "data", "model", "trainer"}
            before = load_config(path, checked=False)
        except ValueError:
            return False
        return whole and (before.run.name, before.trainer.resume) == (run.name, "auto")

    refuse_overwriting(
        folder / f"{run.name}.yaml", is_ours, "does not hold the settings of this run", "--folder", "folder"
    )


def evaluate(planned: Plan, failures: dict[str, str], n_jobs: int) -> dict[str, str]:
    """Evaluate what was trained and has not been evaluated like this; return why some failed, by name."""
    from hybrid.sweep.jobs import Job
    from hybrid.sweep.state import is_evaluated

    if planned.evaluate is None:
        return {}
    jobs = []
    for run in planned.runs:
        folder = Path(run.config.run.folder)
        options = ["--checkpoint", str(folder / run.name), *planned.evaluate]
        if run.name in failures or is_evaluated(folder / run.name, options):
            continue
        jobs.append(Job(run.name, [sys.executable, "-m", "hybrid.evaluate", *options], folder / f"{run.name}.log"))
    # Speeds of decoders are compared, so they get the whole machine, one after the other.
    return work_through(jobs, 1 if "--decoders" in planned.evaluate else n_jobs, "evaluated")


def work_through(jobs: list[Job], n_jobs: int, verb: str) -> dict[str, str]:
    """Run jobs, telling of each that ends; return why some failed, by name."""
    import torch

    from hybrid.sweep.jobs import last_line, slots, work

    failures: dict[str, str] = {}
    ended: list[float] = []

    def done(job: Job, outcome: Outcome) -> None:
        ended.append(outcome.seconds)
        if outcome.is_done:
            left = (len(jobs) - len(ended)) * sum(ended) / len(ended) / n_jobs
            rest = f"; about {left / 60:.0f} min left" if len(ended) < len(jobs) else ""
            log.info("%s: %s in %.0f s (%d of %d%s)", job.name, verb, outcome.seconds, len(ended), len(jobs), rest)
            return
        why = "another process works on it" if outcome.code is None else last_line(job.log) or f"exit {outcome.code}"
        failures[job.name] = why
        log.warning("%s: not %s: %s (%s; %s)", job.name, verb, why, job.log, shlex.join(job.command))

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    n_jobs = min(n_jobs, max(len(jobs), 1))
    work(jobs, slots(n_jobs, cores, torch.cuda.device_count()), done)
    return failures


def train_script() -> Path:
    import hybrid

    path = Path(hybrid.__file__).resolve().parents[1] / "train.py"
    if not path.is_file():
        raise ValueError(f"{path}: train.py is not beside the package; run the sweep from a clone of the repository")
    return path


def parse() -> argparse.Namespace:
    parser = cli.Parser(prog="python -m hybrid.sweep", description=__doc__)
    parser.add_argument("--config", required=True, metavar="FILE", help="a sweep, or the configuration of a run")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=a,b,c",
        help="settings over those of the file; each combination of values is a run. A value that is a list is written "
        "[1, 4]",
    )  # fmt: skip
    parser.add_argument(
        "--folder", metavar="FOLDER", help="where the runs go (default: runs/sweeps/NAME for NAME.yaml)"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="runs to train at once, which share the cores (default: 1)"
    )
    parser.add_argument("--dry-run", action="store_true", help="check all runs, list them and stop")
    arguments = parser.parse_intermixed_args()
    from hybrid.options import at_least

    at_least("--jobs", arguments.jobs, 1)
    return arguments


if __name__ == "__main__":
    sys.exit(cli.run(main))
