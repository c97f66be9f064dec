"""One rule for all outputs: an earlier result of the same kind is replaced, and nothing else ever is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Command
from run_folders import Make, make_run  # noqa: F401 (a fixture)

from hybrid.results.publish import write_result
from hybrid.results.table import Table
from hybrid.storage import folders, overwriting

WORDS = {
    "evaluate": "--checkpoint {run} --rows 2 --draws 1 --output {output}",
    "report.__main__": "{run} --output {output}.md",
    "bench.__main__": "data --repeats 1 data.seq_len=16 trainer.batch_tokens=32 --output {output}",
    "bench.__main__ json": "data --repeats 1 data.seq_len=16 trainer.batch_tokens=32 --json {output}",
    "experiments.scaling": "--config configs/bytes.yaml --output {output}",
}


def a_file(path: Path) -> None:
    path.write_text('{"results": "mine"}')


def an_empty_file(path: Path) -> None:
    path.touch()


def a_folder(path: Path) -> None:
    path.mkdir()
    (path / "mine").write_text("mine")


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_link_to_a_file(path: Path) -> None:
    path.with_name("target").write_text("mine")
    path.symlink_to("target")


def a_link_to_nothing(path: Path) -> None:
    path.symlink_to("nothing")


FOREIGN = [a_file, an_empty_file, a_folder, a_pipe, a_link_to_a_file, a_link_to_nothing]


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """What each entry is, and its content; a pipe is not opened."""
    paths = sorted(folder.rglob("*"))
    return {
        str(path): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"") for path in paths
    }  # fmt: skip


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a model is loaded or anything is measured: an output is refused before the work begins."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the work has begun")

    for name in ("hybrid.lm.load", "hybrid.bench.parts.data", "hybrid.report.run_record.find_runs"):
        monkeypatch.setattr(name, fail)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("make_foreign", FOREIGN, ids=lambda made: made.__name__)
@pytest.mark.parametrize("name", WORDS)
def test_what_is_not_ours_is_refused_before_the_work_and_stays_what_it_is(
    name: str, make_foreign: Callable[[Path], None], command: Command, trained: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out" / "mine.html"
    output.parent.mkdir()
    words = WORDS[name].format(run=trained, output=output).split()
    make_foreign(Path(words[-1]))
    before = state(tmp_path)
    error = command(name.split()[0], *words).error
    assert f"{words[-2]}: {words[-1]} exists and" in error and "choose another file" in error
    assert state(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", WORDS)
def test_what_is_ours_is_replaced_and_folders_are_made(
    name: str, command: Command, trained: Path, tmp_path: Path
) -> None:
    words = WORDS[name].format(run=trained, output=tmp_path / "new" / "folder" / "out").split()
    for _ in range(2):
        done = command(name.split()[0], *words)
        assert done.code == 0, done.err
    text = Path(words[-1]).read_text()
    for other in set(WORDS) - {name, "report.__main__", "bench.__main__", "experiments.scaling"}:
        # Results of one kind are no results of another.
        more = WORDS[other].format(run=trained, output=words[-1]).split()
        assert "exists and" in command(other.split()[0], *more).error
    assert Path(words[-1]).read_text() == text


def test_a_place_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"^--output: .*file is not a folder; choose another place"):
        overwriting.refuse_overwriting(tmp_path / "file" / "a" / "b", lambda _: True, "")


def test_what_appears_during_the_work_is_not_replaced_either(
    command: Command, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hybrid.evaluation.scores import Scores

    output, lines = tmp_path / "e.json", Scores.lines

    def meanwhile(*arguments: object, **options: object) -> object:
        output.write_text("mine")
        return lines(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Scores, "lines", meanwhile)
    done = command("evaluate", "--checkpoint", trained, "--rows", 2, "--draws", 1, "--output", output)
    assert done.code == 2 and "e.json exists and does not hold an evaluation" in done.err
    assert output.read_text() == "mine"


def test_plots_beside_a_result_replace_its_own_plots_alone(make: Make, command: Command, tmp_path: Path) -> None:
    import numpy as np

    image = {"a figure": np.zeros((2, 2, 3), np.uint8)}
    parts: list[str | Table] = ["text"]
    (tmp_path / "r.png").write_text("mine")
    with pytest.raises(ValueError, match=r"r\.png exists and is no plot of .*r\.md"):
        write_result(tmp_path / "r.md", "T", "somebody", parts, image)
    assert not (tmp_path / "r.md").exists() and (tmp_path / "r.png").read_text() == "mine"
    (tmp_path / "r.png").unlink()
    for _ in range(2):
        write_result(tmp_path / "r.md", "T", "somebody", parts, image)
    assert "![a figure](r.png)" in (tmp_path / "r.md").read_text()

    make("b4")
    (tmp_path / "docs-curve_tokens.png").write_text("mine")
    done = command("report.__main__", tmp_path / "runs", "--output", tmp_path / "docs.md")
    assert done.code == 2 and "docs-curve_tokens.png exists and is no plot of" in done.err
    assert not (tmp_path / "docs.md").exists() and (tmp_path / "docs-curve_tokens.png").read_text() == "mine"


def test_a_folder_with_a_manifest_that_is_not_ours_is_not_replaced(tmp_path: Path) -> None:
    """Web pages have a manifest.json too; and files that were put beside ours are somebody's."""
    site = tmp_path / "site"
    site.mkdir()
    for content in ("{}", '{"files": {}}', '{"files": 3}', "["):
        (site / "manifest.json").write_text(content)
        (site / "index.html").write_text("mine")
        with pytest.raises(ValueError, match="exists and was not written by hybrid"), folders.new_folder(site):
            pass
    assert (site / "index.html").read_text() == "mine"
    for text in ("a", "b"):
        with folders.new_folder(tmp_path / "ours") as folder:
            (folder / "file").write_text(text)
    (tmp_path / "ours" / "notes").write_text("mine")
    with pytest.raises(ValueError, match="was not written by hybrid"), folders.new_folder(tmp_path / "ours"):
        pass
    assert (tmp_path / "ours" / "notes").read_text() == "mine" and (tmp_path / "ours" / "file").read_text() == "b"


def test_a_sweep_does_not_replace_a_configuration(command: Command, overrides: Callable, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("trainer: {steps: 2}\n")
    (tmp_path / "sweep.yaml").write_text("config: base.yaml\narms: {base: {}}\n")
    words = ["--config", tmp_path / "sweep.yaml", "--folder", tmp_path]
    error = command("sweep.__main__", *words).error
    assert "base.yaml exists and does not hold the settings of this run" in error
    assert (tmp_path / "base.yaml").read_text() == "trainer: {steps: 2}\n"


def test_marks_and_keys(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("a mark, and more")
    assert overwriting.has_mark(path, "mark") and not overwriting.has_mark(path, "Mark")
    assert not overwriting.has_mark(tmp_path, "mark")
    path.write_text(json.dumps({"a": 1, "b": 2}))
    assert overwriting.has_keys(path, ("a",)) and not overwriting.has_keys(path, ("a", "c"))
    for text in ("[]", "{", "[" * 100_000, ""):
        path.write_text(text)
        assert not overwriting.has_keys(path, ())
