"""python -m hybrid.report: what it writes, what it leaves alone, and what a page must not do."""

from __future__ import annotations

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import Command
from run_folders import AUTOREGRESSIVE, Make, make_run  # noqa: F401 (a fixture)


class Elements(HTMLParser):
    """What a page loads, and its texts."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [str(v) for k, v in attrs if k in ("src", "href", "xlink:href", "data") and v and v[0] != "#"]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_needs_nothing_else_and_escapes_what_models_write(
    make: Make, tmp_path: Path, command: Command
) -> None:
    hostile = "<script>alert(1)</script> & \"quotes\" <img src='http://x/y'> \x00 \u2028 end"
    make("b4", nats=2.0, sample=hostile)
    name = "<b>8 & \"{{ 7 * 7 }}' $title"
    make(name, "objective.block_size=8", nats=2.5, sample="plain")
    done = command("report.__main__", tmp_path / "runs", "--title", "A <b> & c")
    assert done.code == 0, done.err
    folder = tmp_path / "runs" / "report"
    assert done.out.strip() == str(folder / "index.html")
    text = (folder / "index.html").read_text()
    page = Elements()
    page.feed(text)
    assert page.loaded == [] and "url(http" not in text and "@import" not in text
    assert page.tags.count("script") == 1 and "img" not in page.tags and page.tags.count("svg") == 4
    assert any("<script>alert(1)</script>" in word for word in page.words) and "A <b> & c" in page.words
    assert page.words.count(name) == 6, "in two tables, three plots and over its sample; no command to the template"
    identifiers = re.findall(r'\bid="([^"]+)"', text)
    assert len(identifiers) == len(set(identifiers)) > 20  # those of several figures do not collide
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', text)) <= set(identifiers)


def test_everything_is_written_and_a_second_report_replaces_the_first(
    make: Make, tmp_path: Path, command: Command
) -> None:
    make("ar", *AUTOREGRESSIVE, nats=1.5)
    make("b4-seed-0", nats=2.0)
    make("b4-seed-1", "run.seed=1", nats=2.2)
    folder = tmp_path / "out"
    for _ in range(2):
        done = command("report.__main__", tmp_path / "runs", "--output", folder)
        assert done.code == 0, done.err
    plots = ["block_size", "by_count", "curve_seconds", "curve_tokens"]
    expected = ["index.html", *(f"report-{p}.png" for p in plots), "report.md", "runs.csv"]
    assert sorted(p.name for p in folder.iterdir()) == expected
    rows = list(csv.DictReader((folder / "runs.csv").read_text().splitlines()))
    assert [(r["run"], r["model"], r["seed"], r["likelihood"]) for r in rows] == [
        ("ar", "ar", "0", "exact"), ("b4-seed-0", "b4", "0", "bound"), ("b4-seed-1", "b4", "1", "bound"),
    ]  # fmt: skip
    assert float(rows[2]["bits_per_byte"]) == 4.4 and rows[0]["model.context"] == "causal"
    markdown = (folder / "report.md").read_text()
    assert "| b4 | 4 | alone | bound | ≤ 2.1000 ± 0.1000 | ≤ 4.2000 ± 0.2000 | 2 |" in markdown
    assert "| ar | 1 | alone | exact | = 1.5000 ± 0.0000 | = 3.0000 ± 0.0000 | 1 |" in markdown
    assert "![bits per byte against block size](report-block_size.png)" in markdown
    assert "Made by `python -m hybrid.report" in markdown


def test_markdown_alone(make: Make, tmp_path: Path, command: Command) -> None:
    make("b4")
    done = command("report.__main__", tmp_path / "runs", "--output", tmp_path / "docs.md")
    assert done.code == 0, done.err
    assert "docs-curve_tokens.png" in (tmp_path / "docs.md").read_text()
    assert (tmp_path / "docs-curve_tokens.png").is_file() and not (tmp_path / "index.html").exists()


def test_nothing_that_is_no_report_is_overwritten(make: Make, tmp_path: Path, command: Command) -> None:
    make("b4")
    other = tmp_path / "other"
    other.mkdir()
    (other / "index.html").write_text("mine")
    done = command("report.__main__", tmp_path / "runs", "--output", other)
    assert "exists and is no report; choose another folder" in done.error
    (tmp_path / "mine.md").write_text("mine")
    done = command("report.__main__", tmp_path / "runs", "--output", tmp_path / "mine.md")
    assert done.code == 2 and "was not written by an experiment" in done.err
    assert (other / "index.html").read_text() == (tmp_path / "mine.md").read_text() == "mine"


def test_runs_on_other_data(make: Make, tmp_path: Path, command: Command) -> None:
    make("a")
    make("b", data={"corpus_sha256": "c1"})
    assert "can't be compared" in command("report.__main__", tmp_path / "runs").error
    done = command("report.__main__", tmp_path / "runs", "--force")
    assert done.code == 0 and "compare with care" in done.err
    assert 'class="warning"' in (tmp_path / "runs" / "report" / "index.html").read_text()


def test_a_real_run(command: Command, copy_of_trained: Path, tmp_path: Path) -> None:
    """What training writes is what the report reads."""
    done = command("report.__main__", copy_of_trained, "--output", tmp_path / "report")
    assert done.code == 0, done.err
    rows = list(csv.DictReader((tmp_path / "report" / "runs.csv").read_text().splitlines()))
    last = json.loads((copy_of_trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert {r["block_size"]: float(r["nats_per_token"]) for r in rows} == {
        "1": last["val/nelbo/b1"], "4": last["val/nelbo/b4"],
    }  # fmt: skip
    factor = last["val/bits_per_byte"] / last["val/nelbo"]
    assert [float(r["bits_per_byte"]) / float(r["nats_per_token"]) for r in rows] == pytest.approx([factor] * 2)


def test_a_sweep_is_reported_without_its_failed_runs(make: Make, tmp_path: Path, command: Command) -> None:
    make("a")
    bad = make("bad", evaluated=False)
    (bad / "metrics.jsonl").write_text('{"step": 1, "time": 1.0}\n')
    slow = make("slow", "trainer.steps=9", evaluated=False)
    done = command("report.__main__", tmp_path / "runs")
    assert done.code == 0, done.err
    page = (tmp_path / "runs" / "report" / "index.html").read_text()
    for text in (f"Left out: {bad}: neither", "slow stopped at step 8 of 9.", "not evaluated alike"):
        assert text in done.err and text in page
    assert "bad: neither eval.json" in command("report.__main__", tmp_path / "runs" / "a", bad).error
    shutil.copytree(bad, slow, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "runs" / "a")
    assert "none of its 2 runs can be read; Left out" in command("report.__main__", tmp_path / "runs").error
