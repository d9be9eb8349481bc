"""``akd evaluate``: how good a network is on the test images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from akd.data.dataset import DataConfig, Dataset, load
from akd.data.loader import held_out_batches
from akd.errors import ExperimentError
from akd.models import check_images, create_model, load_weights, networks
from akd.teacher.keep import load_student, read_config


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
    """Accuracy of a network on the test images of a data set.

    Args:
        data: the data set; only name and folder are read.
        model: a name as for :func:`akd.models.create_model`, or a folder with a student that akd handed over.
        weights: file of the network's weights; may be missing where the factory brings them.
        mean, std: the network's normalisation per channel; default the data set's.
        taps: see :func:`akd.models.create_model`.
        device: default the GPU if there is one.

    Returns:
        ``top1`` and, from ten classes on, ``top5`` (0..1), and ``images``, their number.

    Raises:
        ExperimentError: data, model, weights or normalisation do not fit together.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    folder = Path(model).expanduser()
    try:
        handed, is_folder = (folder / "config.json").is_file(), folder.is_dir()
    except OSError as error:  # a name longer than the system takes
        raise ExperimentError(f"cannot be read: {error.strerror}", key="--model", value=model) from None
    if is_folder and not handed:
        problem = "is a folder without config.json and student.safetensors, which a student that akd hands over has"
        raise ExperimentError(problem, key="--model", value=model)
    if handed:
        if weights is not None:
            raise ExperimentError("has no effect: the folder holds its weights", key="--weights", value=str(weights))
        own = read_config(folder)["normalise"]
        mean, std = mean or own["mean"], std or own["std"]
    dataset = _normalised(load(data), mean, std)
    net = load_student(folder) if handed else _network(dataset, model, weights, taps)
    return _scores(net.to(device).eval(), dataset, device)


def _normalised(dataset: Dataset, mean: Sequence[float], std: Sequence[float]) -> Dataset:
    for key, value in (("--mean", mean), ("--std", std)):
        if (value or mean or std) and len(value) != dataset.channels:
            problem = f"must have {dataset.channels} values, one for each channel, together with mean or std"
            raise ExperimentError(problem, key=key, value=list(value))
        if any(not math.isfinite(v) or (key == "--std" and v <= 0) for v in value):
            problem = f"must be finite numbers{' above 0' if key == '--std' else ''}"
            raise ExperimentError(problem, key=key, value=list(value))
    return replace(dataset, mean=tuple(mean), std=tuple(std)) if mean else dataset


def _network(dataset: Dataset, model: str, weights: Path | None, taps: Sequence[str]) -> nn.Module:
    if weights is None and networks.registered(model):
        raise ExperimentError("has random weights; give a file with --weights", key="--model", value=model)
    size = dataset.size
    check_images(model, *size)
    net = create_model(model, len(dataset.classes), in_channels=dataset.channels, image_size=size, taps=taps)
    if weights is not None:
        try:
            load_weights(net, weights)
        except ExperimentError as error:
            raise ExperimentError(error.problem, key="--weights", value=str(weights)) from None
    return net


@torch.no_grad()
def _scores(net: nn.Module, dataset: Dataset, device: torch.device | str) -> dict[str, float]:
    depth = 5 if len(dataset.classes) >= 10 else 1
    hits, images = torch.zeros(depth, dtype=torch.long), 0
    for x, labels in held_out_batches(dataset, device):
        best = net(x).logits.topk(depth).indices
        hits += (best == labels[:, None]).sum(0).cpu()
        images += len(labels)
    scores = {"images": float(images), "top1": hits[0].item() / images}
    return scores | ({"top5": hits.sum().item() / images} if depth == 5 else {})
