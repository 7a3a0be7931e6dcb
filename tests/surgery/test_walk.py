"""Copies keep hooks as deepcopy does; examples stay as they are; outputs are compared whole or refused."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import weft
from weft.errors import WeftError
from weft.surgery.walk import relative_difference


class Watching(nn.Module):
    """Counts by methods of its own what its layer does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.seen: list[object] = []
        self.layer.register_forward_hook(self.after)
        self.layer.register_full_backward_hook(self.backward_of)
        self.layer.register_state_dict_pre_hook(self.saved)
        self.layer.register_load_state_dict_pre_hook(self.loaded)

    def after(self, *_: object) -> None:
        self.seen.append("forward")

    def backward_of(self, _m: object, slopes: tuple[torch.Tensor, ...], _o: object) -> None:
        self.seen.append(tuple(slopes[0].shape))

    def saved(self, *_: object) -> None:
        self.seen.append("saved")

    def loaded(self, *_: object) -> None:
        self.seen.append("loaded")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


@pytest.mark.parametrize(
    "change",
    [
        copy.deepcopy,
        lambda model: weft.convert(model, "low_rank", rank=2),
        lambda model: weft.fold(weft.convert(model, "low_rank", rank=2)),
        weft.overparameterize,
    ],
    ids=["deepcopy", "convert", "fold", "overparameterize"],
)
def test_hooks_of_all_kinds_belong_to_the_copy(change) -> None:
    old = Watching()
    new = change(old)
    old.seen.clear(), new.seen.clear()
    x = torch.randn(2, 8, requires_grad=True)
    new(x).sum().backward()
    new.load_state_dict(new.state_dict())
    assert new.seen == ["forward", (2, 8), "saved", "loaded"] and old.seen == []
    old(x)
    assert old.seen == ["forward"] and len(new.seen) == 4


def test_a_hook_on_the_model_itself_belongs_to_what_replaces_it() -> None:
    calls = []
    plain = nn.Linear(8, 8)
    plain.register_forward_hook(lambda module, *_: calls.append(type(module)))
    weft.fold(weft.convert(plain, "low_rank", rank=2))(torch.randn(1, 8))
    assert calls == [nn.Linear]


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = weft.Linear(8, 8, parametrization="low_rank", rank=2)

    def forward(self, x: torch.Tensor, more: list[torch.Tensor]) -> torch.Tensor:
        more[0].add_(1)
        return self.layer(x.mul_(2)) + more[0]


def test_models_may_change_their_inputs() -> None:
    x, more = torch.randn(2, 8), [torch.randn(2, 8)]
    kept = x.clone(), more[0].clone()
    net = InPlace()
    plain = weft.fold(net, check=(x, more))
    assert weft.verify(net, plain, (x, more)).output < 1e-5
    assert torch.equal(x, kept[0]) and torch.equal(more[0], kept[1])


@dataclass
class Wrapped:
    y: torch.Tensor


def test_outputs_without_tensors_are_named() -> None:
    class Returning(nn.Module):
        def __init__(self, wrap) -> None:
            super().__init__()
            self.layer, self.wrap = weft.PHMLinear(8, 8), wrap

        def forward(self, x: torch.Tensor) -> object:
            return self.wrap(self.layer(x))

    for wrap in (Wrapped, lambda _: None):
        with pytest.raises(WeftError, match="holds no tensors that can be compared"):
            weft.fold(Returning(wrap), check=torch.randn(2, 8))


def test_complex_outputs_differ_by_their_imaginary_parts_too() -> None:
    wanted = torch.tensor([3 + 4j, 1j])
    assert relative_difference(wanted.conj(), wanted) == pytest.approx(8 / 5)
    assert relative_difference(wanted, wanted) == 0
    assert relative_difference(torch.tensor([5]), torch.tensor([4])) == pytest.approx(1 / 4)
