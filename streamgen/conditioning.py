"""What steers a chunk: text, motion and guidance strengths, and the guided velocity they give."""

import math
from dataclasses import dataclass

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
    tracks.
    """

    text: TextContext
    null_text: TextContext
    motion: Tensor | None
    guidance: Guidance


def guided_velocity(
    dit: CausalDiT, x: Tensor, sigma: float, conditioning: Conditioning, context: AttentionContext
) -> Tensor:
    """Velocity under joint guidance, all branches in one forward.

    `v = a v(0, m) + (1 - a) v(c, 0) + w_t (v(c, m) - v(0, m)) + w_m (v(c, m) - v(c, 0))`, `a = w_t / (w_t +
    w_m)`; without tracks `w_m` is 0 and this is classifier-free guidance of weight w_t. The branches share
    the committed context.
    """
    text, motion = conditioning.text, conditioning.motion
    w_t = conditioning.guidance.text if motion is not None else max(1.0, conditioning.guidance.text)
    w_m = conditioning.guidance.motion if motion is not None else 0.0
    if w_t + w_m == 1:
        return _predict(dit, x, sigma, text, context, motion)
    if motion is None:
        both = _predict(dit, _repeat(x, 2), sigma, _stack([text, conditioning.null_text]), context, None)
        v_text, v_null = both.chunk(2)
        return v_null + w_t * (v_text - v_null)
    texts = _stack([text, conditioning.null_text, text])
    motions = torch.cat([motion, motion, torch.zeros_like(motion)])
    v_full, v_motion, v_text = _predict(dit, _repeat(x, 3), sigma, texts, context, motions).chunk(3)
    a = w_t / (w_t + w_m)
    base = a * v_motion + (1 - a) * v_text
    return base + w_t * (v_full - v_motion) + w_m * (v_full - v_text)


def _predict(
    dit: CausalDiT,
    x: Tensor,
    sigma: float,
    text: TextContext,
    context: AttentionContext,
    motion: Tensor | None,
) -> Tensor:
    timesteps = torch.full(x.shape[:2], 1000 * sigma, device=x.device)
    velocity: Tensor = dit(x, timesteps, text, context, motion)
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
