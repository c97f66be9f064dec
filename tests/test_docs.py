"""What docs/ says can be traced: links lead somewhere, and every table names the command that made it."""

import argparse
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from hybrid import cli

REPO = Path(__file__).parents[1]
PAGES = [*sorted(REPO.glob("*.md")), *sorted((REPO / "docs").glob("*.md"))]
TABLES = [page for page in PAGES if "<!-- Written by a command" in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if not target.startswith("http")]
    assert [target for target in local if not (page.parent / target).exists()] == []


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
