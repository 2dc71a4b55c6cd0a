"""What lies beside weights that somebody has: picture decoders and text encoders, looked for in the folders
around a network in the layouts of Wan's repositories and of ComfyUI.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

# folders above a file in which the others are looked for: of `checkpoints/x.pt` and of `models/vae/x`
_ABOVE = 2
# as ComfyUI's folders have them, beside what a config names
_COMFY: Mapping[str, tuple[str, ...]] = {
    "vae": (
        "vae/wan_2.1_vae.safetensors",
        "vae/Wan2_1_VAE_bf16.safetensors",
        "vae/Wan2_1_VAE_fp32.safetensors",
    ),
    "tiny_decoder": ("vae_approx/taew2_1.safetensors", "vae_approx/taew2_1.pth"),
    "text_encoder": (
        "text_encoders/umt5_xxl_fp16.safetensors",
        "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors",
        "text_encoders/umt5-xxl-enc-bf16.safetensors",
        "text_encoders/umt5-xxl-enc-fp8_e4m3fn.safetensors",
    ),
}


def look_beside(file: Path, part: str, named: Sequence[str]) -> Path | None:
    """A part of a model in the folder of a file, or in those above it.

    Args:
        file: the network.
        part: `vae`, `tiny_decoder` or `text_encoder`.
        named: relative names that the config has for it, which come first.

    Returns:
        the file, or for a text encoder a folder that holds one; None where nothing is there.
    """
    for folder in [*file.resolve().parents][: 1 + _ABOVE]:
        for name in (*named, *_COMFY.get(part, ())):
            path = folder / name
            if path.is_file() or (part == "text_encoder" and _holds_encoder(path)):
                return path
    return None


def _holds_encoder(folder: Path) -> bool:
    """Whether a text encoder is loaded from a folder: Wan's own file is in it, or one of transformers."""
    if not folder.is_dir():
        return False
    inner = folder / "text_encoder" if (folder / "text_encoder").is_dir() else folder
    return any(folder.glob("models_t5_*.pth")) or (
        (inner / "config.json").is_file() and any(inner.glob("*.safetensors*"))
    )
