"""From the results of episodes, in order, to one data set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vipra_ros.control.chunk import GRIPPER_CONVENTION
from vipra_ros.data.lerobot import DatasetError, DatasetWriter
from vipra_ros.data.looks import Looks
from vipra_ros.data.page import render
from vipra_ros.data.report import Report
from vipra_ros.data.stage import full
from vipra_ros.data.work import ConvertSettings


class ConvertError(RuntimeError):
    """A conversion as a whole cannot go on; the message says what to do."""


class Assembly:
    """Puts results together in the order of the bags; the first usable one says how the others must look."""

    def __init__(self, path: Path, settings: ConvertSettings, report: Report):
        self._path, self._settings, self._report = path, settings, report
        self._writer: DatasetWriter | None = None
        self._first: dict[str, Any] = {}
        self._looks = Looks()

    def take(self, bag: Path, found: tuple[Path, dict[str, Any]]) -> None:
        folder, result = found
        entry = {k: result[k] for k in ("bag", "status", "reason", "flags", "frames")} | {
            "episode_index": None
        }
        entry |= {k: result["meta"].get(k) for k in ("task", "colour", "seed", "success")}
        entry |= {"instruction": result.get("instruction"), "figures": result["figures"]}
        self._report.account(result)
        if result["status"] == "converted":
            try:
                entry["episode_index"] = self._add(folder, result)
                self._report.frames += result["frames"]
            except Exception as error:  # a result that does not fit, or was damaged on disk
                if full(error):
                    raise
                entry |= {"status": "broken", "reason": f"{error}", "frames": 0}
        self._report.episodes.append(entry)
        self._looks.take(len(self._report.episodes) - 1, entry, folder)

    def _add(self, folder: Path, result: dict[str, Any]) -> int:
        layout = {k: result[k] for k in ("joints", "actions", "sizes")}
        if self._writer is None:
            self._open(layout, result["meta"])
        for what, value in layout.items():
            if value != self._first[what]:
                raise DatasetError(
                    f"{what} are {value}, the data set's first episode has {self._first[what]}; "
                    "convert them apart, or choose the cameras"
                )
        meta = result["meta"]
        with np.load(folder / "data.npz") as data:
            numeric = {k: data[k] for k in data.files if not k.startswith("histogram.")}
            histograms = {c: data[f"histogram.{c}"] for c in result["sizes"]}
        extra = {
            "task_key": _text(meta.get("task")),
            "colour": _text(meta.get("colour")),
            "seed": int(meta["seed"]) if isinstance(meta.get("seed"), int) else None,
            "success": meta.get("success") if isinstance(meta.get("success"), bool) else None,
            "source": Path(result["bag"]).name,
            "start_ns": int(numeric["stamp_ns"][0]),
            "flags": ",".join(sorted({f["code"] for f in result["flags"]})),
            "meta": json.dumps(meta, ensure_ascii=False),
        }
        videos = {c: folder / f"{c}.mp4" for c in result["sizes"]}
        return self._writer.add(numeric, videos, result["instruction"], histograms, extra)

    def _open(self, layout: dict[str, Any], meta: dict[str, Any]) -> None:
        state, action = (
            {"dtype": "float32", "shape": [len(names)], "names": names}
            for names in ([*layout["joints"], "gripper"], layout["actions"])
        )
        stamp = {"dtype": "int64", "shape": [1], "names": None}
        features = {"observation.state": state, "action": action, "stamp_ns": stamp}
        features |= {f"stamp_ns.{c}": stamp for c in layout["sizes"]}
        s = self._settings
        notes = {
            "gripper": GRIPPER_CONVENTION,
            "action_space": s.action_space,
            "action_time": "row i is reached at timestamp[i] + 1/fps",
            "command": s.topics.command.topic or "measured joints one period later",
            "gripper_command": s.topics.gripper_command.topic or "measured opening one period later",
            "gripper_state": s.topics.gripper_state.topic or "gripper command in force",
            "stamp_ns": "grid time on the recording's clock; stamp_ns.CAMERA: when that frame was exposed",
            "resampling": asdict(s.resampling),
            "topics": asdict(s.topics),
            "codec": asdict(s.codec),
        }
        if s.action_space == "ee_delta":
            notes |= {"profile": s.profile, "frame": "TCP in the base frame; metres and rotation vectors per step"}
        self._first = layout
        self._writer = DatasetWriter(
            self._path,
            s.resampling.fps,
            features,
            {c: tuple(size) for c, size in layout["sizes"].items()},
            _text(meta.get("robot")) or "franka",
            s.codec,
            notes,
        )

    def finish(self, bags: Sequence[Path]) -> None:
        if self._writer is None:
            first = next((e for e in self._report.episodes if e["reason"]), None)
            raise ConvertError(
                f"none of {len(bags)} bags could be used; {Path(first['bag']).name}: {first['reason']}"
            )
        self._writer.close()
        page = render(self._report, self._looks, asdict(self._settings), self._writer.summary())
        (self._path / "meta" / "report.html").write_text(page, encoding="utf-8")
        (self._path / "meta" / "report.json").write_text(
            json.dumps(self._report.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
