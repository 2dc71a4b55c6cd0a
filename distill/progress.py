"""How long a run will still take."""


class TimeLeft:
    """Estimates the minutes left from the pace of this session, previews and checkpoints included.

    `step` and `minutes` are where the session begins.
    """

    def __init__(self, max_steps: int, max_minutes: float | None, step: int, minutes: float) -> None:
        self._max_steps, self._max_minutes = max_steps, max_minutes
        self._step, self._minutes = step, minutes

    def minutes(self, step: int, minutes: float) -> float | None:
        """Minutes until the first budget is spent; None while nothing is known."""
        left = None if self._max_minutes is None else max(self._max_minutes - minutes, 0.0)
        if step > self._step:
            pace = (minutes - self._minutes) / (step - self._step)
            by_steps = pace * max(self._max_steps - step, 0)
            left = by_steps if left is None else min(left, by_steps)
        return left


def describe(minutes: float | None) -> str:
    """A time in words: `12 min`, `1 h 05 min`, `3 d 4 h`, `40 s`; `?` when unknown."""
    if minutes is None:
        return "?"
    seconds = round(minutes * 60)
    if seconds < 60:
        return f"{seconds} s"
    whole = round(minutes)
    if whole < 60:
        return f"{whole} min"
    if whole < 24 * 60:
        return f"{whole // 60} h {whole % 60:02d} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"
