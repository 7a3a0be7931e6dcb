"""The interoperability protocol of all layers, for hypernetworks of one task, which are modules of one input."""

from dataclasses import dataclass

import pytest
import torch
from tests.hypernet.helpers import KINDS
from torch import nn

import weft
from weft.testing import copies, exports, transforms


class _Hyper(weft.HyperNetwork):
    parametrization = property(lambda self: self.generator)  # where the protocol changes and differentiates parameters


@dataclass(frozen=True)
class Kind:
    """As ``weft.testing.Kind``, without a family."""

    kind: str

    def layer(self, case, *, dtype=torch.float64, device=None, path=None):
        with torch.device(device or torch.get_default_device()):
            net = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
            return _Hyper(net, num_tasks=1, kind=self.kind, **KINDS[self.kind])

    def example(self, case, rows=3, dtype=torch.float64):
        return torch.randn(rows, 4, dtype=dtype)

    def __repr__(self):
        return self.kind


LEFT_OUT = {
    "change_of_dtype": "it reads the weight of a layer",
    "gradient_scaler": "its tolerance is that of one product in bf16, and here are two networks, one after the other",
    "symbolic_trace": "functional_call is not symbolic",
    "jit_trace": "functional_call refuses jit",
}
CHECKS = [check for check in (*copies.CHECKS, *transforms.CHECKS) if check.__name__ not in LEFT_OUT]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_protocol(kind, check):
    check(None, Kind(kind))


@pytest.mark.slow  # test_hypernetwork.py compiles and exports too
@pytest.mark.parametrize("check", exports.CHECKS, ids=lambda check: check.__name__)
def test_exports(check):
    check(None, Kind("full"))
