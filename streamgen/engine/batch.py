"""Streams at once: passes that several streams wait for are computed as one forward.

Products of matrices are shared, attention is not: each stream looks at a cache of its own, at any fill level,
under words, motion, noise level and sliders of its own. So streams of a batch need nothing in common but the
model and the latent frames of a chunk.

A forward always has as many rows as the batch has places, and a stream always the same one; places where
nobody waits get a copy of a neighbour. So what a stream comes to depends on the size and its place, and not
on who is beside it: alone at that place it gets the same numbers, bit for bit.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from models.causal_dit import CausalDiT, TextContext
from models.kv_cache import CacheView
from models.video_codec import VideoCodec

from ..errors import InputError, Interrupted
from .attention import attention_kernels, attention_scope
from .guidance import Pass
from .runner import BatchPlace, PassRunner

# largest difference to a chunk of a stream alone, from the same state in float32, in standard deviations;
# `plain` itself is up to 2e-4 from double precision where a first picture is undecided
TOLERANCE = 5e-4


@dataclass(frozen=True, eq=False)
class PassRequest:
    """A pass that a stream waits for: what it attends to, its words and motion, and what `Pass` is given."""

    view: CacheView
    text: TextContext
    motion: Tensor | None
    x: Tensor
    timestep: float
    strengths: tuple[float, float] | None


class BatchContext:
    """The `AttentionContext` of streams at once: each looks at its own cache.

    Args:
        views: of the streams that there are.
        places: row of each of them; at another one the same product may round otherwise.
        rows: for each row of the batch, which of the streams it is, or is a copy of.
    """

    def __init__(self, views: Sequence[CacheView], places: Sequence[int], rows: Sequence[int]) -> None:
        self.views, self.places, self.rows = views, places, rows

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `AttentionContext`."""
        seen = [
            view.attend(layer, *(x[row : row + 1] for x in (q, k, v)))
            for view, row in zip(self.views, self.places, strict=True)
        ]
        return torch.cat([seen[stream] for stream in self.rows])


class BatchedPasses:
    """Forwards of a fixed number of rows.

    Args:
        dit: the network, in full precision or in eight bits.
        size: rows of each forward.
    """

    def __init__(self, dit: CausalDiT, size: int) -> None:
        self.dit, self.size = dit, size
        weight = dit.head.head.weight
        self.kernels = attention_kernels(weight.device, weight.dtype, dit.config.head_dim)

    @torch.no_grad()
    def __call__(self, requests: Mapping[int, PassRequest]) -> dict[int, Tensor | BaseException]:
        """Velocities by place, or what went wrong there: a request that fails fails alone."""
        out: dict[int, Tensor | BaseException] = {}
        for group in _alike(requests):
            try:
                out |= self._forward(group)
            except Exception:
                # by itself a stream gets the same numbers, so the others lose nothing by one that fails
                out |= {place: self._alone(place, request) for place, request in group.items()}
        return out

    def _alone(self, place: int, request: PassRequest) -> Tensor | BaseException:
        try:
            return self._forward({place: request})[place]
        except Exception as error:
            return error

    def _forward(self, group: Mapping[int, PassRequest]) -> dict[int, Tensor]:
        places = sorted(group)
        asked = [group[place] for place in places]
        rows = [places.index(place) if place in group else 0 for place in range(self.size)]
        picked = [asked[stream] for stream in rows]
        x = torch.cat([each.x for each in picked])
        levels = [torch.full((1, x.shape[1]), each.timestep, device=x.device) for each in picked]
        context = BatchContext([each.view for each in asked], places, rows)
        with attention_scope(self.kernels):
            velocity = self.dit(
                x, torch.cat(levels), _texts(picked), context, self._motion(picked), self._strengths(picked)
            )
        return {place: velocity[place : place + 1] for place in places}

    def _motion(self, picked: Sequence[PassRequest]) -> Tensor | None:
        """Motion of all rows, zeros of those that have none."""
        channels = self.dit.config.motion_channels
        if not channels:
            return None
        parts = []
        for each in picked:
            b, t, _, h, w = each.x.shape
            parts.append(each.x.new_zeros(b, t, channels, h, w) if each.motion is None else each.motion)
        return torch.cat(parts)

    def _strengths(self, picked: Sequence[PassRequest]) -> Tensor | None:
        """Strengths of all rows; 0 is no wish, as for the clean frames of a commit."""
        if not self.dit.config.guidance:
            return None
        x = picked[0].x
        filled = [
            [torch.full((1, x.shape[1]), value, device=x.device) for value in each.strengths or (0.0, 0.0)]
            for each in picked
        ]
        return torch.cat([torch.stack(pair, -1) for pair in filled])


class BatchedRunner(PassRunner):
    """The plain runner, whose passes are rows of larger ones.

    Args:
        place: of its stream.
        run: gives the velocity that a request comes to, however long it waits for others.
    """

    def __init__(
        self,
        dit: CausalDiT,
        codec: VideoCodec | None,
        place: BatchPlace,
        run: Callable[[PassRequest], Tensor],
    ) -> None:
        super().__init__(dit, codec)
        self.batch, self._compute = place, run

    @classmethod
    def lone(cls, dit: CausalDiT, codec: VideoCodec | None, place: BatchPlace) -> "BatchedRunner":
        """A stream at a place of a batch in which there is nobody else: what makes a batched stream again."""
        passes = BatchedPasses(dit, place.size)

        def run(request: PassRequest) -> Tensor:
            return _given(passes({place.place: request})[place.place])

        return cls(dit, codec, place, run)

    def serves(self, view: CacheView) -> bool:
        """See `PassRunner`; each stream looks at its own cache, in eight bits or not."""
        return view.ring.shape.batch == 1

    def network_pass(self, view: CacheView, text: TextContext, motion: Tensor | None) -> Pass:
        """See `PassRunner`."""

        def run(x: Tensor, timestep: float, strengths: tuple[float, float] | None = None) -> Tensor:
            return self._compute(PassRequest(view, text, motion, x, timestep, strengths))

        return run


class Gathering:
    """Where streams of different threads meet: a pass is computed once every stream that has begun waits for
    one. A stream that makes something else meanwhile (pictures, a file) is waited for.

        with gathering.member() as runner:
            session = pipeline.open(prompt, runner=runner)

    Args:
        size: streams at once.
    """

    def __init__(self, dit: CausalDiT, codec: VideoCodec | None, size: int) -> None:
        if dit.config.writer:
            raise InputError("the model has a writer of commits, which cannot be had with streams at once")
        # checks the size
        self.size = BatchPlace(size, 0).size
        self._dit, self._codec, self._passes = dit, codec, BatchedPasses(dit, size)
        self._changed = threading.Condition()
        self._taken: set[int] = set()
        self._begun: set[int] = set()
        self._waiting: dict[int, PassRequest] = {}
        self._made: dict[int, Tensor | BaseException] = {}
        self._closed = False

    @contextmanager
    def member(self) -> Iterator[BatchedRunner]:
        """A place, and its runner, for one stream in one thread.

        Raises:
            ValueError: all places are taken.
        """
        with self._changed:
            free = sorted(set(range(self.size)) - self._taken)
            if not free:
                raise ValueError(f"all {self.size} places are taken")
            place = free[0]
            self._taken.add(place)
        try:
            own = BatchPlace(self.size, place)
            yield BatchedRunner(self._dit, self._codec, own, lambda request: self._run(place, request))
        finally:
            with self._changed:
                for places in (self._taken, self._begun):
                    places.discard(place)
                self._changed.notify_all()

    def close(self) -> None:
        """Let everybody who waits, now or later, give up with `Interrupted`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self, place: int, request: PassRequest) -> Tensor:
        with self._changed:
            self._begun.add(place)
            self._waiting[place] = request
            try:
                while place not in self._made:
                    if self._closed:
                        raise Interrupted("interrupted")
                    if self._waiting.keys() == self._begun:
                        # whoever comes last computes for all
                        self._compute()
                    else:
                        self._changed.wait()
                return _given(self._made.pop(place))
            finally:
                self._waiting.pop(place, None)
                self._made.pop(place, None)

    def _compute(self) -> None:
        """Make what is waited for."""
        requests, self._waiting = self._waiting, {}
        try:
            self._made |= self._passes(requests)
        except BaseException as error:
            # Ctrl-C in the middle of it: nobody may go on waiting
            self._made |= dict.fromkeys(requests, error)
        self._changed.notify_all()


def _given(made: Tensor | BaseException) -> Tensor:
    if isinstance(made, BaseException):
        raise made
    return made


def _alike(requests: Mapping[int, PassRequest]) -> list[dict[int, PassRequest]]:
    """Requests whose tensors fit into one forward."""
    groups: dict[tuple[object, ...], dict[int, PassRequest]] = {}
    for place, request in sorted(requests.items()):
        shape = (tuple(request.x.shape), tuple(request.text.keys[0].shape))
        groups.setdefault(shape, {})[place] = request
    return list(groups.values())


def _texts(picked: Sequence[PassRequest]) -> TextContext:
    layers = range(len(picked[0].text.keys))
    return TextContext(
        tuple(torch.cat([each.text.keys[layer] for each in picked]) for layer in layers),
        tuple(torch.cat([each.text.values[layer] for each in picked]) for layer in layers),
    )
