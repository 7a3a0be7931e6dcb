"""Claim: binding and bundling are one fast operation, and N images through one network take little more than one.

HRR binding of 4 inputs, 64 channels, 32 x 32 pixels, 32 groups, against the published form, a circular convolution
through the channels of every input followed by a sum (floor 20), and against the Fourier path; S < N against S = N; the
two paths by the number of channels, which is where ``FFT_CHANNELS`` comes from; and images per second of MIMONets at
N = 2 and 4 against N = 1 (depth 16, width 4: floors 1.85 and 3.4), width 10 included.
"""

from __future__ import annotations

import functools

import torch
from harness import compare, report
from torch import Tensor, nn

from weft.models import mimonet
from weft.superposition import HRR

GROUPS, INPUTS, CHANNELS, SIDE = 32, 4, 64, 32
FLOORS = {2: 1.85, 4: 3.4}


class Published(nn.Module):
    """Every input through a circular convolution along its channels, at each pixel; then the sum."""

    def __init__(self, keys: Tensor) -> None:
        super().__init__()
        count, size = keys.shape
        self.size = size
        self.conv = nn.Conv1d(count, count, size, padding=size // 2, padding_mode="circular", groups=count, bias=False)
        self.conv.weight = nn.Parameter(keys.detach()[:, None].clone())

    def forward(self, x: Tensor) -> Tensor:
        groups, count, size, height, width = x.shape
        rows = x.permute(0, 3, 4, 1, 2).reshape(-1, count, size)
        bound = self.conv(rows)[:, :, 1:]
        return bound.reshape(groups, height, width, count, size).sum(3).permute(0, 3, 1, 2)


def binding() -> list[list[object]]:
    bind, fourier = HRR(INPUTS, CHANNELS, path="matrix"), HRR(INPUTS, CHANNELS, path="fft")
    fourier.load_state_dict(bind.state_dict())
    published = Published(bind.keys)
    x = torch.randn(GROUPS, INPUTS, CHANNELS, SIDE, SIDE)
    with torch.no_grad():
        torch.testing.assert_close(published(x), bind(x), atol=1e-4, rtol=1e-4)
        name = f"HRR, {INPUTS} inputs, {CHANNELS} channels, {SIDE} x {SIDE}, {GROUPS} groups"
        slow = compare(lambda: published(x), lambda: bind(x), pairs=7)
        rows: list[list[object]] = [[f"{name}: against circular convolution through the channels", slow, 20]]
        rows.append([f"{name}: against its Fourier path", compare(lambda: fourier(x), lambda: bind(x), pairs=9), 1])
        for inputs in (1, 2):
            part = x[:, :inputs].contiguous()
            ratio = compare(lambda: bind(x), lambda part=part: bind(part), pairs=9)
            rows.append([f"{name}: S = {inputs} against S = 4, per group", ratio, 1])
        for channels in (128, 256, 512, 1024):
            matrix, wave = HRR(INPUTS, channels, path="matrix"), HRR(INPUTS, channels, path="fft")
            y = torch.randn(4, INPUTS, channels, 8, 8)
            ratio = compare(lambda m=wave, y=y: m(y), lambda m=matrix, y=y: m(y), pairs=7)
            rows.append([f"HRR, {channels} channels, 8 x 8, 4 groups: matrix against Fourier path", ratio, "-"])
    return rows


def networks() -> list[list[object]]:
    rows: list[list[object]] = []
    for depth, width, images in ((16, 4, 64), (28, 10, 8)):
        one = mimonet(depth, width, num_inputs=1).eval()
        x = torch.randn(images, 3, 32, 32)
        for count in (2, 4):
            many = mimonet(depth, width, num_inputs=count).eval()
            with torch.no_grad():
                ratio = compare(lambda x=x, one=one: one(x), lambda x=x, many=many: many(x), pairs=7)
            floor = FLOORS[count] if depth == 16 else "-"
            rows.append([f"MIMONet-{depth}, width {width}, {images} images: N = {count} against N = 1", ratio, floor])
        with torch.no_grad():
            for together in (1, 2):
                use = functools.partial(many, x, num_superposed=together)
                ratio = compare(lambda x=x, one=one: one(x), use, pairs=5)
                rows.append([f"MIMONet-{depth}, width {width}: N = 4 used at S = {together} against N = 1", ratio, "-"])
    return rows


def main() -> None:
    torch.manual_seed(0)
    rows = [*binding(), *networks()]
    for row in rows:
        row.append("-" if row[2] == "-" else "yes" if row[1].times_faster >= row[2] else "no")  # type: ignore[attr-defined,operator]
    report(
        __file__,
        "Superposition: binding in one operation, and networks on N images at once",
        ["measured", "times faster", "floor", "reached"],
        rows,
        "Evaluation, no gradients. A whole batch of images is answered on both sides of a network's row.",
    )


if __name__ == "__main__":
    main()
