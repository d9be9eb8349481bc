"""One run on several workers: the same as on one, to rounding; the same bits when repeated."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from workers import together

from akd import checkpoint
from akd.config import Experiment, resolve
from akd.data import DataConfig, TrainData, load, split
from akd.data.batch import Batch, rand
from akd.data.loader import DeviceLoader
from akd.ddp import Group
from akd.errors import DivergedError, ExperimentError
from akd.fit import fit, metrics_equal
from akd.methods import Method
from akd.metrics import Mean, evaluate
from akd.models import Output, seeded_model
from akd.models.norm import BatchNorm
from akd.step import Stepper
from akd.teacher import LiveTeacher
from akd.world import ALONE, World

ANGULAR = {"host": {"name": "kd", "weight": 2.0}, "views": {"name": "angular_kd", "count": 3, "head_warmup_epochs": 1}}


def images() -> TrainData:
    """270 training images: four steps of 64 an epoch; 30 validation images."""
    config = DataConfig(subset=300)
    return split(config, load(config))


def experiment(method: Any, **train: Any) -> Experiment:
    return resolve({"method": method, "train": {"lr": 0.1, "precision": "float64", **train}})


def train(world: World, method: Any, settings: dict[str, Any], start: Path | None = None, save: Any = None) -> Any:
    """Metrics and weights of a run, as plain values."""
    given = experiment(method, **settings)
    teacher = seeded_model("wrn_16_1", 10, seed=77, in_channels=1)
    teacher = teacher.double() if given.train.precision == "float64" else teacher
    source = LiveTeacher(teacher, given.method.needs) if given.needs_teacher else None
    kept: dict[str, Tensor] = {}

    def keep(record: Any) -> None:
        kept.update({f"method.{k}": v.clone() for k, v in record.state.method.state_dict().items()})
        if save is not None and world.rank == 0:
            record.state.save(save, keep=9)

    result = fit(given, images(), source, start=start, report=keep, world=world)
    weights = {k: v.clone() for k, v in result.student.state_dict().items()}
    return result.history, weights | kept


REVIEW = {"host": {"name": "reviewkd", "ramp_epochs": 2}}
RELATIONS = {"host": {"name": "sp", "weight": 100.0}, "extra": {"crd": {"form": "batch", "width": 16}, "fitnet": {}}}
MGD = {
    "host": {"name": "kd", "weight": 2.0},
    "views": {"name": "mgd", "width_low": 8, "width_high": 16, "head_warmup_epochs": 1},
}


def furthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest difference of two sets of weights."""
    assert a.keys() == b.keys()
    return max(float((a[k].double() - b[k].double()).abs().max()) for k in a)


METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "none": ("none", {"ema": 0.9}),
    "kd-clip": ("kd", {"grad_clip": 1.0, "schedule": "restarts", "ema": "auto"}),
    "angular": (ANGULAR, {}),
    "picked": ({"host": "kd", "augment": {"name": "cutmix_pick", "pool": 3}}, {}),
    "second-view-relational": ({"host": "dist", "augment": "randaugment"}, {}),
}


@pytest.mark.parametrize("name", METHODS)
def test_twenty_steps_on_two_and_three_workers_equal_one_in_float64(name: str, tmp_path: Path) -> None:
    method, settings = METHODS[name]
    settings = {"epochs": 5, **settings}  # 20 steps; 64 images are 21 or 22 for each of three workers
    history, weights = train(ALONE, method, settings)
    # Three workers share unevenly: tried with plain terms, with gathered ones, and with rows that were picked.
    for size in (2, 3) if name in ("none", "angular", "picked") else (2,):
        results = together(size, tmp_path / str(size), train, method, settings)
        same((history, weights), results)


def same(one: Any, others: list[Any]) -> None:
    """Metrics and weights of a run alone and of the same run on workers."""
    for history, weights in others:
        assert furthest(one[1], weights) < 1e-9
        for mine, other in zip(one[0], history, strict=True):
            assert mine.keys() == other.keys()
            for key in mine.keys() - {k for k in mine if k.startswith("time/")}:
                assert other[key] == pytest.approx(mine[key], rel=1e-8, abs=1e-9), key
    # What is told is told alike by all: decisions hang on it.
    assert all(metrics_equal(a, b) for a, b in zip(others[0][0], others[1][0], strict=True))
    assert all(furthest(others[0][1], other) == 0 for _, other in others[1:])


#: Of methods like these: means over samples behind batch normalisation of their own, relations beside them, branches.
KINDS: dict[str, Any] = {"reviewkd": REVIEW, "sp, crd and fitnet": RELATIONS, "mgd": MGD}


@pytest.mark.parametrize("name", KINDS)
def test_steps_of_methods_with_modules_of_their_own_on_two_workers_equal_one_in_float64(
    name: str, tmp_path: Path
) -> None:
    settings = {"epochs": 2, "batch_size": 129}  # four steps; shares of 64 and 65
    same(train(ALONE, KINDS[name], settings), together(2, tmp_path, train, KINDS[name], settings))


def test_a_method_that_is_not_relational_sees_its_share() -> None:
    assert not experiment(REVIEW).method.relational
    assert not experiment(MGD).method.relational
    assert experiment(RELATIONS).method.relational


def branches(world: World) -> tuple[list[dict[str, Tensor]], bool]:
    """MGD's branches after each student epoch, and whether the optimizer met a gradient of theirs in these epochs."""
    seen: list[dict[str, Tensor]] = []
    gradients: list[bool] = []
    given = experiment(MGD, epochs=2, batch_size=129, weight_decay=0.1, precision="float32")
    source = LiveTeacher(seeded_model("wrn_16_1", 10, seed=77, in_channels=1), given.method.needs)

    def own(record: Any) -> dict[str, Tensor]:
        views = record.state.method.views
        return {k: v.clone() for k, v in views.state_dict().items() if k.split(".")[0] in ("encoder", "decoder")}

    def heads(record: Any) -> None:
        seen.append(own(record))
        views = record.state.method.views
        rest = {id(p) for part in (views.encoder, views.decoder) for p in part.parameters()}
        step = record.state.optimizer.step

        def watched() -> None:
            gradients.extend(p.grad is not None for p in record.state.parameters if id(p) in rest)
            step()

        record.state.optimizer.step = watched

    fit(given, images(), source, report=lambda r: seen.append(own(r)), report_heads=heads, world=world)
    assert len(gradients) > 0
    return seen, any(gradients)


def test_resting_branches_keep_their_bits_on_two_workers(tmp_path: Path) -> None:
    """A gradient of 0 would not do: weight decay and momentum would move them."""
    for seen, touched in (branches(ALONE), *together(2, tmp_path, branches)):
        assert len(seen) == 3  # after the head epoch and two of the student
        assert not touched
        for later in seen[1:]:
            assert furthest(seen[0], later) == 0


@pytest.mark.parametrize("name", METHODS)
def test_one_step_in_float32(name: str, tmp_path: Path) -> None:
    method, settings = METHODS[name]
    settings = {**settings, "epochs": 1, "batch_size": 256, "precision": "float32"}  # 270 images: one step
    _, weights = train(ALONE, method, settings)
    for _, theirs in together(2, tmp_path, train, method, settings):
        assert furthest(weights, theirs) < 1e-5


def twice_and_resumed(world: Group, folder: Path) -> Any:
    settings = {"epochs": 3, "precision": "float32", "ema": 0.9}
    whole = train(world, ANGULAR, settings, save=folder)
    again = train(world, ANGULAR, settings)
    torch.distributed.barrier()
    paths = checkpoint.all_checkpoints(folder)
    resumed = [train(world, ANGULAR, settings, start=path) for path in paths]
    return whole, again, resumed


def test_repeated_and_resumed_on_two_workers_gives_the_same_bits(tmp_path: Path) -> None:
    for whole, again, resumed in together(2, tmp_path, twice_and_resumed, tmp_path / "kept"):
        assert len(resumed) == 3
        for history, weights in (again, *resumed):
            assert all(metrics_equal(a, b) for a, b in zip(whole[0], history, strict=True))
            assert furthest(whole[1], weights) == 0


def without_synchronisation(world: Group) -> Any:
    return train(world, "none", {"epochs": 1, "sync_batchnorm": False})


def test_batch_statistics_matter(tmp_path: Path) -> None:
    _, weights = train(ALONE, "none", {"epochs": 1})
    for _, theirs in together(2, tmp_path, without_synchronisation):
        assert furthest(weights, theirs) > 1e-4


def traced(world: World) -> Any:
    """A compiled run, through torch.compile's front end: the code generator needs a compiler."""
    real = torch.compile
    with mock.patch.object(torch, "compile", lambda net, **options: real(net, backend="aot_eager", dynamic=False)):
        return train(world, "kd", {"epochs": 1, "compile": "on"})


def test_a_compiled_student_on_two_workers_takes_the_steps_of_one(tmp_path: Path) -> None:
    one = train(ALONE, "kd", {"epochs": 1})
    assert furthest(one[1], traced(ALONE)[1]) < 1e-9
    same(one, together(2, tmp_path, traced))


# -- batch normalisation ---------------------------------------------------------------------------


def normalise(world: Group, shape: tuple[int, ...], settings: dict[str, Any]) -> list[float]:
    """Differences of two steps over the workers from the same steps alone."""
    torch.manual_seed(0)
    kind = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
    alone = kind(shape[1], dtype=torch.float64, **settings)
    if alone.affine:
        nn.init.uniform_(alone.weight)
        nn.init.uniform_(alone.bias)
    shared = world.synchronised(copy.deepcopy(alone))
    assert isinstance(shared, BatchNorm)
    differences = []
    for _ in range(2):
        x = (3 * torch.randn(*shape, dtype=torch.float64) + 100).requires_grad_()
        wanted = torch.randn(*shape, dtype=torch.float64)
        low, high = world.share(len(x))
        part = x[low:high].detach().requires_grad_()
        outputs = [alone(x), shared(part)]
        for module, y, target in ((alone, outputs[0], wanted), (shared, outputs[1], wanted[low:high])):
            module.zero_grad()
            (y - target).square().sum().backward()
        assert x.grad is not None
        assert part.grad is not None
        differences += [outputs[1] - outputs[0][low:high], part.grad - x.grad[low:high]]
        for mine, theirs in zip(shared.parameters(), alone.parameters(), strict=True):
            assert mine.grad is not None
            differences.append(world.sum(mine.grad) - theirs.grad)
    kept, expected = shared.state_dict(), alone.state_dict()
    assert kept.keys() == expected.keys()
    differences += [kept[k].double() - expected[k].double() for k in kept]
    differences.append(shared.eval()(x) - alone.eval()(x))
    return [float(d.detach().abs().max()) for d in differences]


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((7, 3, 4, 5), {}),
        ((7, 3, 4, 5), {"affine": False}),
        ((7, 3, 4, 5), {"track_running_stats": False}),
        ((9, 6), {}),
        ((5, 3, 8), {}),
    ],
    ids=str,
)
def test_batch_normalisation_over_workers_against_torch(
    shape: tuple[int, ...], settings: dict[str, Any], tmp_path: Path
) -> None:
    """Also of shares of different sizes: the count of rows weighs each worker's statistics."""
    for differences in together(3, tmp_path, normalise, shape, settings):
        assert max(differences) < 1e-9


def test_batch_normalisation_keeps_parameters_and_names() -> None:
    net = seeded_model("resnet8", 10, seed=0, in_channels=1)
    before = {k: v.data_ptr() for k, v in net.state_dict().items()}
    assert {k: v.data_ptr() for k, v in Group(0, 1).synchronised(net).state_dict().items()} == before
    assert not any(type(m) is nn.BatchNorm2d for m in net.modules())


# -- gathering and counting --------------------------------------------------------------------------


def gathered(world: Group) -> Any:
    x = torch.arange(14.0).view(7, 2)
    low, high = world.share(7)
    mine = x[low:high].clone().requires_grad_()
    everything = world.gather(mine, 7)
    (everything**2).sum().backward()
    labels = world.gather(torch.arange(7)[low:high], 7)
    assert mine.grad is not None
    return everything.detach(), mine.grad, (low, high), labels


def test_gather_joins_shares_of_different_sizes_and_sends_gradients_back(tmp_path: Path) -> None:
    x = torch.arange(14.0).view(7, 2)
    for everything, grad, (low, high), labels in together(3, tmp_path, gathered):
        assert torch.equal(everything, x)
        assert torch.equal(labels, torch.arange(7))
        assert torch.equal(grad, 3 * 2 * x[low:high])  # times three: the workers' gradients are averaged later


def counted(world: Group) -> Any:
    net = seeded_model("resnet8", 10, seed=0, in_channels=1)
    data = images()
    rows = data.val[:2]  # the third worker has none
    low, high = world.share(2)
    loader = DeviceLoader(
        data, batch_size=4, seed=0, plan_seed=0, device=torch.device("cpu"), dtype=torch.float32, world=world
    )
    means = Mean()
    means.add("x", torch.tensor(float(world.rank)), 1 + world.rank)
    mine = evaluate(net, loader.plain(rows[low:high]), world)
    return mine, evaluate(net, loader.plain(rows)), means.read(world), world.any(world.rank == 1), world.any(False)


def test_metrics_are_those_of_all_workers(tmp_path: Path) -> None:
    for shared, alone, means, one, nobody in together(3, tmp_path, counted):
        assert shared["accuracy"] == alone["accuracy"]
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-6)
        assert means == {"x": pytest.approx((0 + 1 * 2 + 2 * 3) / 6)}
        assert (one, nobody) == (True, False)


# -- errors --------------------------------------------------------------------------------------------


def diverging(world: Group) -> list[str]:
    with pytest.raises(DivergedError) as caught:
        train(world, "none", {"epochs": 2, "lr": 1e30, "precision": "float32"})
    return [str(caught.value)]


def test_all_workers_see_a_run_diverge(tmp_path: Path) -> None:
    one, two = together(2, tmp_path, diverging)
    assert one == two
    assert one[0].startswith("diverged in epoch 1")


def test_more_workers_than_images_in_a_batch() -> None:
    with pytest.raises(ExperimentError, match=r"train\.batch_size = 2: must be at least 3, one image for each worker"):
        fit(experiment("none", batch_size=2), images(), None, world=World(0, 3))


# -- parts of a batch ----------------------------------------------------------------------------------


class Linear(nn.Module):
    """A network without batch statistics: parts of a batch add up to the batch exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Output:
        return Output(self.fc(x.flatten(1)), x.flatten(1))


class Drawing(Method):
    """Weighs rows by random numbers, so that draws by place in the batch are seen."""

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        return {"x": (rand(batch, 10) * student.logits).square().mean()}

    def weights(self) -> dict[str, float]:
        return {"x": 2.0}


def gradients(micro_batch: int | None, views: int, world: World = ALONE) -> tuple[Tensor, float, Tensor]:
    """Of one step on ten images: the gradient, the loss, and where the random numbers stand afterwards."""
    torch.manual_seed(0)
    net, method = Linear(), Drawing()
    stepper = Stepper(net, method, None, world=world, amp=False, micro_batch=micro_batch)
    x = torch.randn(10 * views, 1, 8, 8)
    low, high = world.share(10)
    rows = torch.cat([view[low:high] for view in torch.arange(10 * views).chunk(views)])
    generator = torch.Generator().manual_seed(1)
    batch = Batch(rows, rows, rows, rows.float(), rows, 1, 0, generator, offset=low, total=10, views=views)
    means = Mean()
    for part in stepper.gradients(x[rows], batch):
        means.add("loss", part.loss, len(part.batch.index))
    assert net.fc.weight.grad is not None
    return net.fc.weight.grad, means.read(world)["loss"], generator.get_state()


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("micro_batch", [1, 3, 5, 9])
def test_parts_of_a_batch_add_up_to_it(micro_batch: int, views: int) -> None:
    whole, loss, state = gradients(None, views)
    grad, again, their_state = gradients(micro_batch, views)
    assert torch.allclose(grad, whole, rtol=1e-5, atol=1e-7)
    assert again == pytest.approx(loss, rel=1e-6)
    assert torch.equal(state, their_state)  # the next step draws the same numbers


def uneven_parts(world: Group) -> list[float]:
    """32 and 33 images in parts of at most 32: as many parts on each worker, or batch statistics would wait forever."""
    result, _ = train(world, "none", {"epochs": 1, "batch_size": 65, "micro_batch": 32, "precision": "float32"})
    return [result[0]["train/loss"]]


def test_workers_with_uneven_shares_have_as_many_parts(tmp_path: Path) -> None:
    one, two = together(2, tmp_path, uneven_parts)
    assert one == two


def in_parts(world: Group) -> Tensor:
    return gradients(2, 2, world)[0]


def test_parts_on_workers_add_up_to_the_batch(tmp_path: Path) -> None:
    """The gradient of a part stays with its worker until the last one; then all are in the mean."""
    whole, _, _ = gradients(None, 2)
    for grad in together(3, tmp_path, in_parts):
        assert torch.allclose(grad, whole, rtol=1e-5, atol=1e-7)


def test_parts_of_a_batch_and_a_relational_method() -> None:
    with pytest.raises(ExperimentError, match=r"train\.micro_batch = 8: cannot be combined with angular_kd over kd"):
        train(ALONE, ANGULAR, {"epochs": 1, "micro_batch": 8})
