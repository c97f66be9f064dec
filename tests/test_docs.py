"""What docs/ says can be traced: links lead somewhere, and every table names the command that made it."""

import argparse
import importlib
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from links import anchors_of, faults, links_of, target_of

from hybrid import cli

REPO = Path(__file__).parents[1]
PAGES = [*sorted(REPO.glob("*.md")), *sorted((REPO / "docs").glob("*.md"))]
TABLES = [page for page in PAGES if "<!-- Written by a command" in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_hold(page):
    """Files, headings and addresses; nothing is asked of the web."""
    assert list(faults(page, REPO)) == []


def test_every_page_is_reached_from_the_readme():
    reached, to_read = set(), [REPO / "README.md"]
    while to_read:
        page = to_read.pop()
        reached.add(page)
        if page.suffix == ".md":
            targets = {target_of(link, page) for link in links_of(page.read_text(encoding="utf-8"))} - {None}
            to_read += [target for target in targets if target.is_file() and target not in reached]
    lost = [path.name for path in (REPO / "docs").iterdir() if path.resolve() not in reached]
    assert lost == [], "pages and pictures that no page leads to"


def test_anchors_are_those_of_github():
    text = """# Add `your_own`: a *decoder*, 2nd ed.
## Two  spaces
## [A link](page.md) & more
## Two  spaces
```bash
# no heading
```
<a id="by-hand"></a>
"""
    assert anchors_of(text) == {
        "add-your_own-a-decoder-2nd-ed",
        "two--spaces",
        "a-link--more",
        "two--spaces-1",
        "by-hand",
    }


def test_what_is_wrong_with_a_link_is_said(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text("# A heading\n")
    (tmp_path / "outside.md").write_text("")
    ours = f"https://github.com/someone/{tmp_path.name}/blob/main/docs/page.md"
    links = {
        "docs/page.md#a-heading": None, "docs/page.md#heading": "no such heading", "docs/other.md": "not there",
        "../outside.md": "outside of the repository", "/docs/page.md": "not relative to the page",
        "file:///docs/page.md": "neither a file of the repository nor a page of the web", "http://arxiv": "malformed",
        "https://arxiv.org/abs/2406.07524": None, "https://en.wikipedia.org/wiki/Entropy_(physics)": None,
        ours: "a file of this repository: link to it by its path",
    }  # fmt: skip
    page = tmp_path / "README.md"
    page.write_text("".join(f"[text]({link})\n" for link in links) + "`[code](gone.md)`\n```\n[code](gone.md)\n```\n")
    assert list(faults(page, tmp_path)) == [f"{link}: {why}" for link, why in links.items() if why]


def test_every_table_is_linked():
    linked = "".join(page.read_text(encoding="utf-8") for page in PAGES if page not in TABLES)
    assert [page.name for page in TABLES if f"{page.name})" not in linked] == []
    assert TABLES


@pytest.mark.parametrize("page", TABLES, ids=lambda page: page.name)
def test_the_command_of_a_table_is_still_accepted(page, monkeypatch):
    (origin,) = re.findall(r"^Made by `python -m (\S+) (.*?)`; (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    module, words, facts = origin
    monkeypatch.setattr(sys, "argv", [module, *shlex.split(words)])
    monkeypatch.setattr(cli.Parser, "exit", lambda *_: pytest.fail("refused"))
    script = importlib.import_module(module)
    if hasattr(script, "__path__"):
        script = importlib.import_module(f"{module}.__main__")
    arguments = script.parse()
    assert isinstance(arguments, argparse.Namespace)
    assert Path(arguments.output).name == page.name
    assert re.search(r"commit [0-9a-f]{7};", facts), "made at a commit without changes"
    assert "seed" in facts and "threads" in facts


def test_files_and_tests_that_are_named_are_there():
    """Of the map of the rooms: paths in backquotes, in its drawings and in its tables."""
    text = (REPO / "docs" / "architecture.md").read_text(encoding="utf-8")
    for path in re.findall(r"(?:tests|\.ci)/[\w/.]+\b", text):
        assert (REPO / path).exists(), path
    for name in re.findall(r"`(test_\w+)`", text):
        assert any(f"def {name}(" in file.read_text(encoding="utf-8") for file in REPO.glob("tests/**/*.py")), name
    drawings = "".join(re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    named = re.findall(r"^ *([\w/]+\.py)\b", drawings, re.MULTILINE)
    assert len(named) > 20
    for path in named:
        assert (REPO / path).exists() or (REPO / "hybrid" / path).exists(), path


def test_the_table_of_rooms_is_what_is_there():
    text = (REPO / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text[text.index("| room |") : text.index("## Through training")]
    listed = {name for row in table.strip().splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    there = {path.relative_to(REPO / "hybrid").parts[0] for path in (REPO / "hybrid").rglob("*/*.py")}
    assert listed == there


def test_the_front_page_is_short():
    assert len((REPO / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_there_is_one_version():
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (newest, *_) = re.findall(r"^## (\S+) \((.*)\)$", (REPO / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    cited = yaml.safe_load((REPO / "CITATION.cff").read_text(encoding="utf-8"))
    assert newest == (project["version"], str(cited["date-released"]))
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
