"""The trained parts of a model."""

from dataclasses import dataclass

from models.causal_dit import CausalDiT
from models.motion_encoder import MotionEncoder
from models.text_encoder import TextEncoder
from models.video_codec import VideoCodec


@dataclass(frozen=True)
class Networks:
    """The trained parts of a model, in evaluation mode on one device. A model without tracks has no motion
    encoder; `text_encoder` is None where prompts are encoded elsewhere; `tokenizer` is None where streams are
    of latents alone.
    """

    tokenizer: VideoCodec | None
    dit: CausalDiT
    text_encoder: TextEncoder | None
    motion_encoder: MotionEncoder | None
