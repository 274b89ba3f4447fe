"""Jobs that do not depend on each other, in processes of this machine; one that kills its process is found out."""

from __future__ import annotations

import collections
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from typing import Any

from vipra_ros.config import ConfigError

Job = tuple[Any, ...]


class Lost(Exception):
    """A job that could not be done: its process died, or on a cluster, its machine lacks the files."""


def results(work: Callable, jobs: Iterable[Job], workers: int) -> Iterator[tuple[Job, Any]]:
    """(job, what `work(*job)` returned, or a `Lost`) in the order of the jobs; four a worker are ahead.

    Args:
        work: a function that a worker can import.
        workers: processes; 1 works in this one, where a death is everybody's.
    """
    if workers == 1:
        for job in jobs:
            yield job, work(*job)
        return
    waiting: collections.deque = collections.deque()
    queue, pool = iter(jobs), _pool(workers)
    try:
        while True:
            for job in queue:
                waiting.append((job, pool.submit(work, *job)))
                if len(waiting) >= 4 * workers:
                    break
            if not waiting:
                return
            job, future = waiting.popleft()
            try:
                yield job, future.result()
            except BrokenExecutor:  # a worker died and took the pool along; whose job it was shows one at a time
                pool.shutdown(wait=True, cancel_futures=True)
                for again in [job, *(j for j, _ in waiting)]:
                    yield again, _alone(work, again)
                waiting.clear()
                pool = _pool(workers)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def each(work: Callable, jobs: Sequence, workers: int, begin: Callable, given: tuple, at_once: int = 1) -> Iterator:
    """`work(job)` of every job in order, in processes that each began with `begin(*given)`.

    Ctrl-C, or leaving the loop, ends the jobs under way by a SystemExit in them, so that they can tidy up.

    Raises:
        ConfigError: one of them died, and with it what it was at; a multiprocessing.Pool would wait for that for ever.
    """
    # Not fork: as below, and the children would share torch's threads and the GL context.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin_worker, (begin, given))
    try:
        yield from pool.map(functools.partial(_work, work), jobs, chunksize=at_once)
    except BrokenExecutor:
        raise ConfigError(f"one of {workers} worker processes died, of too little memory or of what stands above; "
                          "start again with fewer workers") from None
    except BaseException:  # Ctrl-C, or nobody wants the rest: what is under way is not waited for
        for process in (pool._processes or {}).values():  # a method for this comes with Python 3.14
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _work(work: Callable, job: Any) -> Any:
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        return work(job)
    except SystemExit:
        os._exit(1)  # the pool would take it for the answer, and go on with the next job
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a pool that breaks says it again, to one that is tidying up
    raise SystemExit


def _begin_worker(begin: Callable = lambda: None, given: tuple = ()) -> None:
    """Ctrl-C is the parent's to answer; and a worker that waits for jobs does not notice that its parent was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    begin(*given)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _pool(workers: int) -> ProcessPoolExecutor:
    # Not fork: a forked process inherits the locks of threads (av, rich) it does not have.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_quiet_worker)


def _alone(work: Callable, job: Job) -> Any:
    """The job in a process of its own, because it may be the one that kills."""
    with _pool(1) as pool:
        try:
            return pool.submit(work, *job).result()
        except BrokenExecutor:
            return Lost("the process working on it died (out of memory, or a crash in a decoder)")


def _quiet_worker() -> None:
    _begin_worker()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
