"""What a list of durations says. The standard library only: adapters of other engines use it where they live."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def percentiles(took_s: Iterable[float]) -> dict[str, float]:
    """Turn seconds into p50, p95 and p99 in milliseconds, each a duration that was measured, and their number."""
    ordered = sorted(took_s)
    return {"p50": _at(ordered, 50), "p95": _at(ordered, 95), "p99": _at(ordered, 99), "samples": len(ordered)}


def _at(ordered: Sequence[float], percentile: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * percentile // 100)] * 1000
