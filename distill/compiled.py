"""Blocks as compiled programs (`torch.compile`): what a block does to tokens alone, around its attention."""

import functools
import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from models.causal_dit import DiTBlock
from models.writer import WrittenLinear

from .config import require

_PARTS = ("asked", "joined", "fed")
#: Programs of each part: kinds of batches, networks, with gradients and without.
_PROGRAMS = 64


#: The name of one of torch's compilers, or one of its kind.
Backend = str | Callable[[torch.fx.GraphModule, list[Tensor]], Callable[..., Any]]


def compile_blocks(module: nn.Module, backend: Backend = "inductor") -> int:
    """Let the blocks of every transformer in `module` be computed by programs, in place; returns how many
    there are. All blocks of a network share theirs, one for each size of batch.

    Raises:
        ConfigError: a writer, which asks in mid-layer which frames are being committed.
    """
    writers = any(isinstance(part, WrittenLinear) for part in module.modules())
    require(not writers, "compile", "false with rollout.writer", True)
    limits = importlib.import_module("torch._dynamo").config
    # beyond its limit torch would go on without a program, at eight of them by default
    limits.recompile_limit = max(limits.recompile_limit, _PROGRAMS)
    blocks = [part for part in module.modules() if isinstance(part, DiTBlock)]
    for block in blocks:
        for part in _PARTS:
            # a method, so that a copy of the block computes with its own parameters
            setattr(block, part, MethodType(_program(part, backend), block))
    return len(blocks)


def as_written(compiled: bool) -> AbstractContextManager[Any]:
    """Within, blocks are computed as their code reads: for previews, whose sizes no update has."""
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


@functools.cache
def _program(part: str, backend: Backend) -> Callable[..., Any]:
    # sizes that vary would have the numbers depend on which came first, and a resumed run on where it stopped
    compiled: Callable[..., Any] = torch.compile(
        vars(DiTBlock)[part], fullgraph=True, dynamic=False, backend=backend
    )
    return compiled
