"""The autoregressive loop. Rendering, the live demo, evaluation and Self Forcing all go through it.

`advance` makes one chunk, `settle` commits it: the beginning of the next one, so that pictures can be handed
over before. A session takes these steps one by one, training through `rollout`.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from torch import Tensor

from ..engine.guidance import Conditioning
from ..engine.noise import NoiseSource
from ..engine.runner import DenoiseTask, Runner
from ..engine.sampler import Sampling
from ..engine.source import Source
from .latents import LatentChunk, LatentState
from .prompts import Text
from .recache import commit, commit_task

Measure = Callable[[str, float], None]


def settle(
    runner: Runner, state: LatentState, noise: NoiseSource, measure: Measure = lambda part, seconds: None
) -> LatentState:
    """The state with its last chunk committed, under the words it was made with. The same stream: a step may
    fail afterwards, and what was committed stays.
    """
    if not state.due:
        return state
    began = time.perf_counter()
    cursor = commit(runner, state, state.cursor, state.recent[-1], noise)
    measure("commit", time.perf_counter() - began)
    return replace(state, cursor=cursor, due=False)


def advance(
    runner: Runner,
    state: LatentState,
    conditioning: Conditioning,
    text: Text,
    noise: NoiseSource,
    sampling: Sampling,
    given: Tensor | Source | None = None,
    measure: Measure = lambda part, seconds: None,
) -> tuple[LatentState, LatentChunk]:
    """Make the next chunk of a settled state; or of one whose last chunk is due, by a runner that commits
    ahead.

    Args:
        conditioning: of this chunk.
        text: the words that it is committed under.
        given: its clean latents where they are known (an image or a clip as the start), or pictures that it
            is made from, noised to the first level of `sampling`.

    Returns:
        the state behind it, its commit due, and the chunk; with gradient where `sampling` says so.
    """
    if state.due and isinstance(given, Tensor):
        # no step whose forward could commit it, too
        state = settle(runner, state, noise, measure)
    assert not state.due or runner.commits_ahead, "the last chunk has to be settled first"
    began = time.perf_counter()
    if isinstance(given, Tensor):
        latents = given
    else:
        due = commit_task(state, state.cursor, state.recent[-1], noise) if state.due else None
        state = replace(state, cursor=state.coming, due=False)
        place = (state.ring, state.cursor, state.chunk, state.length)
        latents = runner.denoise(DenoiseTask(*place, conditioning, noise, sampling, given, due))
    measure("denoise", time.perf_counter() - began)
    level, drawn = sampling.context_sigma, sampling.commit_noise
    chunk = LatentChunk(state.chunk, state.start, latents, conditioning.motion, text, level, drawn)
    return state.followed_by(chunk.detached()), chunk


def rollout(
    runner: Runner,
    state: LatentState,
    direct: Callable[[LatentState], tuple[LatentState, Conditioning, Text]],
    noise: NoiseSource,
    sampling: Sampling,
    given: Source | None = None,
) -> Iterator[tuple[LatentState, LatentChunk]]:
    """Generate chunk after chunk, for ever.

    Args:
        state: where the stream is.
        direct: what steers the next chunk of a state whose last chunk is settled; it may rebuild the cache,
            and returns the state it left.
        given: pictures that the first of these chunks is made from.

    Yields:
        the state behind each chunk, the chunk's commit done without gradient, and the chunk.
    """
    state = settle(runner, state, noise)
    while True:
        state, conditioning, text = direct(state)
        state, chunk = advance(runner, state, conditioning, text, noise, sampling, given)
        given = None
        state = settle(runner, state, noise)
        yield state, chunk
