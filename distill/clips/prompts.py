"""Lists of prompts: all that a stage needs which learns from its own rollouts.

The same files as `streamgen render` takes: a prompt a line (.txt, # starts a comment), rows (.jsonl, .csv) or
YAML, where a row's `shots` are prompts that take over at their times:

    {"prompt": "a calm sea", "shots": [{"at": 5, "prompt": "a stormy sea"}]}
"""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from models.text_encoder import UNKNOWN, Vocabulary
from streamgen.errors import InputError
from streamgen.render.job_file import parse_jobs
from streamgen.render.shots import MAX_SECONDS

#: The prompts of one stream, as they take over from each other.
Script = tuple[str, ...]


def read_prompts(path: str | Path) -> list[Script]:
    """The prompts of a .txt, .jsonl, .csv or .yaml file, in its order.

    Raises:
        InputError: no such file, no prompts in it, or a row that is wrong; names the file and the line.
    """
    return [
        tuple(shot.prompt for shot in job.shots if shot.prompt is not None)
        for job in parse_jobs(path, seconds=MAX_SECONDS)
    ]


def known_to(prompts: Sequence[Script], vocabulary: Vocabulary, length: int, where: str | Path) -> str | None:
    """A line that says which words of the prompts a model does not know, None where it knows them all.

    Raises:
        InputError: it does not know a single one.
    """
    encoded = [vocabulary.encode(text, length) for text in itertools.chain(*prompts)]
    unknown = dict.fromkeys(word for words in encoded for word in words.unknown)
    if not any((words.ids > UNKNOWN).any() for words in encoded):
        raise InputError(f"{where}: the model knows no word of these prompts")
    if not unknown:
        return None
    some = ", ".join([*list(unknown)[:5], *["..."] * (len(unknown) > 5)])
    return f"{where}: {len(unknown)} words are unknown to the model ({some})"


def prompt_pairs(prompts: Sequence[Script], encode: Callable[[str], Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Ids `(L,)` before and after each change of prompt in the list, a row of one prompt making a pair of
    equals; `encode` gives those of a prompt.
    """
    pairs = []
    for script in prompts:
        ids = [encode(text) for text in script]
        pairs += list(itertools.pairwise(ids)) if len(ids) > 1 else [(ids[0], ids[0])]
    return pairs
