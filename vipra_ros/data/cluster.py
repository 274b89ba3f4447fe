"""Jobs that do not depend on each other, on a Ray cluster: Ray places, retries and counts.

What a job reads and writes and the package (with its extra `train`) must be found under the same paths on every
machine: a shared file system.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from vipra_ros.data.workers import Job, Lost


def results(work: Callable, jobs: Iterable[Job], address: str, gpu: bool = False) -> Iterator[tuple[Job, Any]]:
    """(job, what `work(*job)` returned, or a `Lost`) in the order of the jobs; a few per processor are ahead.

    Args:
        work: a function that a worker can import, or of this process.
        address: of the cluster, e.g. 10.0.0.1:6379 or auto; "local" starts one in this machine.
        gpu: a job wants a GPU to itself, where the cluster has any.
    """
    import ray

    started = not ray.is_initialized()
    if started:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0)) if gpu else 0
    remote = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0, max_retries=1)(work)
    ahead = 4 * max(1, gpus or int(there.get("CPU", 1)))
    waiting: collections.deque = collections.deque()
    queue = iter(jobs)
    try:
        while True:
            for job in queue:
                waiting.append((job, remote.remote(*job)))
                if len(waiting) >= ahead:
                    break
            if not waiting:
                return
            job, reference = waiting.popleft()
            try:
                result = ray.get(reference)
            except (ray.exceptions.RayError, OSError) as error:
                result = Lost(f"Ray: {' '.join(str(error).split())[:300]}")
            yield job, result
    finally:
        if started:
            ray.shutdown()
