"""`vipra reproduce`: a table of results end to end from seeds: episodes, four trainings, evaluation, rows, plot.

The plan is a list of steps; rows share what they have in common (episodes, quantiser, latent actions, pre-training: the
seeds of a row are those of fine-tuning). A finished step leaves OUT/done/NAME.json and is not done again; a training
that was interrupted goes on. Processes started on the same folder share the steps (`worklist.py`). `demos` counts
demonstrations per task, `minutes` those of fine-tuning.
"""

from __future__ import annotations

import dataclasses
import json
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vipra_ros.config import ConfigError
from vipra_ros.json_file import json_writer, write_json
from vipra_ros.learning import presets
from vipra_ros.learning.table_plan import Reproduction, Row
from vipra_ros.learning.tables import plot, rows_of
from vipra_ros.learning.worklist import Step, Worklist

#: Entries of a training's configuration that do not change what comes out of it.
FREE = ("threads", "log_every", "save_seconds")


class Plan:
    """The steps of a table in order, in folder `out`."""

    def __init__(self, config: Reproduction, table: int, out: str | Path):
        self.config, self.table, self.out = config, table, Path(out)
        self.work = Worklist(self.out / "done")
        self.steps = self.work.steps
        self.trainings: set[str] = set()
        #: (row, seed) -> name of its evaluation
        self.evaluations: list[tuple[Row, int, str]] = []
        rows = config.rows(table)
        self._episodes("demos", config.demonstrations, config.demo_seed)
        self._episodes("videos", config.videos, config.video_seed)
        self._train("vq", "vq", {}, "videos")
        if any(row.videos != "robot" for row in rows):
            self._other()
        for row in rows:
            for seed in row.seeds:
                self._row(row, seed)
        for name, folder in config.given.items():
            if name not in self.trainings:
                raise ConfigError(f"reproduce: given: table {table} has no training {name!r}; it has "
                                  f"{', '.join(sorted(self.trainings))}")
            if not Path(folder).is_dir():
                raise ConfigError(f"reproduce: given: {name}: {folder} is no folder; name what the training left")
        # What is given needs nothing.
        self.work.keep(f"eval-{name}" for *_, name in self.evaluations)

    # --- making the plan --------------------------------------------------------------------------------------

    def _episodes(self, name: str, count: int, seed: int, body: str = "robot") -> None:
        c = self.config
        minutes = count * len(c.tasks) * c.collect_seconds / 60
        self.work.add(Step(name, minutes, [list(c.tasks), count, seed, *([body] if body != "robot" else [])],
                           lambda: collect(self.out / name, c.tasks, count, seed, body)))

    def _train(self, name: str, job: str, changes: dict, *sources: str) -> str:
        """A training: the preset, then `changes` of the variant and row, then the user's overrides."""
        if job != "finetune":
            self.trainings.add(name)
        if name in self.config.given:
            return name  # no step; its folder is there already
        overrides = changes | self.config.overrides.get(job, {})
        config = presets.read(_class(job), self.config.presets[job], job, overrides)
        values = dataclasses.asdict(config)
        values["loop"] = {k: v for k, v in values["loop"].items() if k not in FREE}
        values.pop("vq", None)  # a path, which may be written in other ways; the quantiser is a step of its own
        needs = (*sources, *(["vq"] if "vq" in overrides else []))
        discrete = values.get("policy", {}).get("decoder") == "discrete"
        pace = self.config.step_seconds.get("discrete" if discrete else job)
        expected = config.loop.minutes or (pace and config.loop.steps * pace / 60)
        built_on = [n for n in needs if n in sources or n in self.config.given]
        return self.work.add(Step(name, expected, [values, self._said(*built_on)],
                                  lambda: self._run(name, job, overrides, sources), needs, _class(job)))

    def _row(self, row: Row, seed: int) -> None:
        c = self.config
        changes = presets.variant(row.variant, "finetune") | {
            "episodes": row.demos * len(c.tasks), "loop.seed": seed, "holdout": 0.05}
        known = presets.read_variant(row.variant)
        if "pretrain" in known:
            start = self._pretraining(row, known)
        else:
            start, changes = "", changes | {"vq": str(self._result("vq"))}
        name = f"{row.name}-{row.demos}-{seed}"
        trained = self._train(f"finetune-{name}", "finetune", changes, "demos", *([start] if start else []))
        count = c.episodes * len(c.tasks)
        settings = [list(c.tasks), c.episodes, c.eval_seed, c.latency, *filter(None, [c.seconds_limit])]
        self.work.add(Step(f"eval-{name}", count * c.eval_seconds / 60, settings, lambda: self._evaluate(name),
                           (trained,)))
        self.evaluations.append((row, seed, name))

    def _pretraining(self, row: Row, known: dict) -> str:
        """Latent actions, labels and pre-training that a row needs; equal ones have equal names."""
        c = self.config
        latent, of_latent = _latent(row, known)
        self._train(latent, "latent", of_latent, *self._videos(row.videos))
        shape = {k: v for k, v in known["pretrain"].items() if k != "variant"}
        said = {"future": lambda v: "future" if v else "", "latent_steps": lambda v: f"{v}steps" if v else ""}
        text = "-".join(filter(None, (said.get(k, lambda v, k=k: f"{k}{v}")(v) for k, v in sorted(shape.items()))))
        merged = self._merged(row.videos)
        minutes = c.videos * len(c.tasks) * c.label_seconds / c.label_every / 60
        labels = self.work.add(Step(
            f"labels-{latent}", minutes, [*self._said(latent), *([c.label_every] if c.label_every > 1 else [])],
            lambda: self._label(latent, merged), (latent, merged)))
        # Whatever the first row of that shape is called.
        changes = shape | {"variant": "ViPRA", "vq": str(self._result("vq"))}
        return self._train(f"pretrain-{latent.removeprefix('latent-')}-{text}", "pretrain", changes, merged, labels)

    def _videos(self, which: str) -> list[str]:
        return [{"robot": "videos", "other": "other"}[w] for w in (("robot", "other") if which == "both" else (which,))]

    def _merged(self, which: str) -> str:
        """The name of one data set with these videos."""
        if which != "both":
            return self._videos(which)[0]
        return self.work.add(Step("both", 0.01 * self.config.videos, [self.config.other_videos], self._merge,
                                  ("videos", "other")))

    def _other(self) -> None:
        """Videos of another body, unless the user has some."""
        c = self.config
        if not c.other_videos:
            self._episodes("other", c.videos, c.other_seed, "hand")

    def _result(self, name: str) -> Path:
        """Folder of what a training of the plan left, or of what is given for it."""
        own = self.out / name / "checkpoint" if name.startswith("pretrain-") else self.out / name
        return Path(self.config.given.get(name, own))

    def _said(self, *names: str) -> list[str]:
        """How the settings of a step name what it builds on."""
        c = self.config
        brought = c.given | ({"other": c.other_videos} if c.other_videos else {})
        return [f"{name}: {brought[name]}" if name in brought else name for name in names]

    def dataset(self, name: str) -> Path:
        """Folder of a data set by its name in the plan."""
        own = name != "other" or not self.config.other_videos
        return self.out / name / "dataset" if own else Path(self.config.other_videos)

    # --- doing it ---------------------------------------------------------------------------------------------

    def _run(self, name: str, job: str, overrides: dict, sources: tuple[str, ...]) -> None:
        preset, out = self.config.presets[job], self.out / name
        if job == "vq":
            from vipra_ros.learning import vq

            vq.train(self.dataset(sources[0]), out, preset, **overrides)
        elif job == "latent":
            from vipra_ros.learning import latent

            latent.train([self.dataset(s) for s in sources], out, preset, overrides)
        elif job == "pretrain":
            from vipra_ros.learning import pretrain

            pretrain.train(self.dataset(sources[0]), self.out / sources[1], out, preset,
                           overrides | {"words": self._words()})
        else:
            from vipra_ros.learning import finetune

            init = self._result(sources[1]) if len(sources) > 1 else "scratch"
            finetune.train(self.dataset(sources[0]), out, preset, init, overrides)

    def _words(self) -> list[str]:
        from vipra_ros.data.dataset import Dataset

        return sorted({e.task for e in Dataset(self.dataset("demos")).episodes})

    def _label(self, latent: str, source: str) -> None:
        from vipra_ros.learning.label import label

        label(self.dataset(source), self._result(latent), self.out / f"labels-{latent}", every=self.config.label_every)

    def _merge(self) -> None:
        from vipra_ros.data.dataset_edit import merge

        if not self.dataset("both").exists():  # it appears whole
            merge([self.dataset("videos"), self.dataset("other")], self.dataset("both"))

    def _evaluate(self, name: str) -> None:
        from vipra_ros.learning import evaluate

        c = self.config
        checkpoint = self.out / f"finetune-{name}" / "checkpoint"
        parts = [evaluate.main(checkpoint, task, c.episodes, c.eval_seed, latency=c.latency, quiet=True,
                               workers=len(os.sched_getaffinity(0)), seconds=c.seconds_limit or None)
                 for task in c.tasks]
        write_json({"tasks": parts}, self.out / f"eval-{name}.json")

    def describe(self) -> str:
        """The list of steps, what is done, and the hours that are left; 80 columns."""
        c, lines, left, unknown = self.config, [], 0.0, False
        for step in self.steps.values():
            done = self.work.done(step.name)
            said = "by steps" if step.expected is None else f"{step.expected:.0f} min"
            said = "done" if done else "under way" if self.work.under_way(step.name) else said
            left += 0.0 if done or step.expected is None else step.expected
            unknown |= not done and step.expected is None
            lines.append(f"{said:>9}  {step.name}")
        more = " and what trains by steps" if unknown else ""
        head = textwrap.fill(
            f"table {self.table}, tasks {', '.join(c.tasks)}; per task {c.videos} videos without labels and "
            f"{c.episodes} starts to evaluate. finetune- and eval-VARIANT-DEMOS-SEED:", 80)
        return "\n".join([head, *lines, f"expected: {left / 60:.1f} hours{more} for {len(self.evaluations)} policies"])

    def run(self, write: Callable[[list[dict]], None]) -> list[dict]:
        """Do what is not done; `write` gets the rows so far after every evaluation. Returns all rows.

        Raises:
            ConfigError: a step was done with other settings.
        """
        self.work.run(lambda step: write(self.rows()) if step.name.startswith("eval-") else None)
        return self.rows()

    def rows(self) -> list[dict]:
        """The rows of every policy that is evaluated."""
        made = []
        for row, seed, name in self.evaluations:
            path = self.out / f"eval-{name}.json"
            if self.work.done(f"eval-{name}"):
                trained = self.out / f"finetune-{name}"
                more = self._probe(row) if self.table == 3 else {}
                made += rows_of(json.loads(path.read_text())["tasks"], row.name, row.demos, seed, trained, more)
        return made

    def _probe(self, row: Row) -> dict[str, float]:
        """Linear probes of the latent actions of a row, R^2; none where only the pre-training behind them is given."""
        known = presets.read_variant(row.variant)
        if "pretrain" not in known:
            return {}
        path = self._result(_latent(row, known)[0]) / "health.json"
        figures = json.loads(path.read_text())["figures"] if path.exists() else {}
        return {k: v for k, v in figures.items() if k.startswith("probe_")}


def _latent(row: Row, known: dict) -> tuple[str, dict]:
    """Name of the latent actions that a row needs, and what is special about them."""
    changes = dict(known.get("latent", {})) | ({} if row.flow else {"flow_weight": 0.0})
    return "-".join(["latent", row.videos, *(f"{k}{v:g}" for k, v in sorted(changes.items()))]), changes


def _class(job: str) -> type:
    from vipra_ros.learning import finetune, latent, pretrain, vq

    return {"vq": vq.VQTraining, "latent": latent.LatentTraining, "pretrain": pretrain.Pretrain,
            "finetune": finetune.Finetune}[job]


def collect(folder: Path, tasks: tuple[str, ...], count: int, seed: int, body: str = "robot") -> None:
    """Scripted episodes as bags, then as a data set, `folder`/dataset; goes on where it stopped."""
    from vipra_ros.data.convert import convert
    from vipra_ros.sim.collect import collect as record

    workers = len(os.sched_getaffinity(0))
    record(folder / "bags", tasks, count, seed, workers=workers, cameras=("front",), body=body)
    convert(folder / "bags", folder / "dataset", workers=workers, resume=True, quiet=True)


def reproduce(out: str | Path, table: int, preset: str | Path = "tiny", overrides: dict[str, Any] | None = None,
              save_to: str | Path = "docs/results", plan_only: bool = False) -> list[dict]:
    """Make table `table` in folder `out`; rows go to `save_to`/table<N>.json and .png after every policy.

    Raises:
        ConfigError: no such table, missing videos, or `out` was made with other settings.
    """
    config = presets.read(Reproduction, preset, "reproduce", overrides or {})
    plan = Plan(config, table, out)
    print(plan.describe(), flush=True)
    if plan_only:
        return plan.rows()
    path = Path(save_to) / f"table{table}.json"
    save = json_writer(path)

    def write(rows: list[dict]) -> None:
        save({"table": table, "rows": rows})
        plot(rows, path.with_suffix(".png"))

    rows = plan.run(write)
    write(rows)
    print(f"{path}: {len(rows)} rows")
    return rows
