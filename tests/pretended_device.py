"""A GPU that a CPU computes: tensors that say cuda:0, an error where devices mix, and the places where the host waits.

    with pretended_gpu() as gpu:
        model.to("cuda")(tokens.to("cuda"))
    gpu.waits  # Counter of `Wait`

It shows what can be shown without a card: that all that a computation needs is on the device, and where the host would
wait for it. It shows nothing of kernels, of their rounding, of autocast, which has no effect, or of what is compiled:
`torch.compile` gives back what it is given.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import hybrid

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
PACKAGE = str(Path(hybrid.__file__).parent) + "/"
aten = torch.ops.aten

WAITING = {
    aten._local_scalar_dense: "a number is read",  # item(), bool(), int(), float(), a tensor as an index of a slice
    aten.equal: "a number is read",
    aten.nonzero: "nonzero",
    aten.masked_select: "nonzero",
    aten.bincount: "bincount",
    aten._unique2: "unique",
    aten.unique_dim: "unique",
    aten.unique_consecutive: "unique",
    aten.repeat_interleave: "repeat_interleave",  # called by those that do not say how long the result is
}
INDEXING = (aten.index, aten._unsafe_index, aten.index_put, aten.index_put_)
ANSWERS = {
    "is_available": True, "device_count": 1, "current_device": 0, "is_bf16_supported": True, "synchronize": None,
    "get_device_name": "pretended", "is_current_stream_capturing": False, "_lazy_init": None,
}  # fmt: skip
"""What the functions of torch.cuda say."""

JOINING = (aten.cat, aten.stack, aten.gather, aten.scatter, aten.index_select, aten.embedding)  # take no host scalars


class Wait(NamedTuple):
    """A place where the host waits: for what, and the innermost function of hybrid that is running."""

    what: str
    file: str  # below hybrid/, "" where no function of it runs
    function: str
    line: int


class OnGPU(Tensor):
    """Says cuda:0; its values are in `host`. torch's own code in C++ takes it for a tensor without values ("meta")."""

    host: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: Tensor) -> OnGPU:
        shell = torch.empty_strided(host.shape, host.stride(), dtype=host.dtype, device="meta")
        self = torch.Tensor._make_subclass(cls, shell)
        self.host = host
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        raise AssertionError(f"{func} of a tensor of a pretended GPU outside of `pretended_gpu`")

    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    def cpu(self) -> Tensor:  # type: ignore[override]
        return self.to(CPU)

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:  # type: ignore[override]
        return torch.tensor(data, dtype=dtype or self.dtype, device=CUDA)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:  # type: ignore[override]
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    def __deepcopy__(self, memo: Any) -> OnGPU:
        copy = self.detach().clone()
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        return memo.setdefault(id(self), copy)


class PretendedGPU(TorchDispatchMode):
    """Runs every operation on the host's values, after the checks that a GPU would make."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[Wait] = Counter()
        self.noted: list[tuple[Any, tuple, dict, Any]] | None = None  # of a graph that is being recorded

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled, and to say so to dynamo costs its import

    def places(self) -> set[tuple[str, str]]:
        """Return (file, function) of all waits in hybrid."""
        return {(wait.file, wait.function) for wait in self.waits if wait.file}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors: list[Tensor] = []
        _replaced((args, kwargs), lambda t: tensors.append(t))
        there = [t for t in tensors if isinstance(t, OnGPU)]
        asked = kwargs.get("device")
        goes = asked is not None and torch.device(asked).type in ("cuda", "meta")  # "meta": of another one's options
        if not there and not goes:
            return func(*args, **kwargs)
        if func is aten._fused_sdp_choice.default:
            return 0  # plain products and a softmax
        comes = asked is not None and not goes
        self._check(func, args, kwargs, [t for t in tensors if not isinstance(t, OnGPU)], goes, comes)
        if goes:
            kwargs |= {"device": CPU, "pin_memory": False} if "pin_memory" in kwargs else {"device": CPU}
        args, kwargs = _replaced((args, kwargs), lambda t: t.host if isinstance(t, OnGPU) else t)
        if func is aten._to_copy.default and (goes or comes):
            args = (args[0].clone(),)  # between devices, so the values are never shared
        result = func(*args, **kwargs)
        if self.noted is not None:
            self.noted.append((func, args, kwargs, result))
        if comes:
            return result
        changed = {id(t.host): t for t in there} if func._schema.is_mutable else {}
        assert all(t.shape == t.host.shape for t in changed.values()), f"{func} changed a shape in place"
        return _replaced(result, lambda t: changed[id(t)] if id(t) in changed else OnGPU(t))

    def _check(self, func: Any, args: tuple, kwargs: dict, here: list[Tensor], goes: bool, comes: bool) -> None:
        """Note where the host waits; raise where tensors of both devices meet that a GPU would not take."""
        op = func.overloadpacket
        if "for_cpu" in str(func) or "mkldnn" in str(func):
            raise RuntimeError(f"{func}: no kernel on cuda:0")
        if op in WAITING:
            self._wait(WAITING[op])
        if op is aten._to_copy or (op is aten.copy_ and here):
            is_asynchronous = kwargs.get("non_blocking") or args[2:3] == (True,)
            if comes or (op is aten.copy_ and args[0] is here[0]):
                if not is_asynchronous or (here and not is_pinned(here[0])):
                    self._wait("copy to the host")
            elif here and not (is_asynchronous and is_pinned(here[0])):
                self._wait("copy to the device")
            return
        if op in INDEXING:
            index = [i for i in args[1] if i is not None]
            fills = len(args) > 2 and args[2].numel() == 1 and args[3:4] != (True,)  # one value: a masked_fill
            if any(i.dtype in (torch.bool, torch.uint8) for i in index) and not fills:
                self._wait("boolean index")
            if any(not isinstance(i, OnGPU) for i in index):
                self._wait("copy to the device")
            here = [t for t in here if not any(t is i for i in index)]
        mixed = here if op in JOINING else [t for t in here if t.dim()]
        if mixed and not comes:
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, found cuda:0 and cpu")

    def _wait(self, what: str) -> None:
        if self.noted is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {what}")
        frame = sys._getframe(1)
        while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
            frame = frame.f_back
        if frame is None:
            self.waits[Wait(what, "", "", 0)] += 1
            return
        code = frame.f_code
        function = code.co_qualname.partition(".<locals>")[0]
        self.waits[Wait(what, code.co_filename.removeprefix(PACKAGE), function, frame.f_lineno)] += 1


def _replaced(values: Any, replace: Callable[[Tensor], Any]) -> Any:
    """Replace every tensor; torch's own `tree_map` takes longer than all the rest."""
    if isinstance(values, Tensor):
        return replace(values)
    if isinstance(values, (tuple, list)):
        return type(values)(_replaced(value, replace) for value in values)
    if isinstance(values, dict):
        return {name: _replaced(value, replace) for name, value in values.items()}
    return values


def is_pinned(t: Tensor) -> bool:
    return getattr(t, "_is_pinned", False)


def _pin(t: Tensor) -> Tensor:
    copy = t.clone()
    copy._is_pinned = True  # type: ignore[attr-defined]
    return copy


def _to(t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`Tensor.to`, which in C++ wants the CUDA library as soon as it reads "cuda"."""
    copy = kwargs.pop("copy", False)
    if args and isinstance(args[0], Tensor):
        args = (args[0].device, args[0].dtype)
    device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
    if device is not None and device.type != t.device.type:
        return aten._to_copy(t, dtype=dtype, device=device, non_blocking=non_blocking)
    return _torch_to(t, dtype or t.dtype, copy=copy)


def _tensor(data: Any, *, dtype: torch.dtype | None = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    made = _to(_torch_tensor(data, dtype=dtype), device or CPU)
    return made.requires_grad_() if requires_grad else made


_torch_to, _torch_tensor = Tensor.to, torch.tensor


@contextmanager
def pretended_gpu() -> Iterator[PretendedGPU]:
    """Give this process one GPU, for as long as the block lasts."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ANSWERS.items():
            patch.setattr(torch.cuda, name, lambda *args, value=value, **kwargs: value)
        patch.setattr(torch, "compile", lambda f=None, **_: f if f is not None else lambda g: g)
        patch.setattr(Tensor, "pin_memory", _pin)
        patch.setattr(Tensor, "to", _to)
        patch.setattr(torch, "tensor", _tensor)
        overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # `module.to` makes new parameters
        try:
            with PretendedGPU() as gpu:
                yield gpu
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
