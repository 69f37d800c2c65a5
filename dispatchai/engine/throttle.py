"""Limits how often items of a key pass; the last one always passes. Pure: the clock is an argument."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Throttle(Generic[T]):
    """Holds back items that come less than `apart_s` seconds after the key's last one; a later item replaces it."""

    def __init__(self, apart_s: float) -> None:
        self._apart_s = apart_s
        self._passed_at: dict[str, float] = {}
        self._held: dict[str, T] = {}

    def offer(self, key: str, item: T, now_s: float) -> bool:
        """Whether `item` may pass now; otherwise it is held back."""
        passed_at = self._passed_at.get(key)
        if passed_at is not None and now_s - passed_at < self._apart_s:
            self._held[key] = item
            return False
        self._held.pop(key, None)
        self._passed_at[key] = now_s
        return True

    def due(self, now_s: float) -> Iterator[tuple[str, T]]:
        """The held items that are due. Each passes when it is taken, if it is still held back then."""
        ready = [key for key in self._held if now_s - self._passed_at[key] >= self._apart_s]
        for key in ready:
            if key in self._held:
                self._passed_at[key] = now_s
                yield key, self._held.pop(key)

    def held(self, key: str) -> T | None:
        """The item of `key` that is held back, or None."""
        return self._held.get(key)

    def drop(self, key: str) -> None:
        """Drop `key` and the item held back."""
        self._held.pop(key, None)
        self._passed_at.pop(key, None)

    def reset(self) -> None:
        """Drop all keys."""
        self._held.clear()
        self._passed_at.clear()
