"""The processes of a job: which one this is, and what they tell each other.

`torchrun train.py ...` starts a process per device and says in the environment which is which; without it there is one,
`ALONE`, and nothing here communicates. What is said about the job goes between CPUs (gloo), tensors of GPUs (gradients,
weights, losses) between GPUs (nccl).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hybrid.options import bare

PATIENCE = timedelta(hours=1)
"""How long a rank waits for another: one prepares the data, or writes the samples, while all others wait."""


@dataclass(frozen=True)
class Ranks:
    """Process `rank` of `world`, on this machine process `local_rank`."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes: files, progress, results."""
        return self.rank == 0

    @classmethod
    def from_environment(cls) -> Ranks:
        """Read what torchrun set; `ALONE` without it."""
        if "WORLD_SIZE" not in os.environ:
            return ALONE
        return cls(*(int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))

    def share(self, n: int) -> range:
        """Return which of n things are this rank's, every `world`-th: every rank gets as many, or one fewer."""
        return range(self.rank, n, self.world)

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor of numbers over ranks, on its device; every rank gets the same bits."""
        values = values.detach().to(torch.float64)
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Return whether it is true on any rank."""
        return flag if self.world == 1 else bool(self.sum(torch.tensor(float(flag))))

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in their order, on all ranks."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def interleave(self, values: list[Any]) -> list[Any]:
        """Return the values of all things from those of each rank's `share`."""
        parts = self.gather(values)
        return [parts[i % self.world][i // self.world] for i in range(sum(map(len, parts)))]

    def wait(self) -> None:
        """Wait until all ranks have come here."""
        self.sum(torch.zeros(1))

    @contextlib.contextmanager
    def first_on_each_machine(self) -> Iterator[None]:
        """Run what is inside on one process of each machine, before the others run it (and find it done)."""
        if self.local_rank:
            self.wait()
        yield
        if not self.local_rank:
            self.wait()


ALONE = Ranks()


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Connect the ranks of this job while inside the block.

    Raises:
        ValueError: another rank is gone, or can't be reached; the message says how to go on.
    """
    ranks = Ranks.from_environment()
    if ranks.world == 1:
        yield ranks
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=_store(), rank=ranks.rank, world_size=ranks.world, timeout=PATIENCE)
        yield ranks
    except RuntimeError as error:
        if not _is_lost_contact(error):
            raise
        raise ValueError(
            f"rank {ranks.rank} of {ranks.world}: lost contact with the others, one of which ended or was killed "
            f"({bare(error, 120)}); go on from the last checkpoint with trainer.resume=auto"
        ) from None
    # Not after an error: it would wait for ranks that may be gone.
    dist.destroy_process_group()


def _store() -> dist.Store:
    """Return the store through which the ranks of a job find each other.

    torchrun keeps its own store from one restart to the next, and with it the addresses of ranks that are gone
    (pytorch/pytorch#135712), so every attempt gets a room of its own.
    """
    store, _, _ = next(dist.rendezvous("env://", timeout=PATIENCE))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return store
    return dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _is_lost_contact(error: RuntimeError) -> bool:
    if isinstance(error, dist.DistError):
        return True
    return any(word in str(error).lower() for word in ("connection closed", "connection reset", "gloo", "nccl"))


def full(tensor: Tensor) -> Tensor:
    """Gather a tensor that is sharded over ranks, on each (all ranks must call it); return any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[operator]


def local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a tensor; any tensor that is not sharded as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[operator]


def sharded_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Shard a full tensor, known to all ranks, as `like` is, on its device and in its dtype."""
    tensor = tensor.to(like.device, like.dtype)
    if not hasattr(like, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]
