"""A weights folder in the published formats of the Wan family, a few thousand random numbers in size, and a
text encoder.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.causal_dit import CausalDiT
from models.tiny_decoder import TinyDecoder
from models.wan_vae import WanVAE
from streamgen.wan.config import CONFIGS, WanConfig, read_wan_config, wan_model_names
from tests.tiny_models import randomize

SMALL = (
    "dit.dim=24", "dit.layers=2", "dit.heads=2", "dit.ffn_dim=32", "dit.text_dim=16", "dit.freq_dim=16",
    "text.dim=16", "text.length=6", "text.kind=hashed", "vae.dim=8", "vae.res_blocks=1",
    "tiny_decoder.encoder_dim=8", "tiny_decoder.decoder_dims=[16,12,8,8]", "height=32", "width=48",
)  # fmt: skip
RANK = 256
WORDS = ["a", "red", "boat", "sails", "sea", "the"]


def small_config(name: str = "wan-1.3b-longlive", *more: str) -> WanConfig:
    return read_wan_config(CONFIGS / f"{name}.yaml", (*SMALL, *more))


def lora_tensors(dit: CausalDiT, rank: int) -> dict[str, Tensor]:
    draw, out = torch.Generator().manual_seed(7), {}
    for name, module in dit.blocks.named_modules():
        if isinstance(module, torch.nn.Linear):
            place = f"base_model.model.blocks.{name}"
            out[f"{place}.lora_A.weight"] = torch.randn(rank, module.in_features, generator=draw) * 0.05
            out[f"{place}.lora_B.weight"] = torch.randn(module.out_features, rank, generator=draw) * 0.05
    return out


def write_published(directory: Path, rank: int = RANK) -> CausalDiT:
    """LongLive's base and LoRA, Self-Forcing's and Causal-Forcing's files, both VAEs; returns the base."""
    config = small_config()
    dit = CausalDiT(config.dit)
    randomize(dit)
    state = dit.state_dict()
    generator = {f"model.{name}": value for name, value in state.items()}
    ema = {f"model._fsdp_wrapped_module.{name}": value + 0.01 for name, value in state.items()}
    for folder in ("models", "chunkwise", "framewise"):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    torch.save({"generator": generator, "step": 3}, directory / "models" / "longlive_base.pt")
    torch.save({"generator_lora": lora_tensors(dit, rank)}, directory / "models" / "lora.pt")
    torch.save({"generator": generator, "generator_ema": ema}, directory / "self_forcing_dmd.pt")
    for folder in ("chunkwise", "framewise"):
        torch.save({"generator": generator}, directory / folder / "causal_forcing.pt")
    torch.save(randomize(WanVAE(config.vae), 1).state_dict(), directory / "Wan2.1_VAE.pth")
    torch.save(randomize(TinyDecoder(config.tiny_decoder), 2).state_dict(), directory / "taew2_1.pth")
    return dit


def write_newer(directory: Path) -> None:
    """Files of newer students, beside those of `write_published`."""
    generator = torch.load(directory / "self_forcing_dmd.pt", weights_only=True)["generator_ema"]
    for name in wan_model_names():
        path = directory / read_wan_config(CONFIGS / f"{name}.yaml").sources.dit[0]
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"generator_ema": generator}, path)


def tiny_umt5() -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=16, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=3,
        relative_attention_num_buckets=8, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return randomize(UMT5EncoderModel(config))


def tiny_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {word: i + 3 for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
