"""Words: the text encoder alone, taught from captions to tell what is said of which object.

Diffusion teaches a text encoder what words look like, and hardly whose they are: most of a picture does not
depend on it. That is learned here, in minutes, and kept by a term of later stages (`words.weight`).
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from models.tensor_file import write_tensors
from models.text_encoder import TextEncoder, TextEncoderConfig, Vocabulary
from streamgen.structured import to_plain

from ..batches import moved
from ..config import ConfigError, Count, RunConfig, Share, require, write_yaml
from ..evaluation.intervals import Figure
from ..families.tiny import load_words
from ..scenes import SceneConfig, caption_vocabulary
from ..scenes.captions import MAX_WORDS
from ..stage import Stage, Tick
from ..words.heads import FILE, AttributeHeads, weights_of
from ..words.probes import check_gate, in_words, told_accuracies
from ..words.told import CaptionSampler, ToldBatch, Which

_TEST_SEED, _GLIMPSE = 79, 400


@dataclass(frozen=True)
class TextSizes:
    """Sizes of the text encoder, those of the later stages' `network.text_*`."""

    dim: int = 128
    layers: int = 2
    length: int = 24


@dataclass(frozen=True)
class WordsRun(RunConfig):
    """Config of the words stage.

    Attributes:
        text: sizes of the encoder.
        vocabulary: a file of its words, one a line; null: those of the world's grammar.
        scenes: the world; of it only the numbers of objects and the frequencies of motions matter.
        batch: captions of an update.
        test: captions that the gate is measured on, none of which is ever trained on.
        gate: least accuracy of every attribute on these; 0 for none.
        start: an export of this stage to go on from; null: a fresh encoder.
    """

    text: TextSizes = field(default_factory=TextSizes)
    vocabulary: str | None = None
    scenes: SceneConfig = field(default_factory=SceneConfig)
    batch: Count = 128
    test: Count = 4000
    gate: Share = 0.99
    start: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.text.length >= MAX_WORDS, "text.length", f">= {MAX_WORDS} words", self.text.length)
        require(not self.scenes.include_held_out, "scenes.include_held_out", "false in training", True)


class ToldEncoder(nn.Module):
    """The text encoder with its heads' loss in forward, which is what data parallelism wraps."""

    def __init__(self, encoder: TextEncoder, heads: AttributeHeads) -> None:
        super().__init__()
        self.encoder, self.heads = encoder, heads

    def forward(self, told: ToldBatch) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Loss on captions, and of how many objects each attribute is right."""
        loss, right = self.heads(self.encoder(told.ids), told)
        return loss, dict(right)


class WordsStage(Stage):
    """Trains a text encoder on captions alone."""

    # embeddings and outputs
    edges = ("embedding", "norm", "maps")

    def __init__(self, config: WordsRun, device: torch.device) -> None:
        self.config, self.device = config, device
        self.vocabulary = read_words(config.vocabulary)
        self.sampler = CaptionSampler(self.vocabulary, config.text.length, config.scenes)
        self.module = told_encoder(config, len(self.vocabulary)).to(device)
        if config.start is not None:
            load_words(self.module.encoder, self.module.heads, Path(config.start), self.vocabulary)

    @classmethod
    def networks(cls, config: WordsRun) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
        return {"words": told_encoder(config, len(read_words(config.vocabulary)))}, {}

    def modules(self) -> dict[str, nn.Module]:
        """Encoder and heads."""
        return {"words": self.module}

    def batch(self, tick: Tick) -> ToldBatch:
        """Captions drawn anew for every update."""
        generator = torch.Generator().manual_seed(tick.generator_seed("captions"))
        return self.sampler.draw(self.config.batch, generator)

    def evaluate(self, step: int, out_dir: Path) -> dict[str, float]:
        """Accuracies on some test captions."""
        found = self.measured(min(_GLIMPSE, self.config.test))
        return {f"test_{name}": figure.value or 0.0 for name, figure in found.items()}

    def measured(self, count: int, which: Which = "test") -> dict[str, Figure]:
        """By attribute the share of objects that the heads are right about, on captions never trained on."""
        generator = torch.Generator().manual_seed(_TEST_SEED)
        told = moved(self.sampler.draw(count, generator, which), self.device)
        return told_accuracies(self.module.encoder, self.module.heads, told)

    def check(self) -> list[str]:
        """See `Stage`: accuracies on the test captions, which the gate is for, and on pairs never drawn."""
        found, unseen = self.measured(self.config.test), self.measured(self.config.test, "held_out")
        check_gate("words, captions never trained on", found, self.config.gate, "gate")
        lines = [f"test captions: {line}" for line in in_words(found)]
        return lines + [f"captions with held-out pairs: {line}" for line in in_words(unseen)]

    def export(self, directory: Path) -> None:
        """Write `words.safetensors` (encoder and heads), `vocabulary.txt` and `words.yaml`."""
        state = weights_of({"text_encoder": self.module.encoder, "heads": self.module.heads})
        write_tensors(state, directory / FILE, metadata={"format": "pt"})
        (directory / "vocabulary.txt").write_text("\n".join(self.vocabulary.words) + "\n", encoding="utf-8")
        found = self.measured(self.config.test)
        about: dict[str, object] = {"text_encoder": to_plain(self.module.encoder.config)}
        about["accuracy"] = {name: vars(figure) for name, figure in found.items()}
        write_yaml(about, directory / "words.yaml")


def told_encoder(config: WordsRun, vocabulary: int) -> ToldEncoder:
    """A freshly initialised encoder with heads; a function of the config's sizes and seed."""
    text = config.text
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoder = TextEncoder(
            TextEncoderConfig(vocabulary=vocabulary, dim=text.dim, layers=text.layers, length=text.length)
        )
        return ToldEncoder(encoder, AttributeHeads(text.dim))


def read_words(file: str | None) -> Vocabulary:
    """The words of a file, or those of the world's grammar.

    Raises:
        ConfigError: a file that cannot be read, or has a word twice.
    """
    if file is None:
        return Vocabulary(caption_vocabulary())
    try:
        return Vocabulary(Path(file).read_text(encoding="utf-8").split())
    except (OSError, ValueError) as error:
        raise ConfigError(f"vocabulary {file}: {error}") from None
