"""The Ray of one command: joined or started, what it holds, and runs carried out on it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from akd import cluster, costs, places, reach
from akd.config import Experiment, SearchConfig
from akd.job import Job, run_here, teacher_network
from akd.mirror import Mirror
from akd.places import Resources, Team


class Session:
    """Ray for as long as a ``with`` block lasts.

    Args:
        search: what trials and final runs ask for.
        address: see :func:`akd.cluster.connect`.
        mirror: what the nodes share.

    Attributes:
        private: this Ray was started here and ends with the block.
        resources: of the trials.
    """

    private: bool
    resources: Resources

    def __init__(self, search: SearchConfig, address: str | None, mirror: Mirror):
        self.search, self.address, self.mirror = search, address, mirror
        #: Of one connection to Ray, see :mod:`akd.starts`.
        self.token = secrets.token_hex(4)
        self._checked = False

    def __enter__(self) -> Session:
        self.private = cluster.connect(self.address)
        try:
            self.nodes = cluster.all_nodes()
            places.check_shared(self.nodes, self.mirror.shown)
            reach.hand_on(self.mirror.shown)
            self.resources = places.share(self.search, self.nodes)
            self.need(self.resources.team)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.private:
            cluster.disconnect()

    def clocked(self, students: Mapping[str, Experiment], made_for: costs.Input, wanted: Sequence[str]) -> costs.Table:
        """Latencies of students where trials will run: here, or in a task with a trial's share of a node.

        Arguments and result as of :func:`akd.costs.clocked`.
        """
        if self.private and not self.resources.gpus:
            return costs.clocked(students, made_for, wanted)
        import ray

        # A process of its own, which gives the GPU back when it ends; nothing else of the search runs yet.
        one = self.resources.workers
        task: Any = ray.remote(
            num_gpus=self.resources.gpus / one, num_cpus=self.resources.cpus / one, max_calls=1, max_retries=1
        )(costs.clocked)
        found: costs.Table = ray.get(task.remote(dict(students), made_for, list(wanted)))
        return found

    def measured(self, experiments: Sequence[Experiment], teacher: Path | None) -> Resources:
        """What each trial gets where ``gpus_per_trial`` is ``auto``: as much of a GPU as a rehearsal says.

        Args:
            experiments: trials of which one takes as much memory as any: a student may take more than another.
            teacher: their teacher's folder.
        """
        import ray

        from akd.packing import share_of

        gpus = [n for n in self.nodes if n.get("GPU", 0)]
        if self.search.gpus_per_trial != "auto" or self.resources.workers > 1 or not gpus:
            return self.resources
        shown, network = self.mirror.shown, None
        if teacher is not None:
            key = self.mirror.key(teacher)
            network = partial(teacher_network, folder=str(teacher), storage=shown, key=key)
        # A process of its own, which gives the GPU back when it ends.
        task: Any = ray.remote(num_gpus=1, num_cpus=1, max_calls=1, max_retries=0)(_rehearse)
        found = [ray.get(task.remote(shown, experiment, network)) for experiment in experiments]
        if any(memory is None for memory in found):
            return self.resources
        share = share_of(max(found, key=lambda memory: memory.trial), min(n.get("CPU", 0) / n["GPU"] for n in gpus))
        self.resources = places.share(replace(self.search, gpus_per_trial=share), self.nodes)
        return self.resources

    def team(self, batch_size: int) -> Team:
        """The workers of a run that has everything to itself; see :func:`akd.places.everything`.

        Everything is what is there now: a node that Ray could start is only waited for where a number was asked for, or
        where no device of the kind is there yet.
        """
        there, kind = cluster.nodes(), "GPU" if any(n.get("GPU", 0) for n in self.nodes) else "CPU"
        if self.search.final_workers:
            return places.everything(self.search, self.nodes, batch_size)
        if any(n.get(kind, 0) >= 1 for n in there):
            return places.everything(self.search, there, batch_size)
        return places.everything(replace(self.search, final_workers=1), self.nodes, batch_size)

    def need(self, team: Team | None) -> None:
        """Make sure that Ray can look after the workers of a team."""
        if team is not None and team.size > 1 and not self._checked:
            cluster.check_state_api()
            self._checked = True

    def carry(self, jobs: list[Job], team: Team, **callbacks: Any) -> None:
        """Carry out jobs on a team, see :func:`akd.workers.carry`; one worker of a private Ray is this process."""
        jobs, callbacks = self.mirror.jobs(jobs), self.mirror.around(**callbacks)
        if team.size == 1 and self.private:
            run_here(jobs, **callbacks)
            return
        self.need(team)
        from akd.workers import carry

        carry([replace(job, session=self.token) for job in jobs], team, **callbacks)


def _rehearse(storage: str | None, experiment: Experiment, teacher: Any) -> Any:
    from akd.packing import rehearse

    reach.learn(storage)
    return rehearse(experiment, teacher)


class Here:
    """No Ray: one worker, which is this process and has the machine to itself.

    Args:
        mirror: as of a :class:`Session`.
    """

    def __init__(self, mirror: Mirror):
        self.mirror = mirror

    def team(self, batch_size: int) -> Team:
        """This process."""
        found = cluster.machine()
        return Team(1, found["CPU"], min(found["GPU"], 1.0))

    def carry(self, jobs: list[Job], team: Team, **callbacks: Any) -> None:
        """Carry out jobs one after the other; see :func:`akd.job.run_here`."""
        run_here(self.mirror.jobs(jobs), **self.mirror.around(**callbacks))
