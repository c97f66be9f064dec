"""Stages run in a process that is started again behind one that dies, and what they measured is on the disk at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Command
from stages_of_a_bench import Dies, Fine, Hangs, Lacks, Looks, Numbered, Raises, Slow, TooLong

from hybrid.bench.gpu.child import End, run_stage
from hybrid.bench.gpu.record import Record
from hybrid.bench.gpu.runner import Runner
from hybrid.bench.gpu.stage import Bench, Stage

CPU = Bench.on(torch.device("cpu"))


def run(stages: dict[str, Stage], folder: Path, seconds: float = 280) -> list[dict[str, Any]]:
    """Run stages, and return the lines that they leave."""
    record = Record(stages, folder / "gpu.md", folder / "gpu.jsonl")
    Runner(stages, CPU, record, seconds).run()
    assert record.broken() == [name for name in stages if name in ("raises", "dies", "hangs")]
    return [json.loads(line) for line in (folder / "gpu.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_every_end_of_a_stage(tmp_path: Path) -> None:
    """One that raises, dies, hangs or goes on for too long costs neither its own rows nor those of the next one."""
    stages: dict[str, Stage] = {
        "fine": Fine(), "raises": Raises(), "lacks": Lacks(), "after": Fine(), "dies": Dies(), "too long": TooLong(),
        "hangs": Hangs(), "slow": Slow(), "last": Fine(),
    }  # fmt: skip
    lines = run(stages, tmp_path)
    assert lines[0]["head"]["torch"].startswith(torch.__version__)
    ends = {line["stage"]: line["outcome"] for line in lines if "outcome" in line}
    assert list(ends) == list(stages)
    assert ends["fine"] == ends["after"] == ends["last"] == "done"
    assert ends["raises"] == "failed after 1 rows: RuntimeError: no kernel image"
    assert ends["lacks"] == "skipped: there is no switch"
    assert ends["dies"] == "died: SIGSEGV"
    assert ends["too long"].startswith("skipped: it may take 1000 s, and ") and ends["too long"].endswith(" s are left")
    assert ends["hangs"] == "killed: its time was over"
    assert ends["slow"].startswith("stopped when its 3 s were over, after ")
    rows = {name: [line["row"] for line in lines if "row" in line and line["stage"] == name] for name in stages}
    counts = {name: len(of_one) for name, of_one in rows.items()}
    assert ends["slow"].endswith(f" {counts.pop('slow')} rows")
    assert counts == {
        "fine": 2, "raises": 1, "lacks": 0, "after": 2, "dies": 1, "too long": 0, "hangs": 1, "last": 2
    }  # fmt: skip
    processes = [rows[name][0]["process"] for name in ("fine", "raises", "after", "dies", "hangs", "slow", "last")]
    assert len(set(processes[:4])) == 1 and len(set(processes[3:])) == 3 and processes[5] == processes[6]
    page = (tmp_path / "gpu.md").read_text()
    assert "| dies | 20 |" in page and "died: SIGSEGV" in page
    assert page.count("| number | process |") == 7
    assert page.index("`fine`") < page.index("`raises`") < page.index("`last`")


@pytest.mark.slow
def test_a_row_is_on_the_disk_while_its_stage_goes_on(tmp_path: Path) -> None:
    lines = run({name: Looks(tmp_path / name, mark) for name, mark in (("gpu.jsonl", -1), ("gpu.md", -2))}, tmp_path)
    assert [line["row"]["number"] for line in lines if "row" in line] == [-1, 1, -2, 1]


def test_another_run_is_added_to_the_lines(tmp_path: Path) -> None:
    page, lines = tmp_path / "gpu.md", tmp_path / "gpu.jsonl"
    for name in ("fine", "again"):
        record = Record({name: Fine()}, page, lines)
        for _ in range(2):  # a child that was started again
            record.head({"made by": "`python`", "torch": "2"})
        record.row(name, Numbered(1, 2))
        record.end(name, "done", 1.234)
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [line.get("stage", "head") for line in found] == ["head", "fine", "fine", "head", "again", "again"]
    assert found[1] == {"stage": "fine", "row": {"number": 1, "process": 2}}
    assert found[2] == {"stage": "fine", "outcome": "done", "seconds": 1.2}
    assert "(`again`)" in page.read_text() and "(`fine`)" not in page.read_text()


@pytest.mark.parametrize("works", [True, False])
def test_a_device_that_computes_no_more_needs_another_process(works: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind an illegal access every call of CUDA raises; behind other errors the next stage can go on."""

    def synchronize(device: torch.device) -> None:
        if not works:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    end = run_stage(Raises(), Bench(torch.device("cuda"), CPU.sizes), lambda row: None)
    assert end == End("failed after 1 rows: RuntimeError: no kernel image", works)


@pytest.mark.parametrize("option, name", [("--json", "x.jsonl"), ("--output", "x.md")])
@pytest.mark.parametrize("content", ["", "mine", "[1]", '{"mine": 1}'])
def test_what_is_not_ours_stays(option: str, name: str, content: str, command: Command, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    error = command("bench.__main__", "gpu", option, path).error
    assert f"{option}: {path} exists and" in error
    assert path.read_text() == content


def test_mistakes(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--stages: 'ceiling'" in command("bench.__main__", "gpu", "--stages", "ceiling").error
    assert "--seconds" in command("bench.__main__", "gpu", "--seconds", 0).error
    same = tmp_path / "same"
    for other in (same, tmp_path / "new" / ".." / "same"):
        assert "is the file of --output" in command("bench.__main__", "gpu", "--json", same, "--output", other).error


ABSENT = "datasets xformers tensorboard tokenizers omegaconf yaml matplotlib PIL tqdm jinja2"


@pytest.mark.slow
def test_a_bare_machine_has_what_the_stages_import(environment_of_a_child: dict[str, str]) -> None:
    """Torch, numpy and safetensors, as docs/gpu.md says."""
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({ABSENT.split()}))\n"  # importing None is an ImportError
        "import hybrid.bench.__main__, hybrid.bench.gpu.runner, hybrid.bench.gpu.stages"
    )
    environment = {**environment_of_a_child, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_stages_on_a_cpu(command: Command, tmp_path: Path) -> None:
    page, lines = tmp_path / "gpu.md", tmp_path / "new" / "gpu.jsonl"
    done = command(
        "bench.__main__", "gpu", "--seconds", 280, "--stages", "head", "ceilings", "--output", page, "--json", lines
    )
    assert done.code == 0, done.err
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [line["stage"] for line in found if line.get("outcome") == "done"] == ["ceilings", "head"]
    heads = [line["row"] for line in found if line.get("stage") == "head" and "row" in line]
    assert [row["logits at a time"] for row in heads] == [2**8, 2**10]
    for text in (page.read_text(), done.out):
        assert "## Head and loss, by the size of their chunks (`head`)" in text and "tiny sizes" in text
        assert "| ceilings | 8 |" in text
