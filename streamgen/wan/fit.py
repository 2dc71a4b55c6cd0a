"""What a model is loaded with so that it and one stream fit into some memory: `--fit`."""

from dataclasses import dataclass, replace

from ..checkpoints.memory import gib, smaller_windows
from ..engine.quantize import CACHE
from ..errors import CheckpointError
from .config import WanConfig
from .memory import Setup, memory_parts

# linear layers: the kind whose numbers are nearest to those of full precision
_LINEARS = "int8"


@dataclass(frozen=True)
class Choices:
    """What may be changed besides the window.

    Attributes:
        tiny: the decoder: there are weights of TAEHV.
        linears: linear layers to eight bits: the device has a kernel, and nothing else was asked for.
        cache: the cache to eight bits: the runner can read one.
    """

    tiny: bool = False
    linears: bool = False
    cache: bool = False


def fitted(
    config: WanConfig, setup: Setup, room: int, choices: Choices
) -> tuple[WanConfig, Setup, str | None]:
    """A config and setup that fit into so many bytes, and one line on what was changed for it, None where
    nothing was.

    The mildest change is taken: TAEHV for the Wan VAE, which changes how sharp pictures are; then eight bits,
    of linear layers and then of the cache, too, a few percent of every velocity; a smaller window last, since
    what a stream no longer sees it forgets.

    Raises:
        CheckpointError: nothing fits; says what the smallest needs.
    """
    most = sum(memory_parts(config, setup).values())
    needed, changes = most, ""
    for found in _ways(setup, choices):
        needed, changes = sum(memory_parts(config, found).values()), _changes(setup, found)
        if needed > room:
            continue
        sampling = replace(config.sampling, window_frames=found.plan.window_frames)
        own = replace(config, sampling=sampling)
        if found.decoder != setup.decoder:
            own = replace(own, decoder="tiny")
        sizes = f"{gib(needed)} of {gib(room)} GiB, without {gib(most)}"
        return own, found, f"--fit: {changes}: {sizes}; the mildest that fits" if changes else None
    raise CheckpointError(
        f"--fit: expected room in {gib(room)} GiB at {config.width}x{config.height}, found that "
        f"{changes or 'what there is'} needs {gib(needed)}; a smaller picture (--size) needs less"
    )


def _ways(setup: Setup, choices: Choices) -> list[Setup]:
    """Setups from the mildest on, the last one the smallest."""
    bits = [setup.quantize]
    if choices.linears and bits[-1] == "none":
        bits.append(_LINEARS)
    if choices.cache and not bits[-1].endswith(CACHE):
        bits.append(CACHE if bits[-1] == "none" else f"{bits[-1]}+{CACHE}")
    decoders = [setup.decoder, *(["tiny"] if choices.tiny and setup.decoder == "vae" else [])]
    windows = [setup.plan.window_frames, *smaller_windows(setup.plan)]
    return [
        replace(setup, decoder=decoder, quantize=name, plan=replace(setup.plan, window_frames=window))
        for window in windows
        for name in bits
        for decoder in decoders
    ]


def _changes(setup: Setup, found: Setup) -> str:
    """What differs, as options name it."""
    rows = (
        ("decoder", setup.decoder, found.decoder),
        ("quantize", setup.quantize, found.quantize),
        ("window_frames", setup.plan.window_frames, found.plan.window_frames),
    )
    return " + ".join(f"{name} {new}" for name, old, new in rows if old != new)
