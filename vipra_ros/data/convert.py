"""Bags to a data set: episodes in processes, assembly in order, nothing half-done under the final name.

Each bag becomes a small folder of results (numbers, one video per camera, findings) under `.OUT.partial/`;
the data set is put together from those and renamed to OUT at the very end. A bag that cannot be used is
reported and left out; an interrupted conversion goes on with `resume=True` from the results that are there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vipra_ros.config import build
from vipra_ros.data import workers as processes
from vipra_ros.data.assembly import Assembly, ConvertError
from vipra_ros.data.bags import find_bags
from vipra_ros.data.report import Report
from vipra_ros.data.resample import Resampling
from vipra_ros.data.stage import clear, full, staged
from vipra_ros.data.work import ConvertSettings, blank, convert_episode, signature
from vipra_ros.progress import bar

__all__ = ["ConvertError", "ConvertSettings", "Report", "convert", "convert_episode"]


def convert(
    bags: Sequence[Path] | Path,
    out: Path,
    fps: float | None = None,
    resume: bool = False,
    workers: int = 1,
    settings: ConvertSettings | None = None,
    progress: bool = True,
    quiet: bool = False,
    ray: str = "",
) -> Report:
    """Convert episode bags (or folders of them) into a LeRobot data set at `out`.

    Args:
        bags: bags or folders of bags, searched in order of their names.
        out: folder of the data set; must not exist yet.
        fps: rate of the data set, Hz; that of `settings.resampling` when None.
        resume: go on from an interrupted conversion; a finished one of the same bags is left as it is.
        workers: processes; 1 works in this one.
        progress: show a bar on a terminal. quiet: print no summary.
        ray: address of a Ray cluster that does the work instead; `workers` does not count then.

    Raises:
        ConvertError: `out` exists, there are no bags, none of them could be used, or the disk is full.
        ConfigError: a rate that cannot be, or another process makes `out`.
    """
    began = time.monotonic()
    settings = settings or ConvertSettings()
    if fps is not None:
        chosen = build(Resampling, {**asdict(settings.resampling), "fps": float(fps)}, "convert: resampling")
        settings = replace(settings, resampling=chosen)
    out = Path(out)
    found = find_bags([bags] if isinstance(bags, (str, Path)) else list(bags))
    if not found:
        raise ConvertError(f"no bags in {bags}; record some, or give the folder that holds them")
    if workers < 1:
        raise ConvertError(f"workers = {workers}: at least 1")
    made_of = [settings.digest(), [signature(bag) for bag in found]]
    if out.exists():
        if resume and (report := _finished(out, found, made_of)):
            return report
        raise ConvertError(
            f"{out} exists{' and was made of other bags, or with other settings' if resume else ''}; "
            "choose another folder or delete it"
        )
    report = Report(out, fps=settings.resampling.fps, made_of=made_of)
    with staged(out) as stage:
        if not resume:
            clear(stage)
        shutil.rmtree(stage / "dataset", ignore_errors=True)
        assembly = Assembly(stage / "dataset", settings, report)
        try:
            with bar("converting", len(found), progress) as advance:
                for bag, result in _results(found, stage, settings, workers, ray):
                    assembly.take(bag, result)
                    broken = report.episodes[-1]["status"] == "broken"
                    advance(note=f"{report.count('broken')} broken" if broken else None)
            report.seconds = time.monotonic() - began
            assembly.finish(found)
        except OSError as error:
            if not full(error):
                raise
            raise ConvertError(f"{out}: {error.strerror}; what is done stays: make room, then the same command with "
                               "--resume") from error
        os.rename(stage / "dataset", out)
        shutil.rmtree(stage, ignore_errors=True)
    if not quiet:
        print(report, flush=True)
    return report


def _results(
    bags: Sequence[Path], stage: Path, settings: ConvertSettings, count: int, ray: str
) -> Iterator[tuple[Path, tuple[Path, dict[str, Any]]]]:
    """(bag, (folder, result)) in the order of the bags; few per worker are ahead of the assembly."""
    folders = [stage / "episodes" / _folder_name(bag) for bag in bags]
    (stage / "episodes").mkdir(exist_ok=True)
    if ray:
        from vipra_ros.data import cluster

        there = [(bag.resolve(), folder.resolve(), settings) for bag, folder in zip(bags, folders)]
        made = cluster.results(convert_episode, there, ray)
    else:
        made = processes.results(convert_episode, [(b, f, settings) for b, f in zip(bags, folders)], count)
    for bag, folder, (_, result) in zip(bags, folders, made, strict=True):
        if isinstance(result, processes.Lost):
            result = blank(bag) | {"seconds": 0.0, "rss_mb": 0.0, "reason": str(result)}
        yield bag, (folder, result | {"bag": str(bag)})


def _finished(out: Path, bags: Iterable[Path], made_of: list) -> Report | None:
    """The report of a finished conversion of exactly these bags, as they are now, with these settings."""
    path = out / "meta" / "report.json"
    if not path.exists():
        return None
    values = json.loads(path.read_text(encoding="utf-8"))
    if [e["bag"] for e in values["episodes"]] != [str(b) for b in bags]:
        return None
    if values.get("made_of", made_of) != made_of:  # reports of earlier versions do not say
        return None
    same = ("episodes", "seconds", "video_seconds", "encode_seconds", "frames")
    return Report(out, made_of=made_of, **{k: values[k] for k in same})


def _folder_name(bag: Path) -> str:
    return f"{bag.name}-{hashlib.sha256(str(bag.resolve()).encode()).hexdigest()[:10]}"
