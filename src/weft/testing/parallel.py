"""Interoperability with data parallel training: two processes do what one does."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from weft.layers import Layer
from weft.testing.case import assert_same

Way = Literal["ddp", "fsdp"]
_STEPS = 3


def _train(model: nn.Module, x: Tensor) -> list[Tensor]:
    """A few optimizer steps, with an evaluation after each, so that a stale cache shows; returns the evaluations."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    outputs = []
    for _ in range(_STEPS):
        optimizer.zero_grad()
        model.train()(x).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            outputs.append(model.eval()(x))
            outputs.append(model(x))
    return outputs


def _worker(rank: int, folder: str, ways: tuple[Way, ...], processes: int) -> None:
    """One process: its share of the batch, every way one after the other."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=processes)
    try:
        for way in ways:
            model, x = pickle.loads(Path(folder, "task").read_bytes())  # noqa: S301, written by check_data_parallel
            if way == "ddp":
                wrapped: nn.Module = DistributedDataParallel(model)
            else:
                mesh = init_device_mesh("cpu", (processes,))
                for layer in [module for module in model.modules() if isinstance(module, Layer)]:
                    fully_shard(layer, mesh=mesh)
                wrapped = fully_shard(model, mesh=mesh)
            outputs = _train(wrapped, x.chunk(processes)[rank])
            state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
            Path(folder, f"{way}-{rank}").write_bytes(pickle.dumps((outputs, state)))
    finally:
        dist.destroy_process_group()


def check_data_parallel(
    model: nn.Module, x: Tensor, ways: tuple[Way, ...] = ("ddp", "fsdp"), processes: int = 2
) -> None:
    """Train in several gloo processes on the CPU and in this one, and compare parameters and outputs.

    Args:
        model: in double precision; it is left as it is.
        x: a batch that ``processes`` divides.
        ways: ``"ddp"`` for DistributedDataParallel, ``"fsdp"`` for ``fully_shard``.
        processes: how many, started anew.

    Raises:
        AssertionError: a parameter or an output differs.
    """
    alone = pickle.loads(pickle.dumps(model))  # noqa: S301, our own
    expected = _train(alone, x)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "task").write_bytes(pickle.dumps((model, x)))
        torch.multiprocessing.spawn(_worker, (folder, ways, processes), processes)
        for way in ways:
            for rank in range(processes):
                outputs, state = pickle.loads(Path(folder, f"{way}-{rank}").read_bytes())  # noqa: S301, our own
                for got, want in zip(outputs, expected, strict=True):
                    assert_same(got, want.chunk(processes)[rank], 1e-10, f"an evaluation under {way}")
                for name, value in alone.state_dict().items():
                    if way == "ddp" or rank == 0:  # the gathered state is on the first process
                        assert_same(state[name], value, 1e-12, f"{name} after training under {way}")
