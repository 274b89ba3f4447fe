"""`vipra dataset replay`: an episode's actions on the robot they are to teach, and whether the task succeeds.

On the simulated robot the scene of the episode is laid out again by its task and seed, and the arm first goes to
where the episode begins. On a real one the nodes of `vipra up replay` are started, and the person judges.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import rclpy

from vipra_ros import graph
from vipra_ros.data.dataset import Dataset, DatasetError, EpisodeInfo
from vipra_ros.data.resample import EpisodeError
from vipra_ros.json_file import json_writer
from vipra_ros.nodes.replay import ReplayError, ReplayNode
from vipra_ros.nodes.session import SERVICE_TIMEOUT, START_TIMEOUT, Session
from vipra_ros.nodes.spinner import Spinner
from vipra_ros.nodes.system import PATIENT, SessionError, System

#: The arm comes from home. The rows were within the limits when they were recorded and are due from the first on: a
#: slow start would leave the arm behind for good. Simulated arms only.
PARAMETERS = PATIENT + """    start_action: blend
    start_speed: 1.0
    start_ramp: 0.0
    limiter_share: 1.0
"""
#: s from the last row until the scene has come to rest.
REST = 1.0
#: s between two words of the scene's outcome at least; cubes fall where they were put.
SETTLE = 0.5


def run(dataset: str, episode: Sequence[str], json_path: str = "") -> int:
    """Replay one episode after the other; 1 when one of them does not succeed.

    Args:
        episode: their numbers ("0-2,5"), then launch arguments ("robot:=sim").
    """
    from vipra_ros.data.dataset_edit import numbers

    given = graph.parse(list(episode[1:]))
    d = Dataset(dataset)
    chosen = numbers(episode[0], len(d.episodes))
    save = json_writer(json_path)
    if given.get("robot", "sim") != "sim":
        if len(chosen) != 1:
            raise DatasetError("a real robot replays one episode at a time; its scene is laid out by hand")
        from vipra_ros.up import up

        return up("replay", {**given, "dataset": dataset, "episode": str(chosen[0])})
    given.pop("robot", None)
    results = _on_simulated(d, [d.episodes[i] for i in chosen], given)
    _print(results)
    save(results)
    return int(not all(r["success"] for r in results))


def _on_simulated(d: Dataset, episodes: Sequence[EpisodeInfo], given: dict[str, str]) -> list[dict]:
    for e in episodes:
        if e.task_key is None or e.seed is None:
            raise DatasetError(
                f"{d.path}: episode {e.index} ({e.source}) carries no task and seed, so its scene cannot be laid out; "
                "replay it on the robot it was recorded on, with robot:=ADDRESS"
            )
    results = []
    with System(system="sim", parameters=PARAMETERS, **given) as system:
        session = Session(system.domain, system.check)
        try:
            session.until(
                lambda: session.executor_status is not None and session.scene_ready(), START_TIMEOUT, "the simulator"
            )
            for e in episodes:
                results.append(_one(d, e, session, system.domain))
        finally:
            session.close()
    return results


def _one(d: Dataset, e: EpisodeInfo, session: Session, domain: int) -> dict:
    path = graph.yaml_scalar(str(d.path))
    arguments = ["--ros-args", "-p", f"dataset:={path}", "-p", f"episode:={e.index}", "-p", "delay:=0.2"]
    arguments += ["-p", f"wait:={SERVICE_TIMEOUT}"]
    rclpy.init(args=arguments, domain_id=domain, signal_handler_options=rclpy.SignalHandlerOptions.NO)
    node = ReplayNode()
    spinner = Spinner(node)
    result = {"episode": e.index, "source": e.source, "task": e.task_key, "seed": e.seed, "instruction": e.task,
              "recorded_success": e.success, "success": False, "commanded": None, "measured": None, "reason": ""}
    try:
        session.home()
        session.arm()
        node.approach()
        session.reset(e.task_key, e.seed)
        time.sleep(SETTLE)
        result |= node.run()
        end = time.monotonic() + REST
        while time.monotonic() < end and not session.outcome.get("success"):
            time.sleep(0.02)
        result["success"] = bool(session.outcome.get("success"))
    except (ReplayError, EpisodeError, SessionError) as error:  # of this episode; the others' results stand
        result["reason"] = str(error)
    finally:
        spinner.close()
    return result


def _print(results: Sequence[dict]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    for name in ("episode", "source", "success"):
        rows.add_column(name, no_wrap=True)
    for name in ("commanded max", "rms", "measured max", "rms"):
        rows.add_column(name, justify="right")
    for r in results:
        figures = [f"{v:.4f}" for which in ("commanded", "measured") for v in (r[which] or ())]
        label = "yes" if r["success"] else "NO"
        rows.add_row(str(r["episode"]), Text(str(r["source"])), label, *(figures or [""] * 4))
    console = Console(width=80, highlight=False)
    console.print(rows)
    for r in results:
        if r["reason"]:
            console.print(Text(f"episode {r['episode']}: {r['reason']}"))
    done = sum(r["success"] for r in results)
    console.print(f"{done} of {len(results)} succeeded; deviations from the data set's actions in rad")
