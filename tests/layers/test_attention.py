"""MultiheadAttention: torch's own results with the members' matrices, whatever the masks and options."""

import itertools

import pytest
import torch
from tests.cases import CASES, PHM
from torch import nn

import weft
from weft.errors import OptionError, SizeError
from weft.testing import assert_same

HEADS, WIDTH = 4, 8


def make(case=PHM, **options):
    attention = weft.MultiheadAttention(
        WIDTH, HEADS, **{"batch_first": True, "dtype": torch.float64, **options}, parametrization=case.make
    )
    with torch.no_grad():
        for name, parameter in attention.named_parameters():
            if "bias" in name:
                parameter.normal_()
    return attention


def by_hand(layer):
    """torch's module with the matrices of the members, put there one by one."""
    arguments = layer._arguments()
    plain = nn.MultiheadAttention(**arguments, dtype=torch.float64).train(layer.training)
    projections = (layer.q_proj, layer.k_proj, layer.v_proj)
    with torch.no_grad():
        if plain.in_proj_weight is not None:
            plain.in_proj_weight.copy_(torch.cat([p.parametrization.dense() for p in projections]))
        else:
            for name, projection in zip("qkv", projections, strict=True):
                getattr(plain, f"{name}_proj_weight").copy_(projection.parametrization.dense())
        plain.out_proj.weight.copy_(layer.out_proj.parametrization.dense())
        if plain.in_proj_bias is not None:
            plain.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
            plain.out_proj.bias.copy_(layer.out_proj.bias)
        if plain.bias_k is not None:
            plain.bias_k.copy_(layer.bias_k)
            plain.bias_v.copy_(layer.bias_v)
    return plain


def inputs(queries=5, keys=6, batch=3, key_width=WIDTH, value_width=WIDTH):
    widths = ((queries, WIDTH), (keys, key_width), (keys, value_width))
    return [torch.randn(batch, length, width, dtype=torch.float64) for length, width in widths]


def assert_same_pair(got, want, tolerance=1e-11):
    assert_same(got[0], want[0], tolerance, "the output")
    assert (got[1] is None) == (want[1] is None)
    if want[1] is not None:
        assert_same(got[1], want[1], tolerance, "the attention weights")


def masks():
    """Every kind of mask torch takes, none of which hides all keys from a query."""
    hidden = torch.rand(5, 6) < 0.4
    hidden[:, 0] = False
    per_head = torch.rand(3 * HEADS, 5, 6) < 0.4
    per_head[:, :, 0] = False
    padding = torch.zeros(3, 6, dtype=torch.bool)
    padding[0, 4:] = padding[2, 2:] = True
    scores = torch.randn(5, 6, dtype=torch.float64)
    float_padding = torch.zeros(3, 6, dtype=torch.float64).masked_fill(padding, -torch.inf)
    return [
        {},
        {"attn_mask": hidden},
        {"attn_mask": per_head},
        {"attn_mask": scores},
        {"key_padding_mask": padding},
        {"attn_mask": hidden, "key_padding_mask": padding},
        {"attn_mask": scores, "key_padding_mask": float_padding},
    ]


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize(
    "options", [{}, {"add_bias_kv": True}, {"add_zero_attn": True, "add_bias_kv": True}, {"bias": False}]
)
def test_masks(options, number):
    torch.manual_seed(number)
    layer, given = make(**options), masks()[number]
    plain, (q, k, v) = by_hand(layer), inputs()
    for need_weights, average in itertools.product((True, False), repeat=2):
        for mode in (True, False):
            layer.train(mode), plain.train(mode)
            got = layer(q, k, v, need_weights=need_weights, average_attn_weights=average, **given)
            want = plain(q, k, v, need_weights=need_weights, average_attn_weights=average, **given)
            assert_same_pair(got, want)


@pytest.mark.parametrize("case", CASES, ids=repr)
@pytest.mark.parametrize("path", ["auto", "factored", "dense"])
def test_self_attention_is_torchs_in_every_family(case, path):
    layer, x = make(case, path=path), inputs()[0]
    plain = by_hand(layer)
    assert_same_pair(layer(x, x, x), plain(x, x, x))
    with torch.no_grad():
        assert_same_pair(layer.eval()(x, x, x, need_weights=False), plain.eval()(x, x, x, need_weights=False))
    folded = layer.fold()
    assert type(folded) is nn.MultiheadAttention
    assert_same_pair(folded(x, x, x), layer(x, x, x))


def test_from_the_definition():
    layer, (q, k, v) = make(), inputs(batch=1)
    projected = [p.parametrization.dense() for p in (layer.q_proj, layer.k_proj, layer.v_proj)]
    biases = [p.bias for p in (layer.q_proj, layer.k_proj, layer.v_proj)]
    a, b, c = (x[0] @ w.T + bias for x, w, bias in zip((q, k, v), projected, biases, strict=True))
    heads, d = [], WIDTH // HEADS
    for h in range(HEADS):
        part = slice(h * d, (h + 1) * d)
        scores = a[:, part] @ b[:, part].T / d**0.5
        heads.append(scores.exp() / scores.exp().sum(1, keepdim=True) @ c[:, part])
    want = torch.cat(heads, 1) @ layer.out_proj.parametrization.dense().T + layer.out_proj.bias
    assert_same(layer(q, k, v)[0][0], want, 1e-11)


@pytest.mark.parametrize("need_weights", [True, False])
def test_torchs_own_module_is_kept_in_evaluation_and_never_stale(need_weights):
    layer, x = make(path="dense").eval(), inputs()[0]

    def check(what):
        want = by_hand(layer)(x, x, x, need_weights=need_weights)
        for _ in range(2):
            assert_same_pair(layer(x, x, x, need_weights=need_weights), want)
        assert (layer._cache.entry is not None) == (not layer.training), what

    with torch.no_grad():
        check("the first time")
        layer.k_proj.parametrization.blocks.mul_(2)
        check("a parameter was changed in place")
        layer.v_proj.parametrization = PHM.member((8, 8))
        check("a parametrization was replaced")
        layer.q_proj.bias.add_(1)
        check("a bias was changed")
        layer.load_state_dict(make().state_dict())
        check("a state was loaded")
        layer.train()
        check("in training")
        layer.q_proj.parametrization.blocks.data.mul_(2)
        layer.eval()
        check("changed behind the counters, in training")
        layer.q_proj.parametrization.blocks.data.mul_(2)
        weft.clear_cache(layer)
        check("told to forget")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer.float()(x.float(), x.float(), x.float())[0].dtype == torch.bfloat16
        assert_same_pair(layer.double()(x, x, x), by_hand(layer)(x, x, x), 1e-6)
    layer(x, x, x)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_other_widths_layouts_and_no_batch():
    layer = make(kdim=12, vdim=4, batch_first=False)
    plain, (q, k, v) = by_hand(layer), inputs(key_width=12, value_width=4)
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    assert plain.in_proj_weight is None
    assert_same_pair(layer(q, k, v), plain(q, k, v))
    assert_same_pair(layer(q[:, 0], k[:, 0], v[:, 0]), plain(q[:, 0], k[:, 0], v[:, 0]))
    padding = torch.tensor([False] * 5 + [True])
    got = layer(q[:, 0], k[:, 0], v[:, 0], key_padding_mask=padding, need_weights=False)
    assert_same_pair(got, plain(q[:, 0], k[:, 0], v[:, 0], key_padding_mask=padding, need_weights=False))


def test_causal_hint():
    layer, x = make(), inputs()[0]
    plain, mask = by_hand(layer), nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    for need_weights in (True, False):
        given = {"attn_mask": mask, "is_causal": True, "need_weights": need_weights}
        assert_same_pair(layer(x, x, x, **given), plain(x, x, x, **given))
    with pytest.raises(OptionError, match="is_causal"):
        layer(x, x, x, is_causal=True)


def test_dropout_is_torchs():
    layer, x = make(dropout=0.5), inputs()[0]
    plain = by_hand(layer)
    torch.manual_seed(0)
    got = layer(x, x, x)
    torch.manual_seed(0)
    assert_same_pair(got, plain(x, x, x))
    assert_same_pair(layer.eval()(x, x, x), plain.eval()(x, x, x))


@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_and_decoder_layers_run_it(norm_first):
    """Converted whole, torch's layers compute what they compute with the folded weights, also without gradients."""
    torch.manual_seed(0)
    arguments = {"dropout": 0.0, "batch_first": True, "norm_first": norm_first, "dtype": torch.float64}
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, **arguments), 2, enable_nested_tensor=False)
    model = nn.ModuleDict({"encoder": encoder, "decoder": nn.TransformerDecoderLayer(16, 4, 32, **arguments)})
    converted, report = weft.convert(model, "kronecker", n=4, return_report=True)
    assert len(report.converted) == 2 * 3 + 4 and not report.skipped
    assert isinstance(converted["encoder"].layers[1].self_attn, weft.MultiheadAttention)
    folded, x = weft.fold(converted), torch.randn(2, 7, 16, dtype=torch.float64)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 5:] = True
    for mode in (True, False):
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients):
                converted.train(mode), folded.train(mode)
                memory = converted["encoder"](x, src_key_padding_mask=padding)
                want = folded["encoder"](x, src_key_padding_mask=padding)
                keep = ~padding[..., None]
                assert_same(memory * keep, want * keep, 1e-10, "the encoder's output")
                assert_same(converted["decoder"](x, want), folded["decoder"](x, want), 1e-10, "the decoder's output")


def test_checkpoint_of_the_plain_module_is_fitted():
    for options in ({"add_bias_kv": True}, {"kdim": 12, "vdim": 4}):
        source, target = by_hand(make(**options)), make(**options)
        with pytest.warns(UserWarning, match="was fitted by family 'kronecker'"):
            target.load_state_dict(source.state_dict())
        q, k, v = inputs(key_width=options.get("kdim", 8), value_width=options.get("vdim", 8))
        assert_same_pair(target(q, k, v), source(q, k, v), 1e-10)


def test_initial_law_is_torchs():
    torch.manual_seed(0)
    for options in ({}, {"kdim": 32}):
        layers = [weft.MultiheadAttention(64, 4, parametrization="kronecker", n=4, **options) for _ in range(5)]
        plains = [nn.MultiheadAttention(64, 4, **options) for _ in range(5)]
        for name in ("q", "k", "out"):
            ours = torch.stack([getattr(layer, f"{name}_proj").weight for layer in layers])
            if name == "out":
                theirs = torch.stack([plain.out_proj.weight for plain in plains])
            elif options:
                theirs = torch.stack([getattr(plain, f"{name}_proj_weight") for plain in plains])
            else:
                theirs = torch.stack([plain.in_proj_weight[:64] for plain in plains])
            assert abs(float((ours.var() / theirs.var()).detach()) - 1) < 0.08
        assert not any(p.any() for p in (layers[0].q_proj.bias, layers[0].out_proj.bias))


def test_summary_counts_the_projections_of_an_example():
    layer, x = make(), inputs()[0]
    (row,) = weft.summary(layer, (x, x, x)).rows
    assert row.type == "MultiheadAttention" and row.macs == 4 * 15 * WIDTH * WIDTH
    assert row.parameters == sum(p.numel() for p in layer.parameters())
    layer = weft.MultiheadAttention(
        8, 4, batch_first=True, parametrization="low_rank", rank=1, path="factored"
    ).double()
    (row,) = weft.summary(layer, {"query": x, "key": x, "value": x}).rows
    assert row.macs == 4 * 15 * 2 * WIDTH  # the projections were called one by one


def test_bad_arguments_are_refused():
    with pytest.raises(SizeError, match="num_heads must divide"):
        weft.MultiheadAttention(8, 3)
    with pytest.raises(SizeError, match="n must divide"):
        weft.MultiheadAttention(9, 3, parametrization="kronecker", n=4)
    layer, (q, k, v) = make(), inputs()
    with pytest.raises(SizeError, match="attn_mask must have the shape"):
        layer(q, k, v, attn_mask=torch.zeros(6, 5))
    with pytest.raises(SizeError, match="key_padding_mask must have the shape"):
        layer(q, k, v, key_padding_mask=torch.zeros(3, 5))
    with pytest.raises(SizeError, match="3 dimensions"):
        layer(q, k, v[0])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # what the plain encoder makes of padding
def test_torchs_encoders_call_the_layer_instead_of_their_fused_kernel():
    torch.manual_seed(0)
    plain = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).eval()
    x, padding = torch.randn(2, 5, 16), torch.tensor([[False, False, False, True, True], [False] * 5])
    converted = weft.convert(plain, "low_rank", rank=16)
    with torch.no_grad():
        wanted, got = (model(x, src_key_padding_mask=padding)[~padding] for model in (plain, converted))
    assert_same(got, wanted, 1e-5, "rows that are not padding")
    # Torch's kernel fills the padded rows with zeros, which a comparison must not take for a difference.
    folded = weft.fold(converted, check={"src": x, "src_key_padding_mask": padding})
    assert type(folded.layers[0].self_attn) is nn.MultiheadAttention
    assert weft.verify(converted, folded, {"src": x, "src_key_padding_mask": padding}).output < 1e-5
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_joint_weight_that_there_is_not_says_where_the_weights_are():
    layer = weft.MultiheadAttention(8, 2, parametrization="low_rank", rank=2)
    with pytest.raises(AttributeError, match="q_proj, k_proj and v_proj"):
        nn.init.xavier_uniform_(layer.in_proj_weight)
    with pytest.raises(OptionError, match="q_proj, k_proj and v_proj"):
        torch.sum(layer.in_proj_weight)


@pytest.mark.parametrize("trained", ["bias", "weight"])
@pytest.mark.parametrize("kind", ["attention", "lstm"])
def test_folding_freezes_what_was_frozen(kind, trained):
    plain = nn.LSTM(8, 8) if kind == "lstm" else nn.MultiheadAttention(8, 2, add_bias_kv=True)
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(trained in name)
    folded = weft.fold(weft.convert(plain, "low_rank", rank=4))
    wanted = {name: parameter.requires_grad for name, parameter in plain.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in folded.named_parameters()} == wanted
