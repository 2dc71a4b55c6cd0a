"""The streams of an evaluation: fixed prompts and seeds, a function of config and vocabulary alone."""

from dataclasses import dataclass, replace

import torch

from models.text_encoder import Vocabulary
from streamgen.errors import InputError

from ..config import require
from ..scenes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES
from ..scenes.captions import DRAWS_PER_CAPTION, MustSay, ObjectWords, build_caption, canonical_caption
from ..scenes.vocabulary import held_out_indices
from .classifiers import MOTION_FRAMES
from .streams import Drag, StreamSpec, Subject, Switch

FPS = 16
SWITCH_KINDS = ("colour", "shape", "background", "motion")
#: Frames of a stream before its switch or drag.
BEFORE = 41
#: A switch may take this long; one that took at most that was soon.
SWITCH_FRAMES, SOON_FRAMES = 24, 16
#: Frames of a drag, and frames after it until the object should go its own way again.
DRAG_FRAMES = 33
RELEASE_FRAMES = 8
#: Seeds of streams of different suites lie this far apart.
_SUITE_SEEDS = 10_000


@dataclass(frozen=True)
class EvaluationConfig:
    """How much is streamed. Counts are streams; 0 leaves a suite out.

    Attributes:
        seed: of prompts and streams; other seeds give other prompts (to choose settings by, say).
        prompts, unseen: plain streams of `seconds`, of trained and of held-out colour and shape pairs.
        drags: streams with a drag, each once more without its track; `pairs` such streams of two objects.
        switches: streams with a switch, each once more with the policy `clear`.
        drift, long_drift: streams of `drift_seconds` and of `long_drift_seconds`.
        clips: clips of the world for the tokenizer and for the controls on the truth.
        controls: false leaves out the drags without a track and the switches under `clear`, which tell what
            the measures are worth: for reports that only differ in the weights.
        motions: names of the motions to ask for, such as those of an earlier world that a model was trained
            on; none given: all that the model has words for.
    """

    seed: int = 0
    seconds: float = 4.0
    prompts: int = 64
    unseen: int = 64
    drags: int = 32
    pairs: int = 16
    switches: int = 64
    drift: int = 8
    drift_seconds: float = 60.0
    long_drift: int = 2
    long_drift_seconds: float = 240.0
    clips: int = 128
    controls: bool = True
    motions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        counts = {
            "prompts": self.prompts,
            "unseen": self.unseen,
            "drags": self.drags,
            "pairs": self.pairs,
            "switches": self.switches,
            "drift": self.drift,
            "long_drift": self.long_drift,
        }
        for name, count in counts.items():
            require(0 <= count < _SUITE_SEEDS, name, f"0 to {_SUITE_SEEDS - 1}", count)
        require(self.seed >= 0, "seed", ">= 0", self.seed)
        for name in self.motions:
            require(name in MOTIONS, "motions", f"some of {', '.join(MOTIONS)}", name)
        require(self.clips >= 8, "clips", ">= 8", self.clips)
        shortest = (MOTION_FRAMES + FPS - 1) / FPS
        for name, seconds in (
            ("seconds", self.seconds),
            ("drift_seconds", self.drift_seconds),
            ("long_drift_seconds", self.long_drift_seconds),
        ):
            require(shortest <= seconds <= 3600, name, f"{shortest:g} to 3600", seconds)


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
        held_out = held_out_indices()
        every = [(c, s) for c in range(len(COLOURS)) for s in range(len(SHAPES))]
        self._trained = [pair for pair in every if pair not in held_out]
        self._held_out = list(held_out)

    def prompts(self) -> list[StreamSpec]:
        """Plain streams of trained colour and shape pairs; every other prompt in people's words."""
        return self._plain("prompts", self.config.prompts, self._trained)

    def unseen(self) -> list[StreamSpec]:
        """Plain streams of pairs that no training stage has seen."""
        return self._plain("unseen", self.config.unseen, self._held_out)

    def drags(self, told: bool) -> list[StreamSpec]:
        """Streams whose object is dragged against its motion, or the same without the track."""
        frames = BEFORE + DRAG_FRAMES + RELEASE_FRAMES + MOTION_FRAMES
        generator = self._generator(3)
        subjects = self._subjects(self.config.drags, self._trained, generator)
        drag = Drag(BEFORE, DRAG_FRAMES, told)
        return [
            StreamSpec("drags", canonical(s), self._seed(3, i), frames, (s,), drag)
            for i, s in enumerate(subjects)
        ]

    def pairs(self, told: bool) -> list[StreamSpec]:
        """Streams of two objects, the first of which is dragged, or the same without the track."""
        generator = self._generator(4)
        first = self._subjects(self.config.pairs, self._trained, generator)
        second = self._subjects(self.config.pairs, self._trained, generator)
        specs = []
        for i, (one, two) in enumerate(zip(first, second, strict=True)):
            two = replace(two, background=one.background)
            if two.colour == one.colour:
                others = [pair for pair in self._trained if pair[0] != one.colour]
                colour, shape = others[i % len(others)]
                two = replace(two, colour=colour, shape=shape)
            subjects = (one, two)
            drag = Drag(BEFORE, DRAG_FRAMES, told)
            specs.append(
                StreamSpec(
                    "pairs", canonical(*subjects), self._seed(4, i), BEFORE + MOTION_FRAMES, subjects, drag
                )
            )
        return specs

    def switches(self, clear: bool) -> list[StreamSpec]:
        """Streams in which one thing changes and the rest is to stay, under `recache` or under `clear`."""
        generator = self._generator(5)
        specs = []
        for i, before in enumerate(self._subjects(self.config.switches, self._trained, generator)):
            kind = SWITCH_KINDS[i % len(SWITCH_KINDS)]
            after = self._changed(before, kind, generator)
            switch = Switch(BEFORE, canonical(after), after, kind, "clear" if clear else "recache")
            frames = BEFORE + SWITCH_FRAMES + MOTION_FRAMES
            specs.append(
                StreamSpec("switches", canonical(before), self._seed(5, i), frames, (before,), None, switch)
            )
        return specs

    def drift(self, long: bool) -> list[StreamSpec]:
        """Long plain streams."""
        config = self.config
        count, seconds = (
            (config.long_drift, config.long_drift_seconds) if long else (config.drift, config.drift_seconds)
        )
        generator = self._generator(7 if long else 6)
        return [
            StreamSpec(
                "long_drift" if long else "drift",
                canonical(s),
                self._seed(7 if long else 6, i),
                1 + round(seconds * FPS),
                (s,),
            )
            for i, s in enumerate(self._subjects(count, self._trained, generator))
        ]

    def _plain(self, suite: str, count: int, pairs: list[tuple[int, int]]) -> list[StreamSpec]:
        number = 1 if suite == "prompts" else 2
        generator = self._generator(number)
        frames = 1 + round(self.config.seconds * FPS)
        specs = []
        for i, subject in enumerate(self._subjects(count, pairs, generator)):
            numbers = torch.rand(DRAWS_PER_CAPTION, generator=generator).tolist()
            prompt = self._free(subject, numbers) if i % 2 else canonical(subject)
            specs.append(StreamSpec(suite, prompt, self._seed(number, i), frames, (subject,)))
        return specs

    def _subjects(
        self, count: int, pairs: list[tuple[int, int]], generator: torch.Generator
    ) -> list[Subject]:
        """`count` subjects in which all values of an attribute are about equally frequent."""
        columns = [
            _even(len(pairs), count, generator),
            _even(len(SIZES), count, generator),
            _even(len(self.motions), count, generator),
            _even(len(BACKGROUNDS), count, generator),
        ]
        subjects = []
        for pair, size, motion, background in zip(*columns, strict=True):
            colour, shape = pairs[pair]
            subjects.append(Subject(size, colour, shape, self.motions[motion], background))
        return subjects

    def _changed(self, before: Subject, kind: str, generator: torch.Generator) -> Subject:
        """The subject with another value of one attribute; colour and shape stay a trained pair."""
        choices = {
            "colour": [replace(before, colour=c) for c, s in self._trained if s == before.shape],
            "shape": [replace(before, shape=s) for c, s in self._trained if c == before.colour],
            "background": [replace(before, background=b) for b in range(len(BACKGROUNDS))],
            "motion": [replace(before, motion=m) for m in self.motions],
        }[kind]
        others = [choice for choice in choices if choice != before]
        return others[int(torch.randint(len(others), (1,), generator=generator))]

    def _free(self, subject: Subject, numbers: list[float]) -> str:
        """A caption in people's words that says all that is measured; the plain one if a word is unknown."""
        must = MustSay(colour=True, background=True, motion=True)
        caption = build_caption([_words(subject)], subject.background, must, numbers)
        known = all(word in self._known for word in caption.replace(",", " ").split())
        return caption if known else canonical(subject)

    def _says(self, subject: Subject) -> bool:
        return all(word in self._known for word in canonical(subject).split())

    def _generator(self, suite: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.config.seed * 1_000_003 + suite)

    def _seed(self, suite: int, index: int) -> int:
        return (self.config.seed * 10 + suite) * _SUITE_SEEDS + index


def canonical(*subjects: Subject) -> str:
    """The plain caption of one or more objects over the first one's background."""
    return canonical_caption([_words(subject) for subject in subjects], subjects[0].background)


def _words(subject: Subject) -> ObjectWords:
    return ObjectWords(subject.shape, subject.colour, subject.size, subject.motion)


def _even(values: int, count: int, generator: torch.Generator) -> list[int]:
    """`count` numbers below `values`, each about equally often, in random order."""
    rounds = -(-count // values) if count else 0
    numbers = torch.cat(
        [torch.randperm(values, generator=generator) for _ in range(rounds)] or [torch.zeros(0)]
    )
    return [int(n) for n in numbers[:count]]
