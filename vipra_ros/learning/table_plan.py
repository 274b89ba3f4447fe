"""What a table of results is made of: its rows, and config/learning/<preset>/reproduce.yaml."""

from __future__ import annotations

from dataclasses import dataclass, field

from vipra_ros.config import ConfigError, build, param
from vipra_ros.learning import presets

VIDEOS = ("robot", "other", "both")
#: The jobs that have presets of their own.
JOBS = ("vq", "latent", "pretrain", "finetune")


@dataclass(frozen=True)
class Row:
    """A row of a table, trained once per seed."""

    variant: str = param(doc="a variant of config/learning/variants")
    demos: int = param(25, doc="demonstrations per task", low=2)
    seeds: tuple[int, ...] = param((0,), doc="training seeds", low=0)
    videos: str = param("robot", doc="videos of pre-training: the robot's, another body's, both", choices=VIDEOS)
    flow: bool = param(True, doc="flow consistency in the loss of the latent actions")

    @property
    def name(self) -> str:
        """The variant, and what is unusual about the row."""
        return self.variant + f"-{self.videos}" * (self.videos != "robot") + "-noflow" * (not self.flow)


@dataclass(frozen=True)
class Reproduction:
    """config/learning/<preset>/reproduce.yaml."""

    presets: dict[str, str] = field(metadata={"doc": "preset or YAML of vq, latent, pretrain, finetune"})
    tables: dict[str, list] = field(metadata={"doc": "number of the table: its rows"})
    overrides: dict[str, dict] = field(default_factory=dict, metadata={"doc": "dotted keys on top, by job"})
    step_seconds: dict[str, float] = field(default_factory=dict, metadata={
        "doc": "expected work per training step, s, by job, and `discrete`: of such a fine-tuning; for the plan"})
    tasks: tuple[str, ...] = param(("reach", "push", "lift"), doc="tasks of the simulated table")
    videos: int = param(1000, doc="episodes without labels, per task", low=2)
    label_every: int = param(1, doc="label one frame of them in so many", low=1)
    video_seed: int = param(100_000, doc="seed of the first of them", low=0)
    other_seed: int = param(200_000, doc="seed of the first episode of another body, a free-floating hand", low=0)
    given: dict[str, str] = field(default_factory=dict, metadata={
        "doc": "trainings that are not made: step of the plan (vq, latent-..., pretrain-...): folder of its result"})
    other_videos: str = param("", doc="data set of another body instead, doing the same tasks")
    demo_seed: int = param(0, doc="seed of the first demonstration", low=0)
    episodes: int = param(50, doc="evaluation episodes per task", low=1)
    eval_seed: int = param(1000, doc="seed of the first of them", low=0)
    seconds_limit: float = param(0.0, doc="limit of an evaluation episode; 0 is the task's own", unit="s", low=0.0)
    latency: float = param(0.1, doc="charged per chunk in evaluations, whatever the machine", unit="s", low=0.0)
    collect_seconds: float = param(1.0, doc="expected work per collected episode, for the plan", unit="s", low=0.0)
    label_seconds: float = param(1.0, doc="expected work per labelled episode, for the plan", unit="s", low=0.0)
    eval_seconds: float = param(5.0, doc="expected work per evaluated episode, for the plan", unit="s", low=0.0)

    def __post_init__(self) -> None:
        # A table would take the place of a whole one of the preset, the seed of the row in it.
        object.__setattr__(self, "overrides", {job: presets.dotted(table) for job, table in self.overrides.items()})
        if missing := [job for job in JOBS if job not in self.presets]:
            raise ConfigError(f"reproduce: presets has no {missing[0]}; name a preset or a YAML file for it")
        if other := self.step_seconds.keys() - {*JOBS, "discrete"}:
            raise ConfigError(f"reproduce: step_seconds of {min(other)}; name {', '.join(JOBS)} or discrete")
        used = {"demo_seed": self.demonstrations, "video_seed": self.videos, "other_seed": self.videos,
                "eval_seed": self.episodes}
        spans = sorted((getattr(self, name), name, count) for name, count in used.items())
        for (first, name, count), (second, other, _) in zip(spans, spans[1:]):
            if first + count > second:
                raise ConfigError(f"reproduce: {name} = {first} and {other} = {second}: the same starts are "
                                  "demonstrated, watched or evaluated; set the seeds further apart")

    def rows(self, table: int) -> list[Row]:
        """The rows of a table.

        Raises:
            ConfigError: there is no such table.
        """
        if str(table) not in {str(k) for k in self.tables}:
            raise ConfigError(f"reproduce: no table {table}; there are {', '.join(map(str, self.tables))}")
        return [build(Row, r, source=f"reproduce: table {table}") for k, v in self.tables.items()
                if str(k) == str(table) for r in v]

    @property
    def demonstrations(self) -> int:
        """Collected per task, for the row with the most, of all tables: they share them. Some more than are trained on:
        fine-tuning holds them out."""
        most = max((row.demos for table in self.tables for row in self.rows(table)), default=0)
        return most + max(1, round(0.1 * most))
