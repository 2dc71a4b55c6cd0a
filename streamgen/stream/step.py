"""One step of a stream: from a state and the events that are due to the next state and a chunk of pictures.

`decide` says what the events come to; `settled` commits the chunk of before; `step` makes the chunk. None of
them changes anything but cache slots that the old state does not read, or says that it lost: a failure at any
line leaves the old state good.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.kv_cache import CacheCursor, CacheRing

from ..engine.budget import StepBudget
from ..engine.runner import Runner
from ..engine.source import Source
from ..errors import InputError
from ..live.hearing import Heard, hear, still_latents
from ..live.picture import Picture, latent_mask
from ..live.taken import InputReceipt, Order, Taken
from ..motion.gestures import MOTION, Gesture, asked_tracks, changed
from ..motion.tracks import TrackSet
from .conditioning import Controls, chunk_conditioning
from .events import CacheAction, Receipt, StreamEvent
from .latents import LatentState, sink_chunks
from .model import StreamModel
from .prompts import Passage, Text
from .queue import Merged, Pending, failed, merged, possible_events
from .recache import Recache, SinkPolicy, recache_of
from .rollout import Measure, advance, settle
from .settings import StreamSettings
from .state import FrameChunk, StreamState


@dataclass(frozen=True, eq=False)
class Decision:
    """What the events of a boundary come to.

    Attributes:
        controls: what steers from here on.
        action, sink: what becomes of the cache.
        event: as the log has it; None where nothing was applied.
        applied: receipts with the fields that a later event replaced.
        refused: receipts with the reason.
        taken: the events, which wait no longer once the step is made.
        words: the one whose words count, and the frame `until` which they come by steps.
        picture: that begins a scene, or takes the sink's place.
        numbers: of the input's frames that the chunk is to take, where a log says so.
        order, taken_input: what was asked of the input, and what the chunk takes of it.
        place: the chunk and first pixel frame that it is for, where that is not handed over with it.
    """

    controls: Controls
    action: CacheAction = "keep"
    sink: SinkPolicy = "refresh"
    event: StreamEvent | None = None
    applied: tuple[tuple[Pending, tuple[str, ...]], ...] = ()
    refused: tuple[tuple[Receipt, str], ...] = ()
    taken: tuple[Pending, ...] = ()
    words: Pending | None = None
    until: int | None = None
    picture: Picture | None = None
    numbers: tuple[int, ...] | None = None
    order: Order | None = None
    taken_input: Taken | None = None
    place: tuple[int, int] | None = None

    @property
    def rebuilds(self) -> bool:
        """Whether the cache is made anew."""
        return self.action in ("recache", "rebuild")


def admitted(
    model: StreamModel, state: StreamState, event: StreamEvent, receipt: Receipt, at_frame: int | None
) -> Pending:
    """An event as it waits, its text on the way.

    Raises:
        InputError: it cannot be, whatever else waits.
    """
    tracks = [tracks for tracks in event.gesture_changes.values() if tracks is not None]
    if any(not each.is_empty for each in tracks) and model.motion_encoder is None:
        raise InputError(f"motion: {model.name} was not trained with tracks")
    if event.prompt_embeds is not None:
        model.check_embeds(event.prompt_embeds)
    now = state.controls.settings
    sink = event.sink or (event.settings or {}).get("sink_policy")
    if sink is not None:
        recache_of(now.recache_mode).check(state.latents.ring.plan, sink)
    event = _admitted_live(model, state, event, receipt)
    if "lora" in (event.settings or {}):
        model.strengths(now.updated({"lora": (event.settings or {})["lora"]}))
    text, frame = model.coming_text(event), state.next_frame(model.geometry) if at_frame is None else at_frame
    if text is not None and text.done() and text.exception() is None:
        _tell_words(receipt, text.result())
    try:
        null = model.coming_null(now.updated(event.settings or {}, live=True))
    except InputError:
        # what waits may make it possible: the queue decides
        null = None
    return Pending(event, receipt, frame, at_frame is None, text, null)


def _admitted_live(
    model: StreamModel, state: StreamState, event: StreamEvent, receipt: Receipt
) -> StreamEvent:
    """The event with its picture at the stream's size; raises as `admitted`."""
    ring, settings = state.latents.ring, state.controls.settings
    if "strength" in (event.settings or {}):
        settings.updated({"strength": (event.settings or {})["strength"]}).check_strength(model.settings)
    picture = event.picture
    if picture is None:
        return event
    _ = model.tokenizer
    if picture.use == "reference" and not ring.plan.sink_frames:
        raise InputError(
            f"picture: {model.name} has no sink whose place a reference could take; expected use scene, or a "
            "stream with sink_frames"
        )
    if picture.use == "reference" and settings.recache_mode != "chunks":
        raise InputError(
            f"picture: a reference needs recache_mode chunks, this stream has {settings.recache_mode}"
        )
    covering = picture.covering(model.geometry.height, model.geometry.width)
    receipt.note = covering.note
    return replace(event, picture=covering)


def decide(model: StreamModel, state: StreamState, due: Sequence[Pending]) -> Decision:
    """What the due events come to in a state."""
    now, frame = state.controls, state.next_frame(model.geometry)
    fitting, refused = _fitting(due, state, frame)
    wish, replaced = merged(fitting)
    if wish.mask is not None:
        cells = latent_mask(wish.mask, model.geometry.latent_height, model.geometry.latent_width)
        wish.mask = torch.ones(1, 1) if cells is None else cells
    settings = now.settings.updated(wish.settings or {}, live=True)
    text, passage = _words(model, state, wish, settings)
    motion, changes = _gesture_changes(wish, now.gestures)
    base = () if motion is not None and motion.is_empty else now.gestures
    gestures = changed(base, ({} if motion is None else {MOTION: motion}) | changes, frame)
    if len(state.log) == 0:
        # as a replay opens, with all of them at once
        gestures = changed((), {gesture.name: asked_tracks(gesture) for gesture in gestures}, frame)
    going_on = None if passage is None or passage.over_now else passage
    mask = now.mask if wish.mask is None else wish.mask if len(wish.mask) > 1 else None
    controls = Controls(model.read_at(text, model.strengths(settings)), settings, gestures, going_on, mask)
    action, sink = cache_action(state, controls, wish, passage)
    if len(state.log) == 0:
        event: StreamEvent | None = replace(_opening(controls), picture=wish.picture, input=wish.input)
    else:
        event = _realised(wish, (motion, changes), action, sink, passage)
    applied = tuple(zip(fitting, replaced, strict=True))
    until = None if passage is None else _end_of(model, state, passage)
    decided = Decision(controls, action, sink, event, applied, tuple(refused), tuple(due))
    numbers = None if wish.input is None else tuple(wish.input)
    return replace(decided, words=wish.words, until=until, picture=wish.picture, numbers=numbers)


def ordered(model: StreamModel, state: StreamState, decision: Decision) -> Order:
    """What the next chunk needs of the input."""
    latents, heard = state.latents, state.heard
    length = latents.ring.plan.length(0) if decision.action == "clear" else latents.length
    first, stop = model.geometry.frame_range(latents.start, length)
    place = (state.epoch, latents.chunk)
    if heard is None:
        return Order(place, stop - first, exact=decision.numbers)
    return Order(place, stop - first, heard.on, heard.following, heard.last, decision.numbers)


def hearing(state: StreamState, decision: Decision, order: Order, taken: Taken | None) -> Decision:
    """The decision with what the chunk takes of the input; the log tells it where it is not what anybody
    would expect: the next frames of an input that is on.
    """
    decision = replace(decision, order=order, taken_input=taken)
    if taken is None:
        return decision
    expected = tuple(range(order.following, order.following + order.count)) if order.begun else ()
    if taken.numbers == expected and decision.numbers is None and (order.begun or not taken.numbers):
        return decision
    event, numbers = decision.event, taken.numbers
    said = StreamEvent(input=numbers) if event is None else replace(event, input=numbers)
    return replace(decision, event=said)


def _end_of(model: StreamModel, state: StreamState, passage: Passage) -> int:
    """The first pixel frame that is all under the words that a passage, which begins now, leads to."""
    latents = state.begins
    left = passage.chunks - passage.done
    return model.geometry.frames(latents.start + latents.length + max(0, left - 1) * model.plan.chunk_frames)


def _words(
    model: StreamModel, state: StreamState, wish: Merged, settings: StreamSettings
) -> tuple[Text, Passage | None]:
    """The text of the next chunk, and the way on which it is."""
    now = state.controls
    passage = now.passage
    if wish.words is not None and wish.words.text is not None:
        target, over = wish.words.text.result(), wish.words.event.passage
        # a stream or a scene that begins has no words that others could come from
        if over is None or not state.latents.recent or wish.cache == "clear":
            return target, None
        whole = over.realised(model.geometry.temporal * model.plan.chunk_frames / model.geometry.fps)
        sink = wish.sink or settings.sink_policy
        passage = Passage(now.text, target, whole, wish.cache != "keep", sink)
    if passage is None or wish.cache == "clear":
        return (now.text if passage is None else passage.target), None
    passage = passage.next()
    return model.passing_text(passage), passage


def _fitting(
    due: Sequence[Pending], state: StreamState, frame: int
) -> tuple[list[Pending], list[tuple[Receipt, str]]]:
    """Of the due events those that can be, one after the other, and the others' receipts with the reason."""
    now = state.controls
    possible, refused = possible_events([item for item in due if not failed(item)], now.settings)
    refused += [(item.receipt, reason) for item in due if (reason := failed(item)) is not None]
    fitting: list[Pending] = []
    gestures = now.gestures
    for item in possible:
        base = () if item.event.lets_go_of_all else gestures
        picture = item.event.picture
        try:
            if picture is not None and picture.use == "reference" and not state.latents.context:
                raise InputError(
                    "picture: a reference takes the sink's place, which there is not yet: expected use "
                    "scene, or a later chunk"
                )
            gestures = changed(base, item.event.gesture_changes, frame)
            fitting.append(item)
        except InputError as error:
            refused.append((item.receipt, str(error)))
    return fitting, refused


def cache_action(
    state: StreamState, controls: Controls, wish: Merged, passage: Passage | None = None
) -> tuple[CacheAction, SinkPolicy]:
    """What becomes of the cache: what is asked for, by default a recache where the text changes; on the way
    from one text to another, with every so many-th chunk, and where live LoRAs get other strengths. Where a
    failed step has cost the cache its content, it is made anew whatever was asked for.
    """
    latents = state.latents
    action: CacheAction = wish.cache or ("keep" if controls.text.same(state.controls.text) else "recache")
    sink: SinkPolicy = wish.sink or controls.settings.sink_policy
    if passage is not None and (wish.words is not None or wish.cache is None):
        # words come in steps; LoRAs of other strengths are there at once
        at_once = _reads_otherwise(state, controls) and (wish.words is None or passage.recaches)
        action = "recache" if passage.rebuilds or at_once else "keep"
        sink = passage.sink
    if not latents.recent:
        return ("clear" if action == "clear" else "keep"), sink
    if wish.picture is not None and wish.picture.use == "reference":
        return "recache", "refresh"
    if action == "keep" and not latents.intact:
        action, sink = "rebuild", "keep"
    keeps = recache_of(controls.settings.recache_mode).keeps_sink(latents)
    if action in ("recache", "rebuild") and keeps and not latents.ring.sink_intact(latents.cursor):
        sink = "refresh"
    return action, sink


def _reads_otherwise(state: StreamState, controls: Controls) -> bool:
    """Whether the network reads texts with other strengths of its live LoRAs than it did."""
    return controls.text.strengths != state.controls.text.strengths


def settled(runner: Runner, state: StreamState, decision: Decision, measure: Measure) -> StreamState:
    """The state with its last chunk committed, where the next step reads it, unless that step does it itself.
    The same stream: nothing that was promised changes.
    """
    latents, recache = state.latents, recache_of(state.controls.settings.recache_mode)
    redone = decision.rebuilds and not recache.keeps_due(latents, decision.sink)
    ahead = runner.commits_ahead and not decision.rebuilds
    if decision.action == "clear" or redone or ahead or not latents.intact:
        return state
    return replace(state, latents=settle(runner, latents, state.noise, measure))


@torch.no_grad()
def step(
    model: StreamModel, runner: Runner, state: StreamState, decision: Decision, timings: dict[str, float]
) -> tuple[StreamState, FrameChunk]:
    """Make the next chunk of a state that `settled` gave: the state behind it, and the chunk. `timings` gets
    the parts.

    Raises:
        InputError: absolute positions have come to their end.
        NonFiniteError: the chunk came to NaN or infinity.
    """
    began, frame = time.perf_counter(), state.next_frame(model.geometry)
    controls, measure = decision.controls, timings.__setitem__
    latents = prepared(model, runner, state, decision)
    check_positions(latents.ring, latents.coming, latents.length)
    conditioning = chunk_conditioning(model, controls, latents)
    measure("event", time.perf_counter() - began)
    steps = steps_of(state, decision)
    heard, source = _heard(model, state, decision, measure)
    sampling = controls.settings.sampling(steps, model.settings)
    if source is not None:
        sampling = controls.settings.edited(steps, model.settings)
    given = _given(model, state, decision, latents)
    begins = (state.noise, sampling, source if given is None else given)
    after, made = advance(runner, latents, conditioning, controls.text, *begins, measure)
    began = time.perf_counter()
    frames, decoder = model.decoded(runner, made.latents, state.decoder)
    measure("decode", time.perf_counter() - began)
    log = state.log
    if decision.event is not None:
        numbers = tuple(item.receipt.number for item, _ in decision.applied)
        log = log.appended(made.index, frame, decision.event, numbers)
    receipts = tuple(item.receipt for item in decision.taken)
    fps, epoch = model.geometry.fps, state.epoch
    taken = len(sampling.sigmas) - 1 if given is None else 0
    made_of = (made.index, epoch, receipts, timings, made.latents, taken, decision.rebuilds)
    chunk = FrameChunk(frames, frame, fps, *made_of)
    return state.moved(after, controls, decoder, log, heard), chunk


def check_positions(ring: CacheRing, cursor: CacheCursor, frames: int) -> None:
    """Raise InputError where there are no positions for so many more latent frames."""
    if not ring.fits(cursor, frames):
        raise InputError(
            f"rope: absolute positions end after {ring.max_positions} latent frames; open the stream "
            "with rope relative for longer ones"
        )


def _heard(
    model: StreamModel, state: StreamState, decision: Decision, measure: Measure
) -> tuple[Heard | None, Source | None]:
    """What is heard of the input with this chunk, and what the chunk is made from; None without any."""
    taken, before = decision.taken_input, state.heard
    if taken is None:
        return before, None
    if not taken.numbers:
        return None if before is None else before.silent(), None
    began = time.perf_counter()
    heard, latents = hear(model.tokenizer, before, taken, state.latents.start == 0)
    mask, words = decision.controls.mask, model.input_text(decision.controls.settings)
    mask = None if mask is None else mask.to(model.device)
    source = Source(latents.to(model.device, model.dtype), mask, None if words is None else words.context)
    measure("input", time.perf_counter() - began)
    return heard, source


def _given(model: StreamModel, state: StreamState, decision: Decision, latents: LatentState) -> Tensor | None:
    """Latents of the next chunk where they are known: of the opening, or of a picture that begins a scene."""
    picture = decision.picture
    if picture is None or picture.use != "scene":
        return state.given()
    still = still_latents(model.tokenizer, picture.pixels, latents.start, latents.length)
    return still.to(model.device, model.dtype)


def with_input(chunk: FrameChunk, decision: Decision) -> FrameChunk:
    """The chunk with the receipt of its input."""
    taken = decision.taken_input
    if taken is None:
        return chunk
    delay = None if taken.arrived is None else time.monotonic() - taken.arrived
    receipt = InputReceipt(taken.numbers, taken.held, taken.dropped, delay, taken.over)
    return replace(chunk, input=receipt)


def steps_of(state: StreamState, decision: Decision) -> int:
    """Network evaluations of the next chunk, as its settings say."""
    first = decision.action == "clear" or not state.latents.recent
    changed = decision.action in ("recache", "clear") or not decision.controls.text.same(state.controls.text)
    if decision.action == "keep" and decision.controls.passage is not None:
        # words that come by small steps are no change that has to be caught up with
        changed = False
    return decision.controls.settings.steps_of(first, changed)


def paced(model: StreamModel, state: StreamState, decision: Decision, budget: StepBudget) -> Decision:
    """The decision with as many steps as a deadline allows, as the log tells and a replay repeats it."""
    settings = decision.controls.settings
    own = steps_of(state, Decision(replace(decision.controls, settings=replace(settings, budget_steps=0))))
    most = max(own, settings.steps, settings.first_steps, settings.change_steps)
    if settings.sampler == "renoise":
        most = max(most, model.settings.steps)
    steps = budget.choose(settings.budget_steps or own, most, decision.rebuilds)
    if steps == settings.budget_steps:
        return decision
    controls = replace(decision.controls, settings=replace(settings, budget_steps=steps))
    if len(state.log) == 0:
        return replace(decision, controls=controls, event=_opening(controls))
    changes = {"budget_steps": steps}
    event = decision.event
    if event is None:
        return replace(decision, controls=controls, event=StreamEvent(settings=changes))
    return replace(
        decision, controls=controls, event=replace(event, settings=dict(event.settings or {}) | changes)
    )


def conclude(decision: Decision, place: tuple[int, int], fps: float, epoch: int) -> None:
    """Tell the receipts what has become of their events: the chunk and first pixel frame where they took
    effect; the status last, since other threads read them.
    """
    for item, superseded in decision.applied:
        receipt = item.receipt
        receipt.chunk, receipt.frame, receipt.superseded = *place, superseded
        receipt.seconds, receipt.epoch = place[1] / fps, epoch
        if item.text is not None and item.ready and failed(item) is None:
            _tell_words(receipt, item.text.result())
        if item is decision.words and decision.until is not None:
            receipt.until = decision.until
        receipt.status = "applied"
    for receipt, reason in decision.refused:
        receipt.epoch = epoch
        receipt.refuse(reason)


def _tell_words(receipt: Receipt, text: Text) -> None:
    """Tell a receipt what of its words does not reach the model."""
    receipt.unknown, receipt.dropped, receipt.note = text.unknown, text.dropped, text.note or receipt.note


def _with_reference(model: StreamModel, latents: LatentState, picture: Picture) -> LatentState:
    """The record with a picture in the place of what the sink was made from."""
    sink = sink_chunks(latents.context, latents.ring.plan.sink_frames)
    made = {}
    for chunk in sink:
        still = still_latents(model.tokenizer, picture.pixels, chunk.start, chunk.frames)
        made[chunk.index] = replace(chunk, latents=still.to(chunk.latents), motion=None)
    put = lambda chunks: tuple(made.get(chunk.index, chunk) for chunk in chunks)  # noqa: E731
    return replace(latents, context=put(latents.context), recent=put(latents.recent))


def prepared(model: StreamModel, runner: Runner, state: StreamState, decision: Decision) -> LatentState:
    """The latents' state with the cache as the decision wants it."""
    latents = state.latents
    if decision.action == "clear":
        return latents.cleared()
    if not decision.rebuilds:
        return latents
    if decision.picture is not None:
        latents = _with_reference(model, latents, decision.picture)
    recache: Recache = recache_of(state.controls.settings.recache_mode)
    text = decision.controls.text if decision.action == "recache" else None
    return recache.rebuild(runner, latents, state.noise, decision.sink, text)


def _realised(
    wish: Merged,
    moves: tuple[TrackSet | None, dict[str, TrackSet | None]],
    action: CacheAction,
    sink: SinkPolicy,
    passage: Passage | None,
) -> StreamEvent | None:
    """The event that makes the same of the state again; None where nothing was asked for."""
    motion, gestures = moves
    words = None if wish.words is None else wish.words.event
    changes = words is not None or bool(gestures) or motion is not None or bool(wish.settings)
    changes |= any(x is not None for x in (wish.mask, wish.picture, wish.input))
    # a passage says itself what becomes of the cache, here and in a replay
    passes = passage is not None and wish.cache is None and action in ("recache", "keep")
    if not changes and (passes or (action == "keep" and wish.cache is None)):
        return None
    said = action != "keep" or words is not None or wish.cache is not None
    over = None
    if passage is not None and words is not None:
        over, sink = passage.over, passage.sink
        action, said = ("recache" if passage.recaches else "keep"), True
    elif passes:
        said = False
    return StreamEvent(
        None if words is None else words.prompt,
        motion,
        wish.settings or None,
        action if said else None,
        sink if said and action in ("recache", "rebuild") else None,
        gestures or None,
        None if words is None else words.prompt_embeds,
        None if words is None else words.blend,
        over,
        wish.mask,
        wish.picture,
        wish.input,
    )


def _gesture_changes(
    wish: Merged, in_force: tuple[Gesture, ...]
) -> tuple[TrackSet | None, dict[str, TrackSet | None]]:
    """What the wish does to the gestures, as one event says it: its motion, and the changes by name."""
    changes, names = dict(wish.gestures or {}), {gesture.name for gesture in in_force}
    motion = changes.pop(MOTION) if changes.get(MOTION) is not None else None
    if wish.releases and motion is not None:
        changes = dict.fromkeys(names - {MOTION}, None) | changes
    elif wish.releases:
        motion, names = TrackSet.empty(0), set()
    # what came and went within one boundary never was
    names |= {name for name, tracks in changes.items() if tracks is not None and not tracks.is_empty}
    return motion, {name: changes[name] for name in sorted(changes) if name in names}


def _opening(controls: Controls) -> StreamEvent:
    """The first line of a log: everything that holds at frame 0."""
    gestures: dict[str, TrackSet | None] = {
        gesture.name: asked_tracks(gesture) for gesture in controls.gestures
    }
    motion = gestures.pop(MOTION, None)
    text = controls.text
    settings = controls.settings.to_json()
    begin = StreamEvent(text.prompt, motion, settings, gestures=gestures or None, mask=controls.mask)
    if text.blend:
        return replace(begin, prompt=None, blend=text.blend)
    if text.given and text.embedding is not None:
        return replace(begin, prompt_embeds=text.embedding[0])
    return begin
