"""The same episodes on a Ray cluster: Ray places, retries and counts; `convert_episode` is all that runs there.

Bags, results and the package (with its extra `train`) must be found under the same paths on every machine: a shared
file system. The data set is put together by the process that asked.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vipra_ros.data.work import ConvertSettings, blank, convert_episode

Job = tuple[Path, Path]  # bag, folder of its results


def results(
    jobs: list[Job], settings: ConvertSettings, address: str
) -> Iterator[tuple[Path, tuple[Path, dict[str, Any]]]]:
    """(bag, (folder, result)) in the order of the jobs; a few per processor of the cluster are ahead.

    Args:
        address: of the cluster, e.g. 10.0.0.1:6379 or auto; "local" starts one in this machine.
    """
    import ray

    started = not ray.is_initialized()
    if started:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    work = ray.remote(num_cpus=1, max_retries=1)(_work)
    ahead = 4 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: collections.deque = collections.deque()
    queue = iter(jobs)
    try:
        while True:
            for bag, folder in queue:
                waiting.append((bag, folder, work.remote(str(bag.resolve()), str(folder.resolve()), settings)))
                if len(waiting) >= ahead:
                    break
            if not waiting:
                return
            bag, folder, reference = waiting.popleft()
            try:
                result = ray.get(reference) | {"bag": str(bag)}
            except (ray.exceptions.RayError, OSError) as error:  # its worker died twice, or its machine lacks the files
                reason = f"Ray: {' '.join(str(error).split())[:300]}"
                result = blank(bag) | {"seconds": 0.0, "rss_mb": 0.0, "reason": reason}
            yield bag, (folder, result)
    finally:
        if started:
            ray.shutdown()


def _work(bag: str, folder: str, settings: ConvertSettings) -> dict[str, Any]:
    return convert_episode(Path(bag), Path(folder), settings)
