"""Read a GGUF file through the `gguf` package: metadata by key, tensors a few rows at a time, dequantised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hybrid.options import bare, shown

_MAGIC = b"GGUF"
_LONGEST = 2**21
"""Values of a list of the metadata; the largest vocabularies have a quarter of a million tokens."""
_REQUIRED = object()


class GGUFFile:
    """An open GGUF file.

    Attributes:
        path: of the file.
        shapes: of each tensor by its name, as torch has them (llama.cpp writes them the other way round).
        types: the name of the type that each is stored in, `Q4_1` say.
    """

    def __init__(self, path: Path):
        """Read the metadata; tensors are read when their turn comes.

        Raises:
            ValueError: there is no such file, it is none of GGUF, it is damaged or truncated, or a tensor is of a type
                that can't be dequantised; one line.
        """
        self.path = path
        self._gguf = _package()
        _refuse_others(path)
        try:
            reader = _reader_class(self._gguf)(path)
        except Exception as error:  # IndexError, KeyError, MemoryError, ...: it trusts what it reads
            raise ValueError(f"{path}: is damaged, or newer than the gguf package ({bare(error, 200)})") from None
        if reader.byte_order != "I":
            raise ValueError(f"{path}: is of a machine with another byte order; convert it there")
        self._fields = reader.fields
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.shapes = {name: tuple(map(int, reversed(tensor.shape))) for name, tensor in self._tensors.items()}
        self.types = {name: tensor.tensor_type.name for name, tensor in self._tensors.items()}
        self._refuse_unknown_types()

    def get(self, key: str, kind: type, default: Any = _REQUIRED) -> Any:
        """Return a value of the metadata.

        Args:
            kind: str, int, float, bool, or list. A float is the shortest that float32 knows it by: 1e-5, and not
                9.999999747378752e-06.
            default: of a key that is absent; without one it must be there.

        Raises:
            ValueError: it is absent, or of another kind, or not finite.
        """
        if key not in self._fields:
            if default is _REQUIRED:
                raise ValueError(f"{self.path}: has no {key}")
            return default
        try:
            value = self._fields[key].contents()
        except ValueError:  # a text that is not in UTF-8
            raise ValueError(f"{self.path}: {key} can't be read") from None
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ValueError(f"{self.path}: {key} is {shown(value)}; it must be of type {kind.__name__}")
        if kind is not float:
            return value
        if not np.isfinite(value):
            raise ValueError(f"{self.path}: {key} is {value}, which is not finite")
        return float(str(np.float32(value)))

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return some rows of a tensor, dequantised: float32 [stop - start, ...]."""
        tensor = self._tensors[name]
        return self._gguf.quants.dequantize(tensor.data[start:stop], tensor.tensor_type)

    def _refuse_unknown_types(self) -> None:
        """Try one row of each type, so that nothing is found out after minutes of work."""
        for name in {kind: name for name, kind in self.types.items()}.values():
            try:
                self.rows(name, 0, 1)
            except NotImplementedError:
                raise ValueError(
                    f"{self.path}: {name} is stored as {self.types[name]}, which the gguf package does not "
                    f"dequantise; take a file in F16, Q8_0, Q4_1, Q4_K or another of its types"
                ) from None


def _package() -> Any:
    try:
        import gguf
    except ImportError:
        raise ValueError("the package gguf, which reads GGUF files, is missing; pip install 'hybrid[real]'") from None
    return gguf


def _refuse_others(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path}: is no file; give a GGUF file")
    with open(path, "rb") as file:
        head = file.read(len(_MAGIC))
    if head != _MAGIC:
        what = f"it begins with {head!r} instead of {_MAGIC!r}"
        raise ValueError(f"{path}: is not a GGUF file: {what}; safetensors need no conversion: load their folder")


def _reader_class(gguf: Any) -> Any:
    class Reader(gguf.GGUFReader):
        """Believes no length that a damaged file gives: the package would collect values until memory ends."""

        def _get(self, offset: int, dtype: Any, count: int = 1, **options: Any) -> np.ndarray:
            missing = int(offset) + np.dtype(dtype).itemsize * int(count) - len(self.data)
            if missing > 0:
                raise ValueError(f"truncated: at least {missing} bytes are missing; copy or download it again")
            return super()._get(offset, dtype, count, **options)

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if raw_type == gguf.GGUFValueType.ARRAY:
                length = int(self._get(orig_offs + 4, np.uint64)[0])
                if length > _LONGEST:
                    raise ValueError(f"a list of {length} values")
            return super()._get_field_parts(orig_offs, raw_type)

    return Reader
