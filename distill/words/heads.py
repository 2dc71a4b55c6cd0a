"""Heads that read from a text encoder what a caption says of each object: the loss that teaches binding."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..config import Checked, Count, NonNegative, Share
from .told import ATTRIBUTES, ToldBatch

#: File of a checkpoint directory, beside those that streams need.
FILE = "words.safetensors"


@dataclass(frozen=True)
class WordsConfig(Checked, section="words"):
    """How a stage that trains a text encoder keeps it telling objects apart.

    Attributes:
        start: the export of a `words` stage whose encoder and heads training starts from, also where the
            stage has an `init`; null: the encoder of that, or a fresh one.
        weight: of the heads' loss beside the stage's own; 0 trains without heads.
        batch: captions of each update that the heads read.
        gate: least accuracy of the binding probes at the end of the stage; 0 for none.
    """

    start: str | None = None
    weight: NonNegative = 0.0
    batch: Count = 64
    gate: Share = 0.0


class AttributeHeads(nn.Module):
    """A linear map for each attribute, read at each object's shape word; `weight` is that of the loss, for a
    network that has another one beside it.

    The shape is what a caption never leaves out, and its word stands once per object: whoever attends to it
    finds all that is said of that object, and nothing of the others.
    """

    def __init__(self, dim: int, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight
        self.maps = nn.ModuleDict({n: nn.Linear(dim, len(classes) + 1) for n, classes in ATTRIBUTES.items()})

    def forward(self, embeddings: Tensor, told: ToldBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross entropy of all attributes (not weighted), and of how many objects each is right, from
        embeddings (B, L, dim) of `told.ids`; at least one object is told of.
        """
        at, labels = at_objects(embeddings, told)
        scores = {name: head(at) for name, head in self.maps.items()}
        losses = [cross_entropy(score.float(), labels[name]) for name, score in scores.items()]
        right = {n: (score.argmax(-1) == labels[n]).float().mean() for n, score in scores.items()}
        return torch.stack(losses).mean(), right


def weights_of(parts: Mapping[str, nn.Module], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Weights of networks as files have them: on the CPU, under the names of their parts (`heads.maps.size`);
    as `dtype`, or as they are.
    """
    return {
        f"{part}.{name}": value.detach().to("cpu", dtype).contiguous()
        for part, network in parts.items()
        for name, value in network.state_dict().items()
    }


def at_objects(embeddings: Tensor, told: ToldBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Embeddings (N, dim) at the shape words of all objects, and their labels (N,) by attribute."""
    row, slot = (told.place >= 0).nonzero(as_tuple=True)
    return embeddings[row, told.place[row, slot]], {n: values[row, slot] for n, values in told.labels.items()}
