"""Every family in every layer passes the interoperability protocol; so do whole models of them."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from tests.cases import CASES, PHM
from torch import nn

import weft
from weft.testing import (
    assert_same,
    interoperability_checks,
    kinds,
    parametrize_with_interoperability,
    wrapped_kinds,
)
from weft.testing.exports import compiles_in_one_graph
from weft.testing.parallel import check_data_parallel

KINDS, WRAPPED = kinds(), wrapped_kinds()


#: One case per family goes through everything; the others, of other options, through the two kinds that differ most.
FIRST = list({case.record.name: case for case in reversed(CASES)}.values())
OTHERS = [case for case in CASES if case not in FIRST]
LIGHT = [replace(kind, heavy=False) for kind in WRAPPED.values()]


@parametrize_with_interoperability(FIRST)
def test_interoperability(case, kind, check):
    check(case, kind)


@parametrize_with_interoperability(OTHERS, [KINDS["Linear"], KINDS["Conv2d"]])
def test_interoperability_of_other_options(case, kind, check):
    check(case, kind)


@pytest.mark.slow
@parametrize_with_interoperability(
    OTHERS, [kind for name, kind in KINDS.items() if name not in {"Linear", "Conv2d"}] + LIGHT
)
def test_interoperability_of_other_options_in_other_modules(case, kind, check):
    check(case, kind)


@parametrize_with_interoperability([case for case in FIRST if case is not PHM], LIGHT)
def test_interoperability_of_other_modules(case, kind, check):
    check(case, kind)


@parametrize_with_interoperability([PHM], WRAPPED.values())
def test_interoperability_of_other_modules_in_full(case, kind, check):
    check(case, kind)


def test_number_of_checks():
    assert len(KINDS) == 7
    assert len(WRAPPED) == 5
    assert len(interoperability_checks()) == 19
    assert len(interoperability_checks(KINDS["Conv1d"])) == 16


@pytest.mark.slow
def test_inductor_computes_the_same():
    compiles_in_one_graph(PHM, KINDS["Conv2d"], backend="inductor")


def deep_model(**options):
    """Twelve layers of different widths, so that each would have thresholds of its own."""
    widths = [16, 24, 32, 40, 64, 96, 128, 160, 192, 224, 256, 64, 8]
    layers = []
    for i, (wide, narrow) in enumerate(itertools.pairwise(widths)):
        family = {"parametrization": "low_rank", "share": 0.5} if i % 2 else {"parametrization": "kronecker", "n": 4}
        layers.append(weft.Linear(wide, narrow, **family, **options))
    return nn.Sequential(*layers)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_twelve_layers_stay_within_the_recompile_limit(training):
    """One graph per range of rows at most: three thresholds for all layers, and the dynamic batch."""
    from torch._dynamo.testing import CompileCounter

    torch.compiler.reset()
    model, count = deep_model().train(training), CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=count)
    for rows in (1, 5, 20, 127, 300, 2000):
        x = torch.randn(rows, 16)
        torch.testing.assert_close(compiled(x), model(x))
    assert count.frame_count <= 5
    torch.compiler.reset()


def test_two_processes_train_like_one():
    layers = [
        module
        for case in CASES
        if case.shapes[0] == (8, 12)
        for module in (KINDS["Linear"].layer(case), nn.Linear(8, 12).double(), nn.Tanh())
    ]
    image = [nn.Unflatten(1, (12, 1, 1)), KINDS["ConvTranspose2d"].layer(PHM), nn.Tanh()]
    model = nn.Sequential(*layers, *image, nn.Flatten(), nn.Linear(16, 4).double())
    check_data_parallel(model, torch.randn(8, 12, dtype=torch.float64))


# ---------------------------------------------------------------- modules of torch that read .weight of their parts


def transformer(**options):
    """An encoder layer of torch with Weft layers in it, and its folded twin."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True, dtype=torch.float64)
    for name, width in (("linear1", 16), ("linear2", 32)):
        layer = weft.Linear(width, 48 - width, parametrization="low_rank", rank=5, dtype=torch.float64, **options)
        setattr(encoder, name, layer)
    encoder.self_attn.out_proj = weft.PHMLinear(16, 16, n=4, dtype=torch.float64)
    folded = copy.deepcopy(encoder)
    folded.linear1, folded.linear2 = encoder.linear1.fold(), encoder.linear2.fold()
    folded.self_attn.out_proj = encoder.self_attn.out_proj.fold()
    return encoder, folded


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("gradients", [True, False], ids=["gradients", "no gradients"])
def test_transformer_encoder_layer(training, gradients):
    encoder, folded = (model.train(training) for model in transformer())
    x = torch.randn(3, 7, 16, dtype=torch.float64)
    with torch.set_grad_enabled(gradients):
        assert_same(encoder(x), folded(x), 1e-11, "the output")
        with torch.no_grad():
            encoder.linear1.parametrization.left.mul_(2)
            folded.linear1.weight.mul_(2)
        assert_same(encoder(x), folded(x), 1e-11, "the output after a change of a parameter")


def test_fast_path_of_the_encoder_layer_really_runs(monkeypatch):
    encoder, _ = transformer()
    seen = []
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *args: seen.append(args) or args[0])
    with torch.no_grad():
        encoder.eval()(torch.randn(3, 7, 16, dtype=torch.float64))
    assert len(seen) == 1


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_multihead_attention(training):
    encoder, folded = transformer()
    attention, plain = encoder.self_attn.train(training), folded.self_attn.train(training)
    x = torch.randn(3, 7, 16, dtype=torch.float64)
    assert_same(attention(x, x, x)[0], plain(x, x, x)[0], 1e-11, "the output with gradients")
    attention(x, x, x)[0].square().sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in attention.out_proj.parameters())
    with torch.no_grad():
        assert_same(attention(x, x, x, need_weights=False)[0], plain(x, x, x)[0], 1e-11, "the output without gradients")
