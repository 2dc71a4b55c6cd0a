"""What steers a chunk: text, motion and guidance strengths, and the guided velocity they give."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models.causal_dit import CausalDiT, TextContext
from models.context import AttentionContext


@dataclass(frozen=True)
class Guidance:
    """Strengths of joint guidance (MotionStream, arXiv 2511.01266, section 3.2); text + motion = 1 is
    unguided.

    Raises:
        ValueError: a negative strength, or a sum below 1.
    """

    text: float = 3.0
    motion: float = 1.5

    def __post_init__(self) -> None:
        if not (self.text >= 0 and self.motion >= 0 and 1 <= self.text + self.motion < math.inf):
            raise ValueError(
                f"guidance strengths must not be negative and sum to at least 1, found text {self.text} and "
                f"motion {self.motion}"
            )

    def is_off(self, motion: bool) -> bool:
        """Whether one prediction is enough, with or without tracks; no text is needed then."""
        return self.text + self.motion == 1 if motion else self.text <= 1


@dataclass(frozen=True)
class Conditioning:
    """Conditioning of one chunk.

    `text` of the prompt, `null_text` of no prompt; `motion (B, T, channels, H, W)` or None where there are no
    tracks. `strengths (B, T, 2)` of text and motion guidance stand in for `guidance` where each stream of a
    batch has its own, which networks with a guidance input alone can do.
    """

    text: TextContext
    null_text: TextContext
    motion: Tensor | None
    guidance: Guidance
    strengths: Tensor | None = None

    def weights(self) -> tuple[float, float]:
        """Strengths of text and motion guidance that hold in this chunk: without tracks there is none of
        motion.
        """
        if self.motion is None:
            return max(1.0, self.guidance.text), 0.0
        return self.guidance.text, self.guidance.motion


def guided_velocity(
    dit: CausalDiT, x: Tensor, sigma: float, conditioning: Conditioning, context: AttentionContext
) -> Tensor:
    """Velocity under joint guidance: one forward of a network that takes the strengths as an input, else
    `joint_guidance` of all branches in one forward over the committed context that they share.
    """
    text, motion = conditioning.text, conditioning.motion
    w_t, w_m = conditioning.weights()
    if dit.config.guidance:
        strengths = conditioning.strengths
        if strengths is None:
            # filled in on the device: a tensor of numbers would be copied there in every step
            strengths = torch.stack([torch.full(x.shape[:2], w, device=x.device) for w in (w_t, w_m)], -1)
        return _predict(dit, x, sigma, text, context, motion, strengths)
    if w_t + w_m == 1:
        return _predict(dit, x, sigma, text, context, motion)
    if motion is None:
        both = _predict(dit, _repeat(x, 2), sigma, _stack([text, conditioning.null_text]), context, None)
        v_text, v_null = both.chunk(2)
        return joint_guidance(v_text, v_null, v_text, w_t, 0.0)
    texts = _stack([text, conditioning.null_text, text])
    motions = torch.cat([motion, motion, torch.zeros_like(motion)])
    v_full, v_motion, v_text = _predict(dit, _repeat(x, 3), sigma, texts, context, motions).chunk(3)
    return joint_guidance(v_full, v_motion, v_text, w_t, w_m)


class Pass(Protocol):
    """A network's prediction for one chunk under some words and motion."""

    def __call__(self, x: Tensor, timestep: float, strengths: tuple[float, float] | None = None) -> Tensor:
        """The velocity `(B, T, C, h, w)` of noisy latents at a timestep of 0 to 1000."""
        ...


def guided_passes(
    conditioning: Conditioning,
    pass_of: Callable[[TextContext, Tensor | None], Pass],
    takes_strengths: bool,
) -> Callable[[Tensor, float], Tensor]:
    """`guided_velocity` for runners whose passes are of one batch: branches one after the other.

    Args:
        pass_of: from words and motion latents to their pass, made once a chunk.
        takes_strengths: whether the network has an input for the strengths.
    """
    text, null, motion = conditioning.text, conditioning.null_text, conditioning.motion
    w_t, w_m = weights = conditioning.weights()
    whole = pass_of(text, motion)
    if takes_strengths:
        return lambda x, sigma: whole(x, 1000 * sigma, weights)
    if w_t + w_m == 1:
        return lambda x, sigma: whole(x, 1000 * sigma)
    without = pass_of(null, motion)
    # words alone are all there is where there is no motion
    words = whole if motion is None else pass_of(text, None)

    def velocity(x: Tensor, sigma: float) -> Tensor:
        full, silent = whole(x, 1000 * sigma), without(x, 1000 * sigma)
        still = full if motion is None else words(x, 1000 * sigma)
        return joint_guidance(full, silent, still, w_t, w_m)

    return velocity


def joint_guidance(
    v_full: Tensor, v_motion: Tensor, v_text: Tensor, w_t: Tensor | float, w_m: Tensor | float
) -> Tensor:
    """Joint guidance of text and motion (MotionStream, arXiv 2511.01266, section 3.2).

    `v = a v(0, m) + (1 - a) v(c, 0) + w_t (v(c, m) - v(0, m)) + w_m (v(c, m) - v(c, 0))`, `a = w_t / (w_t +
    w_m)`. Without tracks `v(0, m)` is `v(0, 0)`, `w_m` is 0, and this is classifier-free guidance of weight
    w_t. At `w_t + w_m = 1` it is `v(c, m)`: unguided.

    Args:
        v_full, v_motion, v_text: velocities under text and motion, motion alone, text alone.
        w_t, w_m: strengths, numbers or tensors that broadcast.
    """
    a = w_t / (w_t + w_m)
    return a * v_motion + (1 - a) * v_text + w_t * (v_full - v_motion) + w_m * (v_full - v_text)


def _predict(
    dit: CausalDiT,
    x: Tensor,
    sigma: float,
    text: TextContext,
    context: AttentionContext,
    motion: Tensor | None,
    strengths: Tensor | None = None,
) -> Tensor:
    timesteps = torch.full(x.shape[:2], 1000 * sigma, device=x.device)
    velocity: Tensor = dit(x, timesteps, text, context, motion, strengths)
    return velocity


def _repeat(x: Tensor, times: int) -> Tensor:
    return x.repeat(times, 1, 1, 1, 1)


def _stack(texts: list[TextContext]) -> TextContext:
    """One context for a batch of branches."""
    layers = range(len(texts[0].keys))
    return TextContext(
        tuple(torch.cat([t.keys[i] for t in texts]) for i in layers),
        tuple(torch.cat([t.values[i] for t in texts]) for i in layers),
    )
