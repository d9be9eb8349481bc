"""A student as others take it: pictures in, logits out, the normalisation inside, nothing of akd's around it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from akd.errors import ExperimentError
from akd.models.adapter import Adapter, logits_of
from akd.models.output import Output
from akd.teacher.keep import load_student, read_config


class Handed(nn.Module):
    """A network that takes pixels of 0..1 and gives logits.

    Args:
        net: a student, in eval mode; gives an :class:`akd.models.Output` or what :func:`logits_of` reads.
        mean, std: per channel, in units of the 0..1 range: the normalisation the student was trained with.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        # The taps of a network that is not akd's are hooks; logits need none of them.
        self.net = net.net if isinstance(net, Adapter) else net
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images_0_to_1: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, C, H, W], float32 of 0..1."""
        result = self.net((images_0_to_1 - self.mean) / self.std)
        return result.logits if isinstance(result, Output) else logits_of(result)


def load_handed(folder: Path | str, device: torch.device | str = "cpu") -> Handed:
    """The student of a folder (``student.safetensors`` with ``config.json``) as a :class:`Handed`.

    It is in eval mode, float32, in torch's default memory layout, and asks for no gradients.

    Raises:
        ExperimentError: see :func:`akd.load_student`; or the normalisation does not fit the images.
    """
    folder = Path(folder)
    net, config = load_student(folder), read_config(folder)
    try:
        own, channels = config["normalise"], int(config["in_channels"])
        mean, std = [float(v) for v in own["mean"]], [float(v) for v in own["std"]]
        if not len(mean) == len(std) == channels or min(std) <= 0:
            raise ValueError(f"its normalisation needs a mean and a std above 0 for each of {channels} channels")
    except (KeyError, TypeError, ValueError) as error:
        problem = f"is not what akd hands over: {type(error).__name__}: {error}"
        raise ExperimentError(problem, key="student", value=str(folder / "config.json")) from None
    handed = Handed(net, mean, std).float().to(device).to(memory_format=torch.contiguous_format)
    return handed.eval().requires_grad_(False)
