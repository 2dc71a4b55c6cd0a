"""The runner of models with a writer (`models.writer`): chunks are committed by weights of their own."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from models.causal_dit import CausalDiT, committing
from models.kv_cache import CacheCursor

from ...errors import InputError
from ..batch import BatchedRunner
from ..choice import Chosen
from ..decoder import DecoderState
from ..onnx.runner import OnnxRunner
from ..parallel.ulysses import UlyssesRunner
from ..program.compiled import GraphRunner, ProgramRunner
from ..quantize import Quantization, keeps_cache, quantization, quantized
from ..runner import CommitTask, DenoiseTask, PlainRunner, Runner
from .live_lora import LiveLoraRunner

# what a writer goes with, and what the others are called where it does not
_SERVED = (PlainRunner, OnnxRunner, ProgramRunner, GraphRunner)
_BARS: Mapping[type[object], str] = {
    LiveLoraRunner: "LoRAs whose strength may change",
    UlyssesRunner: "several processes",
    BatchedRunner: "streams at once",
}


class WriterRunner(PlainRunner):
    """Two runners of one kind: `denoiser` makes chunks, `writer` puts them into caches, at once and in a
    recache. So whatever computes chunks computes a writer, too, at the price of its layers once more.

    Args:
        denoiser: with the network.
        writer: with what `models.causal_dit.committing` made of it.
    """

    def __init__(self, denoiser: PlainRunner, writer: PlainRunner) -> None:
        super().__init__(denoiser.dit)
        self.denoiser, self.writer = denoiser, writer
        self.name, self.quantize, self.batch = denoiser.name, denoiser.quantize, denoiser.batch
        self.decoder = denoiser.decoder

    def denoise(self, task: DenoiseTask) -> Tensor:
        """See `Runner`."""
        return self.denoiser.denoise(task)

    @torch.no_grad()
    def commit(self, task: CommitTask) -> CacheCursor:
        """See `Runner`."""
        return self.writer.commit(task)

    @torch.no_grad()
    def rejoin(self, task: CommitTask, keep_sink: bool) -> CacheCursor:
        """See `Runner`."""
        return self.writer.rejoin(task, keep_sink)

    def decode(self, latents: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """See `Runner`."""
        return self.denoiser.decode(latents, state)


def writing(dit: CausalDiT, chosen: Chosen, choose: Callable[[CausalDiT, str], Chosen]) -> Chosen:
    """The runner of a network with a writer; the chosen one where it has none.

    Args:
        chosen: the runner of the network alone.
        choose: a runner of another network, by name.

    Raises:
        InputError: one that commits in its own way.
    """
    if not dit.config.writer:
        return chosen
    denoiser = chosen.runner
    bar = _BARS.get(type(denoiser), f"runner {denoiser.name}")
    if keeps_cache(denoiser.quantize):
        bar = "a cache in eight bits"
    elif quantization(dit) is not None:
        bar = "weights in eight bits alone"
    elif type(denoiser) in _SERVED:
        bar = ""
    if bar or not isinstance(denoiser, PlainRunner):
        raise InputError(f"the model has a writer of commits, which cannot be had with {bar}")
    writer = choose(committing_in(dit, denoiser), denoiser.name).runner
    assert isinstance(writer, PlainRunner), "as the other is"
    return replace(chosen, runner=WriterRunner(denoiser, writer))


def committing_in(dit: CausalDiT, runner: Runner) -> CausalDiT:
    """What a network's writer makes of it, in the eight bits of a runner, if any."""
    plain = committing(dit)
    return plain if runner.quantize is None else quantized(plain, cast(Quantization, runner.quantize))


def check_same_commit(dit: CausalDiT, trained: float, asked: float) -> None:
    """Raise InputError where chunks are committed at another noise level than a network's writer knows."""
    if dit.config.writer and asked != trained:
        raise InputError(
            f"context_noise: the model's writer was made for commits at {trained:g}, found {asked:g}"
        )
