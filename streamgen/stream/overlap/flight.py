"""A chunk that has begun and is not finished."""

from dataclasses import dataclass, field

from ...engine.overlap.wave import Begun
from ..events import Receipt
from ..prompts import Text


@dataclass(frozen=True, eq=False)
class InFlight:
    """A chunk in work, of a stream whose chunks overlap. A value.

    Attributes:
        begun: how far it is.
        start: its first latent frame.
        text: the words that it will be committed under.
        steps: network evaluations that it takes.
        receipts: of the events that took effect with it.
        recached: whether the cache was made anew before it.
        timings: seconds spent per part before its first step.
    """

    begun: Begun
    start: int
    text: Text
    steps: int
    receipts: tuple[Receipt, ...] = ()
    recached: bool = False
    timings: dict[str, float] = field(default_factory=dict)
