"""What a frozen text encoder tells of objects: by its own heads, and by linear probes made for that."""

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from models.text_encoder import TextEncoder, Vocabulary

from ..config import ConfigError
from ..errors import GateError
from ..evaluation.intervals import Figure, share
from ..scenes import SceneConfig
from .heads import AttributeHeads, at_objects
from .told import ATTRIBUTES, CaptionSampler, ToldBatch, check_vocabulary

_SEED = 20_261_130
#: Captions that probes learn from and are measured on; two and three objects each.
_LEARN, _MEASURE = 2000, 500
_SEVERAL = (0.0, 0.6, 0.4)
#: Added to the mean square of each input, which is 1.
_RIDGE = 1e-3
_WIDTHS = [len(classes) + 1 for classes in ATTRIBUTES.values()]


def is_of_the_world(vocabulary: Vocabulary) -> bool:
    """Whether a vocabulary has words for all that the world has, so that probes can be made."""
    try:
        check_vocabulary(vocabulary)
    except ConfigError:
        return False
    return True


@torch.no_grad()
def told_accuracies(encoder: TextEncoder, heads: AttributeHeads, told: ToldBatch) -> dict[str, Figure]:
    """Of each attribute the share of objects that the heads are right about, over all objects of captions."""
    at, labels = at_objects(_embedded(encoder, told), told)
    return {
        name: share((head(at).argmax(-1) == labels[name]).float().tolist())
        for name, head in heads.maps.items()
    }


def binding_probes(encoder: TextEncoder, vocabulary: Vocabulary, seed: int = _SEED) -> dict[str, Figure]:
    """By attribute the share of objects whose own class can be read linearly at their shape word, where there
    are others.

    Linear probes (Alain and Bengio, arXiv 1610.01644) on frozen embeddings of captions with two or three
    objects, fitted by least squares to classes as 0 and 1; measured on captions of the test set.

    Raises:
        ConfigError: the vocabulary has no words for a class of the world.
    """
    learn, measure = (
        at_objects(_embedded(encoder, told).float().cpu(), told)
        for told in _drawn(vocabulary.words, encoder.config.length, seed)
    )
    mean, spread = learn[0].mean(0), learn[0].std(0) + 1e-6
    inputs, others = ((at - mean) / spread for at in (learn[0], measure[0]))
    scores = (pad(others, (0, 1), value=1.0).double() @ _fitted(inputs, learn[1])).split(_WIDTHS, -1)
    return {
        name: share((score.argmax(-1) == measure[1][name]).float().tolist())
        for name, score in zip(ATTRIBUTES, scores, strict=True)
    }


def in_words(figures: Mapping[str, Figure]) -> list[str]:
    """Figures as lines: value, interval, number of objects."""
    return [
        f"{name} {f.value:.4f} [{f.low:.4f}, {f.high:.4f}] ({f.n} objects)"
        for name, f in figures.items()
        if f.value is not None
    ]


def check_gate(what: str, figures: Mapping[str, Figure], gate: float, key: str) -> None:
    """Raise GateError, with what was measured and the `key` that sets the gate, where a figure is below."""
    low = {name: f for name, f in figures.items() if f.value is None or f.value < gate}
    if low:
        raise GateError(f"{what}: {'; '.join(in_words(low))}: expected >= {gate:g}", f"{key}=0")


@lru_cache(maxsize=2)
def _drawn(words: tuple[str, ...], length: int, seed: int) -> tuple[ToldBatch, ToldBatch]:
    """Captions to learn from and to measure on; drawing them takes longer than the probes."""
    sampler = CaptionSampler(Vocabulary(words), length, SceneConfig(object_weights=_SEVERAL))
    generator = torch.Generator().manual_seed(seed)
    return sampler.draw(_LEARN, generator), sampler.draw(_MEASURE, generator, "test")


@torch.no_grad()
def _embedded(encoder: TextEncoder, told: ToldBatch) -> Tensor:
    device = encoder.embedding.weight.device
    embeddings: Tensor = encoder(told.ids.to(device))
    return embeddings


def _fitted(inputs: Tensor, labels: Mapping[str, Tensor]) -> Tensor:
    """A linear map (D + 1, classes of all attributes side by side) from inputs (N, D) and a constant."""
    wanted = [one_hot(labels[name], width) for name, width in zip(ATTRIBUTES, _WIDTHS, strict=True)]
    rows = pad(inputs, (0, 1), value=1.0).double()
    square = rows.T @ rows + _RIDGE * len(rows) * torch.eye(rows.shape[1], dtype=torch.float64)
    return torch.linalg.solve(square, rows.T @ torch.cat(wanted, 1).double())
