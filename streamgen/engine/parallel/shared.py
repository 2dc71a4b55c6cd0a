"""How processes share a stream out: each pass of the network, or the passes of a tick."""

from models.causal_dit import CausalDiT
from models.video_codec import VideoCodec

from ...errors import InputError
from ..overlap.wave import WAVES, WaveRunner
from .mesh import Mesh
from .ulysses import UlyssesRunner


def shared_runner(
    name: str, dit: CausalDiT, codec: VideoCodec | None, mesh: Mesh, grid: tuple[int, int], steps: int
) -> UlyssesRunner | WaveRunner:
    """The runner of each of the processes.

    Args:
        name: as it was asked for: a wave, or what Ulysses stands in for.
        grid: rows and columns of tokens.
        steps: of the model's usual chunks.

    Raises:
        InputError: another runner, or a number of processes that cannot be.
    """
    if name in WAVES:
        return WaveRunner(name, dit, codec, mesh, steps)
    if name not in ("auto", "plain"):
        expected = " or ".join(("plain", *WAVES))
        raise InputError(f"runner {name}: not over {mesh.size} processes, expected {expected}")
    return UlyssesRunner(dit, codec, mesh, grid)
