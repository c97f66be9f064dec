"""Data sets of the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hybrid.data.corpora.files import documents_of, quiet_datasets, reason
from hybrid.data.corpora.source import Documents
from hybrid.storage.hashing import digest


@dataclass(frozen=True)
class Hub:
    """A data set of the Hugging Face Hub at a pinned commit."""

    name: str
    revision: str
    subset: str | None
    split: str
    column: str
    cache_dir: str | None = None  # where the download is kept: another tokenizer should not fetch it again

    def identity(self) -> str:
        return digest(self.name, self.revision, self.subset or "", self.split, self.column)

    def load(self, folder: Path) -> Documents:
        datasets = quiet_datasets()
        where = f"{self.name!r} at revision {self.revision}"
        try:
            table = datasets.load_dataset(
                self.name, self.subset, revision=self.revision, split=self.split, cache_dir=self.cache_dir
            )
        except Exception as error:  # network, name, revision, subset, split: the library raises a dozen types
            raise ValueError(
                f"data.corpus: {where}, subset {self.subset!r}, split {self.split!r} could not be loaded "
                f"({reason(error)}); check the network, data.revision, data.subset and data.split"
            ) from None
        return documents_of(table, self.column, where)
