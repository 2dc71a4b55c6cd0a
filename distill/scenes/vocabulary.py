"""What the procedural world contains, and the words people use for it.

The order of every tuple here is the index used in labels; append, never reorder. The first word of each
synonym list is the canonical one.
"""

import itertools

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "diamond", "ring")
COLOURS: tuple[str, ...] = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
SIZES: tuple[str, ...] = ("small", "medium", "large")
BACKGROUNDS: tuple[str, ...] = ("sea", "sand", "grass", "night", "snow", "bricks")
MOTIONS: tuple[str, ...] = (
    *("right", "left", "up", "down", "stays", "circles", "bounces", "zigzag"),
    *("up right", "up left", "down right", "down left"),
)

#: Object colours as RGB in [0, 255], saturated and mutually distinct.
COLOUR_RGB: tuple[tuple[int, int, int], ...] = (
    (232, 22, 34),
    (255, 132, 0),
    (255, 228, 24),
    (20, 214, 62),
    (36, 74, 246),
    (142, 40, 206),
    (255, 122, 196),
    (250, 250, 250),
)

#: Radius of each size in world units (the frame is 64 world units wide).
SIZE_RADII: tuple[float, ...] = (8.0, 11.0, 15.0)
#: Size jitter levels, as factors of the radius.
SIZE_JITTER: tuple[float, ...] = (0.95, 1.0, 1.05)

#: (colour, shape) pairs that no training stage ever sees.
HELD_OUT: frozenset[tuple[str, str]] = frozenset(
    {
        ("red", "star"),
        ("blue", "square"),
        ("green", "circle"),
        ("yellow", "triangle"),
        ("purple", "ring"),
        ("orange", "diamond"),
    }
)

COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "golden", "lemon"),
    "green": ("green", "emerald", "lime"),
    "blue": ("blue", "azure", "cobalt"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rosy"),
    "white": ("white", "ivory"),
}
SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "ball", "disc", "disk"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "wedge"),
    "star": ("star",),
    "diamond": ("diamond", "rhombus"),
    "ring": ("ring", "hoop", "donut", "doughnut"),
}
SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "tiny", "little"),
    "medium": ("medium", "medium sized", "average"),
    "large": ("large", "big", "huge", "giant"),
}

#: Phrases that place the scene; the first is the canonical one. None names a colour: that would read as an
#: object's.
BACKGROUND_PHRASES: dict[str, tuple[str, ...]] = {
    "sea": (
        *("over the sea", "over sea", "over the ocean", "on the water", "above the waves", "at sea"),
        *("on the sea", "across the sea", "over the water", "in the ocean"),
    ),
    "sand": (
        *("over the sand", "over sand", "on the sand", "on the beach", "in the desert", "over a beach"),
        *("on sand", "across the sand", "on a sandy beach", "over the desert"),
    ),
    "grass": (
        *("over the grass", "over grass", "on the grass", "on the lawn", "over a meadow", "in a meadow"),
        *("on grass", "across the grass", "in the grass", "on a grassy field"),
    ),
    "night": (
        *("over the night sky", "at night", "in the night sky", "in the night", "in a starry sky"),
        *("across the night sky", "under the stars", "on a starry night", "in the dark"),
    ),
    "snow": (
        *("over the snow", "over snow", "on the snow", "in the snow", "in falling snow"),
        *("on snow", "across the snow", "over a snowy field", "on a snowy day"),
    ),
    "bricks": (
        *("over the bricks", "over bricks", "on a brick wall", "against bricks", "against a brick wall"),
        *("on bricks", "in front of a brick wall", "in front of bricks", "across a brick wall"),
    ),
}
#: Backgrounds as an item of a list ("red star, moving left, night sky").
BACKGROUND_TAGS: dict[str, tuple[str, ...]] = {
    "sea": ("sea", "ocean", "water"),
    "sand": ("sand", "beach", "desert"),
    "grass": ("grass", "meadow", "lawn"),
    "night": ("night", "night sky", "starry sky"),
    "snow": ("snow", "snowy field"),
    "bricks": ("bricks", "brick wall"),
}

_DIRECTION_VERBS: tuple[tuple[str, str], ...] = (
    ("moves", "moving"),
    ("drifts", "drifting"),
    ("goes", "going"),
    ("slides", "sliding"),
    ("glides", "gliding"),
    ("travels", "travelling"),
    ("floats", "floating"),
    ("flies", "flying"),
    ("heads", "heading"),
    ("travels", "traveling"),
)
_DIRECTION_WORDS: dict[str, tuple[str, ...]] = {
    "right": ("right", "to the right", "rightwards", "rightward", "towards the right", "from left to right"),
    "left": ("left", "to the left", "leftwards", "leftward", "towards the left", "from right to left"),
    "up": ("up", "upwards", "upward", "to the top", "towards the top"),
    "down": ("down", "downwards", "downward", "to the bottom", "towards the bottom"),
} | {
    f"{vertical} {side}": (
        f"{vertical} {side}",
        f"{vertical} and {side}",
        f"{vertical} and to the {side}",
        f"diagonally {vertical} and to the {side}",
        f"diagonally {vertical} {side}",
        f"diagonally {vertical} to the {side}",
        f"to the {edge} {side}",
        f"towards the {edge} {side}",
    )
    for vertical, edge in (("up", "top"), ("down", "bottom"))
    for side in ("right", "left")
}
#: Verbs that need no direction; each counts several times beside the many combinations of the others.
_DIRECTION_VERBS_ALONE: dict[str, tuple[tuple[str, str], ...]] = {
    "up": (("rises", "rising"), ("climbs", "climbing")),
    "down": (("falls", "falling down"), ("sinks", "sinking")),
}

#: (finite, participle) verb phrases per motion; the first is the canonical one.
MOTION_PHRASES: dict[str, tuple[tuple[str, str], ...]] = {
    name: tuple(
        (f"{finite} {word}", f"{participle} {word}")
        for word in words
        for finite, participle in _DIRECTION_VERBS
    )
    + _DIRECTION_VERBS_ALONE.get(name, ()) * 4
    for name, words in _DIRECTION_WORDS.items()
} | {
    "stays": (
        ("stays", "staying"),
        ("stays still", "staying still"),
        ("stays in place", "staying in place"),
        ("rests", "resting"),
        ("stands still", "standing still"),
        ("does not move", "not moving"),
        ("sits still", "sitting still"),
        ("stays put", "staying put"),
        ("keeps still", "keeping still"),
    ),
    "circles": (
        ("circles", "circling"),
        ("moves in circles", "moving in circles"),
        ("goes around in circles", "going around in circles"),
        ("orbits", "orbiting"),
        ("circles around", "circling around"),
        ("flies in circles", "flying in circles"),
        ("goes round and round", "going round and round"),
    ),
    "bounces": (
        ("bounces", "bouncing"),
        ("bounces around", "bouncing around"),
        ("bounces off the edges", "bouncing off the edges"),
        ("ricochets", "ricocheting"),
        ("bounces off the walls", "bouncing off the walls"),
        ("bounces off the borders", "bouncing off the borders"),
    ),
    "zigzag": (
        ("zigzags", "zigzagging"),
        ("moves in a zigzag", "moving in a zigzag"),
        ("goes in a zigzag", "going in a zigzag"),
        ("zigzags along", "zigzagging along"),
        ("moves in zigzags", "moving in zigzags"),
        ("zig zags", "zig zagging"),
    ),
}


def held_out_indices() -> tuple[tuple[int, int], ...]:
    """Held-out pairs as (colour index, shape index), sorted."""
    return tuple(sorted((COLOURS.index(colour), SHAPES.index(shape)) for colour, shape in HELD_OUT))


def trained_indices() -> list[tuple[int, int]]:
    """All other pairs, which training draws, sorted."""
    held_out = held_out_indices()
    every = itertools.product(range(len(COLOURS)), range(len(SHAPES)))
    return [pair for pair in every if pair not in held_out]
