"""Every shipped search space, by its own file: it parses, and what it proposes trains."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import optuna
import pytest
import torch

from akd import spaces
from akd.config import Experiment, load
from akd.data import Batch, DataConfig, split
from akd.data import load as load_data
from akd.data.policies import augments
from akd.fit import fit
from akd.methods import Shapes, create_method, hosts, views
from akd.methods.base import needs_of
from akd.models import Output, seeded_model
from akd.space import Parameter, Space, parse
from akd.teacher import LiveTeacher

B, C, PROPOSALS = 16, 10, 60


@pytest.mark.parametrize("name", spaces.names())
class TestShipped:
    def test_header_says_question_and_command(self, name: str) -> None:
        lines = spaces.find(name).read_text(encoding="utf-8").splitlines()
        assert spaces.headline(spaces.find(name)).count("?") >= 1
        assert any(line.startswith("# command: ") and name in line for line in lines)

    def test_proposals_take_a_step(self, name: str) -> None:
        """Digits in the place of a data set that would have to be fetched; two head and two student steps."""
        experiment = load(spaces.find(name), {"data": "digits"})
        space = parse(experiment)
        config = DataConfig(subset=200)
        data = split(config, load_data(config))
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
        teacher = seeded_model(experiment.teacher.name, 10, seed=0, in_channels=1)
        for _ in range(4):
            full = experiment.with_values(space(study.ask()))
            if full.method.warmup_epochs > 1:
                full = full.with_values({"method.views.head_warmup_epochs": 1})
            full = replace(full, train=replace(full.train, epochs=1))
            few = replace(data, train=data.train[: 2 * full.train.batch_size])
            needs = full.method.needs
            source = LiveTeacher(teacher, needs) if needs else None
            result = fit(full, few, source)
            assert result.epochs_run == 1
            assert all(torch.isfinite(torch.tensor(v)) for v in result.history[0].values())

    def test_many_proposals_build_and_take_one_step(self, name: str) -> None:
        """Random corners of the space, on outputs of two networks that are made once."""
        experiment = load(spaces.find(name), {"data": "digits"})
        space = parse(experiment)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=2))
        seen: dict[str, set[object]] = {p.key: set() for p in space.searched}
        for _ in range(PROPOSALS):
            values = space(study.ask())
            for key in seen.keys() & values.keys():
                seen[key].add(str(values[key]))
            take_step(experiment.with_values(values))
        for p in space.searched:  # the draws reached everything there is to choose
            assert p.kind != "choice" or seen[p.key] == {str(c) for c in p.choices}, p.key


def take_step(experiment: Experiment) -> None:
    """Build the method, run it once on random outputs, and go down its gradient."""
    student, teacher = (random_output(seed, dim) for seed, dim in ((1, 24), (2, 32)))
    shapes = Shapes(
        C, 24, 32, tuple(m.shape[1] for m in student.maps), tuple(m.shape[1] for m in teacher.maps), images=B
    )
    method = create_method(experiment.method, shapes)
    student = student._replace(logits=student.logits.requires_grad_())
    zeros = torch.zeros(B, dtype=torch.long)
    target = torch.arange(B) % C
    batch = Batch(torch.arange(B), target, target, torch.ones(B), zeros, 1, 0, torch.Generator().manual_seed(0))
    terms, weights = method(student, teacher, batch), method.weights()
    loss = torch.stack([weights[k] * term for k, term in terms.items()]).sum()
    parameters = [p for group, _ in method.groups() for p in group]
    optimizer = torch.optim.SGD([student.logits, *parameters], lr=0.1)
    before = student.logits.detach().clone()
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    assert not torch.equal(student.logits, before)
    assert all(p.isfinite().all() for p in (student.logits, *parameters))


def random_output(seed: int, dim: int) -> Output:
    """Of a network with four stages that narrow from 8 to 1 pixels a side."""
    draw = torch.Generator().manual_seed(seed)
    before = tuple(torch.randn(B, dim // 2**k, 2**k, 2**k, generator=draw) for k in (3, 2, 1, 0))
    maps = tuple(m.relu() for m in before)
    return Output(3 * torch.randn(B, C, generator=draw), maps[-1].mean((2, 3)), maps, before)


@pytest.mark.parametrize("name", sorted({*hosts.names(), *views.names()} - {"none"}))
def test_every_method_has_a_space_of_its_own(name: str) -> None:
    method = load(spaces.find(name), {}).method
    assert (method.views_name or method.host_name) == name


def test_spaces_of_several_methods_leave_none_out() -> None:
    """A method that is registered later must be entered here too."""
    everything = choices_of("all_methods")
    assert set(everything["method.host.name"].choices) == set(hosts.names()) - {"none"}
    assert set(everything["method.views.name"].choices) == {"none", *views.names()}
    assert set(choices_of("augmentation")["method.augment.name"].choices) == {"none", *augments.names()}


def test_views_are_searched_over_every_host_that_takes_them() -> None:
    (_, over), *others = choices_of("all_methods")["method.views.name"].when
    assert not others
    for host in set(hosts.names()) - {"none"}:
        takes = bool(needs_of(hosts, hosts.info(host)["config"]()) & {"logits", "embedding"})
        assert (host in over) == takes, host


def test_every_host_takes_a_step_with_every_kind_of_views_and_without() -> None:
    """Sixty random proposals do not reach every pair."""
    experiment = load(spaces.find("all_methods"), {"data": "digits"})
    space = parse(experiment)
    by_key = choices_of("all_methods")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    for host, kind in product(by_key["method.host.name"].choices, by_key["method.views.name"].choices):
        told = {"method.host.name": host, "method.views.name": kind}
        pair = [replace(p, kind="fixed", choices=(told[p.key],)) if p.key in told else p for p in space.parameters]
        take_step(experiment.with_values(Space(tuple(pair))(study.ask())))


def choices_of(name: str) -> dict[str, Parameter]:
    """Parameters of a shipped space by key."""
    return {p.key: p for p in parse(load(spaces.find(name), {})).parameters}
