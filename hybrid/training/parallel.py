"""Train one model on several ranks: each has all of it (DDP), or a shard (FSDP).

The gradient of a step is the sum over ranks of the gradients of their shares of the batch, whatever their number: the
loss of a share is divided by the targets of the whole batch. Torch averages over ranks, so losses are multiplied by
their number first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hybrid.data.batches import Batch
from hybrid.distributed import ALONE, Ranks
from hybrid.model import Transformer
from hybrid.objectives import Loss, Objective
from hybrid.objectives.noise import NoiseKeys

PARALLEL = ("ddp", "fsdp")


class DataParallel:
    """Computes the loss of a batch and its gradient, on a model that is this process's own or sharded over ranks.

    Of a sharded model the layers are put together one by one as they are needed, and gradients are summed after every
    forward: keeping them whole until the last one would cost the memory that is saved.
    """

    def __init__(self, model: Transformer, ranks: Ranks = ALONE):
        self.model, self.ranks = model, ranks

    @contextmanager
    def summed(self, now: bool) -> Iterator[None]:
        """Sum the gradients computed inside over ranks, `now` or with those of a later forward."""
        yield

    def loss(self, objective: Objective, batch: Batch, noise: NoiseKeys, block_size: int) -> Loss:
        return objective.loss(self.model, batch, noise, block_size)

    def backward(self, loss: Tensor) -> None:
        (loss * self.ranks.world).backward()


class Replicated(DataParallel):
    """Every rank holds the whole model; gradients are summed while the backward pass still runs."""

    def __init__(self, model: Transformer, ranks: Ranks):
        super().__init__(model, ranks)
        self.replica = nn.parallel.DistributedDataParallel(_Loss(model), gradient_as_bucket_view=True)

    @contextmanager
    def summed(self, now: bool) -> Iterator[None]:
        if now:
            yield
        else:
            with self.replica.no_sync():
                yield

    def loss(self, objective: Objective, batch: Batch, noise: NoiseKeys, block_size: int) -> Loss:
        return self.replica(objective, batch, noise, block_size)


class _Loss(nn.Module):
    """DDP sees gradients of what its own forward has computed."""

    def __init__(self, model: Transformer):
        super().__init__()
        self.model = model

    def forward(self, objective: Objective, *arguments: Any) -> Loss:
        return objective.loss(self.model, *arguments)


def data_parallel(model: Transformer, ranks: Ranks, parallel: str) -> DataParallel:
    """Choose how a step computes its gradient; with `fsdp` the model has been through `shard_model`."""
    is_replicated = ranks.world > 1 and parallel == "ddp"
    return Replicated(model, ranks) if is_replicated else DataParallel(model, ranks)


def shard_model(model: Transformer, device: torch.device, half: bool) -> None:
    """Shard a model over the ranks; if it has no storage yet (on `meta`), no rank ever holds all of it.

    Args:
        half: layers are sent in bf16, in which autocast would multiply them anyway; gradients are summed in float32.
    """
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    sent, summed = (torch.bfloat16, torch.float32) if half else (None, None)
    policy = MixedPrecisionPolicy(param_dtype=sent, reduce_dtype=summed, cast_forward_inputs=False)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh)


def reshard(model: nn.Module) -> None:
    """Leave a sharded model as a training step leaves it: a forward without a backward keeps some weights full."""
    if hasattr(model, "reshard"):  # what torch adds to a module that it shards
        model.reshard()  # type: ignore[operator]
