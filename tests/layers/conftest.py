"""A layer that caches its weight, and an input."""

import pytest
import torch
from tests.layers.caching import make_layer


@pytest.fixture
def layer():
    return make_layer()


@pytest.fixture
def x():
    return torch.randn(3, 12, dtype=torch.float64)
