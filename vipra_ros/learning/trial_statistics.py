"""What trials say: success with its interval per policy and task, and policies compared pair by pair. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from vipra_ros.learning import metrics
from vipra_ros.learning.trial_journal import SUCCESS, Trial


def sign_test(first: int, second: int) -> float:
    """Two-sided exact p of `first` against `second` wins when both are equally likely; 1.0 without any.

    p = min(1, 2 P(X <= min(first, second))), X binomial(first + second, 1/2): every outcome at most as likely
    as the one seen, the distribution being symmetric.
    """
    n = first + second
    tail = sum(math.comb(n, k) for k in range(min(first, second) + 1))
    return min(1.0, 2 * tail / 2**n)  # of whole numbers: neither needs to fit a float


def mcnemar(pairs: Sequence[tuple[bool, bool]]) -> tuple[int, int, float]:
    """Exact test of matched outcomes (McNemar 1947, binomial form): only the pairs that differ count.

    Args:
        pairs: (success of the first, success of the second).

    Returns:
        Pairs that the first alone won, that the second alone won, and the two-sided p.
    """
    first = sum(a and not b for a, b in pairs)
    second = sum(b and not a for a, b in pairs)
    return first, second, sign_test(first, second)


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979), in their own order."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    out, highest = [0.0] * len(values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[i]))
        out[i] = highest
    return out


@dataclass(frozen=True)
class Cell:
    """One policy on one task ("" for all tasks together). `seconds`: median of the successes, NaN without."""

    code: str
    task: str
    n: int
    successes: int
    low: float
    high: float
    seconds: float
    stalls: int
    stops: int


@dataclass(frozen=True)
class Comparison:
    """Two policies on one task ("" for all), on the trials that both have done.

    Attributes:
        pairs: matched trials. first_only, second_only: won by one alone. p: exact McNemar.
        faster, slower: of the pairs that both won, those in which the first was the faster or the slower one.
        p_time: sign test of these. p_holm: `p` of all tasks together, corrected for the number of such comparisons;
            NaN for single tasks.
    """

    first: str
    second: str
    task: str
    pairs: int
    first_only: int
    second_only: int
    p: float
    faster: int
    slower: int
    p_time: float
    p_holm: float = math.nan


def cells(trials: Sequence[Trial], codes: Sequence[str], tasks: Sequence[str]) -> list[Cell]:
    """For each policy its tasks in order, then all of them together. `trials`: the valid ones."""
    return [_cell([t for t in trials if t.code == code and task in ("", t.task)], code, task)
            for code in codes for task in _and_all(tasks)]


def _cell(trials: Sequence[Trial], code: str, task: str) -> Cell:
    good = sum(t.label == SUCCESS for t in trials)
    low, high = metrics.wilson(good, len(trials))
    times = metrics.percentiles([t.seconds for t in trials if t.label == SUCCESS])
    return Cell(code, task, len(trials), good, low, high, times["p50"], sum(t.stalls for t in trials),
                sum(t.stops for t in trials))


def comparisons(trials: Sequence[Trial], codes: Sequence[str], tasks: Sequence[str]) -> list[Comparison]:
    """Each two policies: on each task, and on all together."""
    found = []
    for first, second in itertools.combinations(codes, 2):
        a, b = ({(t.task, t.block): t for t in trials if t.code == code} for code in (first, second))
        matched = sorted(a.keys() & b.keys())
        for task in _and_all(tasks):
            both = [(a[k], b[k]) for k in matched if task in ("", k[0])]
            one, two, p = mcnemar([(x.label == SUCCESS, y.label == SUCCESS) for x, y in both])
            won = [(x, y) for x, y in both if x.label == y.label == SUCCESS]
            faster, slower = sum(x.seconds < y.seconds for x, y in won), sum(x.seconds > y.seconds for x, y in won)
            found.append(Comparison(first, second, task, len(both), one, two, p, faster, slower,
                                    sign_test(faster, slower)))
    whole = [i for i, c in enumerate(found) if c.task == ""]
    for i, p in zip(whole, holm([found[i].p for i in whole]), strict=True):
        found[i] = Comparison(**{**vars(found[i]), "p_holm": p})
    return found


def _and_all(tasks: Sequence[str]) -> list[str]:
    return [*tasks, ""] if len(tasks) > 1 else [""]
