"""Tasks with right answers: rules, uniqueness by another solver, splits without overlap, determinism."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest

from hybrid.config import check, flatten, load_config, to_yaml
from hybrid.data.config import DataConfig
from hybrid.data.corpora import CORPORA
from hybrid.data.corpora.locating import is_embedded, locate
from hybrid.data.corpora.source import Document
from hybrid.data.corpora.tasks import BLANKS, BOXES, Sudoku, Sums, remove_cells, solutions
from hybrid.data.preparing import Data, prepare
from hybrid.options import title
from hybrid.progress import progress


def documents(source: Sudoku | Sums) -> list[Document]:
    loaded = source.load(Path("unused"))
    assert loaded.has_prompts
    return loaded.read(range(len(loaded)))


def prompt_of(document: Document) -> str:
    assert document.prompt is not None
    return document.prompt


def is_solved(grid: str, size: int) -> bool:
    """Every row, column and box, cut out by slices, holds every digit."""
    height, width = BOXES[size]
    array = np.array(list(map(int, grid))).reshape(size, size)
    boxes = [array[r : r + height, c : c + width] for r in range(0, size, height) for c in range(0, size, width)]
    return all(sorted(unit.ravel()) == list(range(1, size + 1)) for unit in (*array, *array.T, *boxes))


def is_unique(cells: Sequence[int], size: int) -> bool:
    return len(list(itertools.islice(solutions(cells, size), 2))) == 1


@pytest.mark.parametrize("size, puzzles", [(4, 300), (6, 100), (9, 20)])
def test_puzzles_have_one_solution_which_is_the_answer(size: int, puzzles: int) -> None:
    found = documents(Sudoku(size, puzzles))
    fewest, most = BLANKS[size]
    assert len({document.prompt for document in found}) == len(found) == puzzles
    blanks = [prompt_of(document).count("0") for document in found]
    assert fewest <= min(blanks) < max(blanks) <= most
    for prompt, answer in ((prompt_of(document), document.text) for document in found):
        assert is_solved(answer, size)
        assert len(prompt) == len(answer) == size**2
        assert all(given in ("0", digit) for given, digit in zip(prompt, answer, strict=True))
        assert is_unique(list(map(int, prompt)), size)


def test_there_are_288_grids_of_size_4_and_the_solver_finds_them_all() -> None:
    """By brute force over rows: none of the solver's ideas is in it."""
    rows = ["".join(row) for row in itertools.permutations("1234")]
    halves = [a + b for a in rows for b in rows if is_box_pair(a, b)]
    brute = {top + bottom for top in halves for bottom in halves if is_solved(top + bottom, 4)}
    found = ["".join(map(str, grid)) for grid in solutions([0] * 16, 4)]
    assert len(found) == len(set(found)) == len(brute) == 288
    assert set(found) == brute
    for prompt in (prompt_of(document) for document in documents(Sudoku(4, 100, blanks=12))):
        assert sum(all(p in ("0", g) for p, g in zip(prompt, grid, strict=True)) for grid in brute) == 1


def is_box_pair(a: str, b: str) -> bool:
    return len({*a[:2], *b[:2]}) == 4 == len({*a[2:], *b[2:]})


def test_the_solver_sees_two_solutions_and_contradictions() -> None:
    grid = next(solutions([0] * 81, 9, Random(1)))
    assert is_unique(grid, 9) and is_unique([0, *grid[1:]], 9)
    exchanged = [0 if digit in (1, 2) else digit for digit in grid]  # ones and twos may be exchanged
    assert len(list(solutions(exchanged, 9))) >= 2 and not is_unique(exchanged, 9)
    assert list(solutions([*grid[1:], grid[1]], 9)) == []  # no blanks, and digits twice in rows
    assert list(solutions([1, 2, 3, 0, 0, 0, 0, 4, *[0] * 8], 4)) == []  # nothing is left for the fourth cell
    assert remove_cells(grid, 9, 75, Random(0)) is None  # fewer than 17 clues are never enough


def split_documents(data: Data) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(prompt, answer) of each document of the two splits, from their rows."""
    both = []
    for split in (data.train, data.validation):
        batch = split.rows(range(split.n_rows))
        assert split.n_rows == split.counts.documents  # a row is one example
        texts = []
        for row, is_target in zip(batch.tokens.tolist(), batch.is_target.tolist(), strict=True):
            n = is_target.index(True)
            assert all(is_target[n:]) and row.index(split.end_of_text) == len(row) - 1
            texts.append((data.tokenizer.decode(row[:n]), data.tokenizer.decode(row[n:])))
        both.append(texts)
    return both[0], both[1]


def test_no_puzzle_and_no_grid_is_in_both_splits(tmp_path: Path) -> None:
    corpus = {"name": "sudoku", "size": 4, "puzzles": 3000}
    config = DataConfig(corpus=corpus, tokenizer="char", seq_len=33, cache_dir=str(tmp_path), validation_fraction=0.1)
    data = prepare(config)
    assert data.tokenizer.vocab_size == 6  # blank, four digits, end of text
    train, validation = split_documents(data)
    assert len(train) + len(validation) == 3000 and len(validation) > 100
    for part in (0, 1):
        assert not {document[part] for document in train} & {document[part] for document in validation}
    assert len({answer for _, answer in train + validation}) == 288  # all of them, in one split or the other
    assert len({answer for _, answer in validation}) < 60  # puzzles of a grid stay together
    assert all(is_solved(answer, 4) for _, answer in validation)


@pytest.mark.parametrize("digits", [2, 5])
def test_sums_add_up_and_no_pair_is_in_both_splits(tmp_path: Path, digits: int) -> None:
    seq_len = 3 * (digits + 1) + 1
    corpus = {"name": "sums", "digits": digits, "examples": 2000}
    data = prepare(DataConfig(corpus=corpus, tokenizer="char", seq_len=seq_len, cache_dir=str(tmp_path)))
    assert data.tokenizer.vocab_size == 13  # ten digits, +, =, end of text
    train, validation = split_documents(data)
    assert len(dict(train + validation)) == 2000 and validation
    for prompt, answer in train + validation:
        assert len(prompt) == 2 * digits + 2 and len(answer) == digits + 1
        a, b = prompt.removesuffix("=").split("+")
        assert len(a) == len(b) and int(a) + int(b) == int(answer)
    pairs = [{frozenset(prompt[:-1].split("+")) for prompt, _ in split} for split in (train, validation)]
    assert not pairs[0] & pairs[1]


@pytest.mark.parametrize("nines", [0.0, 0.1, 0.5, 1.0])
def test_nines_is_the_share_of_columns_that_hand_a_carry_on(nines: float) -> None:
    """20,000 columns: off by more than 5 standard deviations once in 10^6 seeds."""
    found = documents(Sums(digits=10, examples=2000, nines=nines))
    columns = [int(x) + int(y) for document in found for x, y in zip(*prompt_of(document)[:-1].split("+"), strict=True)]
    share = np.mean([column == 9 for column in columns])
    assert abs(share - nines) <= 5 * np.sqrt(nines * (1 - nines) / len(columns))
    leading = np.mean([document.text[0] == "1" for document in found])  # a carry as often as none
    assert nines == 1.0 or 0.38 < leading < 0.62


@pytest.mark.parametrize("source", [Sudoku(6, 10), Sums(3, 10)], ids=["sudoku", "sums"])
def test_the_seed_decides(source: Sudoku | Sums) -> None:
    again, other = type(source)(**vars(source)), type(source)(**{**vars(source), "seed": 1})
    assert documents(source) == documents(again)
    assert not {document.prompt for document in documents(source)} & {document.prompt for document in documents(other)}


def test_another_option_is_another_cache_entry() -> None:
    specs = [
        "sudoku", "sums", *({"name": "sudoku", **options} for options in ({"size": 6}, {"puzzles": 9}, {"blanks": 9})),
        *({"name": "sums", **options} for options in ({"digits": 6}, {"examples": 9}, {"nines": 0.1}, {"seed": 1})),
    ]  # fmt: skip
    assert len({locate(spec).identity() for spec in specs}) == len(specs)
    assert locate("sudoku").identity() == locate({"name": "sudoku", "size": 4}).identity()


def test_long_work_says_how_far_it_has_come(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(progress([[1, 2], [3]], 3, "counting", "numbers")) == [[1, 2], [3]]
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("hybrid.progress.INTERVAL", -1.0)
    assert list(progress([[1, 2], [3]], 3, "counting", "numbers")) == [[1, 2], [3]]
    assert capsys.readouterr() == ("", "counting: 2 of 3 numbers\ncounting: 3 of 3 numbers\n")


def test_what_is_embedded() -> None:
    assert all(map(is_embedded, CORPORA)) and is_embedded({"name": "sudoku", "size": 6})
    assert not is_embedded("some/folder")


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"name": "sudoko"}, r"data.corpus: 'sudoko' is not one of block_markov, .*did you mean 'sudoku'"),
        ({"size": 4}, r"data.corpus: .* has no 'name'"),
        ({"name": "pydocs", "size": 4}, r"data.corpus.size: pydocs has no options"),
        ({"name": "sudoku", "sise": 4}, r"data.corpus.sise: sudoku has no such option .*did you mean 'size'"),
        ({"name": "sudoku", "size": 5}, r"data.corpus.size: 5 is not a size of grid; 4, 6, 9"),
        ({"name": "sudoku", "puzzles": 1}, r"data.corpus.puzzles: 1 is too small"),
        ({"name": "sudoku", "blanks": 13}, r"data.corpus.blanks: 13 must be a number from 1 to 12 \(size 4\)"),
        ({"name": "sudoku", "blanks": [5, 4]}, r"data.corpus.blanks: \[5, 4\] must be .*\[fewest, most\]"),
        ({"name": "sudoku", "blanks": [1, 2, 3]}, r"data.corpus.blanks: \[1, 2, 3\] must be"),
        ({"name": "sums", "digits": 0}, r"data.corpus.digits: 0 is too small"),
        ({"name": "sums", "digits": 10**6}, r"data.corpus.digits: 1000000 is too large; it must be at most 1,000"),
        ({"name": "sums", "examples": 10**12}, r"data.corpus.examples: 10{12} documents of 18 .* GiB of memory"),
        ({"name": "sudoku", "puzzles": 10**12}, r"data.corpus.puzzles: 10{12} documents of 32 .* GiB of memory"),
        ({"name": "sums", "nines": 1.5}, r"data.corpus.nines: 1.5 is not a share; it must be from 0 to 1"),
    ],
)
def test_wrong_options(spec: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        locate(spec)


def test_more_than_there_are() -> None:
    with pytest.raises(ValueError, match=r"data.corpus.examples: 101 different .* gave 100; lower it"):
        documents(Sums(1, 101))


def test_the_configuration_takes_a_corpus_with_options_and_any_text(tmp_path: Path) -> None:
    """A mapping, options one by one, and every text as it is written: a path may look like YAML."""
    assert load_config(None, ["data.corpus=sudoku", "data.corpus.size=6"]).data.corpus == {"name": "sudoku", "size": 6}
    assert load_config(None, ["data.corpus={name: sums, digits: 7}"]).data.corpus == {"name": "sums", "digits": 7}
    for text in ("sums", "*.txt", "2024", "null"):
        assert load_config(None, [f"data.corpus={text}"]).data.corpus == text
    path = tmp_path / "config.yaml"
    path.write_text("data: {corpus: {name: sudoku, size: 6, blanks: [18, 20]}}\n", encoding="utf-8")
    config = load_config(path, ["data.corpus.seed=3"])
    assert config.data.corpus == {"name": "sudoku", "size": 6, "blanks": [18, 20], "seed": 3}
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(path) == config
    assert load_config(path, ["data.corpus=pydocs"]).data.corpus == "pydocs"
    assert flatten(config)["data.corpus"] == "sudoku" and flatten(config)["data.corpus.size"] == 6
    assert check(load_config(path, ["data.column=words"])) == [
        "data.column = 'words' is ignored: data.corpus = "
        "{'name': 'sudoku', 'size': 6, 'blanks': [18, 20], 'seed': 3} is embedded"
    ]


@pytest.mark.parametrize(
    "override, message",
    [
        ("data.corpus={name: sudoku, sise: 6}", r"data.corpus.sise: sudoku has no such option .*mean 'size'"),
        ("data.corpus={name: sudoko, size: 6}", r"data.corpus: 'sudoko' is not one of .*did you mean 'sudoku'"),
        ("data.corpus.size=6", r"data.corpus.size: pydocs has no options"),
        ("data.corpus={size: 6}", r"data.corpus.size: pydocs has no options"),
    ],
)
def test_the_configuration_refuses_wrong_options(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(None, [override])


def test_a_corpus_with_options_reads_well_in_a_sentence():
    assert title({"name": "sudoku", "size": 6, "puzzles": 9}) == "sudoku (size 6, puzzles 9)"
    assert title({"name": "sums"}) == "sums" and title("pydocs") == "pydocs"
