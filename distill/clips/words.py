"""Words of own captions, and texts encoded once."""

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from models.text_encoder import Vocabulary
from streamgen.errors import CheckpointError

from ..checkpoint import list_checkpoints
from .folder import ClipFolder
from .store import Shelf, fingerprint, write_whole

_FILE = "vocabulary.txt"

Encode = Callable[[Sequence[str]], Sequence[Tensor]]


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
    if file.is_file() and list_checkpoints(run_dir / "checkpoints"):
        try:
            kept = Vocabulary(file.read_text(encoding="utf-8").split())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"vocabulary {file}: {error}") from None
        new = set(words) - set(kept.words)
        if new and main:
            sys.stderr.write(
                f"vocabulary of the run kept ({file}): it does not know {len(new)} words of the captions\n"
            )
        return kept
    if main:
        text = "\n".join(words) + "\n"
        write_whole(file, lambda part: part.write_text(text, encoding="utf-8"))
    return Vocabulary(words)


class TextCache:
    """Encoded texts on disk, in at most 256 files, each a mapping from a text's digest to a tensor.

    `settings` name the encoder and how it is used: a frozen text encoder's digest and length, or, where the
    encoder is trained along, the vocabulary, the result being word ids.
    """

    def __init__(self, folder: Path, settings: str, encode: Encode) -> None:
        self._shelf = Shelf(folder / fingerprint(settings))
        self._encode = encode

    def build(self, texts: Iterable[str], rank: int = 0, world: int = 1) -> None:
        """Encode this process' share of the texts that are missing."""
        for number, (bucket, members) in enumerate(sorted(_buckets(texts).items())):
            if number % world != rank:
                continue
            found = self._shelf.load(bucket) if self._shelf.has(bucket) else {}
            missing = {key: text for key, text in members.items() if key not in found}
            if missing:
                encoded = zip(missing, self._encode(list(missing.values())), strict=True)
                new = found | {key: value.cpu().clone() for key, value in encoded}
                self._shelf.make(bucket, lambda new=new: new)  # type: ignore[misc]

    def load(self, texts: Sequence[str]) -> list[Tensor]:
        """What was encoded, in the order of `texts`.

        Raises:
            InputError: a file is missing or damaged.
        """
        buckets = {bucket: self._shelf.load(bucket) for bucket in _buckets(texts)}
        keys = [_digest(text) for text in texts]
        return [buckets[key[:2]][key] for key in keys]


class CaptionIds(Protocol):
    """How captions become the ids `(L,)` that a model's text encoder reads."""

    def build(self, captions: Sequence[str], rank: int, world: int) -> None:
        """Do this process' share of what can be done once."""
        ...

    def load(self, captions: Sequence[str]) -> list[Tensor]:
        """Ids of each caption, once all processes have built."""
        ...


class WordIds:
    """Word ids of a folder's captions, kept on disk (`CaptionIds`)."""

    def __init__(self, folder: ClipFolder, vocabulary: Vocabulary, length: int) -> None:
        self.folder, self.vocabulary, self.length = folder, vocabulary, length
        settings = repr((vocabulary.words, length))
        self._cache = TextCache(folder.root / "texts", settings, word_ids(vocabulary, length))

    def build(self, captions: Sequence[str], rank: int, world: int) -> None:
        """See `CaptionIds`."""
        self._cache.build(captions, rank, world)
        long = sum(self.vocabulary.encode(text, self.length).dropped > 0 for text in set(captions))
        if rank == 0 and long:
            sys.stderr.write(
                f"{self.folder}: {long} captions have more than {self.length} words and are cut\n"
            )

    def load(self, captions: Sequence[str]) -> list[Tensor]:
        """See `CaptionIds`."""
        return self._cache.load(captions)


def word_ids(vocabulary: Vocabulary, length: int) -> Encode:
    """Texts to word ids, int16 `(length,)`."""

    def encode(texts: Sequence[str]) -> list[Tensor]:
        return [vocabulary.encode(text, length).ids.to(torch.int16) for text in texts]

    return encode


def _buckets(texts: Iterable[str]) -> dict[str, dict[str, str]]:
    """Texts by the first two digits of their digests, and by their digests."""
    buckets: dict[str, dict[str, str]] = {}
    for text in texts:
        key = _digest(text)
        buckets.setdefault(key[:2], {})[key] = text
    return buckets


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
