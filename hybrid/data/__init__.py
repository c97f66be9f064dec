"""Turn text into rows of tokens: corpora, tokenizers, packing.

data = prepare(DataConfig(corpus="pydocs", seq_len=256))
data.train.rows([0, 1])     a Batch
"""

from hybrid.data.batches import Batch, PackedTokens
from hybrid.data.config import DataConfig
from hybrid.data.preparing import Data, prepare

__all__ = ["Batch", "Data", "DataConfig", "PackedTokens", "prepare"]
