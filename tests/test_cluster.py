"""What a trial gets on the nodes there are, and how many trials fit. No Ray is started."""

from __future__ import annotations

import pytest

from akd.cluster import Resources, share
from akd.config import SearchConfig
from akd.errors import ExperimentError


def node(cpus: float, gpus: float = 0) -> dict[str, float]:
    return {"CPU": cpus, "memory": 1e9} | ({"GPU": gpus} if gpus else {})


@pytest.mark.parametrize(
    ("search", "nodes", "wanted"),
    [
        # One CPU each by default.
        ({}, [node(2)], Resources(1, 0, 2)),
        ({}, [node(1)], Resources(1, 0, 1)),
        ({}, [node(8), node(3)], Resources(1, 0, 11)),
        ({"cpus_per_trial": 2}, [node(5)], Resources(2, 0, 2)),
        ({"cpus_per_trial": 0.5}, [node(2)], Resources(0.5, 0, 4)),
        ({"cpus_per_trial": 0.1}, [node(1)], Resources(0.1, 0, 10)),
        # A trial never spreads over nodes: three CPUs fit once on each of these.
        ({"cpus_per_trial": 3}, [node(4), node(5), node(2)], Resources(3, 0, 2)),
        # A limit only ever lowers.
        ({"concurrent": 1}, [node(8)], Resources(1, 0, 1)),
        ({"concurrent": 50}, [node(8)], Resources(1, 0, 8)),
        # One GPU each where there are GPUs, with its share of the CPUs.
        ({}, [node(16, 2)], Resources(8, 1, 2)),
        ({}, [node(7, 2)], Resources(3, 1, 2)),
        ({}, [node(1, 2)], Resources(1, 1, 1)),
        ({}, [node(16, 2), node(16, 2)], Resources(8, 1, 4)),
        ({"cpus_per_trial": 2}, [node(16, 2)], Resources(2, 1, 2)),
        ({"gpus_per_trial": 2}, [node(16, 2), node(16, 2)], Resources(16, 2, 2)),
        ({"gpus_per_trial": 0}, [node(4, 1)], Resources(1, 0, 4)),
        # Several trials on one GPU.
        ({"gpus_per_trial": 0.5}, [node(16, 1)], Resources(8, 0.5, 2)),
        ({"gpus_per_trial": 0.25}, [node(16, 2)], Resources(2, 0.25, 8)),
        ({"gpus_per_trial": 0.1, "cpus_per_trial": 1}, [node(16, 1)], Resources(1, 0.1, 10)),
        # A head node without a GPU, or a smaller one, does not make the share larger than what a GPU's node has.
        ({}, [node(16), node(4, 1)], Resources(4, 1, 1)),
        ({}, [node(2), node(8, 1), node(4, 1)], Resources(4, 1, 2)),
        ({"gpus_per_trial": 2}, [node(64, 1), node(8, 2)], Resources(8, 2, 1)),
    ],
)
def test_share(search: dict[str, float], nodes: list[dict[str, float]], wanted: Resources) -> None:
    assert share(SearchConfig(**search), nodes) == wanted  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("search", "nodes", "words"),
    [
        ({"cpus_per_trial": 3}, [node(2), node(2)], "cpus_per_trial = 3: fits on no node; the largest has 2 CPUs"),
        ({"gpus_per_trial": 1}, [node(8)], "search.gpus_per_trial = 1: fits on no node; the largest has 0 GPUs"),
        ({"gpus_per_trial": 4}, [node(8, 2), node(8, 2)], "gpus_per_trial = 4: fits on no node; the largest has 2"),
        # Each fits somewhere, but not on the same node.
        ({"cpus_per_trial": 8, "gpus_per_trial": 1}, [node(16), node(4, 1)], "search.cpus_per_trial = 8"),
        ({}, [], "fits on no node; the largest has 0 CPUs"),
    ],
)  # fmt: skip
def test_what_fits_nowhere(search: dict[str, float], nodes: list[dict[str, float]], words: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        share(SearchConfig(**search), nodes)  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
