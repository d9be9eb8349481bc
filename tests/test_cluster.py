"""What a trial gets on the nodes there are, and how many trials fit. No Ray is started."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from unittest import mock

import pytest

from akd import cluster, places
from akd.config import SearchConfig
from akd.errors import ExperimentError
from akd.places import Resources, Team, everything, share


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
        # Several workers: one CPU each, on whichever nodes have place.
        ({"workers_per_trial": 4}, [node(3), node(5)], Resources(4, 0, 2, 4)),
        ({"workers_per_trial": 3}, [node(3), node(5)], Resources(3, 0, 2, 3)),
        ({"workers_per_trial": 8}, [node(3), node(5)], Resources(8, 0, 1, 8)),
        # What a trial is given is divided among its workers, each of which is on one node: three of two CPUs fit.
        ({"workers_per_trial": 3, "cpus_per_trial": 6}, [node(3), node(5)], Resources(6, 0, 1, 3)),
        ({"workers_per_trial": 2, "cpus_per_trial": 1}, [node(2)], Resources(1, 0, 2, 2)),
        ({"workers_per_trial": 2, "concurrent": 1}, [node(8)], Resources(2, 0, 1, 2)),
        # A GPU each, with its share of the CPUs.
        ({"workers_per_trial": 2}, [node(16, 4)], Resources(8, 2, 2, 2)),
        ({"workers_per_trial": 2}, [node(16, 1), node(4, 1)], Resources(8, 2, 1, 2)),
        ({"workers_per_trial": 2}, [node(16), node(9, 3)], Resources(6, 2, 1, 2)),
        ({"workers_per_trial": 2, "gpus_per_trial": 4}, [node(16, 4)], Resources(16, 4, 1, 2)),
        ({"workers_per_trial": 2, "gpus_per_trial": 0}, [node(4, 1)], Resources(2, 0, 2, 2)),
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
        ({"cpus_per_trial": 2.5}, [node(2)], "search.cpus_per_trial = 2.5: fits on no node"),
        # Workers: too many of them, too large ones, GPUs that two would have to share.
        ({"workers_per_trial": 9}, [node(3), node(5)], "workers_per_trial = 9: must be at most 8 here, with 1 CPU"),
        ({"workers_per_trial": 4, "cpus_per_trial": 8}, [node(3), node(4)],
         "workers_per_trial = 4: must be at most 3 here, with 2 CPUs for each worker"),
        ({"workers_per_trial": 3}, [node(16, 2)],
         "workers_per_trial = 3: must be at most 2 here, with 1 GPU and 8 CPUs"),
        ({"workers_per_trial": 2, "cpus_per_trial": 8}, [node(3), node(3)],
         "cpus_per_trial = 8: fits on no node; the largest has 3 CPUs; 4 for each of 2 workers"),
        ({"workers_per_trial": 2, "gpus_per_trial": 4}, [node(16, 1), node(16, 1)],
         "gpus_per_trial = 4: fits on no node; the largest has 1 GPU; 2 for each of 2 workers"),
        ({"workers_per_trial": 2, "gpus_per_trial": 1}, [node(16, 4)],
         "gpus_per_trial = 1: must be a whole number for each of 2 workers"),
        ({"workers_per_trial": 2, "gpus_per_trial": 3}, [node(16, 4)],
         "gpus_per_trial = 3: must be a whole number for each of 2 workers"),
    ],
)  # fmt: skip
def test_what_fits_nowhere(search: dict[str, float], nodes: list[dict[str, float]], words: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        share(SearchConfig(**search), nodes)  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_team_is_a_trial_of_several_workers() -> None:
    assert Resources(1, 0, 2).team is None
    assert Resources(6, 2, 1, 2).team == Team(2, 3, 1)


@pytest.mark.parametrize(
    ("search", "nodes", "batch_size", "wanted"),
    [
        # A worker for each GPU of all nodes, with what every one of them can have of its node's CPUs.
        ({}, [node(16, 2)], 64, Team(2, 8, 1)),
        ({}, [node(16, 2), node(6, 2)], 64, Team(4, 3, 1)),
        ({}, [node(16), node(4, 1)], 64, Team(1, 4, 1)),
        ({}, [node(1, 2)], 64, Team(2, 1, 1)),
        ({"final_workers": 1}, [node(16, 2)], 64, Team(1, 8, 1)),
        # Without GPUs the CPUs are shared out evenly, on uneven nodes as well as they can be.
        ({}, [node(1)], 64, Team(1, 1, 0)),
        ({}, [node(2)], 64, Team(2, 1, 0)),
        ({}, [node(3), node(5)], 128, Team(8, 1, 0)),
        ({"final_workers": 3}, [node(3), node(5)], 64, Team(3, 2, 0)),
        ({"final_workers": 2}, [node(3), node(5)], 64, Team(2, 3, 0)),
        ({"final_workers": 1}, [node(3), node(5)], 64, Team(1, 5, 0)),
        # Each has 16 images at least, and then more CPUs; also where that leaves GPUs without work.
        ({}, [node(8)], 64, Team(4, 2, 0)),
        ({}, [node(8)], 31, Team(1, 8, 0)),
        ({}, [node(8)], 3, Team(1, 8, 0)),
        ({}, [node(32, 8)], 32, Team(2, 4, 1)),
        # Unless it is asked for.
        ({"final_workers": 8}, [node(8)], 8, Team(8, 1, 0)),
        # What trials ask for does not matter.
        ({"workers_per_trial": 2, "cpus_per_trial": 4}, [node(4)], 64, Team(4, 1, 0)),
    ],
)
def test_everything(search: dict[str, float], nodes: list[dict[str, float]], batch_size: int, wanted: Team) -> None:
    assert everything(SearchConfig(**search), nodes, batch_size) == wanted  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("final_workers", "nodes", "batch_size", "words"),
    [
        (3, [node(2)], 64, "search.final_workers = 3: must be at most 2 here, one for each CPU"),
        (3, [node(16, 2)], 64, "search.final_workers = 3: must be at most 2 here, one for each GPU"),
        (5, [node(8)], 4, "search.final_workers = 5: must be at most 4, an image of each batch for each"),
    ],
)
def test_more_than_everything(final_workers: int, nodes: list[dict[str, float]], batch_size: int, words: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        everything(SearchConfig(final_workers=final_workers), nodes, batch_size)
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("search", "batch_sizes", "words"),
    [
        ({"final_workers": 4}, [64, 16], None),
        ({"final_workers": 4}, [], None),
        ({"final_workers": 4}, [64, 2], "search.final_workers = 4: must be at most 2, an image"),
        ({"final_workers": 5}, [64], "search.final_workers = 5: must be at most 4 here"),
        ({"workers_per_trial": 2, "concurrent": 2}, [64], None),
        ({"workers_per_trial": 2, "concurrent": 3}, [64], "search.concurrent = 3: at most 2 fit at a time: a trial"),
        ({"workers_per_trial": 5}, [64], "search.workers_per_trial = 5: must be at most 4 here"),
    ],
)  # fmt: skip
def test_check(
    search: dict[str, int], batch_sizes: list[int], words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "machine", lambda: node(4))
    if words is None:
        cluster.check(SearchConfig(**search), None, batch_sizes)  # type: ignore[arg-type]
        return
    with pytest.raises(ExperimentError) as caught:
        cluster.check(SearchConfig(**search), None, batch_sizes)  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_a_study_that_goes_on_takes_fewer_trials_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "machine", lambda: node(2))
    cluster.check(SearchConfig(concurrent=8), None, [64], fewer=True)


def test_a_ray_that_wants_another_token_is_one_line() -> None:
    import ray

    refused = ray.exceptions.AuthenticationError("No token. Ensure that there is one.\nMore.")
    init = mock.patch.object(ray, "init", side_effect=refused)
    with mock.patch.dict(os.environ), init, pytest.raises(ExperimentError) as caught:
        cluster.connect("192.0.2.1:6379")
    assert str(caught.value) == "ray-address = '192.0.2.1:6379': asks for its token: No token"


HEAD_FILE = """
cluster_name: x
max_workers: 5
head_node_type: head
available_node_types:
  head: {resources: {CPU: 4}, max_workers: 0}
  spot: {resources: {CPU: 8, GPU: 1}, max_workers: 3}
  other: {resources: {CPU: 16, GPU: 2}}
  unknown: {resources: {}, max_workers: 4}
"""


class TestNodesToCome:
    def test_as_many_as_the_file_allows_less_those_that_are_there(self, tmp_path: Path) -> None:
        path = tmp_path / "ray_bootstrap_config.yaml"
        path.write_text(HEAD_FILE)
        spot, other = {"CPU": 8, "GPU": 1}, {"CPU": 16, "GPU": 2}
        assert places.coming(path, 0) == [spot] * 3 + [other] * 2
        assert places.coming(path, 2) == [spot] * 3
        assert places.coming(path, 9) == []
        # A trial of four workers fits on what may come, with a head that has no GPU.
        nodes = [{"CPU": 4.0}, *places.coming(path, 0)]
        assert share(SearchConfig(workers_per_trial=4), nodes).concurrent == 1

    @pytest.mark.parametrize(
        "text", [None, "[", "max_workers: 2", "available_node_types: 3", "available_node_types: {a: 1}"]
    )
    def test_a_file_that_is_none_is_named(self, text: str | None, tmp_path: Path) -> None:
        path = tmp_path / "file.yaml"
        if text is not None:
            path.write_text(text)
        with pytest.raises(ExperimentError, match="AKD_CLUSTER_FILE") as error:
            places.coming(path, 0)
        assert "\n" not in str(error.value)

    def test_several_nodes_must_share_something(self) -> None:
        places.check_shared([node(2)], None)
        places.check_shared([node(2), node(2)], "s3://bucket/akd")
        with pytest.raises(ExperimentError, match=r"has 2 nodes.*--storage s3://BUCKET/FOLDER"):
            places.check_shared([node(2), node(2)], None)


def test_a_note_of_a_cluster_that_is_gone_is_removed(tmp_path: Path) -> None:
    note = tmp_path / "ray_current_cluster"
    cluster._forget_dead_cluster(note)
    for text in ("127.0.0.1:1", "nonsense", ""):
        note.write_text(text)
        cluster._forget_dead_cluster(note)
        assert not note.exists()
    with socket.create_server(("127.0.0.1", 0)) as alive:
        note.write_text(f"127.0.0.1:{alive.getsockname()[1]}")
        cluster._forget_dead_cluster(note)
        assert note.exists()
