"""Settings of clips that are made of photographs."""

from dataclasses import dataclass

from ..config import require


@dataclass(frozen=True)
class PhotographConfig:
    """How often updates draw clips of moving photographs, and what moves in them.

    Attributes:
        share: of the updates that do not draw from own clips; the others draw from the procedural world.
        objects: patches of other photographs that cross a clip at most.
        cut: share of the clips that change to another scene somewhere.
        still: share of the scenes whose camera does not move.
        fastest: of the camera, in widths of the picture per frame.
    """

    share: float = 0.5
    objects: int = 3
    cut: float = 0.15
    still: float = 0.15
    fastest: float = 0.08

    def __post_init__(self) -> None:
        require(0 < self.share <= 1, "photographs.share", "above 0, at most 1", self.share)
        require(0 <= self.objects <= 16, "photographs.objects", "0 to 16", self.objects)
        for name in ("cut", "still"):
            value = vars(self)[name]
            require(0 <= value <= 1, f"photographs.{name}", "within [0, 1]", value)
        require(0 < self.fastest <= 1, "photographs.fastest", "above 0, at most 1", self.fastest)
