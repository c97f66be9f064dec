"""The network: who may attend to whom, how attention is computed, and the two passes that must agree.

two_stream_hidden(model, tokens, masked, block_size)      training: whole rows, clean and noisy
block_hidden(model, cache, rows, sight)                   generation: block by block over a cache
"""

from hybrid.model.attention import BACKENDS
from hybrid.model.config import ModelConfig
from hybrid.model.transformer import Transformer

__all__ = ["BACKENDS", "ModelConfig", "Transformer"]
