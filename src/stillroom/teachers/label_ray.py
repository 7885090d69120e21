"""Labelling with the actors of a Ray cluster: one teacher per GPU, or per share of the CPUs.

Needs the extra ``[ray]``. Scenes and store must lie under the same paths on every machine.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stillroom.records import BadInputError
from stillroom.teachers.label import Job, work

logger = logging.getLogger(__name__)

#: How often an actor that died is started again; the cluster may have taken its machine away.
RESTARTS = 3
#: How often a cluster of this machine is tried to be started; Ray gives each 30 s.
ATTEMPTS = 5
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
    workers: int

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
            count, needs = _share(ray.cluster_resources(), min(self.workers, shards))
            actor = ray.remote(
                max_restarts=RESTARTS, max_task_retries=RESTARTS, max_concurrency=1, **needs
            )(_Actor)
            actors = [actor.remote() for _ in range(count)]
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


def _share(resources: dict[str, float], workers: int) -> tuple[int, dict[str, float]]:
    """How many actors, and what each reserves: a GPU where there are any, else a share of CPUs."""
    cpus, gpus = resources.get("CPU", 1.0), int(resources.get("GPU", 0.0))
    if gpus and workers > gpus:
        logger.warning("%d workers were asked for, the cluster has %d GPUs", workers, gpus)
    count = min(workers, gpus) if gpus else workers
    share = cpus / count
    needs = {"num_cpus": float(int(share)) if share >= 1 else share}
    return count, needs | ({"num_gpus": 1.0} if gpus else {})


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
