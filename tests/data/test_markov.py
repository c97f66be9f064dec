"""Sources of known entropy: their law, their entropy by enumeration and by sampling, and what a run records of it."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from training_toy import train

from hybrid.config import load_config
from hybrid.data.config import DataConfig
from hybrid.data.corpora.locating import locate
from hybrid.data.corpora.markov import BlockMarkov, Markov
from hybrid.data.corpora.source import KnownEntropy
from hybrid.data.preparing import Data, prepare
from hybrid.likelihoods.rows import bound
from hybrid.runs.run import Run

TINY = [
    Markov(letters=3, length=6),
    Markov(letters=2, length=7, order=3),
    Markov(letters=2, length=2, order=2, peak=0.5),  # no more than a context
    BlockMarkov(letters=2, length=9, block=3, words=5),
    BlockMarkov(letters=3, length=4, block=2, words=9, peak=0.0),  # every text is as likely
]
LARGE = [Markov(), Markov(order=2, peak=4.0), Markov(letters=26, length=30), BlockMarkov(), BlockMarkov(peak=5.0)]
Known = Markov | BlockMarkov


def texts_of(source: Known) -> list[str]:
    documents = source.load(Path("unused"))
    assert not documents.has_prompts
    return [document.text for document in documents.read(range(len(documents)))]


@pytest.mark.parametrize("source", TINY, ids=str)
def test_over_all_texts_probabilities_sum_to_one_and_give_the_entropy(source: Known) -> None:
    texts = ["".join(text) for text in itertools.product("abc"[: source.letters], repeat=source.length)]
    log_prob = source.log_prob(texts)
    possible = log_prob[np.isfinite(log_prob)]
    assert np.exp(possible).sum() == pytest.approx(1, abs=1e-12)
    assert -(np.exp(possible) * possible).sum() == pytest.approx(source.entropy(), abs=1e-12)
    words = len(source.spelling) ** (source.length // len(source.spelling[0]))
    assert len(possible) == words, "all sequences of words, and nothing else"


@pytest.mark.thin(3)
@pytest.mark.parametrize("source", [*TINY, *LARGE], ids=str)
def test_the_mean_of_the_documents_own_log_probabilities_is_the_entropy(source: Known) -> None:
    """20,000 documents; 4.5 standard errors are a false alarm once in 150,000 seeds."""
    nats = -source.log_prob(texts_of(source))
    error = nats.std() / math.sqrt(len(nats))
    assert abs(nats.mean() - source.entropy()) <= 4.5 * error + 1e-9


@pytest.mark.parametrize("source", [*TINY, *LARGE], ids=str)
def test_one_step_leaves_the_law_of_the_start_as_it_is(source: Known) -> None:
    """By the joint law of a context and the symbol after it: dropping the last symbol or the first is the same."""
    chain = source.chain
    assert chain.transition.sum(1) == pytest.approx(1) and (chain.stationary > 0).all()
    assert chain.stationary.sum() == pytest.approx(1)
    joint = (chain.stationary[:, None] * chain.transition).reshape(chain.symbols, -1)
    np.testing.assert_allclose(joint.sum(0), chain.stationary, rtol=1e-9)


def test_a_chain_that_hardly_mixes_has_an_exact_law() -> None:
    """Two symbols, each all but sure to come again: the law is the ratio of two tiny probabilities."""
    chain = Markov(letters=2).chain
    chain.transition = np.array([[1 - 3e-14, 3e-14], [1e-14, 1 - 1e-14]])
    np.testing.assert_allclose(chain.stationary, [0.25, 0.75], rtol=1e-12)


@pytest.mark.parametrize("source", [Markov(letters=4, length=16), BlockMarkov(words=9, length=16)], ids=str)
def test_transitions_come_as_often_as_they_should(source: Known) -> None:
    """Counted from the letters, at every place of a document; 5 standard errors: 1 in 20,000 seeds over 81 cells."""
    size = len(source.spelling[0])
    pairs = {a + b: (i, j) for i, a in enumerate(source.spelling) for j, b in enumerate(source.spelling)}
    expected = source.chain.stationary[:, None] * source.chain.transition
    texts = texts_of(source)
    for start in (0, source.length - 2 * size):
        counts = np.zeros_like(expected)
        for text in texts:
            counts[pairs[text[start : start + 2 * size]]] += 1
        error = np.sqrt(expected * (1 - expected) * len(texts))
        assert (np.abs(counts - expected * len(texts)) <= 5 * error + 1).all()


@pytest.mark.parametrize("source", [*TINY, *LARGE], ids=str)
def test_documents_have_one_length_and_the_letters_of_the_alphabet(source: Known) -> None:
    texts = texts_of(source)
    assert len(texts) == source.documents and {len(text) for text in texts} == {source.length}
    size = len(source.spelling[0])
    words = {text[i : i + size] for text in texts[:5000] for i in range(0, source.length, size)}
    assert words <= set(source.spelling)
    assert set("".join(source.spelling)) <= set("abcdefghijklmnopqrstuvwxyz"[: source.letters])
    assert len(set(source.spelling)) == len(source.chain.transition[0]) == source.chain.symbols


@pytest.mark.parametrize("name", ["markov", "block_markov"])
def test_options_decide_and_more_documents_are_of_the_same_language(name: str) -> None:
    def texts(**options: float) -> list[str]:
        return texts_of(locate({"name": name, "documents": 50, **options}))  # type: ignore[arg-type]

    assert texts() == texts()
    assert not set(texts()) & set(texts(seed=1))
    few, many = (locate({"name": name, "documents": n}) for n in (50, 60))
    assert isinstance(few, Known) and isinstance(many, Known)
    assert few.entropy() == many.entropy() and few.spelling == many.spelling
    assert (few.chain.transition == many.chain.transition).all()


def test_another_option_is_another_cache_entry() -> None:
    shared: list[dict] = [{"documents": 9}, {"length": 32}, {"letters": 5}, {"peak": 1.0}, {"seed": 1}]
    specs = [
        *({"name": "markov", **options} for options in ({}, {"order": 2}, *shared)),
        *({"name": "block_markov", **options} for options in ({}, {"block": 8}, {"words": 9}, *shared)),
    ]
    assert len({locate(spec).identity() for spec in specs}) == len(specs)
    assert locate("markov").identity() == locate({"name": "markov", "letters": 16}).identity()


def test_a_flatter_source_has_more_entropy() -> None:
    assert Markov(peak=0.0).entropy() == pytest.approx(64 * math.log(16))
    assert BlockMarkov(peak=0.0).entropy() == pytest.approx(16 * math.log(64))
    entropies = [Markov(peak=peak).entropy() for peak in (0.0, 1.0, 2.0, 4.0)]
    assert entropies == sorted(entropies, reverse=True)


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"name": "markov", "documents": 1}, r"data.corpus.documents: 1 is too small"),
        (
            {"name": "markov", "documents": 10**12},
            r"data.corpus.documents: 10{12} documents of 64 .* GiB.*lower it",
        ),
        ({"name": "block_markov", "documents": 10**5000}, r"data.corpus.documents: <a int too large to show> doc"),
        ({"name": "markov", "length": 10**9}, r"data.corpus.length: 10{9} is too large; it must be at most 1,000,000"),
        ({"name": "markov", "length": 10**6, "order": 10**6}, r"data.corpus.(order|documents): .*lower it"),
        ({"name": "markov", "length": 10**4, "order": 10**4}, r"data.corpus.order: 10000 makes 16 .*lower it"),
        ({"name": "block_markov", "length": 10**4, "block": 10**4, "words": 1025}, r"data.corpus.words: 1025 .* 1024"),
        ({"name": "markov", "length": 0}, r"data.corpus.length: 0 is too small"),
        ({"name": "markov", "letters": 1}, r"data.corpus.letters: 1 must be from 2 to 26"),
        ({"name": "markov", "letters": 27}, r"data.corpus.letters: 27 must be from 2 to 26"),
        ({"name": "markov", "peak": -0.5}, r"data.corpus.peak: -0.5 must be from 0 to 10"),
        ({"name": "markov", "seed": -1}, r"data.corpus.seed: -1 is too small"),
        ({"name": "markov", "order": 0}, r"data.corpus.order: 0 is too small"),
        ({"name": "markov", "order": 3}, r"data.corpus.order: 3 makes 16 \*\* 3 contexts; 1024 are allowed"),
        ({"name": "markov", "order": 3, "letters": 2, "length": 2}, r"data.corpus.length: 2 is too small; .* least 3"),
        ({"name": "markov", "words": 3}, r"data.corpus.words: markov has no such option"),
        ({"name": "block_markov", "block": 0}, r"data.corpus.block: 0 is too small"),
        ({"name": "block_markov", "block": 5}, r"data.corpus.block: 5 letters don't divide a length of 64"),
        ({"name": "block_markov", "words": 1}, r"data.corpus.words: 1 must be from 2 to 256 \(4 letters of 4 kinds\)"),
        ({"name": "block_markov", "words": 257}, r"data.corpus.words: 257 must be from 2 to 256"),
        ({"name": "block_markov", "words": 2000, "block": 8}, r"data.corpus.words: 2000 must be from 2 to 1024"),
    ],
)
def test_wrong_options(spec: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        locate(spec)


# What a run records


def prepared(folder: Path, **settings: object) -> Data:
    corpus = {"name": "block_markov", "documents": 300, "length": 24}
    defaults: dict = {"corpus": corpus, "tokenizer": "char", "seq_len": 25, "cache_dir": str(folder)}
    return prepare(DataConfig(**{**defaults, **settings}))


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_the_description_has_the_entropy_of_a_token_where_a_row_is_a_document(tmp_path: Path, tokenizer: str) -> None:
    data = prepared(tmp_path, tokenizer=tokenizer)
    source = locate({"name": "block_markov", "documents": 300, "length": 24})
    assert isinstance(source, KnownEntropy)
    assert data.description["entropy_per_token"] == pytest.approx(source.entropy() / 25)
    rows = data.validation.tokens.reshape(-1, 25)[:, :-1]
    own = -source.log_prob([data.tokenizer.decode(row.tolist()) for row in rows])
    assert data.description["validation"]["source_nats_per_token"] == pytest.approx(own.mean() / 25)
    # 6 standard errors of the mean of independent documents: false alarm below 1e-8.
    assert abs(own.mean() - source.entropy()) < 6 * own.std() / len(own) ** 0.5
    assert data.train.n_rows + data.validation.n_rows == 300
    assert json.loads(json.dumps(data.description)) == data.description


@pytest.mark.parametrize(
    "settings",
    [
        {"seq_len": 24}, {"seq_len": 26}, {"seq_len": 50}, {"seq_len": 5}, {"tokenizer": "bpe", "vocab_size": 300},
        {"corpus": {"name": "sums", "digits": 3, "examples": 300}, "seq_len": 13},
    ],
    ids=str,
)  # fmt: skip
def test_and_nowhere_else(tmp_path: Path, settings: dict) -> None:
    assert "entropy_per_token" not in prepared(tmp_path, **settings).description


@pytest.mark.slow
def test_evaluation_of_another_corpus_records_its_own_entropy(tmp_path: Path, command) -> None:
    """In the run's environment.json and in eval.json; `--data` names a corpus with its default options."""
    words = ["run.name=m", f"run.folder={tmp_path}", "data.corpus.documents=60", "model.dim=16", "model.n_layers=1"]
    small = ["trainer.steps=2", "trainer.batch_tokens=130", "eval.rows=4", "optim.warmup_steps=1"]
    folder = train(load_config("configs/markov.yaml", [*words, *small, f"data.cache_dir={tmp_path / 'cache'}"]))
    recorded = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["data"]
    assert recorded["entropy_per_token"] == pytest.approx(Markov().entropy() / 65)
    for words, entropy in (([], Markov().entropy()), (["--data", "block_markov"], BlockMarkov().entropy())):
        done = command("evaluate", "--checkpoint", folder, "--rows", 2, "--draws", 1, *words)
        assert done.code == 0, done.err
        recorded = json.loads((folder / "eval.json").read_text(encoding="utf-8"))["data"]
        assert recorded["entropy_per_token"] == pytest.approx(entropy / 65)


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [1, 4])
def test_a_trained_bound_lies_above_the_entropy(tmp_path: Path, block_size: int) -> None:
    """A shortened run of the config comes near the line. The source's own likelihood of these 950 rows is off by its
    standard error, 0.004 nats per token: the bound of a perfect model would be 4 of them below once in 30,000 seeds."""
    short = ["trainer.steps=150", "trainer.eval_every=0", "trainer.sample_every=0", f"run.folder={tmp_path}"]
    run = Run.of(load_config("configs/markov.yaml", [*short, f"objective.block_size={block_size}"]))
    run.open()
    run.train()
    split, entropy = run.data.validation, run.data.description["entropy_per_token"]
    rows = split.rows(range(split.n_rows)).tokens[:, :-1].tolist()
    error = Markov().log_prob([run.data.tokenizer.decode(row) for row in rows]).std() / 65 / math.sqrt(len(rows))
    nats = bound(run.model, split, block_size, draws=2, precision=run.machine.autocast).nats_per_token
    assert entropy - 4 * error < nats < entropy + 0.2
