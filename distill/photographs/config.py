"""Settings of clips that are made of photographs."""

from dataclasses import dataclass

from ..config import Checked, Natural, Part, Share


@dataclass(frozen=True)
class PhotographConfig(Checked, section="photographs"):
    """How often updates draw clips of moving photographs, and what moves in them.

    Attributes:
        share: of the updates that do not draw from own clips; the others draw from the procedural world.
        objects: patches of other photographs that cross a clip at most.
        cut: share of the clips that change to another scene somewhere.
        still: share of the scenes whose camera does not move.
        fastest: of the camera, in widths of the picture per frame.
    """

    share: Part = 0.5
    objects: Natural = 3
    cut: Share = 0.15
    still: Share = 0.15
    fastest: Part = 0.08
