"""A search killed at random moments, again and again, equals an undisturbed one. Takes minutes: ``make test-long``."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import program
import pytest
from studies import ONE, agree, identical

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(3000)]

KILLS = 10


def test_random_kills(tmp_path: Path) -> None:
    seed = int(os.environ.get("AKD_SOAK_SEED", random.SystemRandom().randrange(10**6)))
    print(f"AKD_SOAK_SEED={seed}")
    draw = random.Random(seed)
    for name in ("undisturbed", "killed"):
        (tmp_path / name).mkdir()
    began = time.monotonic()
    code, output = program.run(ONE, tmp_path / "undisturbed")
    assert code == 0, output
    length = time.monotonic() - began
    study = tmp_path / "killed" / "runs" / "s"
    kills = 0
    while kills < KILLS and not (study / "result.json").exists():
        arguments = ["search", "--resume", "s"] if (study / "run.json").exists() else ONE
        process = program.start(arguments, tmp_path / "killed")
        try:
            # Sessions get shorter work as the study proceeds; most draws fall within it, few before it starts.
            process.wait(draw.uniform(4, 0.7 * length))
        except program.subprocess.TimeoutExpired:
            kills += 1
        finally:
            program.kill_group(process)
    print(f"{kills} kills")
    code, output = program.run(["search", "--resume", "s"], tmp_path / "killed")
    assert code == 0, output
    identical(study, tmp_path / "undisturbed" / "runs" / "s")
    agree(study)
