"""Passes of several chunks as one forward: each with a noise level, words, motion and sliders of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.causal_dit import CausalDiT, TextContext
from models.context import AttentionContext

from ..guidance import Conditioning
from ..runner import CommitTask


@dataclass(frozen=True, eq=False)
class Member:
    """A chunk's part of a forward.

    Attributes:
        x: `(1, T, C, h, w)`.
        levels: timestep of each latent frame, 0 to 1000.
        text, motion: what it is predicted under.
        strengths: of text and motion guidance; None: no wish, as of a commit.
    """

    x: Tensor
    levels: tuple[float, ...]
    text: TextContext
    motion: Tensor | None
    strengths: tuple[float, float] | None = None

    @classmethod
    def committed(cls, task: CommitTask) -> "Member":
        """Of a finished chunk."""
        return cls(task.latents, task.levels, task.text, task.motion)

    @classmethod
    def denoised(cls, x: Tensor, sigma: float, conditioning: Conditioning) -> "Member":
        """Of a chunk at a noise level."""
        levels = (1000 * sigma,) * x.shape[1]
        return cls(x, levels, conditioning.text, conditioning.motion, conditioning.weights())


def one_pass(dit: CausalDiT, conditioning: Conditioning) -> bool:
    """Whether a step of a chunk is one prediction that can share a forward: without branches of guidance,
    and without words to turn away from.
    """
    unguided = dit.config.guidance or sum(conditioning.weights()) == 1
    own = conditioning.strengths is None and conditioning.text.negative is None
    return unguided and own and conditioning.text.strengths is None


def velocities(dit: CausalDiT, members: Sequence[Member], context: AttentionContext) -> list[Tensor]:
    """What the network predicts for each of consecutive chunks, `(1, T, C, h, w)`, in one forward."""
    x = torch.cat([each.x for each in members], 1)
    levels = torch.cat([_filled(each.levels, x.device) for each in members], 1)
    velocity = dit(x, levels, _words(members), context, _motion(members), _strengths(dit, members, x.device))
    return list(velocity.split([each.x.shape[1] for each in members], 1))


def _filled(levels: tuple[float, ...], device: torch.device) -> Tensor:
    """`(1, T)`, filled in on the device: a tensor of numbers would be copied there in every step."""
    if len(set(levels)) == 1:
        return torch.full((1, len(levels)), levels[0], device=device)
    return torch.cat([torch.full((1, 1), level, device=device) for level in levels], 1)


def _words(members: Sequence[Member]) -> TextContext:
    """A segment for each text, and which of them each latent frame reads."""
    texts: list[TextContext] = []
    places: list[tuple[int, int]] = []
    for each in members:
        # the same tensors are the same words; a restored text may come twice, with the same numbers
        known = [i for i, text in enumerate(texts) if text.keys is each.text.keys]
        if not known:
            texts.append(each.text)
        places.append((known[0] if known else len(texts) - 1, each.x.shape[1]))
    if len(texts) == 1:
        return texts[0]
    layers, device = range(len(texts[0].keys)), members[0].x.device
    runs = [torch.full((1, frames), place, device=device) for place, frames in places]
    return TextContext(
        tuple(torch.cat([text.keys[layer] for text in texts], 1) for layer in layers),
        tuple(torch.cat([text.values[layer] for text in texts], 1) for layer in layers),
        torch.cat(runs, 1),
    )


def _motion(members: Sequence[Member]) -> Tensor | None:
    """Motion of all frames, zeros where a chunk has none; None where all have none."""
    given = [each.motion for each in members if each.motion is not None]
    if not given:
        return None
    channels, parts = given[0].shape[2], []
    for each in members:
        b, t, _, h, w = each.x.shape
        parts.append(each.x.new_zeros(b, t, channels, h, w) if each.motion is None else each.motion)
    return torch.cat(parts, 1)


def _strengths(dit: CausalDiT, members: Sequence[Member], device: torch.device) -> Tensor | None:
    """`(1, T, 2)` for a network that takes them, zeros where there is no wish."""
    if not dit.config.guidance:
        return None
    rows = []
    for each in members:
        pair = each.strengths or (0.0, 0.0)
        rows.append(torch.stack([torch.full((1, each.x.shape[1]), w, device=device) for w in pair], -1))
    return torch.cat(rows, 1)
