"""Packed weights: the same products, for frozen float32 layers on a CPU only."""

from types import SimpleNamespace

import psutil
import pytest
import torch
from torch import nn

from agent.engine.packing import PackedLinear, pack_linear_layers


class Model(nn.Module):
    device = torch.device("cpu")

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        self.embedding = nn.Embedding(40, 24, dtype=dtype)
        self.body = nn.Sequential(nn.Linear(24, 56, dtype=dtype), nn.SiLU(), nn.Linear(56, 24, dtype=dtype))
        self.head = nn.Linear(24, 40, bias=False, dtype=dtype)
        self.head.weight = self.embedding.weight
        self.eval().requires_grad_(False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.body(self.embedding(ids)))
        return logits


@pytest.mark.parametrize("rows", [1, 3, 16, 129])
def test_packed_layers_give_what_plain_ones_give(rows: int) -> None:
    torch.manual_seed(0)
    model = Model()
    ids = torch.randint(0, 40, (1, rows))
    with torch.inference_mode():
        plain = model(ids)
        pack_linear_layers(model)
        packed = model(ids)
    assert isinstance(model.body[0], PackedLinear)
    assert isinstance(model.head, PackedLinear)
    torch.testing.assert_close(packed, plain)


def test_weights_stay_shared_and_named_as_they_were() -> None:
    model = Model()
    names = list(model.state_dict())
    pack_linear_layers(model)
    assert list(model.state_dict()) == names
    assert model.head.weight is model.embedding.weight
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_gradients_flow_through_packed_layers_outside_of_inference() -> None:
    model = Model()
    pack_linear_layers(model)
    inputs = torch.randn(5, 24, requires_grad=True)
    model.body(inputs).sum().backward()
    plain = nn.Sequential(nn.Linear(24, 56), nn.SiLU(), nn.Linear(56, 24))
    plain.load_state_dict(model.body.state_dict())
    again = inputs.detach().requires_grad_()
    plain(again).sum().backward()
    torch.testing.assert_close(inputs.grad, again.grad)


def test_other_types_are_left_as_they_are() -> None:
    model = Model(torch.bfloat16)
    pack_linear_layers(model)
    assert type(model.head) is nn.Linear


def test_weights_too_large_to_hold_twice_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    size = sum(p.nbytes for p in (model.body[0].weight, model.body[2].weight, model.head.weight))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=4 * size - 4))
    pack_linear_layers(model)
    assert type(model.head) is nn.Linear
