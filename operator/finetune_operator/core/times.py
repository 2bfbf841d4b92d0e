"""Times of Kubernetes objects: RFC 3339 text to UTC and back to whole seconds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
"""Stands for a time that an object should have and lacks."""


def parse_time(text: str | None) -> datetime | None:
    """An aware time, or None where there is none."""
    return datetime.fromisoformat(text) if text else None


def whole_second(time: datetime) -> datetime:
    """The time as an object of the API will remember it."""
    return time.replace(microsecond=0)


def seconds_until(*, due: datetime, now: datetime) -> float:
    """At least a millisecond, so that a timer that fires early cannot spin."""
    return max(0.001, (due - now).total_seconds())


def after(time: datetime, seconds: float) -> datetime:
    """The time that many seconds later."""
    return time + timedelta(seconds=seconds)
