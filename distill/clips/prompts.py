"""Lists of prompts: all that a stage needs which learns from its own rollouts.

The same files as `streamgen render` takes: a prompt a line (.txt, # starts a comment), rows (.jsonl, .csv) or
YAML, where a row's `shots` are prompts that take over at their times:

    {"prompt": "a calm sea", "shots": [{"at": 5, "prompt": "a stormy sea"}]}
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.text_encoder import UNKNOWN, Vocabulary
from streamgen.batch.job import MAX_SECONDS
from streamgen.batch.job_file import parse_jobs
from streamgen.errors import InputError

from ..config import require


@dataclass(frozen=True)
class PromptListConfig:
    """A file of prompts.

    Attributes:
        path: .txt, .jsonl, .csv or .yaml.
        switch_share: of the streams made of a list whose rows have no shots, those that are given another
            row's prompt on their way.
    """

    path: str
    switch_share: float = 0.0

    def __post_init__(self) -> None:
        require(bool(self.path.strip()), "prompts.path", "a file", repr(self.path))
        require(0 <= self.switch_share <= 1, "prompts.switch_share", "within [0, 1]", self.switch_share)


@dataclass(frozen=True)
class PromptScript:
    """The prompts of one stream: `texts[i]` holds from `seconds[i]` on, `seconds[0]` is 0 and times rise."""

    seconds: tuple[float, ...]
    texts: tuple[str, ...]

    def at(self, seconds: float) -> str:
        """The prompt that holds at a time >= 0."""
        return self.texts[sum(start <= seconds for start in self.seconds) - 1]


@dataclass(frozen=True)
class PromptList:
    """The scripts of a file, in its order."""

    scripts: tuple[PromptScript, ...]
    switch_share: float = 0.0

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text once, in the order of the file: what a text encoder has to encode."""
        return tuple(dict.fromkeys(text for script in self.scripts for text in script.texts))

    def draw(self, count: int, seconds: float, generator: torch.Generator) -> list[PromptScript]:
        """`count` scripts for streams of `seconds`, each row as likely as another; a function of the
        generator's state alone.

        What a row says at or behind the end is left out. A row without shots becomes, in `switch_share` of
        the cases, a script that goes over to another row's first prompt somewhere in the middle half.
        """
        rows = torch.randint(len(self.scripts), (count, 2), generator=generator).tolist()
        chance, place = torch.rand(2, count, generator=generator).tolist()
        drawn = []
        for (row, other), draw, share in zip(rows, chance, place, strict=True):
            script, following = self.scripts[row], self.scripts[other].texts[0]
            if len(script.texts) == 1 and draw < self.switch_share and following != script.texts[0]:
                script = PromptScript((0.0, seconds * (0.25 + 0.5 * share)), (script.texts[0], following))
            kept = sum(start < seconds for start in script.seconds)
            drawn.append(PromptScript(script.seconds[:kept], script.texts[:kept]))
        return drawn


def read_prompts(config: PromptListConfig) -> PromptList:
    """The prompts of a file.

    Raises:
        InputError: no such file, no prompts in it, or a row that is wrong; names the file and the line.
    """
    scripts = []
    for job in parse_jobs(config.path, seconds=MAX_SECONDS):
        shots = [(shot.at_seconds, shot.prompt) for shot in job.shots if shot.prompt is not None]
        scripts.append(PromptScript(tuple(at for at, _ in shots), tuple(text for _, text in shots)))
    return PromptList(tuple(scripts), config.switch_share)


def known_to(prompts: PromptList, vocabulary: Vocabulary, length: int, where: str | Path) -> str | None:
    """A line that says which words of the prompts a model does not know, None where it knows them all.

    Raises:
        InputError: it does not know a single one.
    """
    encoded = [vocabulary.encode(text, length) for text in prompts.texts]
    unknown = dict.fromkeys(word for words in encoded for word in words.unknown)
    if not any((words.ids > UNKNOWN).any() for words in encoded):
        raise InputError(f"{where}: the model knows no word of these prompts")
    if not unknown:
        return None
    some = ", ".join([*list(unknown)[:5], *["..."] * (len(unknown) > 5)])
    return f"{where}: {len(unknown)} words are unknown to the model ({some})"


def prompt_words(scripts: Sequence[PromptScript], vocabulary: Vocabulary, length: int) -> Tensor:
    """Word ids `(B, S, length)` int64 of scripts, S being the most prompts of one; the last one is repeated
    in scripts that have fewer.
    """
    most = max(len(script.texts) for script in scripts)
    rows = [(*script.texts, *[script.texts[-1]] * (most - len(script.texts))) for script in scripts]
    return torch.stack([torch.stack([vocabulary.encode(text, length).ids for text in row]) for row in rows])
