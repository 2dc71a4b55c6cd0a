"""Activation checkpointing: blocks give up what they computed and compute it again in the backward pass."""

import copy
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from models.kv_cache import CacheView
from models.writer import written, written_frames

from .sharding import blocks


def checkpoint_blocks(module: nn.Module) -> int:
    """Let every block of a `ModuleList` in `module` be computed again in the backward pass, in place.

    Nothing changes but memory and time: not the names of parameters, nor any number. Returns how many blocks
    there are.
    """
    found = blocks(module)
    for block in found:
        # on the instance: under FSDP2 gathering happens around `forward`, as recomputing needs it; a copy of
        # the block computes with its own parameters, since this is a method
        block.forward = MethodType(_recomputed(type(block).forward), block)
    return len(found)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(forward)

    @wraps(forward)
    def call(*arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **named)
        bound = signature.bind(*arguments, **named)
        context = bound.arguments.get("context")
        if isinstance(context, CacheView):
            bound.arguments["context"] = held_view(context, bound.arguments["layer"])
        frames = written_frames()
        again = lambda: (nullcontext(), written(frames))  # noqa: E731
        return checkpoint(forward, *bound.args, use_reentrant=False, context_fn=again, **bound.kwargs)

    return call


def held_view(view: CacheView, layer: int) -> CacheView:
    """What `layer` reads of a cache now, for a forward with gradient that is repeated later.

    By then the stream has committed chunks and moved on: repeated over the cache itself, the forward would
    read other keys, and the gradient would be silently wrong. Only the one layer is copied.
    """
    view.rotate_sink(layer)
    held, ring = copy.copy(view), copy.copy(view.ring)
    ring.keys = view.ring.keys[layer].clone().expand_as(view.ring.keys)
    ring.values = view.ring.values[layer].clone().expand_as(view.ring.values)
    ring.rotated = [*view.ring.rotated]
    held.ring = ring
    return held
