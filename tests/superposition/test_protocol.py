"""Superposed networks as ordinary modules: copies, compilation, export, folding."""

import copy
import io

import pytest
import torch

import weft
from weft.models import mimonet


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = mimonet(10, 0.5, 1, num_inputs=4)
    net(torch.randn(8, 3, 16, 16))  # statistics of its own
    return net.eval()


def images(count=8):
    return torch.randn(count, 3, 16, 16)


def test_copies_and_saved_states_answer_the_same(net):
    x = images()
    saved = io.BytesIO()
    torch.save(net.state_dict(), saved)
    saved.seek(0)
    other = mimonet(10, 0.5, 1, num_inputs=4).eval()
    other.load_state_dict(torch.load(saved, weights_only=True))
    for twin in (copy.deepcopy(net), other):
        assert torch.equal(twin(x), net(x))


def test_one_graph_for_the_compiler(net):
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    for count in (8, 6):
        x = images(count)
        torch.testing.assert_close(compiled(x), net(x))


def test_export_takes_any_multiple_of_the_inputs(net):
    groups = torch.export.Dim("groups", min=2, max=64)
    exported = torch.export.export(net, (images(),), dynamic_shapes=({0: 4 * groups},)).module()
    for count in (12, 20):
        x = images(count)
        torch.testing.assert_close(exported(x), net(x))


@pytest.mark.slow
def test_onnx_answers_the_same(net):
    onnxruntime = pytest.importorskip("onnxruntime")
    groups = torch.export.Dim("groups", min=2, max=64)
    program = torch.onnx.export(net, (images(),), dynamo=True, dynamic_shapes=({0: 4 * groups},), verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    x = images(12)
    (answers,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(answers), net(x).detach(), atol=1e-5, rtol=1e-5)


def test_autocast_and_half_precision(net):
    x = images()
    with torch.autocast("cpu", torch.bfloat16):
        assert net(x).dtype == torch.bfloat16
    assert net.to(torch.bfloat16)(x.bfloat16()).isfinite().all()


def test_a_trunk_of_a_family_folds():
    net = mimonet(10, 0.5, 1, num_inputs=2, parametrization="kronecker", options={"n": 4}).eval()
    x = images(4)
    plain = weft.fold(net, check=x)
    torch.testing.assert_close(plain(x), net(x), atol=1e-5, rtol=1e-4)
    assert not any(isinstance(each, weft.Conv2d) for each in plain.modules())
