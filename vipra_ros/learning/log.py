"""The record of a run: JSON lines, a line on the terminal, the plot, and TensorBoard's files when asked."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from vipra_ros.config import ConfigError
from vipra_ros.progress import Pace, duration
from vipra_ros.whole_file import write_whole

#: s between lines on a terminal and in a file.
SHOWN_EVERY = (1.0, 15.0)
POSITION = ("kind", "step", "seconds", "samples")
#: Columns of a terminal.
WIDTH = 80


def board_writer():
    """The class that writes TensorBoard's files.

    Raises:
        ConfigError: the package is missing.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(f"loop.tensorboard = true: tensorboard does not load ({str(error).splitlines()[0]}); "
                          "pip install '.[tensorboard]', or set it to false") from None
    return SummaryWriter


def _whole(lines: list[str]) -> Iterator[dict]:
    """The rows, but for one that a full disk or a power cut left in part: state.pt is whole, the run goes on."""
    for line in filter(str.strip, lines):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            print(f"[train] a line of the log is in part, and left out: {line[:60]!r}", file=sys.stderr)


class Log:
    """Rows of `path`, log.jsonl. Rows after `step`, where a resumed run stands, are dropped.

    end: text behind the step on the terminal, the goal of the run.
    board: write every figure for TensorBoard too, into the folder `tensorboard` beside the log.
    """

    def __init__(self, path: Path, end: str, step: int, board: bool = False):
        self.path, self.end = path, end
        # Points after `purge_step - 1`, which the killed run still wrote, are hidden by TensorBoard.
        self.board = board_writer()(str(path.with_name("tensorboard")), purge_step=step + 1) if board else None
        rows = _whole(path.read_text().split("\n")) if path.exists() else []
        self.rows = [row for row in rows if step and row["step"] <= step]
        write_whole(path, "".join(json.dumps(row) + "\n" for row in self.rows))
        # The pace is that of this start: the first row, in which much is done once, is its beginning.
        self._shown, self._pace = 0.0, Pace()

    def write(self, kind: str, step: int, seconds: float, samples: int, figures: dict[str, float]) -> None:
        """One row; `kind` is train or eval."""
        row = dict(zip(POSITION, (kind, step, round(seconds, 2), samples))) | figures
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self.board is not None:
            for name, value in figures.items():
                if isinstance(value, (int, float)):
                    self.board.add_scalar(f"{kind}/{name}", value, step)
            self.board.flush()  # what a kill would lose
        if kind == "eval":
            self.plot()
        left = self._pace.left(seconds, figures["progress"]) if "progress" in figures else None
        now = time.monotonic()
        if kind == "eval" or now - self._shown > SHOWN_EVERY[not sys.stderr.isatty()]:
            self._shown = now
            print(self._said(kind, step, seconds, figures, left), file=sys.stderr, flush=True)

    def _said(self, kind: str, step: int, seconds: float, figures: dict[str, float], left: float | None) -> str:
        """The row for a terminal: of training one line, the figures that fit into it; of an evaluation all.

        left: s to the end of the run, None unknown.
        """
        minutes = f"{seconds / 60:.1f}"
        timed = self.end.endswith("min")  # the goal is a time, otherwise a step
        at = f"step {step}, {minutes}{self.end}" if timed else f"step {step}{self.end}, {minutes} min"
        lines = [f"[{kind}] {at}" + (f", left {duration(left)}" if left is not None else "")]
        for k, v in figures.items():
            if k == "progress" or not isinstance(v, (int, float)):
                continue
            text = f"  {k} {v:.4g}"
            if len(lines[-1]) + len(text) <= WIDTH:
                lines[-1] += text
            elif kind == "eval":
                lines.append(f"      {text}")
        return "\n".join(lines)

    def plot(self) -> None:
        """Training loss and the first ten held-out figures against samples, loss.png beside the log."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        train = [row for row in self.rows if row["kind"] == "train"]
        held = [row for row in self.rows if row["kind"] == "eval"]
        last = held[-1] if held else {}
        names = [k for k, v in last.items() if k not in POSITION and isinstance(v, (int, float))]
        figure, axes = pyplot.subplots(1, 2, figsize=(11, 4))
        axes[0].semilogy([r["samples"] for r in train], [max(r["loss"], 1e-12) for r in train], lw=0.7)
        axes[0].set(title="training loss", xlabel="samples")
        for name in names[:10]:
            values = [r.get(name, float("nan")) for r in held]
            axes[1].plot([r["samples"] for r in held], values, marker=".", label=name)
        axes[1].set(title="held out", xlabel="samples", yscale="log")
        if names:
            axes[1].legend(fontsize=7)
        figure.tight_layout()
        figure.savefig(self.path.with_name("loss.png"), dpi=110)
        pyplot.close(figure)


class Silent:
    """The log of a process that writes none."""

    def write(self, *_: object) -> None:
        """Nothing."""
