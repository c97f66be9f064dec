"""What goes into a checkpoint comes out as it was: weights (tied ones too), and the state of any kind of optimizer."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hybrid.checkpoints.finding import read_state
from hybrid.checkpoints.module_state import load_state, module_tensors
from hybrid.checkpoints.optimizer_state import flatten_optimizer, restore_optimizer
from hybrid.checkpoints.saving import save_checkpoint
from hybrid.storage.json_files import to_json


class Net(nn.Module):
    def __init__(self, width: int = 6, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, width)
        self.inner = nn.Linear(width, width)
        self.head = nn.Linear(width, 10, bias=False)
        self.register_buffer("scale", torch.tensor(2.0))
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.inner(self.embed(x)).tanh() * self.scale)


def test_tied_weights_are_saved_once_and_loaded(tmp_path):
    torch.manual_seed(0)
    net, other = Net(), Net()
    tensors = module_tensors(net)
    assert sorted(tensors) == ["embed.weight", "inner.bias", "inner.weight", "scale"]
    found = save_checkpoint(tmp_path, 1, {"model": tensors}, {})
    load_state(other, load_file(found / "model.safetensors"))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in net.state_dict().items())
    assert other.head.weight is other.embed.weight


def test_another_architecture_is_one_line_and_copies_nothing():
    net, before = Net(), Net(tied=False)
    load_state(before, net.state_dict())
    tensors = module_tensors(Net(width=7))
    tensors["extra"] = tensors.pop("scale")
    with pytest.raises(ValueError, match=r"^checkpoint is of another architecture: ") as caught:
        load_state(net, tensors)
    assert "missing scale; unexpected extra; of another shape" in str(caught.value)
    assert "embed.weight [10, 7] instead of [10, 6]" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in net.state_dict().items())
    with pytest.raises(ValueError, match=r"missing head\.weight$"):
        load_state(Net(tied=False), module_tensors(net))
    with pytest.raises(ValueError, match=r"missing scale, embed\.weight, inner\.weight and 1 more$"):
        load_state(net, {})


def matrices(net: nn.Module) -> list[nn.Parameter]:
    return [net.get_parameter("inner.weight"), net.get_parameter("embed.weight")]


OPTIMIZERS = {
    "adamw": lambda net: torch.optim.AdamW(
        [{"params": matrices(net), "weight_decay": 0.1}, {"params": [net.inner.bias], "weight_decay": 0.0}], lr=0.01
    ),
    "adamw fused": lambda net: torch.optim.AdamW(net.parameters(), lr=0.01, betas=(0.8, 0.9), fused=True),
    "adamw amsgrad": lambda net: torch.optim.AdamW(net.parameters(), lr=0.01, amsgrad=True, foreach=True),
    "adamw tensor lr": lambda net: torch.optim.AdamW(net.parameters(), lr=torch.tensor(0.01)),
    "muon": lambda net: torch.optim.Muon(matrices(net), lr=0.02),
    "sgd": lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
    "radam": lambda net: torch.optim.RAdam(net.parameters(), lr=0.01),
    "adafactor": lambda net: torch.optim.Adafactor(net.parameters(), lr=0.01),
}


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randint(0, 10, (2, 16), generator=generator)
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"] * 0.9
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()


def names_of(net: nn.Module) -> dict[nn.Parameter, str]:
    return {parameter: name for name, parameter in net.named_parameters()}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_resuming_from_the_disk_is_bit_identical(tmp_path, kind):
    torch.manual_seed(0)
    net = Net()
    optimizer = OPTIMIZERS[kind](net)
    train(net, optimizer, range(5))
    tensors, meta = flatten_optimizer(optimizer, names_of(net))
    found = save_checkpoint(tmp_path, 5, {"model": module_tensors(net), "optimizer": tensors}, {"optimizer": meta})
    train(net, optimizer, range(5, 10))

    torch.manual_seed(1)
    resumed = Net()
    fresh = OPTIMIZERS[kind](resumed)
    load_state(resumed, load_file(found / "model.safetensors"))
    restored = load_file(found / "optimizer.safetensors")
    restore_optimizer(fresh, names_of(resumed), restored, read_state(found)["optimizer"])
    train(resumed, fresh, range(5, 10))
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in net.state_dict().items())
    ours, theirs = flatten_optimizer(fresh, names_of(resumed)), flatten_optimizer(optimizer, names_of(net))
    assert to_json(ours[1]) == to_json(theirs[1])
    assert ours[0].keys() == theirs[0].keys()
    assert all(torch.equal(value, theirs[0][name]) for name, value in ours[0].items())


def test_an_optimizer_that_has_not_stepped_and_one_of_another_kind(tmp_path):
    net = Net()
    adamw = torch.optim.AdamW(net.parameters(), lr=0.01)
    tensors, meta = flatten_optimizer(adamw, names_of(net))
    assert tensors == {}
    restore_optimizer(torch.optim.AdamW(net.parameters(), lr=0.5), names_of(net), tensors, meta)
    with pytest.raises(ValueError, match="the checkpoint's is AdamW, this one is SGD"):
        restore_optimizer(torch.optim.SGD(net.parameters(), lr=0.5), names_of(net), tensors, meta)
    with pytest.raises(ValueError, match="parameter groups differ"):
        restore_optimizer(torch.optim.AdamW(matrices(net), lr=0.5), names_of(net), tensors, meta)
    train(net, adamw, range(1))
    with pytest.raises(ValueError, match=r"a parameter of shape .* has no name"):
        flatten_optimizer(adamw, {})


def test_the_machine_chooses_how_an_optimizer_computes():
    net = Net()
    fused = torch.optim.AdamW(net.parameters(), lr=0.25, fused=True)
    plain = torch.optim.AdamW(net.parameters(), lr=0.5, foreach=False)
    train(net, fused, range(2))
    restore_optimizer(plain, names_of(net), *flatten_optimizer(fused, names_of(net)))
    assert plain.param_groups[0]["fused"] is None
    assert plain.param_groups[0]["foreach"] is False
    assert plain.param_groups[0]["lr"] == fused.param_groups[0]["lr"] == 0.25 * 0.9 * 0.9
