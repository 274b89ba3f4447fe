"""What became of every bag of a conversion: for the terminal, and as meta/report.json."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Report:
    """What became of every bag; an entry's `status` is converted, failed, refused or broken."""

    path: Path
    episodes: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    video_seconds: float = 0.0  # processor time of decoding pictures and encoding video, over all workers
    encode_seconds: float = 0.0  # of that, encoding alone
    frames: int = 0
    fps: float = 0.0
    times: list[float] = field(default_factory=list)  # s of each bag, those of earlier runs too
    rss_mb: float = 0.0  # most memory of one worker
    made_of: list = field(default_factory=list)  # settings and bags, as `vipra_ros.data.work` signs them

    def account(self, result: dict[str, Any]) -> None:
        """Add what one bag has cost."""
        self.video_seconds += result["video_seconds"]
        self.encode_seconds += result["encode_seconds"]
        self.times.append(result["seconds"])
        self.rss_mb = max(self.rss_mb, result["rss_mb"])

    def count(self, status: str) -> int:
        """Bags with this status."""
        return sum(e["status"] == status for e in self.episodes)

    def flags(self) -> dict[str, int]:
        """Episodes per code of finding."""
        return dict(collections.Counter(c for e in self.episodes for c in {f["code"] for f in e["flags"]}))

    def to_json(self) -> dict[str, Any]:
        """As written to meta/report.json."""
        status = {s: self.count(s) for s in ("converted", "failed", "refused", "broken")}
        return {
            "bags": len(self.episodes),
            **status,
            "frames": self.frames,
            "seconds": round(self.seconds, 2),
            "video_seconds": round(self.video_seconds, 2),
            "encode_seconds": round(self.encode_seconds, 2),
            "flags": self.flags(),
            "episodes": self.episodes,
            "made_of": self.made_of,
        }

    def __str__(self) -> str:
        lines = [
            f"{self.count('converted')} of {len(self.episodes)} episodes, {self.frames} frames -> "
            f"{self.path} in {self.seconds:.1f} s (failed {self.count('failed')}, "
            f"refused {self.count('refused')}, broken {self.count('broken')})"
        ]
        page = self.path / "meta" / "report.html"
        lines += [f"  report: {page}"] if page.exists() else []
        lines += [
            f"  flag {code}: {n} episodes" for code, n in sorted(self.flags().items(), key=lambda x: -x[1])
        ]
        bad = [e for e in self.episodes if e["status"] in ("broken", "refused")]
        lines += [f"  {e['status']} {Path(e['bag']).name}: {e['reason']}" for e in bad[:5]]
        if len(bad) > 5:
            lines.append(f"  and {len(bad) - 5} more in meta/report.json")
        return "\n".join(lines)
