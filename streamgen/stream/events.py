"""Events: what changes a stream, and the receipts for it."""

from collections.abc import Mapping, Sequence
from dataclasses import InitVar, asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..errors import InputError
from ..live.picture import Picture, checked_mask
from ..live.taken import checked_numbers
from ..motion.gestures import MOTION
from ..motion.tracks import TrackSet
from ..suggest import shorten
from .prompts import Blend, Over, check_prompt, checked_blend
from .recache import SinkPolicy

CacheAction = Literal["recache", "keep", "clear", "rebuild"]
Status = Literal["accepted", "applied", "refused", "withdrawn"]

MAX_GESTURES = 256
MAX_NAME = 64


@dataclass(frozen=True)
class StreamEvent:
    """One atomic change of a stream; what is None stays as it is.

    Attributes:
        prompt: the new prompt.
        motion: tracks that begin at the frame where the event takes effect, in place of the gesture "motion";
            one without points lets go of every gesture.
        settings: changed `StreamSettings` by name.
        cache: what becomes of the past: `recache` (keep the looks, follow the words: the default where the
            text changes), `keep` (leave the cache as it is: the default elsewhere), `clear` (forget it),
            `rebuild` (make it anew, each chunk under the words it was made with).
        sink: with `recache` and `rebuild`, whether the sink is committed again (`refresh`) or left (`keep`);
            None does what the model's settings say.
        gestures: named tracks to add, or to move where the name is in force; None lets go of that one.
        prompt_embeds: embeddings `(L, dim)` or `(1, L, dim)` in place of those of the prompt's words.
        blend: prompts with weights in place of one prompt: the weighted mean of their embeddings.
        over: how long the new words take to come, in seconds or as `Over`; None: they are there at once.
        mask: `(H, W)` of any size in [0, 1]: where live input may change (1) and where it stays (0).
        picture: a picture that begins a scene of its own, or takes the sink's place as a reference.
        input: numbers of the input's frames that the chunk takes, as logs have them; none: the input is over.
        policy: another name of `cache`.

    Raises:
        InputError: nothing that changes, or values that cannot be.
    """

    prompt: str | None = None
    motion: TrackSet | None = None
    settings: Mapping[str, Any] | None = None
    cache: CacheAction | None = None
    sink: SinkPolicy | None = None
    gestures: Mapping[str, TrackSet | None] | None = None
    prompt_embeds: Tensor | None = None
    blend: Blend | Sequence[Any] | Mapping[str, float] | None = None
    over: Over | float | Mapping[str, Any] | None = None
    mask: Tensor | None = None
    picture: Picture | None = None
    input: Sequence[int] | None = None
    policy: InitVar[CacheAction | None] = None

    def __post_init__(self, policy: CacheAction | None) -> None:
        if policy is not None:
            if self.cache not in (None, policy):
                raise InputError(f"event: cache {self.cache!r} and policy {policy!r} are the same field")
            object.__setattr__(self, "cache", policy)
        self._check()
        # copies: what was checked and recorded must not change with the caller's own
        if self.settings is not None:
            object.__setattr__(self, "settings", dict(self.settings))
        if self.gestures is not None:
            object.__setattr__(self, "gestures", _checked_gestures(self.gestures))
        if self.prompt_embeds is not None:
            object.__setattr__(self, "prompt_embeds", _checked_embeds(self.prompt_embeds))
        if self.blend is not None:
            object.__setattr__(self, "blend", checked_blend(self.blend))
        if self.over is not None:
            object.__setattr__(self, "over", Over.of(self.over))
        if self.mask is not None:
            object.__setattr__(self, "mask", checked_mask(self.mask))
        if self.input is not None:
            object.__setattr__(self, "input", checked_numbers(self.input))

    def _check(self) -> None:
        """Raise InputError for fields of another kind, or none at all."""
        for word, kind, action in (
            ("cache", CacheAction, self.cache),
            ("sink policy", SinkPolicy, self.sink),
        ):
            if action is not None and action not in get_args(kind):
                raise InputError(f"{word}: expected one of {', '.join(get_args(kind))}, found {action!r}")
        if self.prompt is not None:
            check_prompt(self.prompt)
        if self.motion is not None and not isinstance(self.motion, TrackSet):
            raise InputError(f"motion: expected a TrackSet, found {shorten(self.motion)}")
        for name, value in (("settings", self.settings), ("gestures", self.gestures)):
            if value is not None and not isinstance(value, Mapping):
                raise InputError(f"{name}: expected values by name, found {shorten(value)}")
        if self.motion is not None and MOTION in (self.gestures or {}):
            raise InputError(f"event: motion is the gesture {MOTION!r}, which gestures has, too")
        if self.blend is not None and (self.prompt is not None or self.prompt_embeds is not None):
            raise InputError("event: expected a prompt, prompt_embeds or a blend, found two of them")
        if self.over is not None and not self.changes_text:
            raise InputError("over: expected new words that it leads to, found none")
        if self.over is not None and self.cache in ("clear", "rebuild"):
            raise InputError(f"over: cache {self.cache} leaves nothing that words could change over")
        self._check_picture(self.picture)
        if self._is_empty:
            raise InputError(
                "event: expected a prompt, motion, settings or a cache action, a picture or a mask, found "
                "none of them"
            )

    @property
    def _is_empty(self) -> bool:
        fields: list[Any] = [self.prompt, self.motion, self.cache, self.prompt_embeds, self.blend]
        fields += [self.mask, self.picture, self.input]
        return all(value is None for value in fields) and not self.settings and not self.gestures

    def _check_picture(self, picture: Any) -> None:
        if picture is None:
            return
        if not isinstance(picture, Picture):
            raise InputError(f"picture: expected a Picture, found {shorten(picture)}")
        wanted = "clear" if picture.use == "scene" else "recache"
        if self.cache not in (None, wanted):
            raise InputError(
                f"picture: as {picture.use} it comes with cache {wanted}, found cache {self.cache}"
            )
        if picture.use == "scene" and self.over is not None:
            raise InputError("over: a picture begins a scene, which has no words that others could come from")
        if picture.use == "reference" and self.sink == "keep":
            raise InputError("picture: a reference takes the sink's place, found sink keep")

    @property
    def changes_text(self) -> bool:
        """Whether it says what the words are from now on."""
        return not (self.prompt is None and self.prompt_embeds is None and self.blend is None)

    @property
    def parts(self) -> Blend:
        """The prompts and weights of its blend, none without one."""
        return () if self.blend is None else checked_blend(self.blend)

    @property
    def prompts(self) -> tuple[str, ...]:
        """All prompts that it names."""
        own = () if self.prompt is None else (self.prompt,)
        return own + tuple(prompt for prompt, _ in self.parts)

    @property
    def passage(self) -> Over | None:
        """How long its words take to come."""
        return None if self.over is None else Over.of(self.over)

    @property
    def beside_opening(self) -> "StreamEvent | None":
        """Of the first line of a log what a stream does not open with and is told at once."""
        if self.mask is None and self.picture is None and self.input is None:
            return None
        return StreamEvent(mask=self.mask, picture=self.picture, input=self.input)

    @property
    def lets_go_of_all(self) -> bool:
        """Whether its motion ends every gesture."""
        return self.motion is not None and self.motion.is_empty

    @property
    def gesture_changes(self) -> dict[str, TrackSet | None]:
        """Tracks by gesture, the plain motion as one of them."""
        own = {} if self.motion is None or self.motion.is_empty else {MOTION: self.motion}
        return own | dict(self.gestures or {})


@dataclass
class Receipt:
    """What became of an event. `accepted` on submission, then `applied` (with the place), `refused` (with the
    reason) or `withdrawn`.

    Attributes:
        number: order of submission, from 0.
        chunk, frame, seconds: first chunk and first pixel frame under the event, and that frame's media time.
        until: the first pixel frame of which all is under it, where its words come over several chunks.
        superseded: fields that a later event for the same boundary replaced.
        epoch: of the stream when this was decided; a receipt of an older epoch may be of a future that a
            rewind has undone (`Session.in_force` tells).
        unknown, dropped: words of its prompt that mean nothing to the model, and how many tokens did not fit.
        note: what else is worth saying.
    """

    number: int
    status: Status = "accepted"
    chunk: int | None = None
    frame: int | None = None
    seconds: float | None = None
    superseded: tuple[str, ...] = ()
    reason: str | None = None
    epoch: int = 0
    unknown: tuple[str, ...] = ()
    dropped: int = 0
    note: str | None = None
    until: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"superseded": list(self.superseded), "unknown": list(self.unknown)}

    def refuse(self, reason: str) -> "Receipt":
        """Say why it cannot be."""
        self.reason, self.status = reason, "refused"
        return self


def _checked_gestures(gestures: Mapping[str, TrackSet | None]) -> dict[str, TrackSet | None]:
    for name, tracks in gestures.items():
        if tracks is not None and not isinstance(tracks, TrackSet):
            raise InputError(f"gesture {name!r}: expected a TrackSet or None, found {shorten(tracks)}")
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME or not name.isprintable():
            raise InputError(
                f"gesture: expected a name of 1 to {MAX_NAME} printable characters, found {name!r:.80}"
            )
    if len(gestures) > MAX_GESTURES:
        raise InputError(f"gestures: expected at most {MAX_GESTURES} in one event, found {len(gestures)}")
    return dict(gestures)


def _checked_embeds(embeds: Tensor) -> Tensor:
    if not isinstance(embeds, Tensor) or not embeds.is_floating_point():
        raise InputError("prompt_embeds: expected a tensor of floating-point numbers")
    rows = embeds.detach()
    rows = rows[0] if rows.dim() == 3 and len(rows) == 1 else rows
    if rows.dim() != 2 or not len(rows):
        raise InputError(f"prompt_embeds: expected shape (tokens, dim), found {tuple(embeds.shape)}")
    if not bool(torch.isfinite(rows).all()):
        raise InputError("prompt_embeds: expected finite numbers, found NaN or infinity")
    return rows.clone()
