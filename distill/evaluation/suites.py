"""The streams of an evaluation: fixed prompts and seeds, a function of config and vocabulary alone."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch

from models.text_encoder import Vocabulary
from streamgen.errors import InputError

from ..config import Bound, Checked, Natural, build_sized, require
from ..scenes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES
from ..scenes.captions import DRAWS_PER_CAPTION, MustSay, ObjectWords, build_caption, canonical_caption
from ..scenes.vocabulary import held_out_indices, trained_indices
from .classifiers import MOTION_FRAMES
from .edits import STRENGTHS, variant_of, world_clip
from .streams import POLICIES, Drag, Edit, Policy, SinkWay, StreamSpec, Subject, Switch

FPS = 16
SWITCH_KINDS = ("colour", "shape", "background", "motion")
#: What differs between a live input and what is made of it.
EDIT_KINDS = ("colour", "shape", "background")
#: How the two objects of a stream differ: in all, or not in their shape, or not in their motion.
PAIR_KINDS = ("different", "same shape", "same motion")
#: Frames of a stream before its switch or drag.
BEFORE = 41
#: A switch may take this long; one that took at most that was soon.
SWITCH_FRAMES, SOON_FRAMES = 24, 16
#: Frames over which what has come about must stay.
LASTING_FRAMES = 9
#: Frames of a drag, and frames after it until the object should go its own way again.
DRAG_FRAMES = 33
RELEASE_FRAMES = 8
#: Seeds of streams of different suites lie this far apart.
_SUITE_SEEDS = 10_000
_SHORTEST = (MOTION_FRAMES + FPS - 1) / FPS
_Streams = Annotated[int, Bound(f"0 to {_SUITE_SEEDS - 1}", lambda count: 0 <= count < _SUITE_SEEDS)]
_Seconds = Annotated[float, Bound(f"{_SHORTEST:g} to 3600", lambda seconds: _SHORTEST <= seconds <= 3600)]


@dataclass(frozen=True)
class EvaluationConfig(Checked):
    """How much is streamed. Counts are streams; 0 leaves a suite out. The streams of a smaller count are the
    first ones of a larger one, so that a report can be extended.

    Attributes:
        size: what the counts are where they are not given, see `configs/evaluation.yaml`.
        seed: of prompts and streams; other seeds give other prompts (to choose settings by, say).
        prompts: plain streams of `seconds` of colour and shape pairs that training draws.
        unseen: plain streams of pairs that no training draws: the only held-out prompts.
        drags: streams with a drag, each once more without its track; `pairs` such streams of two objects.
        switches: streams with a switch, each under the policies `recache`, `keep` and `clear`.
        policy: the first of these; the others are controls.
        drift, long_drift: streams of `drift_seconds` and of `long_drift_seconds`.
        drift_changes: whether one thing changes in `drift` streams as in switches, and `drift_seconds` are
            read from where that is to have come about.
        sink: what becomes of the sink of long streams, see `streams.rolled_to`; `anchors`: behind a switch
            (after Anchor Forcing, arXiv 2603.13405) a picture that shows the new words takes its place.
        clips: clips of the world for the tokenizer and, at most, for each control on the truth; 0 leaves
            both out.
        edits: clips as live input, each made anew at every strength of `edits.STRENGTHS`.
        edits_told: whether these streams are told what the clip shows (the setting `input_prompt`).
        controls: false leaves out the streams without a track and under `keep` and `clear`, which tell what
            the measures are worth: for reports that only differ in the weights.
        motions: names of the motions to ask for, such as those of an earlier world that a model was trained
            on; none given: all that the model has words for.
    """

    size: Literal["small", "medium", "full"] = "medium"
    seed: Natural = 0
    seconds: _Seconds = 4.0
    prompts: _Streams = 96
    unseen: _Streams = 48
    drags: _Streams = 16
    pairs: _Streams = 18
    switches: _Streams = 24
    policy: Policy = "recache"
    drift: _Streams = 8
    drift_seconds: _Seconds = 60.0
    drift_changes: bool = False
    long_drift: _Streams = 1
    long_drift_seconds: _Seconds = 240.0
    sink: SinkWay = "stays"
    clips: Annotated[int, Bound("0, or >= 8", lambda count: count == 0 or count >= 8)] = 48
    edits: _Streams = 0
    edits_told: bool = False
    controls: bool = True
    motions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.motions:
            require(name in MOTIONS, "motions", f"some of {', '.join(MOTIONS)}", name)
        anchored = self.sink == "anchors" and not self.drift_changes
        require(not anchored, "sink: anchors", "drift_changes=true: an anchor is behind a switch", "false")

    @property
    def what(self) -> dict[str, Any]:
        """What each stream is, counts aside: rows of one report agree in it."""
        told: dict[str, Any] = {"edits_told": True} if self.edits_told else {}
        told |= {"drift_changes": True} if self.drift_changes else {}
        told |= {} if self.sink == "stays" else {"sink": self.sink}
        told |= {} if self.policy == "recache" else {"policy": self.policy}
        return told | {
            "seed": self.seed,
            "seconds": [self.seconds, self.drift_seconds, self.long_drift_seconds],
            "motions": list(self.motions),
        }


def evaluation_config(given: Mapping[str, Any]) -> EvaluationConfig:
    """The config of given values, the counts of its `size` where they are not given; raises ConfigError."""
    return build_sized(EvaluationConfig, "evaluation.yaml", given)


class SuiteBuilder:
    """Makes the specs of an evaluation for a model with this vocabulary.

    Motions that the model has no words for are left out, so that models of an earlier world can be measured.

    Raises:
        InputError: the model does not know the world's colours, shapes, sizes or backgrounds.
    """

    def __init__(self, config: EvaluationConfig, vocabulary: Vocabulary) -> None:
        self.config = config
        self._known = frozenset(vocabulary.words)
        for name in (*COLOURS, *SHAPES, *SIZES, *BACKGROUNDS):
            if name not in self._known:
                raise InputError(
                    f"model: expected one of the procedural world, found no {name!r} in its vocabulary"
                )
        wanted = config.motions or MOTIONS
        self.motions = tuple(
            i for i, name in enumerate(MOTIONS) if name in wanted and self._says(Subject(0, 0, 0, i, 0))
        )
        self._trained, self._held_out = trained_indices(), list(held_out_indices())

    def prompts(self) -> list[StreamSpec]:
        """Plain streams of pairs that training draws, too; every other prompt in people's words."""
        specs = self._plain("prompts", self.config.prompts, self._trained)
        return [replace(spec, kind=MOTIONS[spec.subjects[0].motion]) for spec in specs]

    def unseen(self) -> list[StreamSpec]:
        """Plain streams of pairs that no training stage has seen."""
        specs = self._plain("unseen", self.config.unseen, self._held_out)
        return [replace(spec, kind=pair_words(spec.subjects[0])) for spec in specs]

    def drags(self, told: bool) -> list[StreamSpec]:
        """Streams whose object is dragged against its motion, or the same without the track."""
        frames = BEFORE + DRAG_FRAMES + RELEASE_FRAMES + MOTION_FRAMES
        drag, variant = Drag(BEFORE, DRAG_FRAMES, told), "told" if told else "untold"
        return [
            StreamSpec("drags", canonical(s), self._seed(3, i), frames, (s,), drag, None, variant)
            for i, s in enumerate(self._subjects(3, self.config.drags, self._trained))
        ]

    def pairs(self, told: bool) -> list[StreamSpec]:
        """Streams of two objects of the kinds `PAIR_KINDS` in turn, the first of which is dragged, or the
        same without the track.
        """
        generator = self._generator(4, "second")
        drag, variant = Drag(BEFORE, DRAG_FRAMES, told), "dragged" if told else "alone"
        specs = []
        for i, one in enumerate(self._subjects(4, self.config.pairs, self._trained)):
            kind = PAIR_KINDS[i % len(PAIR_KINDS)]
            two = self._second(one, kind, generator)
            prompt, frames = canonical(one, two), BEFORE + MOTION_FRAMES
            seed = self._seed(4, i)
            specs.append(StreamSpec("pairs", prompt, seed, frames, (one, two), drag, None, variant, kind))
        return specs

    def switches(self, policy: Policy) -> list[StreamSpec]:
        """Streams in which one thing changes and the rest is to stay, under a policy. They end where nothing
        is read any more: motions take longest to be told.
        """
        generator = self._generator(5, "after")
        specs = []
        for i, before in enumerate(self._subjects(5, self.config.switches, self._trained)):
            kind = SWITCH_KINDS[i % len(SWITCH_KINDS)]
            after = self._changed(before, kind, generator)
            switch = Switch(BEFORE, canonical(after), after, kind, policy)
            seed, prompt = self._seed(5, i), canonical(before)
            frames = BEFORE + SWITCH_FRAMES + (MOTION_FRAMES if kind == "motion" else LASTING_FRAMES)
            specs.append(StreamSpec("switches", prompt, seed, frames, (before,), None, switch, policy, kind))
        return specs

    def edits(self, strengths: Sequence[float] = STRENGTHS) -> list[StreamSpec]:
        """Clips of the world made anew: another colour, shape or background in turn, and the path kept."""
        generator, frames = self._generator(8, "after"), 1 + round(self.config.seconds * FPS)
        clips: list[tuple[int, str, Subject, str]] = []
        number = self._seed(8, 0)
        while len(clips) < self.config.edits:
            before = Subject(*world_clip(64, number, 1).subject)
            if before.motion in self.motions and (before.colour, before.shape) in self._trained:
                kind = EDIT_KINDS[len(clips) % len(EDIT_KINDS)]
                shows = canonical(before) if self.config.edits_told else ""
                clips.append((number, kind, self._changed(before, kind, generator), shows))
            number += 1
        return [
            StreamSpec(
                "edits",
                canonical(after),
                number,
                frames,
                (after,),
                variant=variant_of(strength),
                kind=kind,
                edit=Edit(number, strength, shows),
            )
            for number, kind, after, shows in clips
            for strength in strengths
        ]

    def drift(self, long: bool) -> list[StreamSpec]:
        """Long plain streams; the shorter ones change one thing where the config wants it."""
        config, generator = self.config, self._generator(6, "after")
        name, number, count, seconds = (
            ("long_drift", 7, config.long_drift, config.long_drift_seconds)
            if long
            else ("drift", 6, config.drift, config.drift_seconds)
        )
        frames = 1 + round(seconds * FPS)
        specs = []
        for i, before in enumerate(self._subjects(number, count, self._trained)):
            spec = StreamSpec(
                name, canonical(before), self._seed(number, i), frames, (before,), sink=config.sink
            )
            if config.drift_changes and not long:
                kind = SWITCH_KINDS[i % len(SWITCH_KINDS)]
                after = self._changed(before, kind, generator)
                switch = Switch(BEFORE, canonical(after), after, kind)
                behind = frames + BEFORE + SWITCH_FRAMES
                spec = replace(spec, frames=behind, subjects=(after,), switch=switch, kind=kind)
            specs.append(spec)
        return specs

    def every(self, strengths: Sequence[float] = STRENGTHS) -> list[StreamSpec]:
        """The streams of all suites, with their controls where the config wants them; live input is made anew
        at those `strengths` that the model knows.
        """
        specs = [*self.prompts(), *self.unseen(), *self.drags(told=True), *self.pairs(told=True)]
        specs += self.pairs(told=False)
        specs += self.switches(self.config.policy)
        if self.config.controls:
            specs += self.drags(told=False)
            specs += [s for policy in POLICIES if policy != self.config.policy for s in self.switches(policy)]
        return specs + self.edits(strengths) + self.drift(long=False) + self.drift(long=True)

    def _plain(self, suite: str, count: int, pairs: list[tuple[int, int]]) -> list[StreamSpec]:
        number = 1 if suite == "prompts" else 2
        generator = self._generator(number, "captions")
        frames = 1 + round(self.config.seconds * FPS)
        specs = []
        for i, subject in enumerate(self._subjects(number, count, pairs)):
            numbers = torch.rand(DRAWS_PER_CAPTION, generator=generator).tolist()
            prompt = self._free(subject, numbers) if i % 2 else canonical(subject)
            specs.append(StreamSpec(suite, prompt, self._seed(number, i), frames, (subject,)))
        return specs

    def _subjects(self, suite: int, count: int, pairs: list[tuple[int, int]]) -> list[Subject]:
        """`count` subjects in which all values of an attribute are about equally frequent; the first ones of
        more.
        """
        sizes = {
            "pair": len(pairs),
            "size": len(SIZES),
            "motion": len(self.motions),
            "background": len(BACKGROUNDS),
        }
        columns = [_even(values, count, self._generator(suite, name)) for name, values in sizes.items()]
        subjects = []
        for pair, size, motion, background in zip(*columns, strict=True):
            colour, shape = pairs[pair]
            subjects.append(Subject(size, colour, shape, self.motions[motion], background))
        return subjects

    def _second(self, one: Subject, kind: str, generator: torch.Generator) -> Subject:
        """Another object over the first one's background, of another colour."""
        pairs = [
            pair
            for pair in self._trained
            if pair[0] != one.colour and (pair[1] == one.shape) == (kind == "same shape")
        ]
        same = kind == "same motion" or len(self.motions) == 1
        motions = [m for m in self.motions if (m == one.motion) == same]
        colour, shape = pairs[_below(len(pairs), generator)]
        motion, size = motions[_below(len(motions), generator)], _below(len(SIZES), generator)
        return Subject(size, colour, shape, motion, one.background)

    def _changed(self, before: Subject, kind: str, generator: torch.Generator) -> Subject:
        """The subject with another value of one attribute; colour and shape stay a trained pair."""
        choices = {
            "colour": [replace(before, colour=c) for c, s in self._trained if s == before.shape],
            "shape": [replace(before, shape=s) for c, s in self._trained if c == before.colour],
            "background": [replace(before, background=b) for b in range(len(BACKGROUNDS))],
            "motion": [replace(before, motion=m) for m in self.motions],
        }[kind]
        others = [choice for choice in choices if choice != before]
        return others[_below(len(others), generator)]

    def _free(self, subject: Subject, numbers: list[float]) -> str:
        """A caption in people's words that says all that is measured; the plain one if a word is unknown."""
        must = MustSay(colour=True, background=True, motion=True)
        caption = build_caption([_words(subject)], subject.background, must, numbers)
        known = all(word in self._known for word in caption.replace(",", " ").split())
        return caption if known else canonical(subject)

    def _says(self, subject: Subject) -> bool:
        return all(word in self._known for word in canonical(subject).split())

    def _generator(self, suite: int, purpose: str) -> torch.Generator:
        place = f"{self.config.seed}|{suite}|{purpose}"
        digest = hashlib.blake2b(place.encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)

    def _seed(self, suite: int, index: int) -> int:
        return (self.config.seed * 10 + suite) * _SUITE_SEEDS + index


def canonical(*subjects: Subject) -> str:
    """The plain caption of one or more objects over the first one's background."""
    return canonical_caption([_words(subject) for subject in subjects], subjects[0].background)


def pair_words(subject: Subject) -> str:
    """Colour and shape, such as `red star`."""
    return f"{COLOURS[subject.colour]} {SHAPES[subject.shape]}"


def in_words(subject: Subject) -> dict[str, str]:
    """A subject by the world's words."""
    return {
        "size": SIZES[subject.size],
        "colour": COLOURS[subject.colour],
        "shape": SHAPES[subject.shape],
        "motion": MOTIONS[subject.motion],
        "background": BACKGROUNDS[subject.background],
    }


def _words(subject: Subject) -> ObjectWords:
    return ObjectWords(subject.shape, subject.colour, subject.size, subject.motion)


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def _even(values: int, count: int, generator: torch.Generator) -> list[int]:
    """`count` numbers below `values`, each about equally often, in random order."""
    rounds = -(-count // values) if count else 0
    numbers = [torch.randperm(values, generator=generator) for _ in range(rounds)]
    return [int(number) for part in numbers for number in part][:count]
