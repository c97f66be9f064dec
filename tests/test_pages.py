"""The pages of docs/ that people write: what they name is there, and the index leads to each of them."""

import re
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
INDEX = REPO / "docs" / "index.md"
PAGES = [p for p in sorted(REPO.glob("docs/*.md")) if "<!-- Written by a command" not in p.read_text(encoding="utf-8")]
TESTS = list(REPO.glob("tests/**/*.py"))
NAMES = {name for path in TESTS for name in re.findall(r"def (test_\w+)\(", path.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_tests_that_are_named_are_there(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:tests|hybrid|configs)/[\w/]+\.\w+)`", text):
        assert (REPO / path).exists(), path
    for name in re.findall(r"`(test_\w+\.py)`", text):
        assert any(path.name == name for path in TESTS), name
    for name in re.findall(r"`(test_\w+)`", text):
        assert name in NAMES, name


def test_the_index_leads_to_every_page():
    linked = set(re.findall(r"\]\((\w+\.md)\)", INDEX.read_text(encoding="utf-8")))
    assert {page.name for page in PAGES} - {INDEX.name} <= linked
