"""What the procedural world contains, and the words people use for it.

The order of every tuple here is the index used in labels; append, never reorder. The first word of each
synonym list is the canonical one.
"""

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "diamond", "ring")
COLOURS: tuple[str, ...] = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
SIZES: tuple[str, ...] = ("small", "medium", "large")
BACKGROUNDS: tuple[str, ...] = ("sea", "sand", "grass", "night", "snow", "bricks")
MOTIONS: tuple[str, ...] = ("right", "left", "up", "down", "stays", "circles", "bounces", "zigzag")

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
    "circle": ("circle", "ball", "disc"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "wedge"),
    "star": ("star",),
    "diamond": ("diamond", "rhombus"),
    "ring": ("ring", "hoop", "donut"),
}
SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "tiny", "little"),
    "medium": ("medium", "medium sized", "average"),
    "large": ("large", "big", "huge"),
}

#: Phrases that place the scene; the first is the canonical one.
BACKGROUND_PHRASES: dict[str, tuple[str, ...]] = {
    "sea": ("over the sea", "over sea", "over the ocean", "on the water", "above the waves", "at sea"),
    "sand": ("over the sand", "over sand", "on the sand", "on the beach", "in the desert", "over a beach"),
    "grass": ("over the grass", "over grass", "on the grass", "on the lawn", "over a meadow", "in a meadow"),
    "night": ("over the night sky", "at night", "in the night sky", "in the night", "in a starry sky"),
    "snow": ("over the snow", "over snow", "on the snow", "in the snow", "in falling snow"),
    "bricks": ("over the bricks", "over bricks", "on a brick wall", "against bricks", "against a brick wall"),
}

_DIRECTION_VERBS: tuple[tuple[str, str], ...] = (
    ("moves", "moving"),
    ("drifts", "drifting"),
    ("goes", "going"),
    ("slides", "sliding"),
    ("glides", "gliding"),
    ("travels", "travelling"),
    ("floats", "floating"),
)
_DIRECTION_WORDS: dict[str, tuple[str, ...]] = {
    "right": ("right", "to the right", "rightwards"),
    "left": ("left", "to the left", "leftwards"),
    "up": ("up", "upwards"),
    "down": ("down", "downwards"),
}

#: (finite, participle) verb phrases per motion; the first is the canonical one.
MOTION_PHRASES: dict[str, tuple[tuple[str, str], ...]] = {
    name: tuple(
        (f"{finite} {word}", f"{participle} {word}")
        for word in words
        for finite, participle in _DIRECTION_VERBS
    )
    for name, words in _DIRECTION_WORDS.items()
} | {
    "stays": (
        ("stays", "staying"),
        ("stays still", "staying still"),
        ("stays in place", "staying in place"),
        ("rests", "resting"),
        ("stands still", "standing still"),
        ("does not move", "not moving"),
    ),
    "circles": (
        ("circles", "circling"),
        ("moves in circles", "moving in circles"),
        ("goes around in circles", "going around in circles"),
        ("orbits", "orbiting"),
        ("circles around", "circling around"),
    ),
    "bounces": (
        ("bounces", "bouncing"),
        ("bounces around", "bouncing around"),
        ("bounces off the edges", "bouncing off the edges"),
        ("ricochets", "ricocheting"),
    ),
    "zigzag": (
        ("zigzags", "zigzagging"),
        ("moves in a zigzag", "moving in a zigzag"),
        ("goes in a zigzag", "going in a zigzag"),
        ("zigzags along", "zigzagging along"),
    ),
}


def held_out_indices() -> tuple[tuple[int, int], ...]:
    """Held-out pairs as (colour index, shape index), sorted."""
    return tuple(sorted((COLOURS.index(colour), SHAPES.index(shape)) for colour, shape in HELD_OUT))
