"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest
import torch

# The tests' tensors are tiny: threads cost more than they bring, a thousandfold where others use the machine too.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    """Every test draws the same numbers, whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def weft_data() -> Path:
    """The folder of real data."""
    if not os.environ.get("WEFT_DATA"):
        pytest.skip(
            "WEFT_DATA is not set: it names the folder that holds mnist/, fashion_mnist/ and cifar10/ as Parquet"
        )
    return Path(os.environ["WEFT_DATA"])
