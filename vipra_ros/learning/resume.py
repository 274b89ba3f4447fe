"""state.pt: all that a run needs to go on as if it had never stopped. Its tensors are whole, sharded or not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vipra_ros.config import ConfigError
from vipra_ros.learning.parallel import Team
from vipra_ros.learning.sharding import divided, local, whole
from vipra_ros.whole_file import in_whole

if TYPE_CHECKING:
    from vipra_ros.learning.loop import Job

_REMEDY = "give a new output folder or delete it"


@dataclass
class State:
    """Where a run stands; saved with it."""

    step: int = 0
    seconds: float = 0.0
    samples: int = 0


def save(path: Path, job: Job, optimisers: list, average: list[Tensor] | None, generator: torch.Generator,
         state: State, us: Team) -> None:
    """Write the state; all processes call it."""
    generators = us.everyone(generator.get_state())
    values = whole({"model": dict(job.model.state_dict()), "optimisers": [o.state_dict() for o in optimisers],
                    "average": average}, us.main)
    if us.main:
        with in_whole(path) as beside:
            torch.save({**values, "generators": generators, "state": vars(state), "identity": job.identity}, beside)
    us.wait()  # until it is written: one that began the next run earlier would find nothing and start anew


def read(path: Path, job: Job, us: Team) -> dict[str, Any]:
    """The saved state, its weights loaded into the model, which is whole and on the CPU.

    Raises:
        ConfigError: it belongs to another run, network or number of processes.
    """
    kept = torch.load(path, map_location="cpu", weights_only=True)
    # Earlier states say how the quantiser's folder was named, too.
    if re.sub(r', "vq": "(\\.|[^"\\])*"', "", kept.get("identity", job.identity)) != job.identity:
        raise ConfigError(f"{path}: belongs to a run with another configuration or other data; {_REMEDY}")
    kept.setdefault("generators", [kept.get("generator")])
    try:
        job.model.load_state_dict(kept["model"])
    except RuntimeError as error:
        raise _another_network(path, error) from None
    if len(kept["generators"]) != us.world:
        raise ConfigError(f"{path}: belongs to a run of {len(kept['generators'])} processes, not {us.world}; "
                          f"start as many, or {_REMEDY}")
    return kept


def restore(path: Path, kept: dict[str, Any], optimisers: list, average: list[Tensor] | None,
            generator: torch.Generator, us: Team) -> State:
    """Everything else of what `read` returned."""
    try:
        for optimiser, values in zip(optimisers, kept["optimisers"], strict=True):
            parameters = [p for group in optimiser.param_groups for p in group["params"]]
            for number, moments in values["state"].items():
                like = parameters[number]
                values["state"][number] = {
                    name: divided(v, like) if isinstance(v, Tensor) and v.shape == like.shape else v
                    for name, v in moments.items()}
            for mine, theirs in zip(optimiser.param_groups, values["param_groups"]):
                # The kernel is chosen for the weights as they lie now, sharded or whole.
                theirs.update({name: mine[name] for name in ("fused", "foreach") if name in mine})
            optimiser.load_state_dict(values)
    except (RuntimeError, ValueError, IndexError) as error:
        raise _another_network(path, error) from None
    if average is not None:
        for mine, theirs in zip(average, kept["average"], strict=True):
            local(mine).copy_(local(divided(theirs, mine)))
    generator.set_state(kept["generators"][us.rank])
    return State(**kept["state"])


def _another_network(path: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{path}: belongs to another network ({str(error).splitlines()[0]}); {_REMEDY}")
