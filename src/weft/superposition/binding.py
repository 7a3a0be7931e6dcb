"""Bindings: how N feature maps become one, and what each of them is marked with before they are added.

    B groups of inputs    S inputs of a group    N slots = keys    D channels    * any dimensions of space

Slot i marks its features with its own linear map M_i of the channels, the same at every point of space; the marked
features are added up: h = sum_i M_i z_i. That is one matrix product with [M_1 | ... | M_N], so binding and adding
("bundling") are one operation here, and nothing of the size of N feature maps is ever written.

With S < N inputs every input takes N / S slots: slots s, S + s, 2S + s, ... Since the maps are linear, the sum over the
slots of an input is one map, sum_r M_{rS+s}: fewer inputs cost less, not the same.
"""

from __future__ import annotations

import abc
import inspect
import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.errors import OptionError, SizeError, UnknownNameError, nearest_name
from weft.modes import plain_precision

Path = Literal["auto", "matrix", "fft"]
#: From this many channels the product through Fourier space is the faster one: `benchmarks/superposition.py`.
FFT_CHANNELS = 256


class Binding(nn.Module, abc.ABC):
    """Binds up to N inputs to N keys and adds them up.

    Args:
        num_inputs: N, at least 1.
        channels: D, at least 1.

    Raises:
        OptionError: ``num_inputs`` or ``channels`` is below 1.
    """

    vectors: Tensor

    def __init__(self, num_inputs: int, channels: int) -> None:
        super().__init__()
        for name, value in (("num_inputs", num_inputs), ("channels", channels)):
            if value < 1:
                raise OptionError(f"{name} must be at least 1, got {value}")
        self.num_inputs, self.channels = num_inputs, channels

    @property
    @abc.abstractmethod
    def keys(self) -> Tensor:
        """Keys of the slots, (N, D) or (N, D, D)."""

    @abc.abstractmethod
    def reset_parameters(self) -> None:
        """Draw new keys."""

    @abc.abstractmethod
    def matrices(self, keys: Tensor) -> Tensor:
        """The maps of some keys.

        Args:
            keys: (S, D) or (S, D, D).

        Returns:
            (S, D, D).
        """

    def summed_keys(self, num_superposed: int) -> Tensor:
        """One key per input when S inputs share the N slots: sum_r k_{rS+s}.

        Args:
            num_superposed: S, divides N.

        Returns:
            (S, D) or (S, D, D).
        """
        keys = self.keys
        return keys if num_superposed == self.num_inputs else keys.unflatten(0, (-1, num_superposed)).sum(0)

    def forward(self, x: Tensor) -> Tensor:
        r"""Bind and add.

        Args:
            x: (B, S, D, \*), S divides N.

        Returns:
            (B, D, \*).

        Raises:
            SizeError: the shape does not fit.
        """
        if x.dim() < 3 or x.shape[2] != self.channels:
            raise SizeError(
                f"x must be (groups, inputs, {self.channels} channels, ...), got shape {tuple(x.shape)}; move the "
                f"channels there, or make the binding with as many channels"
            )
        check_num_superposed(x.shape[1], self.num_inputs)
        return self._bind(x, self.summed_keys(x.shape[1]))

    def _bind(self, x: Tensor, keys: Tensor) -> Tensor:
        """One matrix product over the channels of all inputs."""
        groups, _, channels, *space = x.shape
        weight = self.matrices(keys).transpose(0, 1).flatten(1)  # (D, S D): [M_1 | ... | M_S]
        stacked = x.flatten(1, 2)
        if not space:
            return F.linear(stacked, weight)
        return torch.matmul(weight, stacked.flatten(2)).reshape(groups, channels, *space)

    def penalty(self) -> Tensor:
        """What pulls the keys towards orthonormal ones.

        Returns:
            a scalar, 0 for bindings without a rule of their own.
        """
        return self.keys.new_zeros(())

    def extra_repr(self) -> str:
        return f"num_inputs={self.num_inputs}, channels={self.channels}"

    def _add_keys(self, keys: Tensor, trainable: bool) -> None:
        """Register the keys: a parameter, or a buffer of the same name."""
        if trainable:
            self.vectors = nn.Parameter(keys)
        else:
            self.register_buffer("vectors", keys)


class HRR(Binding):
    r"""Holographic reduced representations: every slot is a circular correlation of the channels with its key.

    .. math:: y_c = \sum_{m=0}^{D-1} k_m \, x_{(c + m - o) \bmod D}, \qquad o = \lfloor (D - 1) / 2 \rfloor

    at every point of space. Both ways of computing it are exact: ``path="matrix"`` writes the key as a circulant D x D
    matrix (S D^2 multiply-adds per point), ``"fft"`` multiplies spectra (of the order of S D log D); "auto" takes the
    matrix below 256 channels, where it is the faster one, and wherever half precision, compilation or export rule the
    Fourier transform out.

    Args:
        num_inputs: N, at least 1.
        channels: D, at least 1, even or odd.
        trainable: whether the keys are learned.
        init: "normal" draws unit vectors of random direction; "uniform" +-1/sqrt(D), as published (norms about 0.58).
        unitary: keep all Fourier magnitudes of every key at 1, in training too: binding is then an isometry. The keys
            are described by their phases; where a frequency is real its sign is drawn once.
        path: "auto", "matrix" or "fft".
        device: of the keys.
        dtype: of the keys.

    Raises:
        OptionError: an argument is out of range.

    Source:
        Plate 1995, Holographic Reduced Representations, section II, https://doi.org/10.1109/72.377968; as a layer of
        a network: Menet et al. 2023, MIMONets, section 3, https://arxiv.org/abs/2312.02829. Unitary keys: Plate,
        section II.D.

    Example:
        >>> import torch
        >>> bind = HRR(num_inputs=4, channels=64)
        >>> tuple(bind(torch.randn(8, 4, 64, 5, 5)).shape), tuple(bind.keys.shape)
        ((8, 64, 5, 5), (4, 64))
    """

    signs: Tensor

    def __init__(
        self,
        num_inputs: int,
        channels: int,
        *,
        trainable: bool = True,
        init: Literal["normal", "uniform"] = "normal",
        unitary: bool = False,
        path: Path = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_inputs, channels)
        _check_choice("init", init, ("normal", "uniform"))
        _check_choice("path", path, ("auto", "matrix", "fft"))
        self.init, self.unitary, self.path = init, unitary, path
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        if unitary:
            # frequency 0, and D / 2 of an even D, are real: +1 or -1
            self._add_keys(torch.empty(num_inputs, (channels - 1) // 2, **place), trainable)
            self.register_buffer("signs", torch.empty(num_inputs, 2 - channels % 2, **place))
        else:
            self._add_keys(torch.empty(num_inputs, channels, **place), trainable)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        if self.unitary:
            self.vectors.uniform_(-math.pi, math.pi)
            self.signs.bernoulli_(0.5).mul_(2).sub_(1)
        elif self.init == "uniform":
            bound = self.channels**-0.5
            self.vectors.uniform_(-bound, bound)
        else:
            self.vectors.normal_()
            self.vectors.div_(self.vectors.norm(dim=1, keepdim=True))

    @property
    def keys(self) -> Tensor:
        """Keys of the slots, (N, D)."""
        if not self.unitary:
            return self.vectors
        with plain_precision(self.vectors.device.type):  # rounded, the magnitudes would not be 1
            return _from_phases(self.vectors, self.signs, self.channels)

    def matrices(self, keys: Tensor) -> Tensor:
        size = self.channels
        turns = torch.cat([keys, keys[:, : size - 1]], dim=1).unfold(1, size, 1)  # [w, j] = k[(w + j) mod D]
        rows = torch.arange(size, device=keys.device)
        return turns[:, ((size - 1) // 2 - rows) % size]

    def _bind(self, x: Tensor, keys: Tensor) -> Tensor:
        if self.path == "matrix" or x.numel() == 0 or (self.path == "auto" and not self._fourier_pays(x, keys)):
            return super()._bind(x, keys)
        size = self.channels
        exact = torch.promote_types(torch.promote_types(x.dtype, keys.dtype), torch.float32)
        spectra = torch.fft.rfft(keys.to(exact), dim=1).conj()
        bound = torch.fft.rfft(x.to(exact), dim=2) * spectra.reshape(keys.shape[0], -1, *(1,) * (x.dim() - 3))
        y = torch.fft.irfft(bound.sum(1), n=size, dim=1)
        return y.roll((size - 1) // 2, dims=1).to(x.dtype)

    def _fourier_pays(self, x: Tensor, keys: Tensor) -> bool:
        if self.channels < FFT_CHANNELS or x.is_meta or torch.compiler.is_compiling():
            return False
        precise = x.dtype in (torch.float32, torch.float64) and x.dtype == keys.dtype
        return precise and not torch.is_autocast_enabled(x.device.type)

    def penalty(self) -> Tensor:
        r"""What pulls the keys towards orthonormal ones.

        .. math:: R = \frac{2}{N(N-1)} \sum_{i<j} (\hat k_i \cdot \hat k_j)^2 + \frac1N \sum_i (\lVert k_i \rVert - 1)^2

        Returns:
            R, a scalar.
        """
        with plain_precision(self.vectors.device.type):
            keys = self.keys
            norms = keys.norm(dim=1)
            units = keys / norms[:, None].clamp_min(1e-12)
            lengths = (norms - 1).square().mean()
            if self.num_inputs == 1:
                return lengths
            overlaps = (units @ units.T).triu(1).square().sum()
            return overlaps * (2 / (self.num_inputs * (self.num_inputs - 1))) + lengths

    def extra_repr(self) -> str:
        return super().extra_repr() + (", unitary=True" if self.unitary else "")


class MBAT(Binding):
    r"""Matrix binding of additive terms: every slot has a D x D matrix of its own, :math:`y = M_i x`.

    The dearest binding to store, N D^2 numbers, and the freest one. It costs what ``HRR`` costs by its matrix.

    Args:
        num_inputs: N, at least 1.
        channels: D, at least 1.
        trainable: whether the matrices are learned.
        init: "orthogonal", isometries that barely overlap; "kaiming" normal entries of variance 2/D, as published.
        device: of the matrices.
        dtype: of the matrices.

    Raises:
        OptionError: an argument is out of range.

    Source:
        Gallant and Okaywe 2013, Representing Objects, Relations, and Sequences, section 4,
        https://arxiv.org/abs/1501.07627; as a layer of a network: Menet et al. 2023, https://arxiv.org/abs/2312.02829.

    Example:
        >>> import torch
        >>> tuple(MBAT(2, 16)(torch.randn(3, 2, 16, 8)).shape)
        (3, 16, 8)
    """

    def __init__(
        self,
        num_inputs: int,
        channels: int,
        *,
        trainable: bool = True,
        init: Literal["orthogonal", "kaiming"] = "orthogonal",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_inputs, channels)
        _check_choice("init", init, ("orthogonal", "kaiming"))
        self.init = init
        self._add_keys(torch.empty(num_inputs, channels, channels, device=device, dtype=dtype), trainable)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        if self.init == "kaiming":
            self.vectors.normal_(std=(2 / self.channels) ** 0.5)
        elif not self.vectors.is_meta:
            for matrix in self.vectors:  # there is no QR decomposition in half precision
                exact = torch.empty_like(matrix, dtype=torch.promote_types(matrix.dtype, torch.float32))
                matrix.copy_(nn.init.orthogonal_(exact))

    @property
    def keys(self) -> Tensor:
        """Matrices of the slots, (N, D, D)."""
        return self.vectors

    def matrices(self, keys: Tensor) -> Tensor:
        return keys


class MAP(Binding):
    """Multiply, add, permute: every slot multiplies the channels by a key of random signs, N D multiply-adds a point.

    Args:
        num_inputs: N, at least 1.
        channels: D, at least 1.
        trainable: whether the keys are learned; they start at +1 and -1.
        device: of the keys.
        dtype: of the keys.

    Source:
        Gayler 1998, Multiplicative Binding, Representation Operators and Analogy.

    Example:
        >>> import torch
        >>> tuple(MAP(2, 16)(torch.randn(3, 2, 16, 8)).shape)
        (3, 16, 8)
    """

    def __init__(
        self,
        num_inputs: int,
        channels: int,
        *,
        trainable: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_inputs, channels)
        self._add_keys(torch.empty(num_inputs, channels, device=device, dtype=dtype), trainable)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.vectors.bernoulli_(0.5).mul_(2).sub_(1)

    @property
    def keys(self) -> Tensor:
        """Keys of the slots, (N, D)."""
        return self.vectors

    def matrices(self, keys: Tensor) -> Tensor:
        return torch.diag_embed(keys)

    def _bind(self, x: Tensor, keys: Tensor) -> Tensor:
        return torch.einsum("bsd...,sd->bd...", x, keys)


class FHRR(Binding):
    r"""HRR in Fourier space: the channels are D/2 complex numbers, and every slot turns each by an angle of its own.

    Channel c and channel c + D/2 are the real and the imaginary part of a number that is multiplied by
    :math:`e^{i \theta_c}`: an isometry, exactly invertible, at 4 S D/2 multiply-adds per point. With fewer inputs
    than slots the turns of one input's slots add up.

    Args:
        num_inputs: N, at least 1.
        channels: D, even.
        trainable: whether the angles are learned.
        device: of the angles.
        dtype: of the angles.

    Raises:
        OptionError: an odd number of channels.

    Source:
        Plate 2003, Holographic Reduced Representation, section 4.

    Example:
        >>> import torch
        >>> tuple(FHRR(2, 16)(torch.randn(3, 2, 16, 8)).shape)
        (3, 16, 8)
    """

    def __init__(
        self,
        num_inputs: int,
        channels: int,
        *,
        trainable: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_inputs, channels)
        if channels % 2:
            raise OptionError(f"channels must be even for fhrr, whose numbers are complex; got {channels}")
        self._add_keys(torch.empty(num_inputs, channels // 2, device=device, dtype=dtype), trainable)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.vectors.uniform_(-math.pi, math.pi)

    @property
    def keys(self) -> Tensor:
        """Keys of the slots, (N, D), first cosines and then sines."""
        return torch.cat([self.vectors.cos(), self.vectors.sin()], dim=1)

    def matrices(self, keys: Tensor) -> Tensor:
        cos, sin = (torch.diag_embed(part) for part in keys.chunk(2, dim=1))
        return torch.cat([torch.cat([cos, -sin], dim=2), torch.cat([sin, cos], dim=2)], dim=1)

    def _bind(self, x: Tensor, keys: Tensor) -> Tensor:
        (real, imaginary), (cos, sin) = x.chunk(2, dim=2), keys.chunk(2, dim=1)
        rule = "bsd...,sd->bd..."
        return torch.cat(
            [
                torch.einsum(rule, real, cos) - torch.einsum(rule, imaginary, sin),
                torch.einsum(rule, real, sin) + torch.einsum(rule, imaginary, cos),
            ],
            dim=1,
        )


class Bundle(Binding):
    """No binding: inputs are added up as they are. With one input, nothing is done at all.

    Args:
        num_inputs: N, at least 1.
        channels: D, at least 1.

    Example:
        >>> import torch
        >>> Bundle(2, 1)(torch.tensor([[[1.0], [2.0]]])).tolist()
        [[3.0]]
    """

    ones: Tensor

    def __init__(self, num_inputs: int, channels: int) -> None:
        super().__init__(num_inputs, channels)
        self.register_buffer("ones", torch.ones(num_inputs, channels), persistent=False)

    def reset_parameters(self) -> None:
        """Fill the ones in, which are in no state dict."""
        self.ones.fill_(1)

    @property
    def keys(self) -> Tensor:
        """Ones, (N, D)."""
        return self.ones

    def matrices(self, keys: Tensor) -> Tensor:
        return torch.diag_embed(keys)

    def _bind(self, x: Tensor, keys: Tensor) -> Tensor:
        copies = self.num_inputs // x.shape[1]
        return x[:, 0] if self.num_inputs == 1 else x.sum(1) * copies


_OWN_OPTIONS = ("num_inputs", "channels", "trainable")
BINDINGS: dict[str, type[Binding]] = {"none": Bundle, "hrr": HRR, "mbat": MBAT, "map": MAP, "fhrr": FHRR}


def make_binding(name: str, num_inputs: int, channels: int, *, trainable: bool = True, **options: Any) -> Binding:
    """The binding of a name.

    Args:
        name: "none", "hrr", "mbat", "map" or "fhrr".
        num_inputs: N.
        channels: D.
        trainable: whether the keys are learned.
        **options: of the class, such as ``unitary``.

    Returns:
        the binding.

    Raises:
        UnknownNameError: there is no such binding.
        OptionError: the binding has no such option.
    """
    if name not in BINDINGS:  # of a class of one's own give the module itself
        raise UnknownNameError(
            f"binding must be one of {', '.join(BINDINGS)}; got {name!r}{nearest_name(name, BINDINGS)}"
        )
    try:
        keys = {} if name == "none" else {"trainable": trainable}
        return BINDINGS[name](num_inputs, channels, **keys, **options)
    except TypeError as error:
        if not options:
            raise
        known = [each for each in inspect.signature(BINDINGS[name]).parameters if each not in _OWN_OPTIONS]
        wrong = next((each for each in options if each not in known), None)
        if wrong is None:
            raise OptionError(f"binding_options: {error}") from None
        raise OptionError(
            f"binding_options has {wrong!r}, the options of binding {name!r} are {', '.join(known) or 'none'}"
            f"{nearest_name(wrong, known)}"
        ) from None


def check_num_superposed(num_superposed: int, num_inputs: int) -> int:
    """S, if it divides N.

    Args:
        num_superposed: S.
        num_inputs: N.

    Returns:
        S.

    Raises:
        SizeError: S is not a divisor of N.
    """
    if num_superposed < 1 or num_inputs % num_superposed:
        divisors = [s for s in range(1, num_inputs + 1) if num_inputs % s == 0]
        raise SizeError(
            f"num_superposed must divide num_inputs={num_inputs}: one of {', '.join(map(str, divisors))}; "
            f"got {num_superposed}"
        )
    return num_superposed


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionError(f"{name} must be one of {', '.join(choices)}; got {value!r}{nearest_name(value, choices)}")


def _from_phases(phases: Tensor, signs: Tensor, size: int) -> Tensor:
    """Real vectors whose Fourier coefficients have magnitude 1, in real arithmetic: (N, D).

    k_m = (1/D) [ s_0 + 2 sum_f cos(2 pi f m / D + theta_f) + s_1 (-1)^m ], the last term for even D only.
    """
    place: dict[str, Any] = {"device": phases.device, "dtype": phases.dtype}
    points = torch.arange(size, device=phases.device)
    turns = torch.arange(1, (size - 1) // 2 + 1, device=phases.device)[:, None] * points % size  # exact in integers
    angles = turns.to(phases.dtype) * (2 * math.pi / size)
    waves = 2 * (phases.cos() @ angles.cos() - phases.sin() @ angles.sin())
    real = torch.stack([torch.ones(size, **place), 1.0 - 2.0 * (points % 2).to(phases.dtype)])[: signs.shape[1]]
    return (waves + signs @ real) / size
