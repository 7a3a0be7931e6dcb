"""From uint8 pixels to the floats a network takes: augmentation and normalisation of whole batches, on any device."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from weft.errors import OptionError


def pixel_statistics(images: Tensor) -> Tensor:
    """Mean and standard deviation per channel of pixels in [0, 1].

    Args:
        images: (samples, channels, height, width) in uint8.

    Returns:
        (2, channels) in fp64: means, then standard deviations.

    Example:
        >>> pixel_statistics(torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)).tolist()
        [[0.5], [0.5]]
    """
    # From counts of the 256 values: exact whatever the number of pixels, and no float copy of the images.
    counts = torch.stack([torch.bincount(c.flatten(), minlength=256) for c in images.unbind(1)]).double()
    share, value = counts / counts.sum(1, keepdim=True), torch.arange(256).double() / 255
    mean = share @ value
    return torch.stack([mean, (share @ value.square() - mean.square()).clamp(min=0).sqrt()])


def given_statistics(mean: Sequence[float], std: Sequence[float], channels: int) -> Tensor:
    """The same from given numbers.

    Args:
        mean: one per channel.
        std: one per channel, above 0.
        channels: of the images.

    Returns:
        (2, channels).

    Raises:
        OptionError: the numbers do not fit the channels, or a deviation is not above 0.
    """
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise OptionError(
            f"mean and std need {channels} numbers each, one per channel, std above 0; got mean={mean}, std={std}"
        )
    return torch.tensor([mean, std])


CropMode = Literal["constant", "reflect"]


def make_augmentation(
    size: tuple[int, int], crop_padding: int, flip: bool, others: Sequence[nn.Module], crop_mode: CropMode = "constant"
) -> nn.Module:
    """Random crop, random mirror image, then the others; nothing at all where nothing is asked for.

    Args:
        size: (height, width) of the images, in pixels.
        crop_padding: pixels added on every side before a random crop back to size; 0 is off.
        flip: mirror left to right with probability 1/2.
        others: modules on batches of floats in [0, 1].
        crop_mode: what is added: "constant" is black, "reflect" mirrors the image at its border.

    Returns:
        a module on batches of floats in [0, 1].

    Raises:
        OptionError: the border is wider than what can be mirrored.
    """
    if crop_mode == "reflect" and crop_padding >= min(size):
        raise OptionError(
            f"crop_padding must be below the side of the images, {min(size)}, to be mirrored, got {crop_padding}; give "
            "less, or crop_mode='constant'"
        )
    steps: list[nn.Module] = []
    if crop_padding or flip:
        import kornia.augmentation as K  # takes a second and a half to import, so only where it is used

        if crop_padding:
            steps.append(K.RandomCrop(size, padding=crop_padding, padding_mode=crop_mode, cropping_mode="slice"))
        if flip:
            steps.append(K.RandomHorizontalFlip(p=0.5))
    return nn.Sequential(*steps, *others)


class Normaliser:
    """Subtracts the mean and divides by the standard deviation, per channel.

    Args:
        statistics: (2, channels): means and standard deviations of pixels in [0, 1].
    """

    def __init__(self, statistics: Tensor) -> None:
        self.mean, self.std = statistics.float().clamp(min=torch.tensor([[-torch.inf], [1e-3]]))
        self._scale = torch.stack([self.mean, self.std])[:, None, :, None, None]

    def __call__(self, floats: Tensor) -> Tensor:
        """Normalises a batch.

        Args:
            floats: (batch, channels, height, width), pixels in [0, 1].

        Returns:
            same shape.
        """
        if self._scale.device != floats.device:  # kept there: one transfer per device, not one per batch
            self._scale = self._scale.to(floats.device)
        return (floats - self._scale[0]) / self._scale[1]
