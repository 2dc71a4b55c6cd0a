"""Published releases that are known: how their files are called, and the config that streams them.

A file is known by its name and folders alone, which is why what is made of it says so.
"""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

APACHE = "Apache-2.0"


@dataclass(frozen=True)
class Release:
    """One release.

    Attributes:
        name: what people call it.
        pattern: of its repository and file, `owner/repo/folder/file`, or of the end of a local path.
        config: the name of the config that streams it; None where it is no streaming model.
        source: the repository on the hub.
        licence: of the weights, as their repository says.
        note: what else has to be known, to be read behind its name.
        needs_lora: whether it is a base that streams with a LoRA of the same repository alone.
        overrides: what of the config is other for this file, dotted `key=value`.
    """

    name: str
    pattern: str
    config: str | None
    source: str
    licence: str
    note: str = ""
    needs_lora: bool = False
    overrides: tuple[str, ...] = ()


def _rcm(pattern: str, kind: str, config: str | None, note: str, *overrides: str) -> Release:
    """A file of NVlabs/rcm, which has many beside each other."""
    pattern = rf"rCM_Wan2\.1_T2V_1\.3B_480p{pattern}"
    return Release(
        f"Causal-rCM, {kind}", pattern, config, "worstcoder/rcm-Wan", APACHE, note, False, overrides
    )


_RCM_WINDOW = "was trained on 21 latent frames: a window as long is assumed"
_RCM_STEPS = f"{_RCM_WINDOW}, and of its two noise levels the second (833.33)"

# more telling patterns first
RELEASES: tuple[Release, ...] = (
    Release(
        "LongLive 1.0 (base)",
        r"longlive_base\.",
        "wan-1.3b-longlive",
        "Efficient-Large-Model/LongLive-1.3B",
        APACHE,
        "is a base that streams with models/lora.pt of the same repository merged into it",
        needs_lora=True,
    ),
    Release(
        "Causal-Forcing++, 2 steps",
        r"framewise-2step\.",
        "wan-1.3b-causal-forcing-2step",
        "zhuhz22/Causal-Forcing",
        APACHE,
        "takes four steps for its first latent frame and two for each later one",
    ),
    Release(
        "Causal-Forcing++, 1 step",
        r"framewise-1step\.",
        "wan-1.3b-causal-forcing-1step",
        "zhuhz22/Causal-Forcing",
        APACHE,
        "takes four steps for its first latent frame and one for each later one",
    ),
    Release(
        "Causal-Forcing, frame-wise",
        r"framewise[/_-].*causal_forcing|causal_forcing[/_-]framewise",
        "wan-1.3b-causal-forcing-frame",
        "zhuhz22/Causal-Forcing",
        APACHE,
    ),
    Release(
        "Causal-Forcing, chunk-wise",
        r"chunkwise[/_-].*causal_forcing|causal_forcing[/_-]chunkwise",
        "wan-1.3b-causal-forcing-chunk",
        "zhuhz22/Causal-Forcing",
        APACHE,
    ),
    Release(
        "Self Gradient Forcing, frame-wise",
        r"Self_Gradient_Forcing/.*framewise|framewise/ar/model\.pt",
        "wan-1.3b-self-gradient-forcing-frame",
        "JunhaoZhuang/Self_Gradient_Forcing",
        APACHE,
        "has sink and window of its README (4 + 16 + 1); four steps are assumed, as of what it started from",
    ),
    Release(
        "Self Gradient Forcing, chunk-wise",
        r"Self_Gradient_Forcing/.*chunkwise|chunkwise/ar/model\.pt",
        "wan-1.3b-self-gradient-forcing-chunk",
        "JunhaoZhuang/Self_Gradient_Forcing",
        APACHE,
        "has sink and window of its README (3 + 6 + 3); four steps are assumed, as of what it started from",
    ),
    Release(
        "One-Forcing, frame-wise",
        r"(?:^|/)one_forcing\.",
        "wan-1.3b-one-forcing",
        "JiaqiFeng/OneForcing",
        "not stated in its README",
        "takes one step; a window of 20 is assumed, as of what it started from",
    ),
    Release(
        "Reward Forcing",
        r"(?:^|/)rewardforcing\.",
        "wan-1.3b-reward-forcing",
        "JaydenLu666/Reward-Forcing-T2V-1.3B",
        "of its code Apache-2.0, of its weights not stated",
        "was trained with a sink that averages what has left the window; here the sink is the first chunk",
    ),
    _rcm(
        r"_[TD]F_Diffusion",
        "before distillation",
        None,
        "is not distilled: some 50 guided steps, with --like wan-1.3b-rcm-chunk and --model-set "
        "sampling.steps=50, sampling.sampler=euler, sampling.text_guidance=5",
    ),
    _rcm(r"_.*c3-3_step2", "chunk-wise, 2 steps", "wan-1.3b-rcm-chunk", _RCM_STEPS, "sampling.steps=2"),
    _rcm(r"_.*c3-3", "chunk-wise", "wan-1.3b-rcm-chunk", _RCM_WINDOW),
    _rcm(r"_.*c1-1_step1", "frame-wise, 1 step", "wan-1.3b-rcm-frame", _RCM_WINDOW, "sampling.steps=1"),
    _rcm(r"_.*c1-1_step2", "frame-wise, 2 steps", "wan-1.3b-rcm-frame", _RCM_STEPS, "sampling.steps=2"),
    _rcm(r"_.*c1-1", "frame-wise", "wan-1.3b-rcm-frame", _RCM_WINDOW),
    _rcm(
        r"\.",
        "the bidirectional rCM",
        None,
        "sees whole clips: a start for training, not a streaming model",
    ),
    Release("Self-Forcing", r"self_forcing_dmd", "wan-1.3b-self-forcing", "gdhe17/Self-Forcing", APACHE),
    Release(
        "Wan2.1-T2V-1.3B",
        r"Wan2\.1-T2V-1\.3B[^/]*/(?:transformer/)?diffusion_pytorch_model",
        None,
        "Wan-AI/Wan2.1-T2V-1.3B",
        APACHE,
        "is the bidirectional base, which sees whole clips: a start for training, not a streaming model",
    ),
)


def find_release(place: str) -> Release | None:
    """The release that a file belongs to by its name.

    Args:
        place: its path, or `owner/repo/path` on the hub.
    """
    name = PurePosixPath(place.replace("\\", "/")).as_posix()
    return next((release for release in RELEASES if re.search(release.pattern, name, re.IGNORECASE)), None)
