"""Corpora: where text comes from. Each source says cheaply who it is, and loads its documents on demand.

    locate(corpus, ...) -> Source        an entry of the table, local files or the Hub
    source.identity()   -> str           changes when the content may have changed; key of the cache
    source.load(folder) -> Documents     random access; `folder` is scratch space on disk

The corpora of the table need no download. To add one: a frozen dataclass with `identity` and `load`, whose fields are
its options, and a line in `CORPORA`. One that knows the law of its documents also has `entropy` and `log_prob`.
"""

from hybrid.data.corpora.markov import BlockMarkov, Markov
from hybrid.data.corpora.python_text import PyDocs, StdLib
from hybrid.data.corpora.source import Document, InMemory, Source
from hybrid.data.corpora.tasks import Sudoku, Sums

CORPORA: dict[str, type[Source]] = {
    "block_markov": BlockMarkov,
    "markov": Markov,
    "pydocs": PyDocs,
    "stdlib": StdLib,
    "sudoku": Sudoku,
    "sums": Sums,
}

__all__ = ["CORPORA", "Document", "InMemory", "Source"]
