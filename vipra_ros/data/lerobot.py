"""Writing a LeRobot v3.0 data set with pyarrow and PyAV.

Layout: many episodes a file, numbers in data/, pictures in videos/, and in meta/ one row an episode that
says where its numbers and pictures lie. Everything is written once, in order; memory holds some thousand
rows and the episodes' rows. The folder grows beside its final place: `close` writes meta/ last and the
caller renames.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vipra_ros.data.dataset import IMAGE_PREFIX, Dataset, DatasetError, EpisodeInfo
from vipra_ros.data.statistics import ImageStatistics, NumericStatistics
from vipra_ros.data.video import Codec, VideoSeries, rate

__all__ = ["Dataset", "DatasetError", "DatasetWriter", "EpisodeInfo"]

CHUNK = 1000  # files a folder
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
INDEX_COLUMNS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
#: What an episode's row may hold besides the layout's own columns; None where it was not recorded.
EXTRA_COLUMNS = {
    "task_key": pa.string(),
    "colour": pa.string(),
    "seed": pa.int64(),
    "success": pa.bool_(),
    "source": pa.string(),
    "start_ns": pa.int64(),
    "flags": pa.string(),
    "meta": pa.string(),
}
_ROWS = 20_000  # rows a row group
_EPISODES = 200  # episodes a row group
_MB = 1_000_000


def _split(file: int) -> dict[str, int]:
    return {"chunk_index": file // CHUNK, "file_index": file % CHUNK}


class DatasetWriter:
    """Writes a data set into the empty or absent folder `path`.

    Args:
        fps: frames per second.
        features: numeric features, name -> {"dtype", "shape": [A], "names"}; the index columns are added.
        cameras: name -> (height, width).
        robot_type: e.g. "fr3".
        codec: of the videos that `add` receives (written into info.json).
        notes: further entries of info.json under the key "vipra_ros".
        data_mb, video_mb: size at which the next file begins.
    """

    def __init__(
        self,
        path: Path,
        fps: float,
        features: Mapping[str, dict],
        cameras: Mapping[str, tuple[int, int]],
        robot_type: str,
        codec: Codec = Codec(),  # noqa: B008 - frozen
        notes: dict | None = None,
        data_mb: float = 100,
        video_mb: float = 200,
    ):
        self.path, self.fps = Path(path), fps
        if self.path.exists() and any(self.path.iterdir()):
            raise DatasetError(f"{self.path} is not empty; choose another folder")
        bad = [n for n in (*features, *cameras) if "/" in n or n in INDEX_COLUMNS]
        if bad:
            raise DatasetError(f"feature name {bad[0]!r}: no slash, and none of {', '.join(INDEX_COLUMNS)}")
        self._numeric = {
            k: dict(dtype=f["dtype"], shape=list(f["shape"]), names=f.get("names"))
            for k, f in features.items()
        }
        self._cameras, self._robot, self._codec, self._notes = (
            dict(cameras),
            robot_type,
            codec,
            dict(notes or {}),
        )
        self._statistics = {
            k: NumericStatistics(f["shape"][0], seed=i) for i, (k, f) in enumerate(self._numeric.items())
        }
        self._image_statistics = {c: ImageStatistics() for c in cameras}
        self._schema = pa.schema(
            [(k, self._arrow(f)) for k, f in self._numeric.items()]
            + [("timestamp", pa.float32()), *[(c, pa.int64()) for c in INDEX_COLUMNS[1:]]]
        )
        self._series = {
            c: VideoSeries(
                lambda n, c=c: self.path / VIDEO_PATH.format(video_key=IMAGE_PREFIX + c, **_split(n)),
                fps,
                int(video_mb * _MB),
            )
            for c in cameras
        }
        self._tasks: dict[str, int] = {}
        self._task_counts: collections.Counter[str] = collections.Counter()
        self._rows: list[dict[str, Any]] = []  # of episodes not written yet
        self._episodes = 0
        self._episode_table: pq.ParquetWriter | None = None
        self._pending: list[pa.Table] = []
        self._parquet: pq.ParquetWriter | None = None
        self._file, self._file_bytes, self._limit, self._total = 0, 0, int(data_mb * _MB), 0
        self._sizes_mb = dict(data=int(data_mb), video=int(video_mb))

    def add(
        self,
        numeric: Mapping[str, np.ndarray],
        videos: Mapping[str, Path | tuple[Path, int]],
        task: str,
        histograms: Mapping[str, np.ndarray],
        extra: Mapping[str, Any] | None = None,
        count: int | None = None,
    ) -> int:
        """Append an episode; returns its index.

        Args:
            numeric: every numeric feature, (N, A) or (N,).
            videos: camera -> MP4 with N frames, made with the same codec; or (a longer one, number of the first).
            task: the instruction.
            histograms: camera -> int64 (3, 256) of its pixels (a sample will do).
            extra: further columns of the episode's row, from EXTRA_COLUMNS.
            count: frames N, needed where there are no numeric features.

        Raises:
            DatasetError: features, lengths or cameras differ from the data set's.
            VideoError: a video does not fit.
        """
        if set(numeric) != set(self._numeric) or set(videos) != set(self._cameras):
            raise DatasetError(
                f"episode has {sorted(numeric)} and cameras {sorted(videos)}; the data set has "
                f"{sorted(self._numeric)} and {sorted(self._cameras)}"
            )
        lengths = {len(v) for v in numeric.values()} | ({count} if count is not None else set())
        if len(lengths) != 1 or 0 in lengths:
            raise DatasetError(
                f"episode's columns have lengths {sorted(lengths)}; one length above 0 is needed"
            )
        count = lengths.pop()
        unknown = sorted(set(extra or {}) - set(EXTRA_COLUMNS))
        if unknown:
            raise DatasetError(f"episode column {unknown[0]!r}: known are {', '.join(EXTRA_COLUMNS)}")
        number, task_index = self._episodes, self._tasks.setdefault(task, len(self._tasks))
        row: dict[str, Any] = {"episode_index": number, "tasks": [task], "length": count}
        stats: dict[str, dict[str, np.ndarray]] = {}
        for i, (name, feature) in enumerate(self._numeric.items()):
            one = NumericStatistics(feature["shape"][0], seed=1000 + i)
            one.update(numeric[name], name)
            stats[name] = one.result()
        where = {c: v if isinstance(v, tuple) else (v, 0) for c, v in videos.items()}
        spans = {c: self._series[c].append(Path(where[c][0]), count, where[c][1]) for c in self._cameras}
        for name in self._numeric:
            self._statistics[name].update(numeric[name], name)
        for camera in self._cameras:
            part = ImageStatistics(histograms[camera])
            self._image_statistics[camera].merge(part)
            stats[IMAGE_PREFIX + camera] = part.result(count)
        file = self._write_rows(numeric, count, number, task_index)
        row |= {f"data/{k}": v for k, v in _split(file).items()}
        row |= {"dataset_from_index": self._total, "dataset_to_index": self._total + count}
        for camera, span in spans.items():
            key = f"videos/{IMAGE_PREFIX}{camera}"
            row |= {f"{key}/{k}": v for k, v in _split(span.file).items()}
            row |= {f"{key}/from_timestamp": span.start, f"{key}/to_timestamp": span.stop}
        for name, values in stats.items():
            row |= {f"stats/{name}/{k}": v.tolist() for k, v in values.items()}
        row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        row |= dict.fromkeys(EXTRA_COLUMNS) | dict(extra or {})
        self._rows.append(row)
        self._episodes += 1
        self._task_counts[task] += 1
        if len(self._rows) >= _EPISODES:
            self._flush_episodes()
        self._total += count
        return number

    def close(self) -> None:
        """Finish the files and write meta/.

        Raises:
            DatasetError: no episode was added.
        """
        if not self._episodes:
            self.abort()
            raise DatasetError("no episode could be added; an empty data set is not written")
        self._flush()
        self._flush_episodes()
        self.abort()
        meta = self.path / "meta"
        self._write_tasks(meta / "tasks.parquet")
        stats = {k: s.result() for k, s in self._statistics.items()}
        stats |= {IMAGE_PREFIX + c: s.result(self._total) for c, s in self._image_statistics.items()}
        stats = {k: {n: v.tolist() for n, v in values.items()} for k, values in stats.items()}
        _write_json(meta / "stats.json", stats)
        _write_json(meta / "info.json", self._info())

    def summary(self) -> dict[str, Any]:
        """Statistics of the numeric features so far, and episodes per task."""
        stats = {k: s.result() for k, s in self._statistics.items()}
        return {"statistics": stats, "features": self._numeric, "tasks": dict(self._task_counts)}

    def abort(self) -> None:
        """Close the files, whatever is in them."""
        for series in self._series.values():
            series.close()
        for writer in (self._parquet, self._episode_table):
            if writer is not None:
                writer.close()
        self._parquet = self._episode_table = None

    # -------------------------------------------------------------------------------------- inside

    @staticmethod
    def _arrow(feature: dict) -> pa.DataType:
        kind = pa.from_numpy_dtype(np.dtype(feature["dtype"]))
        (size,) = feature["shape"]
        return kind if size == 1 else pa.list_(kind, size)

    def _write_rows(self, numeric, count: int, number: int, task_index: int) -> int:
        columns = []
        for name, feature in self._numeric.items():
            values = np.ascontiguousarray(numeric[name], dtype=feature["dtype"]).reshape(count, -1)
            if values.shape[1] != feature["shape"][0]:
                raise DatasetError(
                    f"{name} has {values.shape[1]} columns, the data set {feature['shape'][0]}"
                )
            flat = pa.array(values.ravel())
            columns.append(
                flat if values.shape[1] == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
            )
        frame = np.arange(count)
        columns += [
            pa.array((frame / self.fps).astype(np.float32)),
            pa.array(frame),
            pa.array(np.full(count, number)),
            pa.array(frame + self._total),
            pa.array(np.full(count, task_index)),
        ]
        table = pa.Table.from_arrays(columns, schema=self._schema)
        if self._file_bytes and self._file_bytes + table.nbytes > self._limit:
            self._flush()
            if self._parquet is not None:
                self._parquet.close()
            self._parquet, self._file, self._file_bytes = None, self._file + 1, 0
        self._pending.append(table)
        self._file_bytes += table.nbytes
        if sum(t.num_rows for t in self._pending) >= _ROWS:
            self._flush()
        return self._file

    def _flush(self) -> None:
        if not self._pending:
            return
        if self._parquet is None:
            path = self.path / DATA_PATH.format(**_split(self._file))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._parquet = pq.ParquetWriter(path, self._schema)
        self._parquet.write_table(pa.concat_tables(self._pending).combine_chunks())
        self._pending = []

    def _flush_episodes(self) -> None:
        if not self._rows:
            return
        columns = {k: [row[k] for row in self._rows] for k in self._rows[0]}
        if self._episode_table is None:
            table = pa.table({k: pa.array(v, EXTRA_COLUMNS.get(k)) for k, v in columns.items()})
            path = self.path / EPISODES_PATH.format(chunk_index=0, file_index=0)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._episode_table = pq.ParquetWriter(path, table.schema)
        else:
            table = pa.table(columns, schema=self._episode_table.schema)
        self._episode_table.write_table(table)
        self._rows = []

    def _write_tasks(self, path: Path) -> None:
        table = pa.table({"task_index": list(self._tasks.values()), "task": list(self._tasks)})
        # Readers with pandas expect the text as the index; this note is how pandas finds it.
        column = {"metadata": None, "field_name": None, "name": None, "numpy_type": "object", "pandas_type": "unicode"}
        number = {"name": "task_index", "field_name": "task_index", "numpy_type": "int64", "pandas_type": "int64"}
        note = {
            "index_columns": ["task"],
            "column_indexes": [],
            "pandas_version": "2.0.0",
            "columns": [column | number, column | {"name": "task", "field_name": "task"}],
        }
        pq.write_table(table.replace_schema_metadata({b"pandas": json.dumps(note).encode()}), path)

    def _info(self) -> dict[str, Any]:
        fraction = rate(self.fps)
        fps: float | int = int(fraction) if fraction.denominator == 1 else self.fps
        features: dict[str, dict] = {}
        for camera, (height, width) in self._cameras.items():
            features[IMAGE_PREFIX + camera] = {
                "dtype": "video",
                "shape": [height, width, 3],
                "names": ["height", "width", "channels"],
                "info": {
                    "video.height": height,
                    "video.width": width,
                    "video.codec": "h264",
                    "video.pix_fmt": self._codec.chroma(height, width),
                    "video.is_depth_map": False,
                    "video.fps": fps,
                    "video.channels": 3,
                    "has_audio": False,
                },
            }
        features |= self._numeric
        features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
        features |= {c: {"dtype": "int64", "shape": [1], "names": None} for c in INDEX_COLUMNS[1:]}
        return {
            "codebase_version": "v3.0",
            "robot_type": self._robot,
            "total_episodes": self._episodes,
            "total_frames": self._total,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNK,
            "data_files_size_in_mb": self._sizes_mb["data"],
            "video_files_size_in_mb": self._sizes_mb["video"],
            "fps": fps,
            "splits": {"train": f"0:{self._episodes}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH,
            "features": features,
            "vipra_ros": self._notes,
        }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
