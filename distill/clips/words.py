"""Words of own captions."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from models.text_encoder import Vocabulary
from streamgen.errors import CheckpointError

from ..checkpoint import list_checkpoints
from ..command import say
from .folder import ClipFolder
from .store import write_whole

_FILE = "vocabulary.txt"
T = TypeVar("T")


def caption_words(
    captions: Iterable[str], known: Sequence[str], min_count: int, most: int
) -> tuple[str, ...]:
    """`known` words, then those that at least `min_count` captions have, in alphabetical order.

    At most `most` words: of the new ones the rarest are left out, of equally rare ones the last of the
    alphabet.
    """
    # an empty vocabulary takes every text apart and knows nothing of it
    nothing = Vocabulary(())
    counts = Counter(word for caption in captions for word in nothing.encode(caption, 0).unknown)
    for word in known:
        counts.pop(word, None)
    frequent = sorted((word for word, count in counts.items() if count >= min_count))
    frequent = sorted(frequent, key=lambda word: -counts[word])[: max(0, most - len(known))]
    return (*known, *sorted(frequent))


def run_vocabulary(run_dir: Path, words: Sequence[str], main: bool) -> Vocabulary:
    """The vocabulary of a run: `words`, or those it began with if it has checkpoints.

    The rows of a trained embedding belong to words, so captions that change between two sessions of a run
    must not change what a row stands for. `main` is the process that writes the file.

    Raises:
        CheckpointError: the run has checkpoints whose vocabulary cannot be read.
    """
    file = run_dir / _FILE
    kept = kept_by_run(file, lambda text: Vocabulary(text.split()))
    if kept is None:
        if main:
            text = "\n".join(words) + "\n"
            write_whole(file, lambda part: part.write_text(text, encoding="utf-8"))
        return Vocabulary(words)
    if main and (new := set(words) - set(kept.words)):
        say(f"vocabulary of the run kept ({file}): it does not know {len(new)} words of the captions")
    return kept


def kept_by_run(file: Path, read: Callable[[str], T]) -> T | None:
    """What a file in a run's folder holds, as `read` makes it of its text; None where there is none, or no
    checkpoint that it belongs to.

    Raises:
        CheckpointError: it cannot be read.
    """
    if not file.is_file() or not list_checkpoints(file.parent / "checkpoints"):
        return None
    try:
        return read(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file.stem} {file}: {error}") from None


class CaptionIds(Protocol):
    """How captions become the ids `(L,)` that a model's text encoder reads."""

    def build(self, captions: Sequence[str], rank: int, world: int) -> None:
        """Do this process' share of what can be done once."""
        ...

    def load(self, captions: Sequence[str]) -> list[Tensor]:
        """Ids of each caption, once all processes have built."""
        ...


class WordIds:
    """Word ids of a folder's captions, int16 `(length,)` each (`CaptionIds`)."""

    def __init__(self, folder: ClipFolder, vocabulary: Vocabulary, length: int) -> None:
        self.folder, self.vocabulary, self.length = folder, vocabulary, length

    def build(self, captions: Sequence[str], rank: int, world: int) -> None:
        """See `CaptionIds`: nothing is worth keeping; says how many captions are too long."""
        long = sum(self.vocabulary.encode(text, self.length).dropped > 0 for text in set(captions))
        if rank == 0 and long:
            say(f"{self.folder}: {long} captions have more than {self.length} words and are cut")

    def load(self, captions: Sequence[str]) -> list[Tensor]:
        """See `CaptionIds`."""
        return [self.vocabulary.encode(text, self.length).ids.to(torch.int16) for text in captions]
