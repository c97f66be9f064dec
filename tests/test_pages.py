"""The pages of docs/ that people write: the tests that they name are there, and the index leads to each of them."""

import re
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
INDEX = REPO / "docs" / "index.md"
PAGES = [p for p in sorted(REPO.glob("docs/*.md")) if "<!-- Written by a command" not in p.read_text(encoding="utf-8")]
FILES = list(REPO.glob("tests/**/*.py"))
TESTS = {name for path in FILES for name in re.findall(r"def (test_\w+)\(", path.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_are_named_are_there(page):
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"`(test_\w+)`", text)) <= TESTS
    assert set(re.findall(r"`(test_\w+\.py)`", text)) <= {path.name for path in FILES}


def test_the_index_leads_to_every_page():
    linked = set(re.findall(r"\]\((\w+\.md)\)", INDEX.read_text(encoding="utf-8")))
    assert {page.name for page in PAGES} - {INDEX.name} <= linked
