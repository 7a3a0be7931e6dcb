"""The public list, and what importing Weft costs and leaves alone."""

import importlib
import inspect
import json
import subprocess
import sys
import types

import pytest
import torch

import weft

NAMES = {
    *("Linear", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"),
    *("PHMLinear", "PHConv1d", "PHConv2d", "PHConv3d", "PHConvTranspose1d", "PHConvTranspose2d", "PHConvTranspose3d"),
    *("QuaternionLinear", "QuaternionConv1d", "QuaternionConv2d", "QuaternionConv3d", "LRLinear", "HODLRLinear"),
    *("convert", "approximate", "fold", "verify", "summary", "parameter_groups", "clear_cache", "families"),
    *("Parametrization", "WeftError", "parametrizations"),
}
HEAVY = (
    "lightning",
    "pytorch_lightning",
    "matplotlib",
    "scipy",
    "datasets",
    "pandas",
    "onnx",
    "onnxruntime",
    "onnxscript",
)
HEAVY += ("sklearn", "kornia", "torchmetrics", "tensorboard", "jsonargparse", "rich", "pytest", "hypothesis", "PIL")


def in_fresh_process(code):
    """What a new interpreter prints, as JSON."""
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_public_names():
    assert set(weft.__all__) >= NAMES
    for name in weft.__all__:
        assert hasattr(weft, name), name
        assert name in dir(weft)
    assert len(weft.__all__) == len(set(weft.__all__))


@pytest.mark.parametrize(
    "module", ["weft", "weft.parametrizations", "weft.layers", "weft.hypernet", "weft.surgery", "weft.testing"]
)
def test_everything_listed_is_there_and_documented(module):
    module = importlib.import_module(module)
    for name in module.__all__:
        thing = getattr(module, name)
        if not isinstance(thing, types.ModuleType):
            assert inspect.getdoc(thing), f"{module.__name__}.{name} has no docstring"


def test_unknown_names_are_reported_as_by_any_module():
    with pytest.raises(AttributeError, match="module 'weft' has no attribute 'Liner'"):
        _ = weft.Liner


def test_importing_weft_brings_nothing_heavy():
    """Beyond torch, numpy and safetensors only Weft's own modules and small parts of the standard library."""
    code = (
        "import sys, json, torch, numpy, safetensors; before = set(sys.modules); import weft;"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    added = in_fresh_process(code)
    assert not [name for name in added if name.split(".")[0] in HEAVY]
    torchs = [name for name in added if name.split(".")[0] == "torch"]
    assert not [name for name in torchs if name.startswith(("torch._dynamo", "torch._inductor", "torch.onnx"))], torchs
    foreign = {name.split(".")[0] for name in added} - {"weft", "torch", "numpy", *sys.stdlib_module_names}
    assert not foreign
    assert not [
        name
        for name in added
        if name.startswith(("weft.models", "weft.train", "weft.data", "weft.cli", "weft.testing"))
    ]


def test_importing_weft_changes_nothing_global():
    code = """
import json, random, warnings, numpy, torch
from torch.optim import optimizer
def state():
    return [repr(random.getstate()), repr(numpy.random.get_state()), torch.get_rng_state().tolist(),
            torch.get_num_threads(), str(torch.get_default_dtype()), torch.is_grad_enabled(),
            len(optimizer._global_optimizer_post_hooks), len(warnings.filters),
            torch.are_deterministic_algorithms_enabled()]
before = state()
import weft
print(json.dumps(state() == before))
"""
    assert in_fresh_process(code) is True


def test_testing_needs_pytest_only_for_its_decorators():
    code = (
        "import sys, json; sys.modules['pytest'] = None; import weft.testing;"
        "print(json.dumps(sorted(weft.testing.checks())[:1]))"
    )
    assert in_fresh_process(code) == ["bad_sizes_are_refused"]


def test_layers_are_modules_but_no_subclasses_of_torchs():
    for name in NAMES:
        thing = getattr(weft, name)
        if inspect.isclass(thing) and issubclass(thing, weft.layers.Layer):
            assert issubclass(thing, torch.nn.Module)
            assert not issubclass(thing, thing.torch_class)
            assert thing.__module__.startswith("weft.layers")
