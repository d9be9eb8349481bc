"""``akd data score``: which augmentation a teacher has most to say about, without training a student.

The criterion "T. stddev" of Wang et al. 2022 (arXiv:2012.02909): for subsets of augmented images take the
teacher's mean probability of each class, then the standard deviation of these means over the subsets, then the mean
over the classes. The lower it is, the lower the students' test loss was. A second view counts beside the standard one,
as it does in training: a subset of 320 images then has 640 probabilities.

The released code divides by the number of subsets; here it is one less, so that few subsets and many compare.
"""

from __future__ import annotations

import argparse
import html
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from akd.data import DataConfig, TrainData, load, split
from akd.data.loader import DeviceLoader
from akd.data.pick import Scorer, entropy
from akd.data.policies import augments, create_policy
from akd.errors import ExperimentError
from akd.evaluate_verb import numbers
from akd.evaluation import Asked, open_network, sized_for, teacher_of
from akd.models import Output
from akd.teacher.keep import read_config
from akd.teacher.source import Renormalised
from akd.world import ALONE

#: The recipe's subsets: 5 batches of 64 images.
BATCH, BATCHES = 64, 5
DESCRIPTION = (
    "Rank augmentations for a teacher, without training a student: the less the teacher's mean probabilities vary "
    "between subsets of augmented images (T. stddev), the lower students' test losses were. Prints a table, best "
    "first, and writes a page with bars."
)
STANDARD = "standard view alone"


@dataclass(frozen=True)
class Score:
    """One augmentation's score.

    Attributes:
        name: of the policy.
        stddev: T. stddev; lower is better.
        error: its standard error, by leaving out one subset after the other.
        entropy: mean entropy of the teacher on the images scored, in nats.
        subsets: how many.
    """

    name: str
    stddev: float
    error: float
    entropy: float
    subsets: int


def t_stddev(means: Tensor) -> float:
    """T. stddev of the mean probabilities [m, C] of m >= 2 subsets."""
    return means.double().std(0).mean().item()


def standard_error(means: Tensor) -> float:
    """Standard error of :func:`t_stddev` by the jackknife; NaN for fewer than three subsets."""
    m = len(means)
    if m < 3:
        return math.nan
    without = torch.tensor([t_stddev(torch.cat([means[:i], means[i + 1 :]])) for i in range(m)], dtype=torch.float64)
    return math.sqrt((m - 1) / m * (without - without.mean()).square().sum().item())


def default_policies() -> dict[str, Any]:
    """Every policy at its defaults; candidates are picked by the teacher, there being no student."""
    made = {name: augments.info(name)["config"](form="only") for name in augments.names()}
    pick = augments.info("cutmix_pick")["config"]
    return made | {"cutmix_pick": pick(form="only", criterion="teacher_entropy")}


@torch.no_grad()
def _batches(
    teacher: Callable[[Tensor], Output], data: TrainData, config: Any, epochs: int, seed: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """The teacher's mean probabilities [C] and mean entropy [] of each batch's views, one view of each image."""
    policy = create_policy(config, data)
    loader = DeviceLoader(
        data,
        batch_size=BATCH,
        seed=seed,
        plan_seed=seed,
        device=device,
        dtype=torch.float32,
        world=ALONE,
        policy=policy,
    )
    if policy is not None and policy.criterion:
        loader.score = Scorer(policy.criterion, 1.0, nn.Identity(), lambda images, _: teacher(images))
    for epoch in range(1, epochs + 1):
        for images, _ in loader.epoch(epoch):
            logits = teacher(images).logits
            yield logits.double().softmax(1).mean(0), entropy(logits.double()).mean()


def score_policies(
    teacher: Callable[[Tensor], Output],
    data: TrainData,
    policies: dict[str, Any],
    *,
    epochs: int = 5,
    seed: int = 0,
    device: torch.device | str = "cpu",
    advance: Callable[[str], None] = lambda name: None,
) -> list[Score]:
    """Policies by T. stddev, best first, the standard view alone among them.

    Every policy sees the same images in the same subsets, so that scores differ by what the policies do.

    Args:
        teacher: images, normalised as the data set's -> Output.
        data: its training rows are augmented.
        policies: name -> config of :mod:`akd.data.policies`; the form does not matter.
        epochs: passes over the training rows.
        seed: of order and augmentation.
        advance: called with each name before it is scored.

    Raises:
        ExperimentError: too few images for two subsets; a policy cannot be used on the images.
    """
    subsets = epochs * (len(data.train) // BATCH) // BATCHES
    if subsets < 2:
        problem = f"gives {subsets} subsets of {BATCH * BATCHES} images from {len(data.train)}; at least 2 are needed"
        raise ExperimentError(problem, key="--epochs", value=epochs)

    def rows(config: Any) -> tuple[Tensor, Tensor]:
        """Mean probabilities [subsets, BATCHES, C] and entropies [subsets, BATCHES]."""
        found = list(_batches(teacher, data, config, epochs, seed, torch.device(device)))[: subsets * BATCHES]
        means, spread = (torch.stack(v).unflatten(0, (subsets, BATCHES)).cpu() for v in zip(*found, strict=True))
        return means, spread

    advance(STANDARD)
    standard, spread = rows(None)

    def scored(name: str, means: Tensor, spread: Tensor) -> Score:
        subset = means.mean(1)
        return Score(name, t_stddev(subset), standard_error(subset), spread.mean().item(), subsets)

    scores = [scored(STANDARD, standard, spread)]
    for name, config in policies.items():
        advance(name)
        means, spread = rows(replace(config, form="only"))
        scores.append(scored(name, (standard + means) / 2, spread))
    return sorted(scores, key=lambda s: s.stddev)


def plot(scores: Sequence[Score], title: str) -> str:
    """A bar for each score, with its standard error, as a web page that needs nothing else."""
    longest = max(s.stddev + (0 if math.isnan(s.error) else s.error) for s in scores) or 1.0
    left, width, row = 180, 440, 30
    bars = []
    for i, s in enumerate(scores):
        y, end = 12 + row * i, left + width * s.stddev / longest
        bars.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{html.escape(s.name)}</text>')
        colour = "#999" if s.name == STANDARD else "#3b6fb5"
        bars.append(f'<rect x="{left}" y="{y}" width="{end - left:.1f}" height="20" fill="{colour}"/>')
        if not math.isnan(s.error):
            reach = width * s.error / longest
            bars.append(
                f'<line x1="{end - reach:.1f}" x2="{end + reach:.1f}" y1="{y + 10}" y2="{y + 10}" stroke="black"/>'
            )
        bars.append(f'<text x="{left + width + 12}" y="{y + 14}">{s.stddev:.5f}</text>')
    size = f'width="{left + width + 90}" height="{24 + row * len(scores)}"'
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title></head>\n<body style='font-family: sans-serif'>\n"
        f"<h1 style='font-size: 1.2em'>{html.escape(title)}</h1>\n"
        "<p>T. stddev: standard deviation of the teacher's mean class probability over subsets of augmented images. "
        "Lower promises a lower loss of the student. Lines are standard errors.</p>\n"
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-size="13">\n' + "\n".join(bars) + "\n</svg>\n"
        "</body></html>\n"
    )


def _parser(base: type[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = base(prog="akd data score", allow_abbrev=False, description=DESCRIPTION)
    parser.add_argument("--data", required=True, metavar="NAME", help="data set (akd list data)")
    parser.add_argument("--data-dir", metavar="DIR", help="default $AKD_DATA_DIR or ~/.cache/akd/data")
    parser.add_argument(
        "--teacher", metavar="NAME", help="network with its weights; folder of one, or of a study: its teacher"
    )
    parser.add_argument("--teacher-weights", metavar="FILE", help="safetensors, or a file of torch.save")
    parser.add_argument("--mean", metavar="M,M,M", help="the network's normalisation; default the data set's")
    parser.add_argument("--std", metavar="S,S,S", help="goes with --mean")
    parser.add_argument("--augment", metavar="NAMES", help="policies with commas between; default all")
    parser.add_argument("--epochs", type=int, default=5, metavar="N", help="passes over the images; default 5")
    parser.add_argument("--images", type=int, metavar="N", help="use only this many training images")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of order and augmentation; default 0")
    parser.add_argument(
        "--plot", default="augmentations.html", metavar="FILE", help="page with the bars; default augmentations.html"
    )
    return parser


def _asked(args: argparse.Namespace) -> Asked:
    """The teacher that was named."""
    if not args.teacher:
        problem = "is missing: a trained network, --teacher NAME with --teacher-weights FILE, or a folder of one"
        raise ExperimentError(problem, key="--teacher")
    flags = ("--teacher", "--teacher-weights", "--mean", "--std")
    weights = Path(args.teacher_weights).expanduser() if args.teacher_weights else None
    return Asked(
        teacher_of(args.teacher), weights, numbers("--mean", args.mean), numbers("--std", args.std), flags=flags
    )


def _opened(asked: Asked, data: TrainData, device: str) -> tuple[str, nn.Module]:
    """Name and network of a teacher, for images normalised as the data set's."""
    network = open_network(asked, data.dataset, device)
    name = read_config(network.folder)["model"] if network.folder else network.name
    own, theirs = (data.dataset.mean, data.dataset.std), (network.mean, network.std)
    return name, network.net if own == theirs else Renormalised(network.net, *theirs, *own).to(device)


def _chosen(names: str | None) -> dict[str, Any]:
    known = default_policies()
    if names is None:
        return known
    for name in names.split(","):
        augments.get(name, key="--augment")
    return {name: known[name] for name in names.split(",")}


def run(arguments: Sequence[str], base: type[argparse.ArgumentParser] = argparse.ArgumentParser) -> None:
    """The command. ``base`` is the class of its parser."""
    from rich.table import Table

    from akd.terminal import standard_console

    args = _parser(base).parse_args(list(arguments))
    for flag, value in (("--epochs", args.epochs), ("--images", args.images)):
        if value is not None and value < 1:
            raise ExperimentError("must be a whole number >= 1", key=flag, value=value)
    policies = _chosen(args.augment)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    asked = _asked(args)
    config = sized_for(DataConfig(name=args.data, dir=args.data_dir, subset=args.images), [asked])
    data = split(config, load(config))
    name, net = _opened(asked, data, device)
    console = standard_console()
    scores = score_policies(
        net.eval(),
        data,
        policies,
        epochs=args.epochs,
        seed=args.seed,
        device=device,
        advance=lambda each: console.print(f"scoring {each}"),
    )
    title = f"{args.data}: augmentations for {name}"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("augmentation")
    for column in ("T. stddev (lower is better)", "standard error", "teacher's entropy"):
        table.add_column(column, justify="right")
    for s in scores:
        table.add_row(s.name, f"{s.stddev:.5f}", f"{s.error:.5f}", f"{s.entropy:.3f}")
    console.print(table)
    console.print(f"{scores[0].subsets} subsets of {BATCH * BATCHES} images, each beside its standard view")
    file = Path(args.plot)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(plot(scores, title), encoding="utf-8")
    console.print(f"plot: {file}")
