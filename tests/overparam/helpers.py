"""The layers from their definition: sub-layers one after the other, in numpy, with loops over kernel positions."""

import itertools

import numpy as np
import torch

import weft


def convolve(x, kernel, bias=None, stride=None, dilation=None, groups=1):
    """A convolution without padding, one kernel position after the other."""
    size = kernel.shape[2:]
    dims = len(size)
    stride, dilation = stride or (1,) * dims, dilation or (1,) * dims
    out = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], size, stride, dilation, strict=True)]
    y = np.zeros((len(x), len(kernel), *out))
    rows, columns = len(kernel) // groups, x.shape[1] // groups
    for group, at in itertools.product(range(groups), np.ndindex(*size)):
        places = tuple(
            slice(d * a, d * a + s * (n - 1) + 1, s) for a, d, s, n in zip(at, dilation, stride, out, strict=True)
        )
        seen = x[:, group * columns : (group + 1) * columns][(slice(None), slice(None), *places)]
        block = kernel[group * rows : (group + 1) * rows][(slice(None), slice(None), *at)]
        y[:, group * rows : (group + 1) * rows] += np.einsum("oc,nc...->no...", block, seen)
    return y if bias is None else y + bias.reshape(-1, *(1,) * dims)


def batch_norm(y, state, prefix, eps):
    mean, variance, scale, shift = (
        state[prefix + name].reshape(-1, *(1,) * (y.ndim - 2))
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    return (y - mean) / np.sqrt(variance + eps) * scale + shift


def pairs(layer):
    """Where skips start and end, by counting."""
    if not layer.residual:
        return []
    intervals = layer.residual_intervals
    lengths = {layer.depth if n == -1 else n for n in ([intervals] if isinstance(intervals, int) else intervals)}
    return [(end - n, end) for n in lengths for end in range(1, layer.depth + 1) if end % n == 0]


def oracle(layer, x):
    """The output in evaluation. A skip is a convolution with an explicit Dirac kernel."""
    state = {name: value.double().numpy() for name, value in layer.state_dict().items()}
    sizes = [state[f"layers.{i}.weight"].shape[2:] for i in range(layer.depth)]
    dims, groups = len(sizes[0]), layer.groups
    x = x.double().numpy()
    x = x.reshape(-1, x.shape[-1]) if dims == 0 else x
    stride, dilation = getattr(layer, "stride", ()), getattr(layer, "dilation", ())
    if dims:
        composed = [sum(k[d] for k in sizes) - len(sizes) + 1 for d in range(dims)]
        same = [(d * (k - 1) // 2, d * (k - 1) - d * (k - 1) // 2) for k, d in zip(composed, dilation, strict=True)]
        margins = (
            {"same": same, "valid": [(0, 0)] * dims}.get(layer.padding) if isinstance(layer.padding, str) else None
        )
        margins = margins or [(p, p) for p in layer.padding]
        mode = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}[layer.padding_mode]
        x = np.pad(x, [(0, 0), (0, 0), *margins], mode=mode)
    nodes = [x]
    for m in range(1, layer.depth + 1):
        step = stride if m == layer.depth else (1,) * dims
        kernel, bias = state[f"layers.{m - 1}.weight"], state.get(f"layers.{m - 1}.bias")
        y = convolve(nodes[-1], kernel, bias, step, dilation, groups)
        if len(layer.norms):
            y = batch_norm(y, state, f"norms.{m - 1}.", layer.norms[m - 1].eps)
        total = y
        for start, end in pairs(layer):
            if end != m:
                continue
            size = [sum(k[d] - 1 for k in sizes[start:end]) + 1 for d in range(dims)]
            way = nodes[start]
            if layer.residual_mode == "learn":
                way = convolve(way, state[f"skips.{start}_{end}.weight"], groups=groups)
            dirac = np.zeros((way.shape[1], 1, *size))
            dirac[(slice(None), slice(None), *(k // 2 for k in size))] = 1
            total = total + convolve(way, dirac, None, step, dilation, groups=way.shape[1])
        nodes.append(total)
    y = nodes[-1]
    return torch.from_numpy(y if layer.norm is None else batch_norm(y, state, "norm.", layer.norm.eps))


def with_random_norms(layer):
    """Batch norms as after training: nothing in them is 0 or 1, and each has an eps of its own."""
    for index, norm in enumerate(module for module in layer.modules() if hasattr(module, "running_var")):
        norm.eps = 10.0 ** -(2 + index % 3)
        with torch.no_grad():
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            norm.weight.uniform_(0.5, 2)
            norm.bias.normal_()
    return layer


def assert_all_forms_agree(layer, inputs, tolerance=1e-6):
    """Expanded, collapsed with and without gradients, and folded: one function."""
    plain = layer.eval().fold()
    for x in inputs:
        with torch.no_grad():
            want = layer(x, expanded=True)
            got = layer(x)
            folded = plain(x)
        scale = max(1.0, float(want.abs().max())) if want.numel() else 1.0
        assert got.shape == folded.shape == want.shape
        for what, y in {"collapsed": got, "folded": folded}.items():
            error = float((y - want).abs().max()) / scale if want.numel() else 0.0
            assert error < tolerance, f"{what} is off by {error:.3g} for input {tuple(x.shape)}: {layer}"


CONVOLUTIONS = {1: weft.EPConv1d, 2: weft.EPConv2d, 3: weft.EPConv3d}
