"""Lists of prompts: all that a stage needs which learns from its own rollouts.

The same files as `streamgen render` takes: a prompt a line (.txt, # starts a comment), rows (.jsonl, .csv) or
YAML, where a row's `shots` are prompts that take over at their times:

    {"prompt": "a calm sea", "shots": [{"at": 5, "prompt": "a stormy sea"}]}
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from models.text_encoder import UNKNOWN, Vocabulary
from streamgen.errors import InputError
from streamgen.render.job_file import parse_jobs
from streamgen.render.shots import MAX_SECONDS


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

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text once, in the order of the file: what a text encoder has to encode."""
        return tuple(dict.fromkeys(text for script in self.scripts for text in script.texts))


def read_prompts(path: str | Path) -> PromptList:
    """The prompts of a .txt, .jsonl, .csv or .yaml file.

    Raises:
        InputError: no such file, no prompts in it, or a row that is wrong; names the file and the line.
    """
    scripts = []
    for job in parse_jobs(path, seconds=MAX_SECONDS):
        shots = [(shot.at_seconds, shot.prompt) for shot in job.shots if shot.prompt is not None]
        scripts.append(PromptScript(tuple(at for at, _ in shots), tuple(text for _, text in shots)))
    return PromptList(tuple(scripts))


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


def prompt_pairs(prompts: PromptList, encode: Callable[[str], Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Ids `(L,)` before and after each change of prompt in the list, a row of one prompt making a pair of
    equals; `encode` gives those of a prompt.
    """
    pairs = []
    for script in prompts.scripts:
        ids = [encode(text) for text in script.texts]
        pairs += list(itertools.pairwise(ids)) if len(ids) > 1 else [(ids[0], ids[0])]
    return pairs
