"""What updates are made of: kinds by turns, in the shares of a config, and what was seen of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .config import Checked, Count, NonNegative, Share, require

#: Multiples of these, taken modulo 1, spread evenly, and independently of each other.
GOLDEN, PLASTIC, SILVER = 0.6180339887, 0.7548776662, 0.4142135624


class Turns:
    """Names by turns, each in its share, evenly over any stretch of numbers.

    Shares are at least 0, and relative to their sum, which is above 0; two sequences of different strides do
    not know of each other.
    """

    def __init__(self, shares: Mapping[str, float], stride: float = GOLDEN) -> None:
        self.shares = {name: share / sum(shares.values()) for name, share in shares.items() if share > 0}
        self._stride = stride

    def at(self, number: int) -> str:
        """Whose turn `number` is; the same on all processes."""
        place, below = (number * self._stride) % 1, 0.0
        for name, share in self.shares.items():
            below += share
            if place < below:
                return name
        return next(reversed(self.shares))


@dataclass(frozen=True)
class Kind(Checked, section="mixture"):
    """One kind of update: its `share` of them, relative to the others', and the samples in a `batch`."""

    share: NonNegative = 0.0
    batch: Count = 1


@dataclass(frozen=True)
class MixtureConfig(Checked, section="mixture"):
    """What the updates of a causal stage are made of (see `distill.windows`).

    In the first `image_phase` of the budget there are `images` alone: first frames. Later these, `beginnings`
    (the first latent frames of clips, mostly without tracks), whole `clips`, and `changes` (what follows a
    change of caption, behind a past that is read under the new one) take turns in their shares. Own clips
    have no changes; whole clips take their turns.
    """

    image_phase: Share = 0.1
    images: Kind = Kind(0.12, 128)
    beginnings: Kind = Kind(0.15, 40)
    clips: Kind = Kind(0.48, 6)
    changes: Kind = Kind(0.25, 12)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(sum(self.shares.values()) > 0, "mixture", "a share above 0", self.shares)

    @property
    def shares(self) -> dict[str, float]:
        """Shares by name."""
        return {name: kind.share for name, kind in self.kinds.items()}

    @property
    def kinds(self) -> dict[str, Kind]:
        """Kinds by name."""
        return {
            "images": self.images,
            "beginnings": self.beginnings,
            "clips": self.clips,
            "changes": self.changes,
        }

    def kind(self, number: int, progress: float, has_changes: bool) -> str:
        """The kind of update `number` at `progress` in [0, 1] of the budget."""
        if progress < self.image_phase:
            return "images"
        name = Turns(self.shares).at(number)
        return "clips" if name == "changes" and not has_changes else name


class Census:
    """How many latent frames were targets, by name: of each kind of update, each motion, of turns."""

    def __init__(self, names: Sequence[str]) -> None:
        self._counts = dict.fromkeys(names, 0)

    def add(self, counts: Mapping[str, int]) -> None:
        """Count those of one batch."""
        for name, count in counts.items():
            self._counts[name] += count

    def shares(self, names: Sequence[str]) -> dict[str, float]:
        """Of the latent frames counted under any of `names` the share of each; 0 before the first."""
        total = max(1, sum(self._counts[name] for name in names))
        return {name: self._counts[name] / total for name in names}

    def count(self, name: str) -> int:
        """How many there were."""
        return self._counts[name]
