"""Two processes of a team on this machine, forked, so that torch is imported once."""

import os
import signal
import socket
import time


def fork(work, *args, **environment) -> int:
    """A process that calls work(*args); its number."""
    child = os.fork()
    if not child:
        code = 1
        try:
            os.environ.update(environment)
            work(*args)
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def alone(work, *args) -> int:
    """Exit status of one process."""
    return os.waitstatus_to_exitcode(os.waitpid(fork(work, *args), 0)[1])


def together(work, *args, patience: float = 240.0) -> list[int]:
    """Exit statuses of two processes by rank. When one fails or is killed, the other, which would wait, is killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    team = [fork(work, *args, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
                 MASTER_PORT=port) for rank in (0, 1)]
    status, end = {}, time.monotonic() + patience
    while len(status) < 2:
        for child in set(team) - set(status):
            found, code = os.waitpid(child, os.WNOHANG)
            if found:
                status[child] = os.waitstatus_to_exitcode(code)
        if any(status.values()) or time.monotonic() > end:
            for child in set(team) - set(status):
                os.kill(child, signal.SIGKILL)
                status[child] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(0.02)
    return [status[child] for child in team]
