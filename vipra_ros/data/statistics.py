"""Statistics of a data set, streamed: what a policy normalises with and what a converter reports.

Mean and variance are merged with the parallel update of Chan, Golub and LeVeque (1979), exact up to
rounding whatever the order. Quantiles of numbers come from a uniform sample kept by smallest random
priority: exact while everything fits in the sample, mergeable, bounded in memory. Pixels have 256 levels,
so a histogram holds them all.
"""

from __future__ import annotations

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}


class StatisticsError(ValueError):
    """Values no statistics can be made of; the message names the feature and the row."""


class NumericStatistics:
    """Running statistics of rows with `size` columns.

    Args:
        size: columns.
        sample: rows kept for the quantiles.
        seed: of the sample's random priorities.
    """

    def __init__(self, size: int, sample: int = 100_000, seed: int = 0):
        self.count = 0
        self.mean, self._m2 = np.zeros(size), np.zeros(size)
        self.min, self.max = np.full(size, np.inf), np.full(size, -np.inf)
        self._limit, self._rng = sample, np.random.default_rng(seed)
        self._rows, self._priority = [np.zeros((0, size))], [np.zeros(0)]

    def update(self, rows: np.ndarray, name: str = "values") -> None:
        """Take in `rows` (N, size).

        Raises:
            StatisticsError: a value is not finite.
        """
        rows = np.asarray(rows, dtype=np.float64).reshape(-1, len(self.mean))
        if not np.isfinite(rows).all():
            row, column = np.argwhere(~np.isfinite(rows))[0]
            raise StatisticsError(
                f"{name}[{row}, {column}] = {rows[row, column]}: must be finite; "
                "leave the episode out or repair it"
            )
        if not len(rows):
            return
        mean = rows.mean(axis=0)
        self._combine(len(rows), mean, ((rows - mean) ** 2).sum(axis=0), rows.min(axis=0), rows.max(axis=0))
        self._keep(rows, self._rng.random(len(rows)))

    def result(self) -> dict[str, np.ndarray]:
        """mean, std (of the population), min, max and quantiles, each float64 (size,); count int64 (1,)."""
        if not self.count:
            raise StatisticsError("no values yet; statistics need at least one row")
        self._compact()
        quantiles = np.quantile(self._rows[0], list(QUANTILES.values()), axis=0)
        return {
            "min": self.min.copy(),
            "max": self.max.copy(),
            "mean": self.mean.copy(),
            "std": np.sqrt(self._m2 / self.count),
            "count": np.array([self.count]),
            **dict(zip(QUANTILES, quantiles, strict=True)),
        }

    def _combine(self, count, mean, m2, low, high) -> None:
        if not count:
            return
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self._m2 = self._m2 + m2 + delta**2 * (self.count * count / total)
        self.min, self.max, self.count = np.minimum(self.min, low), np.maximum(self.max, high), total

    def _keep(self, rows: np.ndarray, priority: np.ndarray) -> None:
        self._rows.append(rows)
        self._priority.append(priority)
        if sum(map(len, self._priority)) > 2 * self._limit:
            self._compact()

    def _compact(self) -> None:
        rows, priority = np.concatenate(self._rows), np.concatenate(self._priority)
        if len(rows) > self._limit:
            chosen = np.argpartition(priority, self._limit)[: self._limit]
            rows, priority = rows[chosen], priority[chosen]
        self._rows, self._priority = [rows], [priority]


#: Frames of an episode that the statistics of its pictures are made of.
STATISTICS_FRAMES = 12


class ImageStatistics:
    """Running statistics of RGB images per channel, in [0, 1] as LeRobot keeps them."""

    def __init__(self, histogram: np.ndarray | None = None):
        self.histogram = np.zeros((3, 256), np.int64) if histogram is None else histogram.astype(np.int64)

    def update(self, image: np.ndarray) -> None:
        """Take in one uint8 image (H, W, 3)."""
        for channel in range(3):
            self.histogram[channel] += np.bincount(image[:, :, channel].ravel(), minlength=256)

    def merge(self, other: ImageStatistics) -> None:
        """Take in everything `other` has seen."""
        self.histogram += other.histogram

    def result(self, count: int) -> dict[str, np.ndarray]:
        """As `NumericStatistics.result`, each of shape (3, 1, 1); `count`: frames that it stands for."""
        h, levels = self.histogram.astype(np.float64), np.arange(256) / 255.0
        total = h.sum(axis=1, keepdims=True)
        if not total.all():
            raise StatisticsError("no image yet; statistics need at least one")
        mean = (h * levels).sum(axis=1) / total[:, 0]
        variance = (h * (levels - mean[:, None]) ** 2).sum(axis=1) / total[:, 0]
        cumulative = np.cumsum(h, axis=1) / total
        values = {
            "min": levels[(h > 0).argmax(axis=1)],
            "max": levels[255 - (h[:, ::-1] > 0).argmax(axis=1)],
            "mean": mean,
            "std": np.sqrt(variance),
        }
        values.update({name: levels[(cumulative >= q).argmax(axis=1)] for name, q in QUANTILES.items()})
        return {name: v.reshape(3, 1, 1) for name, v in values.items()} | {"count": np.array([count])}


def floored_std(std: np.ndarray, floor: float) -> np.ndarray:
    """Standard deviation to divide by, at least `floor`.

    A joint that hardly moved in the data would otherwise turn micrometres of noise into many deviations.
    """
    if not floor > 0:
        raise StatisticsError(f"std floor = {floor}: must be positive")
    return np.maximum(np.asarray(std, dtype=np.float64), floor)
