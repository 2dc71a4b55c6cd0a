"""What a model reads, for people who have not read its card: words by kind, and what it draws in one line."""

from collections.abc import Mapping, Sequence

# The words of the procedural world that the shipped models are trained on, each kind in the order in which a
# prompt says them; of synonyms the plainest.
KINDS: Mapping[str, tuple[str, ...]] = {
    "size": ("small", "medium", "large"),
    "colour": ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white"),
    "shape": ("circle", "square", "triangle", "star", "diamond", "ring"),
    "motion": (
        "moves right", "moves left", "moves up", "moves down", "stays", "circles", "bounces", "zigzags",
        "moves up right", "moves up left", "moves down right", "moves down left",
    ),
    "place": (
        "over the sea", "over the sand", "over the grass", "over the night sky", "over the snow",
        "over the bricks",
    ),
}  # fmt: skip


def kinds_of(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Words by kind of a model that knows these words; none where it is of another world."""
    known = set(words)
    kinds = {
        kind: tuple(phrase for phrase in phrases if known.issuperset(phrase.split()))
        for kind, phrases in KINDS.items()
    }
    return kinds if all(kinds.values()) else {}


def drawn_by(words: Sequence[str] | None, tracks: bool) -> str:
    """What a model draws and follows, in one line.

    Args:
        words: what it knows; None where it reads any text.
        tracks: whether it follows what is drawn on the picture.
    """
    kinds = kinds_of(words or ())
    if words is None:
        draws = "Draws what you describe, in any words"
    elif kinds:
        counts = [len(kinds[kind]) for kind in ("shape", "colour", "place")]
        draws = "Draws {} shapes in {} colours that move over {} grounds".format(*counts)
    else:
        draws = f"Draws what its {len(words)} words say; the model card has them"
    follows = "follows drags, paths, boxes, pins and the camera" if tracks else "follows words alone"
    return f"{draws}, and {follows}."
