"""Reading a LeRobot v3.0 data set: numbers as arrays, pictures as a stream.

Works on ours and on any other v3.0 set on disk; the `lerobot` package is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from pyarrow.lib import ArrowException

IMAGE_PREFIX = "observation.images."


class DatasetError(RuntimeError):
    """A data set cannot be read or written; the message names the file and the remedy."""


@dataclass(frozen=True)
class EpisodeInfo:
    """One episode of a data set. `start`: global index of its first frame. What was not recorded is None."""

    index: int
    task: str
    length: int
    start: int
    task_key: str | None = None
    colour: str | None = None
    seed: int | None = None
    success: bool | None = None
    source: str | None = None


class Dataset:
    """A data set on disk.

    Attributes:
        path, info, fps: where it is, meta/info.json, frames per second.
        features: name -> {"dtype", "shape", "names"}.
        cameras: names of the cameras, sorted.
        tasks: task texts by task index.
        episodes: every episode, in order.

    Raises:
        DatasetError: it is not a v3.0 data set.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        info = self.path / "meta" / "info.json"
        if not info.exists():
            raise DatasetError(
                f"{self.path} is no data set (no meta/info.json); give the folder `convert` made"
            )
        try:
            self._read_meta(info)
        except DatasetError:
            raise
        except Exception as error:  # others write data sets too, and what breaks in theirs has any type
            text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise DatasetError(
                f"{self.path}/meta is not that of a v3.0 data set ({text}); copy or convert it again"
            ) from None
        self._reader = None

    def _read_meta(self, info: Path) -> None:
        self.info = json.loads(info.read_text(encoding="utf-8"))
        version = self.info.get("codebase_version")
        if version != "v3.0":
            raise DatasetError(
                f"{self.path} has format {version}, v3.0 is read; convert it with lerobot's own script"
            )
        self.fps = float(self.info["fps"])
        if not (0 < self.fps < 1e6 and int(self.info["total_frames"]) >= 0):
            raise ValueError(f"fps {self.fps:g}, total_frames {self.info['total_frames']}")
        self.features = self.info["features"]
        for name, feature in self.features.items():
            if not (isinstance(feature["dtype"], str) and type(feature["shape"]) is list and all(
                type(n) is int and n > 0 for n in feature["shape"]
            )):
                raise ValueError(f"feature {name}: dtype {feature['dtype']}, shape {feature['shape']}")
        self._video_key = {
            k.removeprefix(IMAGE_PREFIX): k for k, f in self.features.items() if f["dtype"] == "video"
        }
        self.cameras = sorted(self._video_key)
        self.tasks = self._read_tasks()
        self._table = self._read_episodes()
        self.episodes = [self._episode(row) for row in self._table]
        if not all(e.length >= 0 and e.start >= 0 for e in self.episodes):
            raise ValueError("an episode of negative length or start")
        self._starts = np.array([e.start for e in self.episodes], np.int64)

    def __len__(self) -> int:
        return int(self.info["total_frames"])

    @property
    def statistics(self) -> dict[str, dict[str, np.ndarray]]:
        """Global statistics: feature -> mean, std, min, max, count, quantiles."""
        stats = json.loads((self.path / "meta" / "stats.json").read_text(encoding="utf-8"))
        return {name: {k: np.array(v) for k, v in values.items()} for name, values in stats.items()}

    def numeric(self, column: str) -> np.ndarray:
        """A whole column: (N, A) for a vector feature, (N, 1) for a scalar one, in its own type.

        Raises:
            DatasetError: no such column.
        """
        feature = self.features.get(column)
        if feature is None or feature["dtype"] == "video":
            known = ", ".join(k for k, f in self.features.items() if f["dtype"] != "video")
            raise DatasetError(f"{self.path} has no numeric column {column!r}; it has {known}")
        width = int(np.prod(feature["shape"]))
        parts = [self._column(path, column, width, feature["dtype"])
                 for path in sorted((self.path / "data").glob("*/*.parquet"))]
        table = np.concatenate(parts) if parts else np.zeros((0, width), feature["dtype"])
        if len(table) != len(self):
            raise DatasetError(
                f"{self.path}: column {column} has {len(table)} rows, {len(self)} are announced; "
                "the data set is cut: convert again"
            )
        return table

    def _column(self, path: Path, column: str, width: int, dtype: str) -> np.ndarray:
        try:
            values = pq.read_table(path, columns=[column])[column].combine_chunks()
            if width > 1 or hasattr(values.type, "value_type"):
                values = values.flatten()
            return values.to_numpy(zero_copy_only=False).astype(dtype).reshape(-1, width)
        except (ArrowException, OSError, LookupError, TypeError, ValueError) as error:
            text = " ".join(str(error).split())[:300]
            raise DatasetError(f"{path}: column {column} cannot be read ({text}); copy or convert it again") from None

    def frames(
        self, camera: str, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Stream (global index, uint8 RGB (H, W, 3)) of frames [start, stop) in order, one at a time."""
        from vipra_ros.data.video import read_frames

        stop = len(self) if stop is None else stop
        for path, number, first, last in self._runs(camera, start, stop):
            index = first
            for image in read_frames(path, self.fps, number, number + last - first):
                yield index, image
                index += 1
            if index != last:
                raise DatasetError(
                    f"{path} ends {last - index} frames early; the data set is cut: convert again"
                )

    def frame(self, camera: str, index: int) -> np.ndarray:
        """One frame by global index, uint8 RGB (H, W, 3)."""
        from vipra_ros.data.video import FrameReader

        if self._reader is None:
            self._reader = FrameReader(self.fps, keep=2 * max(1, len(self.cameras)))
        path, number, _, _ = next(self._runs(camera, index, index + 1))
        return self._reader.frame(path, number)

    def episode_of(self, index: int) -> EpisodeInfo:
        """The episode that holds a global frame index."""
        if not 0 <= index < len(self):
            raise DatasetError(f"frame {index}: the data set has frames 0 to {len(self) - 1}")
        return self.episodes[int(np.searchsorted(self._starts, index, side="right")) - 1]

    def video_of(self, camera: str, episode: int) -> tuple[Path, int]:
        """The file that holds an episode's pictures, and the number of the first one in it."""
        key = self._video_key[camera]
        row = self._table[episode]
        path = self.info["video_path"].format(
            video_key=key,
            chunk_index=row[f"videos/{key}/chunk_index"],
            file_index=row[f"videos/{key}/file_index"],
        )
        return self.path / path, round(row[f"videos/{key}/from_timestamp"] * self.fps)

    def picture(self, camera: str) -> dict:
        """What info.json says of a camera's pictures."""
        return self.features[self._video_key[camera]]

    def row(self, episode: int) -> dict:
        """An episode's row of meta/episodes, its statistics left out."""
        return self._table[episode]

    # -------------------------------------------------------------------------------------- inside

    def _runs(self, camera: str, start: int, stop: int) -> Iterator[tuple[Path, int, int, int]]:
        """Stretches that lie in one file: (path, first frame number in it, global start, global stop)."""
        if camera not in self._video_key:
            raise DatasetError(
                f"{self.path} has no camera {camera!r}; it has {', '.join(self.cameras) or 'none'}"
            )
        run = None
        for episode in self.episodes[self.episode_of(start).index if start < stop else len(self.episodes) :]:
            if episode.start >= stop:
                break
            path, offset = self.video_of(camera, episode.index)
            first, last = max(start, episode.start), min(stop, episode.start + episode.length)
            number = offset + first - episode.start
            if run and run[0] == path and run[1] + run[3] - run[2] == number:
                run = (*run[:3], last)
                continue
            if run:
                yield run
            run = (path, number, first, last)
        if run:
            yield run

    def _read_tasks(self) -> list[str]:
        table = pq.read_table(self.path / "meta" / "tasks.parquet")
        text = next((c for c in table.column_names if c != "task_index"), None)
        if text is None:
            raise DatasetError(f"{self.path}/meta/tasks.parquet has no task texts")
        pairs = zip(table["task_index"].to_pylist(), table[text].to_pylist(), strict=True)
        return [task for _, task in sorted(pairs)]

    def _read_episodes(self) -> list[dict]:
        rows: list[dict] = []
        for path in sorted((self.path / "meta" / "episodes").glob("*/*.parquet")):
            file = pq.ParquetFile(path)
            columns = [c for c in file.schema_arrow.names if not c.startswith("stats/")]
            rows += file.read(columns=columns).to_pylist()
        return sorted(rows, key=lambda r: r["episode_index"])

    def _episode(self, row: dict) -> EpisodeInfo:
        known = ("task_key", "colour", "seed", "success", "source")
        return EpisodeInfo(
            index=row["episode_index"],
            task=row["tasks"][0],
            length=row["length"],
            start=row["dataset_from_index"],
            **{k: row.get(k) for k in known},
        )
