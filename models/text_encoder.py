"""A small word-level text encoder with its own vocabulary, trained together with the tiny model."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .attention import RMSNorm, attend

PAD, UNKNOWN = 0, 1
_WORD = re.compile(r"[^\W_]+")
# What is neither word nor space; ordinary punctuation carries no meaning of its own and is passed over.
_SYMBOLS = re.compile(r"[^\w\s]+")
_PUNCTUATION = re.compile(r"[.,;:!?'\"()\[\]\-‐-―‘-‟…/&]+")


# characters of what was cut off that are told
_SHOWN = 40


@dataclass(frozen=True)
class Words:
    """A prompt as the model sees it: ids `(L,)` int64, the words and symbols that mean nothing to it, how
    many words (or tokens) did not fit, and the beginning of what was cut off.
    """

    ids: Tensor
    unknown: tuple[str, ...]
    dropped: int
    cut: str = ""


def beginning(text: str) -> str:
    """The first words of a text, at most 40 characters of it."""
    return text if len(text) <= _SHOWN else text[:_SHOWN].rsplit(" ", 1)[0] + " ..."


class Vocabulary:
    """Words and their ids; id 0 is padding and id 1 any unknown word.

    Raises:
        ValueError: a word occurs twice.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self._ids = {word: i + 2 for i, word in enumerate(self.words)}
        if len(self._ids) != len(self.words):
            raise ValueError(f"vocabulary has {len(self.words) - len(self._ids)} repeated words")

    def __len__(self) -> int:
        return len(self.words) + 2

    def encode(self, prompt: str, length: int) -> Words:
        """Lower-cased words of a prompt, padded or cut to `length`."""
        lowered = prompt.lower()
        matches = list(_WORD.finditer(lowered))
        found = [match.group() for match in matches]
        ids = [self._ids.get(word, UNKNOWN) for word in found]
        unknown = [w for w, i in zip(found, ids, strict=True) if i == UNKNOWN]
        unknown += [s for s in map(_meant, _SYMBOLS.findall(prompt)) if s]
        if not found and not unknown and prompt.strip():
            unknown = [prompt.strip()]
        padded = (ids + [PAD] * length)[:length]
        cut = lowered[matches[length].start() :] if len(found) > length else ""
        nothing = tuple(dict.fromkeys(unknown))
        return Words(torch.tensor(padded), nothing, max(0, len(found) - length), beginning(cut))


def _meant(symbols: str) -> str:
    """A run of symbols without its punctuation."""
    return _PUNCTUATION.sub("", symbols)


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    """Sizes of the text encoder: `length` is the number of words kept, `dim` that of the embeddings, which
    `towers` transformers make side by side, each its share, with `layers` and `heads` of their own.
    """

    vocabulary: int
    dim: int = 128
    layers: int = 2
    heads: int = 2
    length: int = 24
    towers: int = 1

    def __post_init__(self) -> None:
        if self.towers < 1:
            raise ValueError(f"text encoder towers must be at least 1, found {self.towers}")
        if self.dim % (self.heads * self.towers):
            several = f"heads ({self.heads})" + (f" times towers ({self.towers})" if self.towers > 1 else "")
            raise ValueError(f"text encoder dim must be a multiple of {several}, found {self.dim}")


class TextEncoder(nn.Module):
    """Bidirectional transformer over words; rows past the end of the prompt are exactly zero.

    Further towers are encoders of their own, `beside` the first: what one is taught costs the others nothing.
    """

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        tower = replace(config, dim=config.dim // config.towers, towers=1)
        self.embedding = nn.Embedding(config.vocabulary, tower.dim)
        self.blocks = nn.ModuleList(_Block(tower) for _ in range(config.layers))
        self.norm = RMSNorm(tower.dim)
        nn.init.normal_(self.embedding.weight, std=0.5)
        self.beside = nn.ModuleList(TextEncoder(tower) for _ in range(config.towers - 1))

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings `(..., L, dim)` of word ids `(..., L)`; an all-padding row (no text) gives all zeros."""
        flat = ids.reshape(-1, ids.shape[-1])
        real = flat != PAD
        # a row without words would have nothing to attend to; it is zeroed below
        mask = (real | ~real.any(1, keepdim=True))[:, None, None, :]
        x = self.embedding(flat)
        x = x + _word_positions(ids.shape[-1], x.shape[-1], ids.device).to(x.dtype)
        for block in self.blocks:
            x = block(x, mask)
        own = (self.norm(x) * real[..., None]).unflatten(0, ids.shape[:-1])
        return torch.cat([own, *(tower(ids) for tower in self.beside)], -1) if self.beside else own


class _Block(nn.Module):
    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.heads
        self.norm1, self.norm2 = RMSNorm(dim), RMSNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.ffn = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU("tanh"), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (self.heads, -1)) for y in self.qkv(self.norm1(x)).chunk(3, -1))
        x = x + self.out(attend(q, k, v, mask).flatten(2))
        return x + self.ffn(self.norm2(x))


def _word_positions(length: int, dim: int, device: torch.device) -> Tensor:
    ladder = torch.exp(-math.log(1000.0) * torch.arange(0, dim, 2, device=device) / dim)
    angles = torch.arange(length, device=device)[:, None] * ladder
    return torch.cat([angles.sin(), angles.cos()], -1)
