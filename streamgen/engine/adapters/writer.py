"""The runner of models with a writer (`models.writer`): chunks are committed by weights of their own."""

from typing import cast

import torch
from torch import Tensor

from models.causal_dit import CausalDiT, committing
from models.kv_cache import CacheCursor

from ...errors import InputError
from ..decoder import DecoderState
from ..quantize import Quantization, keeps_cache, quantization, quantized
from ..runner import CommitTask, DenoiseTask, PlainRunner, Runner


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

    @classmethod
    def of(cls, denoiser: Runner, writer: Runner) -> "WriterRunner":
        """Of two runners that were chosen alike."""
        assert isinstance(denoiser, PlainRunner), "all that a writer goes with are"
        assert isinstance(writer, PlainRunner), "all that a writer goes with are"
        return cls(denoiser, writer)

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


def committing_in(dit: CausalDiT, runner: Runner) -> CausalDiT:
    """What a network's writer makes of it, in the eight bits of a runner, if any."""
    plain = committing(dit)
    return plain if runner.quantize is None else quantized(plain, cast(Quantization, runner.quantize))


def check_can_write(
    dit: CausalDiT,
    live: object = None,
    mesh: object = None,
    batch: object = None,
    quantize: str | None = None,
) -> None:
    """Raise InputError where a network has a writer that streams cannot have.

    Args:
        live: LoRAs whose strength may change, if any.
        mesh: of several processes that compute each stream, if any.
        batch: the place among streams that are computed at once, if any.
        quantize: what is in eight bits.
    """
    bars = {
        "LoRAs whose strength may change": live is not None,
        "several processes": mesh is not None,
        "streams at once": batch is not None,
        "a cache in eight bits": keeps_cache(quantize),
        "weights in eight bits alone": quantization(dit) is not None,
    }
    found = [what for what, barred in bars.items() if barred]
    if dit.config.writer and found:
        raise InputError(f"the model has a writer of commits, which cannot be had with {found[0]}")


def check_same_commit(dit: CausalDiT, trained: float, asked: float) -> None:
    """Raise InputError where chunks are committed at another noise level than a network's writer knows."""
    if dit.config.writer and asked != trained:
        raise InputError(
            f"context_noise: the model's writer was made for commits at {trained:g}, found {asked:g}"
        )
