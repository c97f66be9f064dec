"""Turn text into rows of tokens: corpora, tokenizers, packing.

data = prepare(DataConfig(corpus="pydocs", seq_len=256))
data.train.rows([0, 1])     a Batch
"""

from hybrid.data.config import DataConfig
from hybrid.data.preparing import prepare

__all__ = ["DataConfig", "prepare"]
