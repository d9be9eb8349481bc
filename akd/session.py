"""The Ray of one command: joined or started, what it holds, and runs carried out on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from akd import cluster
from akd.cluster import Resources, Team
from akd.config import Experiment, SearchConfig
from akd.errors import ExperimentError
from akd.job import Job, run_here


class Session:
    """Ray for as long as a ``with`` block lasts.

    Args:
        search: what trials and final runs ask for.
        address: see :func:`akd.cluster.connect`.

    Attributes:
        private: this Ray was started here and ends with the block.
        resources: of the trials.
    """

    private: bool
    resources: Resources

    def __init__(self, search: SearchConfig, address: str | None):
        self.search, self.address = search, address
        self._checked = False

    def __enter__(self) -> Session:
        self.private = cluster.connect(self.address)
        try:
            self.nodes = cluster.nodes()
            if len(self.nodes) > 1:
                problem = (
                    f"has {len(self.nodes)} nodes; several nodes need storage they share, which this version does not "
                    "offer"
                )
                raise ExperimentError(problem, key="ray-address")
            self.resources = cluster.share(self.search, self.nodes)
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

    def measured(self, experiment: Experiment, teacher: Path | None) -> Resources:
        """What each trial gets where ``gpus_per_trial`` is ``auto``: as much of a GPU as a rehearsal says.

        Args:
            experiment: a trial that takes as much memory as any.
            teacher: its teacher's folder.
        """
        import ray

        from akd.packing import rehearse, share_of

        gpus = [n for n in self.nodes if n.get("GPU", 0)]
        if self.search.gpus_per_trial != "auto" or self.resources.workers > 1 or not gpus:
            return self.resources
        # A process of its own, which gives the GPU back when it ends.
        task: Any = ray.remote(num_gpus=1, num_cpus=1, max_calls=1, max_retries=0)(rehearse)
        memory = ray.get(task.remote(experiment, teacher))
        if memory is None:
            return self.resources
        share = share_of(memory, min(n.get("CPU", 0) / n["GPU"] for n in gpus))
        self.resources = cluster.share(replace(self.search, gpus_per_trial=share), self.nodes)
        return self.resources

    def team(self, batch_size: int) -> Team:
        """The workers of a run that has everything to itself; see :func:`akd.cluster.everything`."""
        return cluster.everything(self.search, self.nodes, batch_size)

    def need(self, team: Team | None) -> None:
        """Make sure that Ray can look after the workers of a team."""
        if team is not None and team.size > 1 and not self._checked:
            cluster.check_state_api()
            self._checked = True

    def carry(self, jobs: list[Job], team: Team, **callbacks: Any) -> None:
        """Carry out jobs on a team, see :func:`akd.workers.carry`; one worker of a private Ray is this process."""
        if team.size == 1 and self.private:
            run_here(jobs, **callbacks)
            return
        self.need(team)
        from akd.workers import carry

        carry(jobs, team, **callbacks)


class Here:
    """No Ray: one worker, which is this process and has the machine to itself."""

    def team(self, batch_size: int) -> Team:
        """This process."""
        found = cluster.machine()
        return Team(1, found["CPU"], min(found["GPU"], 1.0))

    def carry(self, jobs: list[Job], team: Team, **callbacks: Any) -> None:
        """Carry out jobs one after the other; see :func:`akd.job.run_here`."""
        run_here(jobs, **callbacks)
