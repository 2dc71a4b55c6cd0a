"""Recache: rebuilding the cache from the record of the context, under other words or the same.

Two ways, each with its own idea of what stays. A rebuild that fails leaves the old state, whose cursor then
points to lost content (`LatentState.intact`); the next step rebuilds from the old record in the same way. Its
result depends on the record, the words and a kept sink alone, so a second try gives what the first would have
given.
"""

from dataclasses import replace
from typing import Literal, Protocol

import torch

from models.causal_dit import TextContext
from models.context import ChunkPlan
from models.kv_cache import CacheCursor

from ..engine.noise import NoiseSource
from ..engine.runner import CommitTask, Runner
from ..errors import InputError
from .latents import LatentChunk, LatentState, held_chunks, joined_motion, last_chunks, sink_chunks
from .prompts import Text

SinkPolicy = Literal["refresh", "keep"]
RecacheMode = Literal["chunks", "joint"]


class Recache(Protocol):
    """A way to rebuild the cache."""

    def check(self, plan: ChunkPlan, sink: SinkPolicy) -> None:
        """Raise InputError where this way cannot serve the plan."""
        ...

    def keeps_sink(self, state: LatentState) -> bool:
        """Whether a rebuild that is asked to leaves the sink as it is."""
        ...

    def keeps_due(self, state: LatentState, sink: SinkPolicy) -> bool:
        """Whether the chunk that is due has to be committed before, as a rebuild would leave it as it is."""
        ...

    def rebuild(
        self, runner: Runner, state: LatentState, noise: NoiseSource, sink: SinkPolicy, text: Text | None
    ) -> LatentState:
        """The state with its cache made anew, nothing due any more.

        Args:
            sink: `refresh` makes the sink anew too; `keep` leaves its keys as they are, if they are there.
            text: what the chunks are committed under; None: each under the words it was made with.
        """
        ...


class ByChunk:
    """Commit the context's clean latents again in order, each with its own motion, noise level and commit
    draw (after LongLive, arXiv 2509.22622). The clock begins anew.
    """

    def check(self, plan: ChunkPlan, sink: SinkPolicy) -> None:
        """See `Recache`; every plan is served."""

    def keeps_sink(self, state: LatentState) -> bool:
        """See `Recache`."""
        return True

    def keeps_due(self, state: LatentState, sink: SinkPolicy) -> bool:
        """See `Recache`."""
        return sink == "keep" and state.cursor.frames < state.ring.plan.sink_frames

    def rebuild(
        self, runner: Runner, state: LatentState, noise: NoiseSource, sink: SinkPolicy, text: Text | None
    ) -> LatentState:
        """See `Recache`."""
        ring = state.ring
        kept: tuple[LatentChunk, ...] = ()
        if sink == "keep" and ring.sink_intact(state.cursor):
            kept = sink_chunks(state.context, min(state.cursor.frames, ring.plan.sink_frames))
        content = ring.begin_rebuild(keep_sink=bool(kept))
        sink_content = state.cursor.sink_content if kept else content
        cursor = CacheCursor(sum(chunk.frames for chunk in kept), 0, content, sink_content)
        made: dict[int, LatentChunk] = {}
        for chunk in state.context[len(kept) :]:
            made[chunk.index] = chunk if text is None else replace(chunk, text=text)
            cursor = commit(runner, state, cursor, made[chunk.index], noise)
        ring.end_rebuild(cursor)
        recent = tuple(made.get(chunk.index, chunk) for chunk in state.recent)
        return replace(state, cursor=cursor, context=(*kept, *made.values()), recent=recent, due=False)


class Joint:
    """LongLive's published recache: one forward over the last attention span (see `models.joint_recache`).
    The clock stays.
    """

    def check(self, plan: ChunkPlan, sink: SinkPolicy) -> None:
        """See `Recache`: a refreshed sink is the span's first frames, which have to be whole chunks."""
        if sink == "refresh" and plan.sink_frames % plan.chunk_frames:
            raise InputError(
                f"recache_mode joint: cannot refresh a sink of {plan.sink_frames} latent frames with chunks "
                f"of {plan.chunk_frames}: expected sink_policy keep, recache_mode chunks, or a sink of whole "
                "chunks"
            )

    def keeps_sink(self, state: LatentState) -> bool:
        """See `Recache`: a stream that attention spans as a whole is made anew as a whole, as published."""
        return not state.whole

    def keeps_due(self, state: LatentState, sink: SinkPolicy) -> bool:
        """See `Recache`: what the span holds is made anew."""
        return False

    def rebuild(
        self, runner: Runner, state: LatentState, noise: NoiseSource, sink: SinkPolicy, text: Text | None
    ) -> LatentState:
        """See `Recache`."""
        if not state.recent:
            return replace(state, due=False)
        ring, plan = state.ring, state.ring.plan
        cursor = state.cursor.moved(state.recent[-1].frames if state.due else 0)
        span = last_chunks(state.recent, min(cursor.frames, plan.attention_frames))
        span = tuple(chunk if text is None else replace(chunk, text=text) for chunk in span)
        keep = sink == "keep" and ring.sink_intact(state.cursor) and self.keeps_sink(state)
        latents = torch.cat([chunk.committed(noise) for chunk in span], 1)
        levels = tuple(level for chunk in span for level in chunk.levels)
        task = CommitTask(ring, cursor, latents, levels, joined_text(span), joined_motion(span))
        cursor = runner.rejoin(task, keep)
        made = {chunk.index: chunk for chunk in span}
        context = held_chunks(span, plan.sink_frames, plan.window_frames)
        if keep and plan.sink_frames:
            sink_kept = sink_chunks(state.context, plan.sink_frames)
            rest = state.context[len(sink_kept) :]
            context = (*sink_kept, *(made.get(chunk.index, chunk) for chunk in rest))
        recent = tuple(made.get(chunk.index, chunk) for chunk in state.recent)
        return replace(state, cursor=cursor, context=context, recent=recent, due=False)


def recache_of(mode: RecacheMode) -> Recache:
    """The way that a setting names."""
    return ByChunk() if mode == "chunks" else Joint()


def commit(
    runner: Runner, state: LatentState, cursor: CacheCursor, chunk: LatentChunk, noise: NoiseSource
) -> CacheCursor:
    """Put a finished chunk's keys and values behind the cursor."""
    return runner.commit(commit_task(state, cursor, chunk, noise))


def commit_task(
    state: LatentState, cursor: CacheCursor, chunk: LatentChunk, noise: NoiseSource
) -> CommitTask:
    """What a runner needs to commit a finished chunk."""
    assert chunk.text is not None, "a chunk is committed under the words it was made with"
    latents = chunk.committed(noise)
    return CommitTask(state.ring, cursor, latents, chunk.levels, chunk.text.context, chunk.motion)


def joined_text(chunks: tuple[LatentChunk, ...]) -> TextContext:
    """The words of consecutive chunks: a segment for each text, and which of them each latent frame reads."""
    texts: list[Text] = []
    places: list[int] = []
    for chunk in chunks:
        assert chunk.text is not None
        # by what they say: a restored text is another object with the same numbers
        known = [i for i, text in enumerate(texts) if text.same(chunk.text)]
        if not known:
            texts.append(chunk.text)
        places += [known[0] if known else len(texts) - 1] * chunk.frames
    if len(texts) == 1:
        return texts[0].context
    layers = range(len(texts[0].context.keys))
    batch, device = chunks[0].latents.shape[0], chunks[0].latents.device
    return TextContext(
        tuple(torch.cat([text.context.keys[layer] for text in texts], 1) for layer in layers),
        tuple(torch.cat([text.context.values[layer] for text in texts], 1) for layer in layers),
        torch.tensor(places, device=device).expand(batch, -1),
        # one forward has one strength of each live LoRA: the newest words'
        texts[-1].context.strengths,
    )
