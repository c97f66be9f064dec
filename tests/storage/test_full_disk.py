"""A disk that is full when a result is written: the earlier one stays whole, and one line says so."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Command

from hybrid.training import trainer

OUTPUTS = {
    "evaluate": ("--checkpoint {run} --rows 2 --draws 1 --output {to}", "eval.json"),
    "generate.py": ("--checkpoint {run} --prompt The --max-new-tokens 4 --trace {to}", "page.html"),
    "report.__main__": ("{run} --output {to}", "report"),
    "bench.__main__": ("data --repeats 1 data.seq_len=16 trainer.batch_tokens=32 --output {to}", "bench.md"),
    "bench.__main__ json": ("data --repeats 1 data.seq_len=16 trainer.batch_tokens=32 --json {to}", "bench.json"),
    "experiments.scaling": ("--config configs/bytes.yaml --output {to}", "scaling.md"),
    "sweep.__main__": ("--config {run}/config.yaml run.seed=5,6 --folder {to}", "sweep"),
}


@contextlib.contextmanager
def full_disk(room: int = 50) -> Iterator[None]:
    """No file takes more than `room` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def contents(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in (path, *path.rglob("*")) if file.is_file()}


@pytest.mark.thin(2)
@pytest.mark.parametrize("script", OUTPUTS)
def test_a_full_disk_leaves_the_earlier_result_whole(
    script: str, command: Command, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, name = OUTPUTS[script]
    to = tmp_path / "out" / name
    to.parent.mkdir()
    monkeypatch.setattr("hybrid.sweep.jobs.work", lambda jobs, slots, done: {})
    call = [script.split()[0], *words.format(run=trained, to=to).split()]
    assert command(*call).code == 0
    before = contents(to.parent)
    assert before
    with full_disk():
        done = command(*call)
    assert done.code == 2 and "Traceback" not in done.err, done.err
    *_, error = done.err.splitlines()  # what was found stands on stdout, all the same
    assert error.startswith(f"error: {to}") and done.err.count("error:") == 1, error
    assert error.endswith(": could not be written: File too large; what was saved before is unchanged"), error
    assert contents(to.parent) == before
    assert command(*call).code == 0


@pytest.mark.slow
def test_a_full_disk_while_samples_are_written(
    command: Command, overrides: Callable[[Path], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = trainer.write_text_atomic

    def without_room(path: Path, text: str) -> None:
        with full_disk(3) if path.name == "step-00000008.txt" else contextlib.nullcontext():
            write(path, text)

    words = [*overrides(tmp_path), "trainer.sample_every=4", "trainer.save_every=4", "trainer.resume=auto"]
    monkeypatch.setattr(trainer, "write_text_atomic", without_room)
    done = command("train.py", *words)
    samples = tmp_path / "tiny" / "samples"
    assert done.error == (
        f"error: {samples / 'step-00000008.txt'}: could not be written: File too large; what was saved before is "
        "unchanged"
    )
    assert [path.name for path in samples.iterdir()] == ["step-00000004.txt"]
    monkeypatch.setattr(trainer, "write_text_atomic", write)
    assert command("train.py", *words).code == 0
    assert sorted(path.name for path in samples.iterdir()) == ["step-00000004.txt", "step-00000008.txt"]
