"""The pages of docs/ that people write: what they name is there, and what there is they name."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Configure
from documents import tables_of, without_blocks

from hybrid.config.schema import SPECS, groups, known_keys
from hybrid.data.corpora import CORPORA
from hybrid.data.corpora.listing import SUFFIXES
from hybrid.data.tokenizers import TOKENIZERS
from hybrid.decoding import DECODERS
from hybrid.evaluation import METRICS
from hybrid.likelihoods import LIKELIHOODS
from hybrid.model import BACKENDS
from hybrid.model.rope import ROPE_SCALINGS
from hybrid.objectives import ESTIMATORS, PROPOSALS, SCHEDULES, WEIGHTINGS
from hybrid.runs.run import Run

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

FIRST_COLUMNS = {
    ("generation.md", "decoder"): DECODERS,
    ("evaluation.md", "method"): LIKELIHOODS,
    ("mathematics.md", "`objective.weighting`"): WEIGHTINGS,
    ("attention.md", "`model.attention`"): [*BACKENDS, "auto"],
    ("data.md", "corpus"): CORPORA,
    ("data.md", "format"): SUFFIXES,
    ("data.md", "`data.tokenizer`"): TOKENIZERS,
}
"""What stands in the first column of a table, by its page and the head of that column."""

NONE = ("", "the file's name", "those that are trained")
"""How a default that is no value is told, beside `none`."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_are_named_are_there(page):
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"`(test_\w+)`", text)) <= TESTS
    assert set(re.findall(r"`(test_\w+\.py)`", text)) <= {path.name for path in FILES}


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_is_explained(name):
    text = (REPO / "docs" / name).read_text(encoding="utf-8")
    code = " ".join(re.findall(r"`([^`\n]+)`", without_blocks(text)))
    assert [entry for entry in ENTRIES[name] if not re.search(rf"(?<!\w){re.escape(entry)}(?![\w*])", code)] == []


def test_the_index_leads_to_every_page():
    linked = set(re.findall(r"\]\((\w+\.md)\)", INDEX.read_text(encoding="utf-8")))
    assert {page.name for page in PAGES} - {INDEX.name} <= linked


@pytest.mark.parametrize("page, head", FIRST_COLUMNS, ids=str)
def test_a_table_lists_what_there_is(page, head):
    (rows,) = [rows for (first, *_), rows in tables_of(REPO / "docs" / page) if first == head]
    listed = [found[1] for row in rows if (found := re.match(r"`([^`]+)`", row[0]))]
    assert sorted(listed) == sorted(FIRST_COLUMNS[page, head])


def test_suffixes_are_those_that_are_read():
    (rows,) = [rows for (first, *_), rows in tables_of(REPO / "docs" / "data.md") if first == "format"]
    assert {row[0].strip("`"): tuple(re.findall(r"`([^`]+)`", row[1])) for row in rows} == SUFFIXES


def keys_of(cell: str) -> list[str]:
    """The keys that a cell consists of, `trainer.eval_every`, `save_every`: all of the group of the first."""
    if cell == "`decoder`" or not re.fullmatch(rf"`(?:{'|'.join(groups())})\.\w+`(?:, `[\w.]+`)*", cell):
        return re.findall("decoder", cell[: len("`decoder`")])
    first, *others = re.findall(r"[\w.]+", cell)
    return [first, *(key if "." in key else f"{first.partition('.')[0]}.{key}" for key in others)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_keys_of_a_cell_exist(page):
    cells = [row[0] for _, rows in tables_of(page) for row in rows]
    tables = [(head[0], rows) for head, rows in tables_of(page) if head[0].startswith("keys of the group")]
    of_groups = [
        f"{head.split('`')[1]}.{key}"
        for head, rows in tables
        for row in rows
        for key in re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", row[0]))
    ]
    named = [key for cell in cells for key in keys_of(cell)] + of_groups
    assert [key for key in named if key not in known_keys()] == []


def default_of(key: str) -> str:
    """How a page tells the default of a key."""
    value = known_keys()[key].default
    if key in SPECS and isinstance(value, dict):
        value = value["name"]
    if value in (None, "", []):
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def test_defaults_are_those_that_are_declared():
    """In the tables of keys with their defaults, and in the table of the network, whose first value is the default."""
    told = {}
    for head, rows in tables_of(REPO / "docs" / "configuration.md"):
        for cells in rows if head[:2] in (["key", "default"], ["key", "values"]) else ():
            keys, values = keys_of(cells[0]), re.split("[,;:] ", cells[1])
            if head[1] == "values":
                keys = keys[:1]
                values = [value for value in values if value != "number"][:1] or [default_of(*keys)]  # told as a number
            told |= dict(zip(keys, values, strict=True))
    assert len(told) > 50
    told = {key: "none" if value in NONE else value.strip("`") for key, value in told.items()}
    assert told == {key: default_of(key) for key in told}


def names_of(page: Path) -> Iterator[str]:
    """Every dotted name of the package in backquotes, but for those that CHANGELOG.md says were."""
    text = page.read_text(encoding="utf-8")
    if page.name == "CHANGELOG.md":
        text = "\n".join(line if line[:1] != "|" else line.split("|")[2] for line in text.splitlines())
    for code in re.findall(r"`([^`\n]+)`", text):
        yield from re.findall(r"(?<![\w./-])hybrid(?:\.\w+)+", code)


def is_there(name: str) -> bool:
    """Whether a dotted name leads to a module, or to something in one."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for part in parts[n:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize("page", [*sorted(REPO.glob("*.md")), *sorted(REPO.glob("docs/*.md"))], ids=lambda p: p.name)
def test_dotted_names_lead_somewhere(page):
    assert [name for name in names_of(page) if not is_there(name)] == []


def test_names_that_moved_are_where_they_are_said_to_be():
    """Of CHANGELOG's table: a name behind a comma that begins with a dot is beside the one before it."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in REPO.glob("hybrid/**/*.py"))
    defined = {
        name for names in re.findall(r"^ *(?:(?:class|def) (\w+)|(\w+)(?:: .*)? = )", source, re.M) for name in names
    }
    (rows,) = [rows for head, rows in tables_of(REPO / "CHANGELOG.md") if head == ["was", "is"]]
    for _, cell in rows:
        whole = ""
        for name in re.findall(r"`(\S*?[\w.]+)`", cell):
            if name.startswith(".") and whole.startswith("hybrid."):
                name = f"{whole.rpartition('.')[0]}{name}"
            whole = name if "." in name.lstrip(".") else whole
            if name.startswith("hybrid."):
                assert is_there(name), name
            else:
                assert set(re.findall(r"[A-Za-z_]\w*", name)) <= defined, name


@pytest.mark.parametrize("page", [*sorted(REPO.glob("*.md")), *PAGES], ids=lambda page: page.name)
def test_no_place_is_left_to_be_filled(page):
    """A line that is one word of capitals stands for what somebody meant to put there."""
    assert re.findall(r"^ *[A-Z_]{3,}[.:]?$", without_blocks(page.read_text(encoding="utf-8")), re.MULTILINE) == []


@pytest.fixture(scope="session")
def tags(trained: Path, configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What runs log: one that trains the bound, and one with everything else that has a tag."""
    other = ["objective.estimator=clipped", "objective.ar_weight=0.5", "model.context=causal", "optim.name=muon"]
    run = Run.of(configure(tmp_path_factory.mktemp("runs"), *other, "trainer.steps=2", "objective.block_size=4"))
    run.open()
    run.train()
    lines = [line for folder in (trained, run.folder) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {general(tag) for line in lines for tag in json.loads(line)}


def general(tag: str) -> str:
    """A tag without its numbers: val_by_count/bN/nK."""
    return re.sub(r"/n(?:\d+|K)\b", "/nK", re.sub(r"/b(?:\d+|N)\b", "/bN", tag.removeprefix("final/")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tags_are_those_that_runs_write(page, tags):
    code = re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))
    named = {
        general(tag)
        for tag in code
        if re.fullmatch(r"(?:final/)?(?:train|val|val_by_count|gen|optim|perf)/[\w/]+", tag)
    }
    assert named - tags - {"train/name"} == set()  # which stands for any
