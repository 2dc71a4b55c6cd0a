"""A student's streams as training rolls them out, and as sessions of its checkpoint do."""

from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from distill.running import RunningStreams, Script
from distill.stages.self_forcing import SelfForcingStage
from models.motion_encoder import Tracks
from streamgen import StreamEvent, load_pipeline
from streamgen.engine.sampler import Sampling
from streamgen.engine.scheduler import FlowMatchScheduler
from streamgen.motion.tracks import TrackSet
from streamgen.stream.latents import LatentState

SIGMAS = FlowMatchScheduler(2, 3.0).sigmas()
SAMPLING = Sampling(SIGMAS, renoise=True, context_sigma=0.05)
GRID = (4, 4)


def script_of(stage: SelfForcingStage, switch: int | None, tracks: bool) -> Script:
    """One stream: red circle, then blue star, perhaps along a track over the first 21 frames."""
    length = stage.run.network.text_length
    words = [stage.family.vocabulary.encode(text, length).ids for text in ("a red circle", "a blue star")]
    time = torch.linspace(0.2, 0.8, 21)
    points = torch.stack([time, 1 - time], -1)[None, None]
    state = torch.full((1, 1, 21), int(tracks), dtype=torch.int8)
    told = Tracks(points, state, torch.zeros(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.long))
    return Script(
        torch.stack([*words, torch.zeros_like(words[0])])[None],
        switch,
        told,
        torch.tensor([[2.0, 3.0]]),
    )


def rolled(stage: SelfForcingStage, script: Script, frames: int, sampling: Sampling = SAMPLING) -> Tensor:
    state = LatentState(stage.student.new_cache(len(script.words), GRID))
    result: Tensor = stage.student(RunningStreams(script, state, 5), frames, sampling)[0]
    return result


def export_as_is(stage: SelfForcingStage, directory: Path) -> Path:
    """Write the student; weights are exported as bfloat16, so its own become that as well."""
    with torch.no_grad():
        for parameter in stage.student.parameters():
            parameter.copy_(parameter.bfloat16().float())
    directory.mkdir()
    stage.export(directory)
    return directory


def streamed(stage: SelfForcingStage, script: Script, switch: int | None, directory: Path) -> Tensor:
    """What a session of the stage's student makes of a script, 12 latent frames."""
    pipeline = load_pipeline(export_as_is(stage, directory))
    settings = {"steps": 2, "sampler": "renoise", "context_noise": 0.05, "text_guidance": 2.0}
    motion = None
    if bool(script.tracks.state.any()):
        motion = TrackSet(
            script.tracks.points[0].float(),
            script.tracks.state[0],
            script.tracks.pinned[0],
            script.tracks.ids[0],
        )
    session = pipeline.open("a red circle", 5, motion, settings=settings | {"motion_guidance": 3.0})
    if switch is not None:
        session.submit(StreamEvent(prompt="a blue star"), pipeline.geometry.frame_range(switch, 1)[0])
    return torch.cat([chunk.latents for chunk in islice(session, 12)], 1)
