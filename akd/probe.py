"""Linear-probe transfer: how well a frozen network's embedding separates the classes of another data set.

Features of that data's training images, resized to what the network takes, are standardised; a multinomial logistic
regression on them is fitted to the end by L-BFGS in float64 from zeros, so it has no learning rate and no seed. Its
penalty is the one that is best on a tenth of the training images, held out by class; with it all of them are fitted
again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from akd.data.dataset import Dataset, stratified
from akd.data.loader import batch_of, gather
from akd.errors import ExperimentError
from akd.evaluation import Network

#: Weights of half the squared norm, strongest first: each fit starts where the stronger one ended.
PENALTIES = tuple(10.0**k for k in range(1, -7, -1))
HELD_OUT = 0.1


def check(dataset: Dataset, network: Network) -> None:
    """Refuse data the network cannot be shown, or that has nothing to hold out.

    Raises:
        ExperimentError: colour for a network of grey images, or fewer than two classes or twenty images.
    """
    if dataset.channels not in (1, network.channels):
        problem = f"has {dataset.channels} channels, {network.name} takes {network.channels}"
        raise ExperimentError(problem, key="--transfer", value=dataset.name)
    if len(dataset.classes) < 2 or len(dataset.labels) < 20:
        problem = f"has {len(dataset.classes)} classes and {len(dataset.labels)} training images; needs 2 and 20"
        raise ExperimentError(problem, key="--transfer", value=dataset.name)


def features(network: Network, dataset: Dataset, images: Tensor, device: torch.device | str) -> Tensor:
    """Embeddings [n, D], float64 on the device, of images of the file as the network would see its own.

    Grey images are repeated for a network of colour images; other sizes are resampled (bilinear, antialiased).
    """
    found = []
    for rows in torch.arange(len(images)).split(min(batch_of(*size, device) for size in (dataset.size, network.size))):
        batch = dataset.plain(gather(images, rows, torch.device(device)))
        if batch.shape[1] != network.channels:
            batch = batch.expand(-1, network.channels, -1, -1)
        if batch.shape[2:] != network.size:
            batch = F.interpolate(batch.float(), network.size, mode="bilinear", antialias=True)
        found.append(network(batch).embedding.double())
    return torch.cat(found)


def fit(
    x: Tensor, y: Tensor, classes: int, penalty: float, start: Tensor | None = None, iterations: int = 500
) -> Tensor:
    """W [C, D + 1], bias last, that minimises mean CE(W x, y) + penalty / 2 |W without bias|^2.

    Args:
        x: [n, D] float64.
        y: [n].
        start: where to begin; zeros.
        iterations: at most so many; without a penalty to speak of, separable classes have no optimum to reach.
    """
    w = torch.zeros(classes, x.shape[1] + 1, dtype=x.dtype, device=x.device) if start is None else start.clone()
    w.requires_grad_()
    solver = torch.optim.LBFGS(
        [w],
        max_iter=iterations,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(scores(w, x), y) + penalty / 2 * w[:, :-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    return w.detach()


def scores(w: Tensor, x: Tensor) -> Tensor:
    """Logits [n, C] of features [n, D]."""
    return F.linear(x, w[:, :-1], w[:, -1])


def _accuracy(w: Tensor, x: Tensor, y: Tensor) -> float:
    return (scores(w, x).argmax(1) == y).double().mean().item()


def linear_probe(
    x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor, classes: int, penalties: Sequence[float] = PENALTIES
) -> dict[str, float]:
    """Test accuracy of a linear classifier on features.

    Args:
        x, test_x: [n, D] float64.
        y, test_y: [n].
        penalties: to choose from, strongest first; of equals the stronger.

    Returns:
        ``top1`` on the test features, and the chosen ``penalty`` with its accuracy on the held-out part, ``val_top1``.
    """
    mean, std = x.mean(0), x.std(0)
    std = torch.where(std > 0, std, torch.ones_like(std))  # a unit that is always off
    x, test_x = (x - mean) / std, (test_x - mean) / std
    everything = torch.arange(len(y))
    labels = y.cpu()
    val = stratified(labels, everything, max(1, round(HELD_OUT * len(y))), "probe")
    train = everything[~torch.isin(everything, val)].to(x.device)
    val = val.to(x.device)
    best, chosen, w = -1.0, penalties[0], None
    for penalty in penalties:
        w = fit(x[train], y[train], classes, penalty, w, iterations=100)  # each goes on from the last
        accuracy = _accuracy(w, x[val], y[val])
        if accuracy > best:
            best, chosen = accuracy, penalty
    final = fit(x, y, classes, chosen)
    return {"top1": _accuracy(final, test_x, test_y), "penalty": chosen, "val_top1": best}


def transfer(network: Network, dataset: Dataset, device: torch.device | str) -> dict[str, float]:
    """:func:`linear_probe` of a network on a data set it was not trained for.

    Raises:
        ExperimentError: see :func:`check`.
    """
    check(dataset, network)
    x, test_x = (features(network, dataset, images, device) for images in (dataset.images, dataset.test_images))
    y, test_y = dataset.labels.to(device), dataset.test_labels.to(device)
    return linear_probe(x, y, test_x, test_y, len(dataset.classes))
