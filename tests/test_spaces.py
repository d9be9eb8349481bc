"""Every shipped search space, by its own file: it parses, and what it proposes trains."""

from __future__ import annotations

from dataclasses import replace

import optuna
import pytest
import torch

from akd import spaces
from akd.config import load
from akd.data import DataConfig, split
from akd.data import load as load_data
from akd.fit import fit
from akd.models import seeded_model
from akd.space import parse
from akd.teacher import LiveTeacher


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
