"""The evaluation cache is hit where it may be, and bypassed wherever something else than plain evaluation goes on."""

import gc
import threading
import weakref

import torch
from tests.cases import PHM
from tests.layers.caching import assert_fresh, count_builds, fill, make_layer, run, truth
from torch.func import functional_call, stack_module_state, vmap
from torch.utils.flop_counter import FlopCounterMode

import weft
from weft.layers import cache
from weft.testing import assert_same


def test_weight_is_built_once_for_many_evaluations(layer, x, monkeypatch):
    builds = count_builds(layer, monkeypatch)
    for rows in (1, 3, 200):
        for _ in range(5):
            run(layer, torch.randn(rows, 12, dtype=torch.float64))
    with torch.inference_mode():
        layer(x)
    with torch.no_grad():
        _ = layer.weight, layer.weight
    assert len(builds) == 1


def test_frozen_weight_is_built_once_also_with_gradients_on(layer, x, monkeypatch):
    layer.parametrization.requires_grad_(False)
    builds = count_builds(layer, monkeypatch)
    for _ in range(5):
        layer(x.clone().requires_grad_()).sum().backward()
    assert len(builds) == 1


def test_weight_frozen_after_it_was_kept_asks_for_no_gradients(layer, x):
    with torch.no_grad():
        want = layer(x)
    layer.requires_grad_(False)
    got = layer(x)
    assert not got.requires_grad
    assert_same(got, want, 0)
    assert not layer.weight.requires_grad


def test_convolutions_cache_too(monkeypatch):
    for conv in (weft.PHConv2d(8, 8, 3, n=4), weft.PHConvTranspose1d(8, 8, 3, n=4)):
        conv.eval()
        builds = count_builds(conv, monkeypatch)
        for _ in range(4):
            run(conv, torch.randn(2, 8, *(7, 7)[: conv._dims]))
        assert len(builds) == 1


def test_bypass_in_training_and_where_gradients_are_wanted(layer, x, monkeypatch):
    builds = count_builds(layer, monkeypatch)
    layer(x).sum().backward()
    layer(x).sum().backward()
    assert len(builds) == 2
    assert layer._cache.entry is None
    layer.train()
    run(layer, x)
    run(layer, x)
    assert len(builds) == 4
    assert layer._cache.entry is None
    assert all(p.grad is not None for p in layer.parameters())


def test_nothing_is_kept_where_nothing_is_built():
    layer = weft.Linear(8, 8).eval()
    run(layer, torch.randn(2, 8))
    assert layer._cache.entry is None


def test_moving_and_switching_modes_free_the_weight(layer, x):
    for change in (layer.float, layer.double, layer.train, layer.eval, lambda: setattr(layer, "path", "dense")):
        layer.eval()
        fill(layer.double(), x)
        weight = weakref.ref(layer._cache.entry[5])
        change()
        gc.collect()
        assert weight() is None, change


def test_cache_is_in_no_state(layer, x):
    keys = set(layer.state_dict())
    fill(layer, x)
    assert set(layer.state_dict()) == keys
    assert {name for name, _ in layer.named_buffers()} == set()


def test_gradients_asked_for_later(layer, x):
    layer.requires_grad_(False)
    layer(x)  # cached, though gradients are on
    assert layer._cache.entry is not None
    layer.parametrization.requires_grad_(True)
    layer(x).sum().backward()
    assert float(layer.parametrization.blocks.grad.abs().max()) > 0
    layer.requires_grad_(False)
    assert not layer(x).requires_grad


def test_inference_mode_in_and_out(layer, x):
    with torch.inference_mode():
        before = layer(x).clone()
    y = layer(x)
    y.sum().backward()
    with torch.no_grad():
        layer.parametrization.blocks.mul_(2)
    with torch.inference_mode():
        assert not torch.allclose(layer(x), before)
        assert_same(layer(x), truth(layer, x), 1e-11, "the output in inference mode")
    assert_fresh(layer, x)
    frozen, z = layer.requires_grad_(False), x.clone().requires_grad_()
    with torch.inference_mode():
        frozen(x)
    frozen(z).sum().backward()  # a weight made in inference mode could not be saved for backward
    assert z.grad is not None


def test_parameters_born_in_inference_mode_are_not_cached(x):
    with torch.inference_mode():
        layer = make_layer()
        before = layer(x).clone()
        layer.parametrization.blocks.mul_(2)  # no version counter tells
        assert_same(layer(x), truth(layer, x), 1e-11, "the output")
        assert not torch.allclose(layer(x), before)


def test_vmap_and_functional_call(layer, x):
    before = fill(layer, x)
    others = [make_layer() for _ in range(3)]
    state = stack_module_state(others)
    with torch.no_grad():
        got = vmap(lambda parameters, buffers: functional_call(layer, (parameters, buffers), (x,)))(*state)
        for y, other in zip(got, others, strict=True):
            assert_same(y, truth(other, x), 1e-11, "one of the ensemble")
        assert_same(functional_call(layer, dict(others[0].named_parameters()), (x,)), truth(others[0], x), 1e-11)
    assert_same(run(layer, x), before, 0, "the layer itself")


def test_tangents_and_dispatch_modes_are_bypassed(layer, x):
    fill(layer, x)
    entry = layer._cache.entry
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        layer(x)
    assert counter.get_total_flops() > 2 * 3 * 96  # the build was counted, so it ran
    member = layer.parametrization
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(member.blocks.detach(), torch.ones_like(member.blocks))
        y = functional_call(layer, {"parametrization.blocks": dual}, (x,))
        assert float(torch.autograd.forward_ad.unpack_dual(y).tangent.abs().max()) > 0
    assert layer._cache.entry is entry


def test_autocast_on_and_off():
    layer, x = make_layer(torch.float32), torch.randn(3, 12)
    for _ in range(2):
        full = fill(layer, x)
        assert full.dtype == torch.float32
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", dtype=dtype):
                assert run(layer, x).dtype == dtype
                assert layer._cache.entry is not None
                with torch.autocast("cpu", enabled=False):
                    assert_same(run(layer, x), full, 0, "the output with autocast off inside")
                with torch.no_grad():
                    assert layer.weight.dtype == dtype
        assert_same(run(layer, x), full, 0, "the output after autocast")


def test_weight_is_cast_once_under_autocast(monkeypatch):
    layer, x = make_layer(torch.float32), torch.randn(3, 12)
    builds = count_builds(layer, monkeypatch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        run(layer, x)
        assert layer._cache.entry[5].dtype == torch.bfloat16
        run(layer, x)
    assert len(builds) == 1


def test_layers_do_not_share_weights(x):
    """Two kinds of layer around one member: the layouts differ."""
    member = PHM.member((8, 12))
    linear = weft.Linear(12, 8, parametrization=member, path="dense", dtype=torch.float64).eval()
    conv = weft.Conv1d(12, 8, 1, parametrization=member, path="dense", dtype=torch.float64).eval()
    fill(linear, x)
    fill(conv, x[..., None])
    assert linear.weight.shape == (8, 12)
    assert conv.weight.shape == (8, 12, 1)
    with torch.no_grad():
        member.blocks.mul_(2)
    assert_same(run(linear, x), truth(linear, x), 1e-11, "the linear output")
    assert_same(run(conv, x[..., None])[..., 0], truth(conv, x), 1e-11, "the convolution")


def test_threads():
    """Grad mode and autocast belong to a thread, the cache to the layer."""
    layer, x = make_layer(torch.float32), torch.randn(3, 12)
    want = run(layer, x)
    problems = []

    def work(kind):
        try:
            for _ in range(150):
                if kind == "bf16":
                    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                        y = layer(x)
                    assert y.dtype == torch.bfloat16
                    assert_same(y, want, 0.05)
                elif kind == "gradients":
                    y = layer(x)
                    assert y.requires_grad
                    assert_same(y, want, 1e-6)
                elif kind == "clear":
                    layer.clear_cache()
                else:
                    y = run(layer, x)
                    assert y.dtype == torch.float32
                    assert not y.requires_grad
                    assert_same(y, want, 1e-6)
        except BaseException as problem:  # noqa: BLE001, told to the main thread
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(kind,)) for kind in ("plain", "plain", "bf16", "gradients", "clear")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def test_optimizers_are_watched_only_once_something_is_cached(monkeypatch):
    monkeypatch.setattr(cache, "_watching", False)
    registered = []
    monkeypatch.setattr(cache, "register_optimizer_step_post_hook", registered.append)
    layer, x = make_layer(), torch.randn(3, 12, dtype=torch.float64)
    layer(x)
    assert not registered
    fill(layer, x)
    fill(make_layer(), x)
    assert len(registered) == 1


def test_tensor_subclasses_and_missing_sources_are_not_cached(x):
    class Tagged(torch.Tensor):
        pass

    layer = make_layer()
    data = layer.parametrization.blocks.detach()
    layer.parametrization._parameters["blocks"] = data.as_subclass(Tagged)
    run(layer, x)
    assert layer._cache.entry is None
    layer = make_layer()
    blocks = layer.parametrization._parameters.pop("blocks")  # what FSDP1 does with its flat parameter
    layer.parametrization.__dict__["blocks"] = blocks
    assert_same(run(layer, x), truth(layer, x), 1e-11, "the output")
    assert layer._cache.entry is None
