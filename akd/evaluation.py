"""``akd evaluate``: how good networks are on the test images, side by side.

Every network sees the same pictures in its own normalisation; noise is added to the pictures before that. Nothing here
knows MLflow; :mod:`akd.evaluation_log` writes what was found.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from akd.data.augment import normalise
from akd.data.dataset import DataConfig, Dataset, load, readers
from akd.data.loader import held_out_images
from akd.errors import ExperimentError, reason
from akd.folder import COMPLETE, Run, history
from akd.metrics import Scores
from akd.models import Output, check_images, create_model, load_weights, networks
from akd.models.layout import channels_last
from akd.seeds import generator
from akd.teacher.keep import load_student, read_config

#: Standard deviations of the noise, in units of the 0..1 range of pixels.
NOISE = (0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Network:
    """A network to evaluate.

    Attributes:
        name: as it was asked for: a model's name, or a folder.
        net: on the device, in eval mode.
        mean, std: of its own normalisation, per channel.
        size, channels: of the images it takes.
        folder: of a student that was handed over.
    """

    name: str
    net: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    channels: int
    folder: Path | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Output:
        """Outputs for images of 0..255, [B, C, H, W]."""
        mean, std = (torch.tensor(v, dtype=torch.float64, device=images.device) for v in (self.mean, self.std))
        output: Output = self.net(normalise(images, mean, std))
        return output


@dataclass(frozen=True)
class Asked:
    """A network as the user names it; ``flags`` are the words for it in messages.

    Attributes:
        model: a name as for :func:`akd.models.create_model`, a folder with a student that akd handed over, or a
            run's or teacher's folder with such a student inside.
        weights: file of the network's weights; may be missing where the factory brings them.
        mean, std: the network's normalisation per channel; default the data set's, or the folder's.
        flags: how the network and its weights, mean and std were given.
    """

    model: str
    weights: Path | None = None
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    taps: Sequence[str] = ()
    flags: tuple[str, str, str, str] = ("--model", "--weights", "--mean", "--std")


def handed_over(model: str) -> Path | None:
    """The folder with ``config.json`` and weights that ``model`` names: itself, or ``student/`` in it."""
    folder = Path(model).expanduser()
    try:
        return next((f for f in (folder, folder / "student") if (f / "config.json").is_file()), None)
    except OSError:  # a name longer than the system takes
        return None


def teacher_of(model: str) -> str:
    """The folder of its teacher where ``model`` is a study's; else ``model``."""
    folder = Path(model).expanduser()
    try:
        tags = json.loads((folder / "run.json").read_text(encoding="utf-8"))["tags"]
        found = folder.absolute().parent / "teachers" / tags["teacher_hash"]
    except (OSError, ValueError, KeyError, TypeError):
        return model
    return str(found) if handed_over(str(found)) else model


def _is_folder(model: str) -> bool:
    try:
        return Path(model).expanduser().is_dir()
    except OSError:
        return False


def open_network(asked: Asked, dataset: Dataset, device: torch.device | str) -> Network:
    """The network, ready for the images of a data set.

    Raises:
        ExperimentError: data, model, weights or normalisation do not fit together.
    """
    folder, channels, size = handed_over(asked.model), dataset.channels, dataset.size
    mean, std = tuple(asked.mean), tuple(asked.std)
    for key, value in ((asked.flags[2], mean), (asked.flags[3], std)):
        if (value or mean or std) and len(value) != channels:
            problem = f"must have {channels} values, one for each channel, together with mean or std"
            raise ExperimentError(problem, key=key, value=list(value))
        if any(not math.isfinite(v) or (key == asked.flags[3] and v <= 0) for v in value):
            problem = f"must be finite numbers{' above 0' if key == asked.flags[3] else ''}"
            raise ExperimentError(problem, key=key, value=list(value))
    if folder is None:
        net = _named(asked, dataset)
        mean, std = mean or dataset.mean, std or dataset.std
    else:
        config = _fitting(asked, folder, dataset)
        own = config["normalise"]
        mean, std = mean or tuple(own["mean"]), std or tuple(own["std"])
        net = _kept(asked, folder)
    return Network(asked.model, net.to(device).eval(), mean, std, size, channels, folder)


def _fitting(asked: Asked, folder: Path, dataset: Dataset) -> dict[str, Any]:
    """What a handed-over student's folder says, if the student can be tested on this data.

    Raises:
        ExperimentError: it cannot, or the folder is damaged.
    """
    if asked.weights is not None:
        raise ExperimentError(
            "has no effect: the folder holds its weights", key=asked.flags[1], value=str(asked.weights)
        )
    try:
        config = read_config(folder)
        theirs = (int(config["num_classes"]), int(config["in_channels"]), *map(int, config["image_size"]))
        config["normalise"]["mean"], config["normalise"]["std"]
    except ExperimentError as error:
        raise _of(asked, error) from None
    except (ValueError, KeyError, TypeError) as error:
        problem = f"{folder / 'config.json'} is not what akd hands over: {type(error).__name__}: {reason(error)}"
        raise ExperimentError(problem, key=asked.flags[0], value=asked.model) from None
    mine = (len(dataset.classes), dataset.channels, *dataset.size)
    if theirs != mine:
        words = ["{} classes and {} channels of {}x{}".format(*v) for v in (theirs, mine)]
        raise ExperimentError(
            f"is made for {words[0]}, {dataset.name} has {words[1]}", key=asked.flags[0], value=asked.model
        )
    return config


def _kept(asked: Asked, folder: Path) -> nn.Module:
    run = Run.read(folder.parent)
    if run is not None and run.kind in ("teacher", "single") and run.state != COMPLETE:
        # Its last checkpoint may be any epoch's: numbers of it would be taken for the trained network's.
        done = len(history(folder.parent))
        raise ExperimentError(
            f"is not trained to its end: it is {run.state} after {done} epoch{'s' * (done != 1)}",
            key=asked.flags[0],
            value=asked.model,
        )
    try:
        return load_student(folder)
    except ExperimentError as error:
        raise _of(asked, error) from None


def _of(asked: Asked, error: ExperimentError) -> ExperimentError:
    """A mistake in a folder as one of the flag that named the folder."""
    return ExperimentError(f"{error.value}: {error.problem}", key=asked.flags[0], value=asked.model)


def _named(asked: Asked, dataset: Dataset) -> nn.Module:
    model, key = asked.model, asked.flags[0]
    if _is_folder(model):
        problem = "holds no student that akd handed over: there is no config.json in it, nor in a student/ in it"
        winner = Path(model).expanduser() / "champion"
        problem += f"; the winner of the study is {winner}" if handed_over(str(winner)) else ""
        raise ExperimentError(problem, key=key, value=model)
    if ":" not in model and len(Path(model).parts) > 1:  # no name has a slash
        raise ExperimentError("there is no such folder", key=key, value=model)
    if asked.weights is None and networks.registered(model):
        raise ExperimentError(f"has random weights; give a file with {asked.flags[1]}", key=key, value=model)
    size = dataset.size
    try:
        check_images(model, *size)
        net = create_model(model, len(dataset.classes), in_channels=dataset.channels, image_size=size, taps=asked.taps)
    except ExperimentError as error:
        raise ExperimentError(error.problem, key=key, value=model) from None
    if asked.weights is not None:
        try:
            load_weights(net, asked.weights)
        except ExperimentError as error:
            raise ExperimentError(error.problem, key=asked.flags[1], value=str(asked.weights)) from None
    return channels_last(net.eval(), torch.zeros(1, dataset.channels, *size))


def evaluate_networks(
    dataset: Dataset,
    tested: Sequence[Network],
    *,
    teacher: Network | None = None,
    noise: Sequence[float] = (),
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[dict[str, float]]:
    """Scores of every network on the test images, in one pass over them.

    Args:
        teacher: whom the networks are compared with.
        noise: standard deviations of Gaussian noise, in units of the 0..1 range of pixels. A picture gets one draw,
            the same for every network and, scaled, for every strength; what leaves 0..1 is cut off.
        seed: of the noise, which is drawn on the CPU: the same on every machine.

    Returns:
        For each network what :meth:`akd.metrics.Scores.read` gives, and ``noise_<strength>_top1``.
    """
    scores = [Scores(len(dataset.classes)) for _ in tested]
    draws = generator("evaluation noise", seed)
    for images, labels in held_out_images(dataset, device):
        known = None if teacher is None else teacher(images).logits
        for network, score in zip(tested, scores, strict=True):
            score.add(network(images).logits, labels, known)
        if not noise:
            continue
        grain = torch.randn(images.shape, generator=draws).to(images.device)
        for strength in noise:
            rough = (images.float() + 255 * strength * grain).clamp_(0, 255)
            for network, score in zip(tested, scores, strict=True):
                score.add_variant(f"noise_{strength:g}", network(rough).logits, labels)
    return [score.read() for score in scores]


def evaluate_model(
    data: DataConfig,
    model: str,
    weights: Path | None = None,
    *,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    taps: Sequence[str] = (),
    device: torch.device | str | None = None,
) -> dict[str, float]:
    """Scores of one network on the test images of a data set, without noise; arguments as of :class:`Asked`.

    Returns:
        ``images``, ``top1`` and, from ten classes on, ``top5`` (0..1), ``nll``, ``ece``.

    Raises:
        ExperimentError: data, model, weights or normalisation do not fit together.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dataset = load(data)
    network = open_network(Asked(model, weights, mean, std, taps), dataset, device)
    return evaluate_networks(dataset, [network], device=device)[0]


def sized_for(data: DataConfig, asked: Sequence[Asked]) -> DataConfig:
    """Where images can have any size, and none was said, that of the first student that was handed over."""
    if data.image_size is not None or "image_size" not in readers.info(data.name).get("options", ()):
        return data
    for folder in (f for f in (handed_over(a.model) for a in asked) if f is not None):
        try:
            size = json.loads((folder / "config.json").read_text(encoding="utf-8"))["image_size"]
            return replace(data, image_size=int(size[0]))
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            continue  # said better where the folder is opened
    return data
