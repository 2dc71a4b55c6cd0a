"""Low-rank adapters (LoRA, arXiv 2106.09685; peft) for a stage's modules."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from streamgen.checkpoints.digest import tensor_digest

from .config import ConfigError, LoraConfig

_ADAPTER = "default"
_BASE = "base_layer."


def adapt(name: str, module: nn.Module, config: LoraConfig, seed: int) -> None:
    """Put adapters into the linear layers of `module` that `config.targets` names, in place.

    Everything else in it is frozen but what `config.whole` names. Adapters begin as the identity; their draws
    are a function of the seed.

    Raises:
        ConfigError: peft is missing, or no layer or parameter has such a name.
    """
    try:
        from peft import LoraConfig as PeftConfig
        from peft import inject_adapter_in_model
    except ImportError:
        raise ConfigError("lora needs the package peft: pip install 'streamgen[train]'") from None
    scale: Any = config.alpha  # declared an int there, used as a number
    kind = PeftConfig(r=config.rank, lora_alpha=scale, target_modules=list(config.targets))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(kind, module, _ADAPTER)
        except ValueError as error:
            first = " ".join(str(error).split()).split(". ")[0]
            raise ConfigError(f"lora.targets do not fit module {name}: {first}") from None
    for start in config.whole:
        chosen = [p for key, p in module.named_parameters() if key.startswith(start) and _ADAPTER not in key]
        if not chosen:
            raise ConfigError(f"lora.whole: no parameter of module {name} begins with {start}")
        for parameter in chosen:
            parameter.requires_grad_(True)


def is_adapted(module: nn.Module) -> bool:
    """Whether a module has adapters."""
    return any(True for _ in _layers(module))


def base_digest(module: nn.Module) -> str:
    """Fingerprint of what the adapters of `module` were put on: its frozen parameters."""
    return tensor_digest(
        {name.replace(_BASE, ""): p for name, p in module.named_parameters() if not p.requires_grad}
    )


@contextmanager
def merged(module: nn.Module) -> Iterator[None]:
    """Within the context `module` has plain layers with the adapters added to their weights.

    Names and classes are those of a module without adapters; afterwards everything is as before, bit for bit.
    """
    replaced = [(parent, name, layer) for parent, name, layer in _layers(module)]
    try:
        for parent, name, layer in replaced:
            setattr(parent, name, _merge(layer))
        yield
    finally:
        for parent, name, layer in replaced:
            setattr(parent, name, layer)


def _merge(layer: nn.Module) -> nn.Module:
    base, delta = layer.get_base_layer(), layer.get_delta_weight(_ADAPTER)  # type: ignore[operator]
    plain = nn.Linear(base.in_features, base.out_features, base.bias is not None, device="meta")
    plain.weight = nn.Parameter(
        base.weight.detach() + delta.detach().to(base.weight.dtype), requires_grad=False
    )
    if base.bias is not None:
        plain.bias = nn.Parameter(base.bias.detach(), requires_grad=False)
    return plain


def _layers(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(parent, name, layer) of every adapted layer."""
    for parent in module.modules():
        for name, child in parent.named_children():
            if hasattr(child, "lora_A") and hasattr(child, "base_layer"):
                yield parent, name, child
