"""Killed runs: one is killed at some moment, perhaps again while it resumes, and must end as if nothing had happened.

A moment is exact (before the k-th call that changes the disk, or in the middle of a line of metrics), or a time, or the
appearance of a file. All is drawn from a seed.
"""

from __future__ import annotations

import builtins
import importlib
import io
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import same_run
from conftest import WORDS
from forked import Child, Ended, Process, command

COMMON = [
    *("run.name=tiny", "run.device=cpu", "data.seq_len=32", "data.validation_fraction=0.2"),
    *("model.dim=16", "model.n_layers=1", "model.n_heads=2", "model.hidden_dim=32", "optim.warmup_steps=2"),
    *("optim.ema_decay=0.9", "optim.lr=0.01", "trainer.batch_tokens=128", "trainer.precision=fp32"),
    *("trainer.log_every=1", "eval.rows=2", "eval.draws=2", "eval.sample_tokens=8", "trainer.resume=auto"),
]
# At the rate of the first, validation rises soon: an early checkpoint stays the best.
VARIANTS = {
    "adamw": ["data.corpus=texts", "objective.block_size=[4,1]", "trainer.steps=8", "trainer.save_every=3",
              "trainer.eval_every=2", "optim.lr=0.5", "trainer.sample_every=3"],
    "muon": ["data.corpus=rows.jsonl", "data.tokenizer=char", "optim.name=muon", "objective.block_size=4",
             "trainer.steps=7", "trainer.save_every=1", "trainer.eval_every=2", "trainer.micro_batch_tokens=64"],
    "bpe": ["data.corpus=texts", "data.tokenizer=bpe", "data.vocab_size=280", "objective.block_size=8",
                 "trainer.steps=6", "trainer.save_every=0", "trainer.eval_every=2",
                 "optim.name=muon"],
}  # fmt: skip
TRAINED = [*COMMON, "data.corpus=texts", "objective.block_size=[4,1]", "trainer.save_every=2", "trainer.eval_every=2"]
"""Settings of the run that hostile inputs are tried on."""
PHASES = ("opening", "saving", "ending")
WATCHED = ("runs/tiny/*config.yaml*", "cache/.building*", "runs/tiny/events*", "runs/tiny/checkpoints/.*",
           "runs/tiny/checkpoints/step-*", "runs/tiny/samples/*.txt", "runs/tiny/checkpoints/best")  # fmt: skip


def write_corpora(folder: Path) -> None:
    """A folder of texts and a jsonl file, in a place of every run."""
    rng = random.Random(0)
    texts = ["\n".join(" ".join(rng.choices(WORDS, k=8)) for _ in range(6)) for _ in range(16)]
    (folder / "texts").mkdir(parents=True)
    for number, text in enumerate(texts):
        (folder / "texts" / f"{number:02d}.txt").write_text(text, encoding="utf-8")
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def words_of(variant: str) -> list[str]:
    return [*COMMON, *VARIANTS[variant]]


# ---------------------------------------------------------------------------------------------------------------------
# The moments


@dataclass
class Calls:
    """Counts the calls of the main thread that change the disk; the process dies before number `fatal`."""

    fatal: int | None = None
    seen: tuple[str, ...] = ()

    def note(self, name: str, what: Any, torn: Callable[[], object] = lambda: None) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        if len(self.seen) == self.fatal:
            torn()
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen = (*self.seen, f"{name} {what}")

    def watch(self) -> None:
        """From now on, in this process."""
        for name in ("rename", "replace", "fsync", "unlink", "rmdir", "mkdir", "open"):
            setattr(os, name, self._counted(name, getattr(os, name)))
        files = importlib.import_module("hybrid.checkpoints.tensor_files")
        files.save_file = self._counted("save_file", files.save_file)
        builtins.open = io.open = self._opened(open)

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.note(name, arguments[-1] if name in ("rename", "replace", "save_file") else arguments[0])
            return function(*arguments, **options)

        return call

    def _opened(self, function: Callable[..., Any]) -> Callable[..., Any]:
        calls = self

        class Torn(io.FileIO):
            """A raw file, of which half of the last write may be all there is."""

            def write(self, data: Any, /) -> int:
                calls.note("write", self.name, lambda: io.FileIO.write(self, bytes(data)[: len(data) // 2]))
                return io.FileIO.write(self, data)

        def call(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **options: Any) -> Any:
            if set(mode) & set("wax+"):
                self.note("open", file)
                if buffering == 0:
                    return Torn(file, mode.replace("b", ""))
            return function(file, mode, buffering, *rest, **options)

        return call


@dataclass(frozen=True)
class Moment:
    """When and how: before a call, after a time (seconds), when a file appears, or when a library is loaded.

    `library` is for processes of their own, `call` for forks.
    """

    kind: signal.Signals = signal.SIGKILL
    call: int | None = None
    seconds: float | None = None
    file: str | None = None
    library: str | None = None

    def __str__(self) -> str:
        if self.call is not None:
            return f"{self.kind.name} before call {self.call}"
        if self.library is not None:
            return f"{self.kind.name} when {self.library} is loaded"
        return f"{self.kind.name} " + (f"when {self.file} appears" if self.file else f"after {self.seconds:.3f} s")

    def has_come(self, child: Child, place: Path, names: set[Path]) -> bool:
        """Whether it is time; `names` are the files that were there at the start."""
        if self.file is not None:
            return bool(set(place.glob(self.file)) - names)
        if self.library is not None:
            return self.library in Path(f"/proc/{child.pid}/maps").read_text(errors="replace")
        return time.monotonic() - child.started >= (self.seconds or 0.0)


@dataclass(frozen=True)
class Reference:
    """An uninterrupted run: its place, the calls that it made, by phase, and how long it took."""

    variant: str
    place: Path
    calls: dict[str, list[int]]
    names: tuple[str, ...]
    seconds: float

    def draw(self, rng: random.Random, phase: str) -> Moment:
        """A moment of the run; most are exact."""
        way = rng.choices(("call", "time", "file", "signal"), (6, 2, 1, 1))[0]
        if way == "call":
            return Moment(call=rng.choice(self.calls[phase]))
        if way == "file":
            return Moment(file=rng.choice(WATCHED))
        kind = signal.SIGKILL if way == "time" else rng.choice((signal.SIGTERM, signal.SIGINT))
        third = PHASES.index(phase) if way == "time" else rng.randrange(3)
        return Moment(kind, seconds=self.seconds * (third + rng.random()) / 3)


def environment_of(place: Path) -> dict[str, str]:
    return {"HYBRID_CACHE": str(place / "cache")}


def train(place: Path, words: list[str], moment: Moment | None = None, calls: Path | None = None) -> Ended:
    """Train in a fork in `place`, up to a moment; with `calls`, what it called is written there."""
    counter = Calls(None if moment is None else moment.call)
    main = command("train.py", words, environment_of(place))

    def work() -> int:
        counter.watch()
        try:
            return main()
        finally:
            if calls is not None:
                calls.write_text(json.dumps(counter.seen))

    child = Child(work, place)
    if moment is not None and moment.call is None:
        hit(child, moment, place)
    return child.wait()


def start(place: Path, words: list[str], moment: Moment) -> Ended:
    """Train in a process of its own, up to a moment."""
    child = Process("train.py", words, place, environment_of(place))
    hit(child, moment, place)
    return child.wait()


def hit(child: Child, moment: Moment, place: Path) -> None:
    """Send the signal at its moment, or not at all if the child ends before."""
    names = set(place.glob(moment.file)) if moment.file else set()
    while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if moment.has_come(child, place, names):
            child.kill(moment.kind)
            return
        time.sleep(0.0005)


def reference_of(variant: str, place: Path) -> Reference:
    """Run a variant to its end and measure it.

    Raises:
        RuntimeError: it failed.
    """
    write_corpora(place)
    started = time.monotonic()
    calls = place.with_name(f"{place.name}.calls")
    ended = train(place, words_of(variant), calls=calls)
    if ended.code != 0:
        raise RuntimeError(f"the uninterrupted run of {variant} failed: {ended.err}")
    names = tuple(json.loads(calls.read_text()))
    writes = [number for number, name in enumerate(names) if "metrics.jsonl" in name and name.startswith("write")]
    first = writes[0] if writes else next(number for number, name in enumerate(names) if "metrics.jsonl" in name)
    last = max(number for number, name in enumerate(names) if "/step-" in name and name.startswith("rename"))
    phases = (range(first), range(first, last), range(last, len(names)))
    return Reference(
        variant, place, {phase: list(r) for phase, r in zip(PHASES, phases, strict=True)}, names,
        time.monotonic() - started,
    )  # fmt: skip


def moments(rng: random.Random, reference: Reference, number: int) -> Iterator[Moment]:
    """The kills of one case: the first in a phase that goes round, perhaps one or two more while it resumes."""
    yield reference.draw(rng, PHASES[number % len(PHASES)])
    while rng.random() < 0.3:
        yield reference.draw(rng, rng.choice(PHASES))


def moments_of_a_process(rng: random.Random) -> Iterator[Moment]:
    """While it is still importing (a tool of Linux tells), and when something appears."""
    if Path("/proc/self/maps").is_file():
        yield Moment(rng.choice((signal.SIGTERM, signal.SIGINT)), library="libtorch_cpu")
    yield Moment(file=rng.choice(WATCHED))


# ---------------------------------------------------------------------------------------------------------------------
# One case


@dataclass
class Case:
    """What happened: the moments at which the run was hit, and what is wrong with it."""

    number: int
    variant: str
    moments: list[str]
    kills: int
    problems: list[str]


def survive(reference: Reference, place: Path, seed: int, number: int) -> Case:
    """Kill a run and resume it to its end; then start the finished run once more, which must change nothing."""
    rng = random.Random(f"kill {seed} {number}")
    write_corpora(place)
    words, case = words_of(reference.variant), Case(number, reference.variant, [], 0, [])
    is_own_process = number % 10 == 9
    for moment in moments_of_a_process(rng) if is_own_process else moments(rng, reference, number):
        ended = (start if is_own_process else train)(place, words, moment)
        was_hit = ended.code == -signal.SIGKILL or moment.kind != signal.SIGKILL
        case.kills += was_hit
        case.moments.append(f"{moment} -> {ended.code}")
        case.problems += [f"{moment}: {problem}" for problem in _manners(ended, moment)]
    for again in ("resumed", "the finished run, started again"):
        ended = train(place, words)
        if ended.code != 0:
            case.problems.append(f"{again}: exit code {ended.code}: {(ended.err.splitlines() or [''])[-1][:300]}")
            break
        found = same_run.differences(reference.place, place)
        case.problems += [f"{again}: {problem}" for problem in found]
        if found:
            break
    return case


def _manners(ended: Ended, moment: Moment) -> list[str]:
    """How a process must end: killed by what it cannot catch, else in order, with a word if it was stopped."""
    if ended.is_late:
        return ["did not end"]
    if moment.kind == signal.SIGKILL:
        return [] if ended.code in (0, -signal.SIGKILL) else [f"exit code {ended.code}: {ended.err[-300:]}"]
    found = []
    if "Traceback" in ended.err:
        found.append(f"traceback, {ended.err.splitlines()[-1][:200]}")
    if ended.code not in (0, 128 + moment.kind):
        found.append(f"exit code {ended.code}: {(ended.err.splitlines() or ['without a word'])[-1][:200]}")
    return found
