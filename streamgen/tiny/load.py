"""From a checkpoint directory of the tiny family to the parts that a pipeline is assembled of."""

from pathlib import Path

import torch

from models.causal_dit import CausalDiT
from models.motion_encoder import MotionEncoder
from models.text_encoder import TextEncoder
from models.video_tokenizer import VideoTokenizer

from ..checkpoints.digest import layout_tensors, tensor_digest
from ..checkpoints.directory import MODEL, TOKENIZER, VOCABULARY, load_into, part_of, read_tensors
from ..engine.networks import Networks
from ..stream.model import ModelParts
from .config import check_tokenizer, read_tiny_config, read_vocabulary
from .memory import check_memory, stream_check
from .text import WordPrompts


def load_tiny(name: str, directory: Path, device: torch.device, dtype: torch.dtype) -> ModelParts:
    """Load a checkpoint directory.

    Args:
        dtype: of the diffusion network; the tokenizer stays float32.

    Raises:
        CheckpointError: weights that are missing, damaged or do not fit the config or the memory.
    """
    config = read_tiny_config(directory)
    check_memory(config, device, dtype)
    tokenizer_tensors = read_tensors(directory / TOKENIZER)
    check_tokenizer(tokenizer_tensors, config, str(directory / TOKENIZER))
    tensors = read_tensors(directory / MODEL)
    # built without memory for random values first: everything is overwritten
    with torch.device(device):
        tokenizer, dit = VideoTokenizer(config.tokenizer), CausalDiT(config.dit)
        text, motion = TextEncoder(config.text_encoder), MotionEncoder(config.motion_encoder)
    load_into(tokenizer, tokenizer_tensors, str(directory / TOKENIZER))
    for part, module in (
        ("dit", dit),
        ("text_encoder", text),
        ("motion_encoder", motion),
    ):
        load_into(module, part_of(tensors, part), f"{directory / MODEL} ({part})")
        module.to(dtype).eval().requires_grad_(False)
    tokenizer.eval().requires_grad_(False)
    prompts = WordPrompts(text, read_vocabulary(directory / VOCABULARY, config.text_encoder))
    beside = {f"tokenizer.{name}": tensor for name, tensor in tokenizer_tensors.items()}
    digest = tensor_digest({**tensors, **beside, **layout_tensors(config.dit)})
    networks = Networks(tokenizer, dit, text, motion)
    return ModelParts(name, config, networks, prompts, digest, stream_check(config, device, dtype))
