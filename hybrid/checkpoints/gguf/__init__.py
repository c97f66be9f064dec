"""GGUF files, the format of llama.cpp, become folders in the format of Hugging Face."""

from hybrid.checkpoints.gguf.folder import DTYPES, write_folder
from hybrid.checkpoints.gguf.reading import GGUFFile

__all__ = ["DTYPES", "GGUFFile", "write_folder"]
