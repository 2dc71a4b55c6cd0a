"""What a stage needs of a family of models: networks, encoded clips, and checkpoints that stream."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from models.context import ChunkPlan
from streamgen.errors import CheckpointError
from streamgen.pipeline import Pipeline

from ..clips.folder import ClipFolder
from ..clips.training import LatentMix
from ..config import FrozenConfig
from ..flow import FlowNetwork
from .config import DiffusionRun

N = TypeVar("N", bound=FlowNetwork)
_GUIDANCE, _WRITER = "guidance_embedding.", ".writer_"
#: Of networks that are not held in another way.
HELD = FrozenConfig()


@dataclass(frozen=True)
class NetworkSpec(Generic[N]):
    """A network of a stage: its class and the checkpoint directory it starts from, None for random weights.

    With `guidance` it takes guidance strengths as an input, with a rank of `writer` above 0 it has one
    (`models.writer`); `plan` replaces the config's chunk plan; `frozen`
    ones are used and not trained; without `heads` none are trained beside its text encoder. Its `sizes` are
    those of the run, or of its start: what that says of itself, else (of the Wan family, whose published
    files do not) `wan.teacher` for a start that is the teacher's.
    """

    kind: type[N]
    start: str | None
    guidance: bool = False
    writer: int = 0
    plan: ChunkPlan | None = None
    frozen: bool = False
    heads: bool = True
    sizes: Literal["run", "start", "teacher"] = "run"


class Family(ABC):
    """A family of models, opened for one stage: its frozen parts on the device, its words and clips.

    Attributes:
        codec: frozen, turns pictures into latents and back.
        folder: own clips, None where the config has none.
        cache_dtype: of the keys and values of streams in training.

    Raises:
        ConfigError: settings that do not fit the family.
        CheckpointError: a codec or a start that is missing, damaged, or of other sizes.
        InputError: nothing usable in the folder of own clips.
    """

    codec: nn.Module
    folder: ClipFolder | None
    cache_dtype: torch.dtype = torch.float32

    def __init__(self, config: DiffusionRun, device: torch.device) -> None:
        self.run, self.device = config, device

    def network(self, spec: NetworkSpec[N], held: FrozenConfig = HELD) -> N:
        """A network on the device, or as it is to be `held`, from its start where it has one."""
        place = torch.device("cpu") if held.offload else self.device
        network = self.fresh(spec, place).to(held.dtype)
        if spec.start is not None:
            self.load(network, spec)
        return network.to(place)

    @classmethod
    @abstractmethod
    def blank(cls, config: DiffusionRun, specs: Mapping[str, NetworkSpec[Any]]) -> dict[str, nn.Module]:
        """Networks by name, freshly made for a dry run: no weights are read, configs may be."""

    @classmethod
    @abstractmethod
    def blank_codec(cls, config: DiffusionRun) -> nn.Module:
        """The codec, as `blank`."""

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """Rows and columns of latents."""

    @abstractmethod
    def fresh(self, spec: NetworkSpec[N], place: torch.device) -> N:
        """A freshly initialised network, a function of the config's sizes and seed; made on `place` where
        that is quicker.
        """

    @abstractmethod
    def load(self, network: FlowNetwork, spec: NetworkSpec[Any]) -> None:
        """Take DiT and encoders from the checkpoint directory that `spec` starts from; what it lacks stays as
        it is where the network computes the same without.

        Raises:
            CheckpointError: missing or damaged weights, or networks of other sizes.
        """

    @abstractmethod
    def plan_of(self, directory: Path) -> ChunkPlan | None:
        """The chunk plan that a checkpoint was trained with; None where it does not say."""

    @abstractmethod
    def clips(self) -> LatentMix:
        """The encoded clips, made by all processes together where they are missing."""

    @abstractmethod
    def prompts(self, path: str) -> list[tuple[Tensor, Tensor]]:
        """Ids `(L,)` before and after each change of prompt in a list of prompts, see `prompt_pairs`.

        Called by all processes together.
        """

    @abstractmethod
    def pipeline(self, network: FlowNetwork) -> Pipeline:
        """A network as it is now, as a pipeline that opens streams."""

    @abstractmethod
    def preview(self, pipeline: Pipeline, out_dir: Path, streams: bool) -> None:
        """Write contact sheets; `streams` says whether the model makes streams that can be switched and
        dragged.
        """

    @abstractmethod
    def export(self, network: FlowNetwork, directory: Path) -> None:
        """Write a checkpoint directory that `streamgen.load_pipeline` opens."""


def with_fresh(tensors: Mapping[str, Tensor], network: FlowNetwork, where: str) -> dict[str, Tensor]:
    """Tensors of a DiT, and of the network's own fresh guidance input and writer what they lack: these add
    nothing yet, so that the network computes what they did.

    Raises:
        CheckpointError: the tensors have a writer of another rank, or one that the network has no place for.
    """
    dit, own = dict(tensors), network.dit.state_dict()
    for mark in (_GUIDANCE, _WRITER):
        if not any(mark in name for name in dit):
            dit |= {name: value for name, value in own.items() if mark in name}
    ranks = {len(value) for name, value in dit.items() if name.endswith(f"{_WRITER}down")}
    expected = network.dit.config.writer
    if ranks - {expected}:
        what = f"expected a writer of rank {expected} (rollout.writer), found one of rank {max(ranks)}"
        raise CheckpointError(f"{where}: {what}")
    return dit
