"""The pages of docs/ that people write: what they name is there, and what there is they name."""

import re
from pathlib import Path

import pytest

from hybrid.decoding import DECODERS
from hybrid.evaluation import METRICS
from hybrid.likelihoods import LIKELIHOODS
from hybrid.model import BACKENDS
from hybrid.model.rope import ROPE_SCALINGS
from hybrid.objectives import ESTIMATORS, PROPOSALS, SCHEDULES, WEIGHTINGS

REPO = Path(__file__).parents[1]
INDEX = REPO / "docs" / "index.md"
PAGES = [p for p in sorted(REPO.glob("docs/*.md")) if "<!-- Written by a command" not in p.read_text(encoding="utf-8")]
FILES = list(REPO.glob("tests/**/*.py"))
TESTS = {name for path in FILES for name in re.findall(r"def (test_\w+)\(", path.read_text(encoding="utf-8"))}
ENTRIES = {
    "mathematics.md": [*ESTIMATORS, *PROPOSALS, *SCHEDULES, *WEIGHTINGS, *LIKELIHOODS],
    "attention.md": [*BACKENDS, *ROPE_SCALINGS],
    "generation.md": list(DECODERS),
    "evaluation.md": [*LIKELIHOODS, *(column.heading for metric in METRICS.values() for column in metric.columns)],
}
"""Entries of tables, and headings of columns, by the page that explains them."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_are_named_are_there(page):
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"`(test_\w+)`", text)) <= TESTS
    assert set(re.findall(r"`(test_\w+\.py)`", text)) <= {path.name for path in FILES}


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_is_explained(name):
    text = (REPO / "docs" / name).read_text(encoding="utf-8")
    code = " ".join(re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)))
    assert [entry for entry in ENTRIES[name] if not re.search(rf"(?<!\w){re.escape(entry)}(?![\w*])", code)] == []


def test_the_index_leads_to_every_page():
    linked = set(re.findall(r"\]\((\w+\.md)\)", INDEX.read_text(encoding="utf-8")))
    assert {page.name for page in PAGES} - {INDEX.name} <= linked
