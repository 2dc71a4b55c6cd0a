"""Fully sharded networks (torch's FSDP2): which parts are gathered together, and their whole form.

Every process holds a share of each parameter as a DTensor. A *unit* is a module whose parameters are gathered
when its forward begins and given up when it ends: each block of a `ModuleList`, and each network that is used
on its own.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from models.causal_dit import CausalDiT, CrossAttention
from models.motion_encoder import MotionEncoder
from models.text_encoder import TextEncoder
from models.video_tokenizer import VideoTokenizer
from models.wan_vae import WanVAE

from .errors import TrainingError

# Networks that are used on their own, with the methods beside `forward` through which others use them.
# A module of a stage names such methods itself, in a class attribute `entry_points`.
ENTRY_POINTS: Mapping[type[nn.Module], tuple[str, ...]] = {
    CausalDiT: ("embed_text",),
    CrossAttention: ("project",),
    TextEncoder: (),
    MotionEncoder: (),
}
# Small, and entered through many methods: never divided, and whole where they are frozen.
UNDIVIDED: tuple[type[nn.Module], ...] = (VideoTokenizer, WanVAE)


class ShardedModule:
    """A module whose parameters are spread over the processes of `mesh`, in place.

    Gradients are averaged over processes in float32. Parameters are gathered anew for the backward pass, and
    given up after every forward, so that what is read after an update is never an older gathered copy. With
    `offload` the shares lie on the CPU and are copied to the device when they are gathered.

    Raises:
        TrainingError: a parameter has stayed whole.
    """

    def __init__(self, module: nn.Module, mesh: DeviceMesh, offload: bool = False) -> None:
        self.module = module
        # memory can only be pinned where there is a GPU to copy it to
        policy = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if offload else OffloadPolicy()
        # the plain module, with parameters that take no memory
        empty = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in module.parameters()}
        self._plain = copy.deepcopy(module, {**empty, **{id(buffer): buffer for buffer in module.buffers()}})
        for part in (*units(module), module):
            methods, probe = entry_points(part), _whole_parameter(part)
            fully_shard(part, mesh=mesh, reshard_after_forward=True, offload_policy=policy)
            for method in methods:
                _open(part, method, probe)
        for unit in self._units():
            # gloo sums where it is asked for an average (pytorch/pytorch#162338): add and divide
            unit.set_force_sum_reduction_for_comms(True)
        check_sharded(module)
        # Otherwise whichever part is used first would be taken for the root.
        fully_shard.state(module)._lazy_init()  # type: ignore[attr-defined]

    @contextmanager
    def whole(self, values: Mapping[str, Tensor], main: bool) -> Iterator[None]:
        """Within the context the module is a plain one in the main process, with whole parameters.

        `values` replace parameters by name. Called by all processes together; the others are given nothing
        and go on at once.
        """
        for unit in self._units():
            unit.reshard()
        tensors: dict[int, Any] = {}
        for name, parameter in self.module.named_parameters():
            tensor = whole(values.get(name, parameter.detach()))
            if main:
                tensors[id(parameter)] = nn.Parameter(tensor.to(parameter.dtype), requires_grad=False)
        kept, kind = self.module.__dict__, type(self.module)
        try:
            if main:
                _become(self.module, self._filled(tensors).__dict__, type(self._plain))
            yield
        finally:
            _become(self.module, kept, kind)

    def _filled(self, tensors: Mapping[int, Any]) -> nn.Module:
        """The plain module with `tensors` by the sharded parameters they are of, and the present buffers."""
        own = dict(self.module.named_parameters(remove_duplicate=False))
        places = self._plain.named_parameters(remove_duplicate=False)
        plain = copy.deepcopy(self._plain, {id(empty): tensors[id(own[name])] for name, empty in places})
        for part, sharded in zip(plain.modules(), self.module.modules(), strict=True):
            part._buffers = sharded._buffers
        return plain

    def _units(self) -> list[FSDPModule]:
        return [part for part in self.module.modules() if isinstance(part, FSDPModule)]


def units(module: nn.Module) -> list[nn.Module]:
    """The parts of `module`, itself not among them, that are units of their own; inner before outer."""
    found = set(blocks(module))
    whole_ones = {
        inner for part in module.modules() if isinstance(part, UNDIVIDED) for inner in part.modules()
    }
    for part in module.modules():
        if type(part) in ENTRY_POINTS:
            found.add(part)
    return [part for part in reversed(list(module.modules())) if part in found - whole_ones - {module}]


def blocks(module: nn.Module) -> list[nn.Module]:
    """The parts of `module` that lie in a `ModuleList` and are computed by a `forward` of their own."""
    lists = (part for part in module.modules() if isinstance(part, nn.ModuleList))
    return [block for part in lists for block in part if type(block).forward is not nn.Module.forward]


def entry_points(part: nn.Module) -> tuple[str, ...]:
    """Methods beside `forward` through which a unit is used."""
    for kind, methods in ENTRY_POINTS.items():
        if isinstance(part, kind):
            return methods
    own: tuple[str, ...] = getattr(part, "entry_points", ())
    return own


def check_sharded(module: nn.Module) -> None:
    """Raise TrainingError naming a parameter that is no DTensor."""
    plain = [name for name, parameter in module.named_parameters() if not isinstance(parameter, DTensor)]
    if plain:
        raise TrainingError(
            f"parallel: fsdp2 left {len(plain)} parameters of {type(module).__name__} whole: {plain[0]}"
        )


@torch.no_grad()
def synchronize(module: nn.Module) -> None:
    """Give every process the first one's parameters and buffers, as data parallelism does."""
    for tensor in (*module.parameters(), *module.buffers()):
        dense = tensor.detach().contiguous()
        dist.broadcast(dense, 0)
        tensor.copy_(dense)


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its parts; called by all processes together if it is spread over them."""
    if not isinstance(tensor, DTensor):
        return tensor
    full: Tensor = tensor.full_tensor()
    return full


def whole_tree(tree: Any, keep: bool) -> Any:
    """`tree` of dicts, lists and tuples with whole tensors on the CPU where `keep`, without any elsewhere.

    Called by all processes together; tensors are gathered one by one, so that memory holds one at a time.
    """
    if isinstance(tree, DTensor):
        tensor = whole(tree.detach())
        return tensor.cpu() if keep else None
    if isinstance(tree, Mapping):
        return {key: whole_tree(value, keep) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [whole_tree(value, keep) for value in tree]
    return tree


def share(tensor: Tensor, like: Tensor) -> Tensor:
    """This process' share of a whole tensor, spread as `like` is."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor
    there = tensor.detach().to(like.device)
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _whole_parameter(part: nn.Module) -> tuple[nn.Module, str] | None:
    """Owner and name of a parameter of `part` that no inner unit has."""
    for owner in part.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if not isinstance(parameter, DTensor):
                return owner, name
    return None


def _open(part: nn.Module, method: str, probe: tuple[nn.Module, str] | None) -> None:
    """Let a method of a unit gather its parameters as `forward` does, unless one of them is gathered already:
    called from `forward`, it would give them up before `forward` is done with them.
    """
    plain = getattr(part, method)
    register_fsdp_forward_method(part, method)
    gathering = getattr(part, method)

    @wraps(plain)
    def enter(*arguments: Any, **named: Any) -> Any:
        gathered = probe is not None and not isinstance(getattr(*probe), DTensor)
        return (plain if gathered else gathering)(*arguments, **named)

    setattr(part, method, enter)


def _become(module: nn.Module, attributes: dict[str, Any], kind: type) -> None:
    # around nn.Module.__setattr__, which is for attributes
    object.__setattr__(module, "__class__", kind)
    object.__setattr__(module, "__dict__", attributes)
