"""Labelling with the actors of a Ray cluster: one teacher per GPU, or per share of the CPUs.

Needs the extra ``[ray]``. Scenes and store must lie under the same paths on every machine.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stillroom.records import BadInputError
from stillroom.teachers.label import Job, work

logger = logging.getLogger(__name__)

#: How often an actor that died is started again; the cluster may have taken its machine away.
RESTARTS = 3
#: How often a cluster of this machine is tried to be started; Ray gives each 30 s.
ATTEMPTS = 5
#: Time for the first actor to start: a cluster may have to start a machine for it [s].
START_S = 180.0
#: CPUs of a machine that one teacher gets where there are no GPUs and nobody says how many.
CPUS_PER_ACTOR = 8
#: How often progress is looked at while others work [s].
WATCH_S = 0.5


def require_ray() -> Any:
    """The module ``ray``. Raises BadInputError with the command that installs it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise BadInputError("--ray needs Ray: pip install 'stillroom[ray]'") from None
    return ray


@dataclass(frozen=True, kw_only=True)
class RayActors:
    """Labels with ``workers`` actors of the cluster at ``address`` ("local" starts one here)."""

    address: str
    # None: as many as the cluster has GPUs, or shares of CPUs where there is none.
    workers: int | None

    def __call__(self, job: Job, shards: int, watch: Callable[[], None]) -> None:
        """Start, watch and end them; those of a dead machine are started again elsewhere.

        Raises:
            BadInputError: no cluster there, what an actor refuses, or all actors died.
        """
        ray = require_ray()
        started = not ray.is_initialized()
        if started:
            self._connect(ray)
        try:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            count, needs = _share(nodes, self.workers, shards)
            actor = ray.remote(
                max_restarts=RESTARTS, max_task_retries=RESTARTS, max_concurrency=1, **needs
            )(_Actor)
            actors = [actor.remote() for _ in range(count)]
            _require_a_start(ray, [actor.here.remote() for actor in actors], needs)
            pending = [a.work.remote(job, max(1, int(needs["num_cpus"]))) for a in actors]
            _wait_for(ray, pending, watch)
        finally:
            if started:
                ray.shutdown()

    def _connect(self, ray: Any) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address == "local":
            # Nothing but the job goes through the object store.
            options |= {"include_dashboard": False, "object_store_memory": 100_000_000}
        for attempt in range(1, ATTEMPTS + 1):
            try:
                ray.init(address=self.address, **options)
                return
            except Exception as error:  # Ray raises a bare Exception when a start takes too long
                ray.shutdown()
                slow = "timed out during startup" in str(error)
                if not slow or attempt == ATTEMPTS:
                    raise BadInputError(self._unreachable(slow, error)) from None
                logger.warning("Ray did not start in time, once more")

    def _unreachable(self, slow: bool, error: Exception) -> str:
        if slow:
            return "Ray did not start in time: this machine is too busy; --workers needs no Ray"
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        return (
            f"no Ray cluster answers at {self.address} ({reason}); start one with "
            "'ray start --head', or give --ray without an address"
        )


def _share(
    nodes: Sequence[Mapping[str, float]], workers: int | None, shards: int
) -> tuple[int, dict[str, float]]:
    """How many actors, and what each reserves: a GPU where there are any, else a share of CPUs.

    ``nodes`` are the resources of each machine: an actor must find its place on one of them.
    """
    gpus = int(sum(int(node.get("GPU", 0.0)) for node in nodes))
    if gpus:
        if workers is not None and workers > gpus:
            logger.warning("%d workers were asked for, the cluster has %d GPUs", workers, gpus)
        count = min(gpus if workers is None else workers, gpus, shards)
    elif workers is None:
        shares = sum(int(_cpus(node) // CPUS_PER_ACTOR) for node in nodes)
        # Of small machines each takes one.
        count = min(shares or max(1, sum(_cpus(node) > 0 for node in nodes)), shards)
    else:
        count = min(workers, shards)
    # The largest share that finds a place ``count`` times is some machine's, cut into equal parts.
    cuts = sorted({_whole(_cpus(n) / k) for n in nodes for k in range(1, count + 1)}, reverse=True)
    fits = (cut for cut in cuts if cut > 0 and _places(nodes, cut, bool(gpus)) >= count)
    return count, {"num_cpus": next(fits, 0.0)} | ({"num_gpus": 1.0} if gpus else {})


def _cpus(node: Mapping[str, float]) -> float:
    return node.get("CPU", 0.0)


def _whole(cpus: float) -> float:
    """As Ray counts: whole CPUs, or ten-thousandths of one."""
    return float(int(cpus)) if cpus >= 1 else int(cpus * 10_000) / 10_000


def _places(nodes: Sequence[Mapping[str, float]], cpus: float, gpu: bool) -> int:
    """Actors of so many CPUs, and a GPU each, for which there is a place."""
    return sum(
        min(int(_cpus(node) / cpus), int(node.get("GPU", 0.0)) if gpu else sys.maxsize)
        for node in nodes
    )


def _require_a_start(ray: Any, started: list[Any], needs: Mapping[str, float]) -> None:
    """Wait for the first actor. Raises BadInputError if none finds a place in ``START_S``."""
    if ray.wait(started, num_returns=1, timeout=START_S)[0]:
        return
    names = {"num_cpus": "CPU", "num_gpus": "GPU"}
    free = ray.available_resources()
    wanted = ", ".join(f"{amount:g} {names[name]}" for name, amount in needs.items())
    there = ", ".join(f"{free.get(names[name], 0.0):g} {names[name]}" for name in needs)
    raise BadInputError(
        f"no Ray actor found a place in {START_S:g} s: one needs {wanted} on one machine, free in "
        f"the whole cluster are {there}; wait for other jobs, or give more --workers for smaller "
        "shares"
    )


def _wait_for(ray: Any, pending: list[Any], watch: Callable[[], None]) -> None:
    died = 0
    while pending:
        done, pending = ray.wait(pending, timeout=WATCH_S)
        watch()
        for reference in done:
            try:
                refused = ray.get(reference)
            except ray.exceptions.RayActorError:
                died += 1  # the others take over its shard
                continue
            if refused is not None:
                raise BadInputError(refused)
            return  # an actor ends when every shard is finished, whoever finished it
    raise BadInputError(
        f"all {died} Ray actors died, each {RESTARTS + 1} times (out of memory?); the same command "
        "goes on where they stopped"
    )


class _Actor:
    """One teacher somewhere in the cluster."""

    def here(self) -> None:
        """Answers once the actor has its place."""

    def work(self, job: Job, threads: int) -> str | None:
        """Label until nothing is left; the sentence if the job is refused."""
        from stillroom.teachers.label_run import use_threads

        if not (job.out / "manifest.json").exists():
            host = os.uname().nodename
            return (
                f"{job.out} is not the same folder on {host}; put --out on a disk that all "
                "machines share"
            )
        use_threads(threads)
        try:
            work(job, lambda: None)
        except BadInputError as error:
            return str(error)
        return None
