"""The tensors of a Wan-family model from published files or from a converted directory, under our names."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.lora import merge_lora, read_lora
from models.state_dict import Kind, Tensors, check_dtypes, widen_patch_embedding
from models.unwrap import unwrap

from ..checkpoints.digest import file_sha256
from ..checkpoints.directory import MODEL, TOKENIZER, check_tensors, part_of, read_tensors
from ..checkpoints.foreign import (
    expect_kind,
    fetch_weights,
    names_weights,
    one_line,
    read_foreign,
    read_names,
)
from ..checkpoints.hub import HubSource, is_hub, parse_hub
from ..engine.quantize import Quantization, hold_rounded, is_rounded, restored, rounded
from ..errors import CheckpointError
from .beside import look_beside
from .config import Sources, WanConfig
from .sizes import foreign_layers, size_word

TINY_DECODER = "tiny_decoder.safetensors"


@dataclass(frozen=True)
class SourceFile:
    """One file that weights came from: what it is, the section of it that was read, its fingerprint, and what
    was done to read it (`Unwrapped.notes`).
    """

    part: str
    path: str
    kind: Kind
    section: str
    bytes: int
    sha256: str | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass
class WanTensors:
    """Tensors of the parts that were found, under our names, and where they came from."""

    dit: Tensors | None = None
    vae: Tensors | None = None
    tiny_decoder: Tensors | None = None
    motion_encoder: Tensors | None = None
    files: list[SourceFile] = field(default_factory=list)

    def place(self, part: str, otherwise: str) -> str:
        """Where a part came from, for messages: the file's name behind the folder's."""
        name = next((file.path for file in self.files if file.part == part), None)
        return otherwise if name is None else f"{otherwise}/{name}"

    def notes(self) -> list[str]:
        """What a user should know of how the files were read, one line for each."""
        return [f"{file.path}: {note}" for file in self.files for note in file.notes]


def gather(
    config: WanConfig, directory: Path | HubSource, parts: Iterable[str], digests: bool = False
) -> WanTensors:
    """The named parts (`dit`, `vae`, `tiny_decoder`) of a directory, converted or as published, or of a
    repository on the hub. A config may also name files by absolute paths and on the hub, wherever that is.

    Args:
        digests: also take the sha256 of every file.

    Raises:
        CheckpointError: a part that is not there, of another kind, damaged, or a LoRA that does not fit.
    """
    if isinstance(directory, Path) and not directory.is_dir():
        raise CheckpointError(f"weights {directory}: expected a directory, found none")
    reader = _Reader(config, directory, digests)
    for part in parts:
        reader.read(part)
    return reader.found


def placed(weights: str | Path, config: WanConfig) -> tuple[Path | HubSource, WanConfig]:
    """Where weights lie, and a config that finds them there: of a single file, its folder and a config whose
    network is that file, with what lies beside it.

    Raises:
        InputError: no name on the hub; CheckpointError: nothing there, or a file without a network.
    """
    if is_hub(weights):
        source = parse_hub(weights)
        if not names_weights(source):
            return source, config
        folder: Path | HubSource = source.folder()
        name = str(source)
    else:
        path = Path(weights)
        if path.is_dir() or not path.suffix:
            return path, config
        if not path.is_file():
            raise CheckpointError(f"weights {path}: no such file or directory")
        folder, name = path.parent, str(path.resolve())
        config = replace(config, sources=_beside(path, config.sources))
    try:
        kind = unwrap(read_names(name), config.sources.section, "wan_dit").kind
    except ValueError as error:
        raise CheckpointError(f"weights {weights}: {one_line(error)}") from None
    if kind == "streamgen":
        raise CheckpointError(f"weights {weights}: a part of a checkpoint of ours, name its folder")
    if kind == "lora":
        raise CheckpointError(f"weights {weights}: a LoRA, which is given as --lora beside the weights")
    expect_kind(Path(weights), kind, "wan_dit")
    return folder, replace(config, sources=replace(config.sources, dit=(name,)))


def _beside(path: Path, sources: Sources) -> Sources:
    """The sources of what goes with the network in a file, as far as it is found around it."""

    def around(part: str, named: tuple[str, ...]) -> tuple[str, ...]:
        found = look_beside(path, part, named)
        return named if found is None else (str(found),)

    return replace(
        sources,
        vae=around("vae", sources.vae),
        tiny_decoder=around("tiny_decoder", sources.tiny_decoder),
        text_encoder=around("text_encoder", sources.text_encoder),
    )


def with_decoder(config: WanConfig, directory: Path | HubSource | None) -> tuple[WanConfig, str | None]:
    """A config whose picture decoder is decided, and one line on what `auto` came to: TAEHV where its weights
    are there, a fraction of the Wan VAE's work and memory, else the Wan VAE.

    Args:
        directory: converted or published weights; None where there are none. On the hub nothing is looked for
            that was not asked for: there `auto` is the Wan VAE.
    """
    if config.decoder != "auto":
        return config, None
    names = (TINY_DECODER, *config.sources.tiny_decoder)
    found = None
    if isinstance(directory, Path):
        found = next((directory / name for name in names if (directory / name).is_file()), None)
    if found is not None:
        note = f"decoder: TAEHV, {found.name} is there (--model-set decoder=vae takes the Wan VAE)"
        return replace(config, decoder="tiny"), note
    note = f"decoder: the Wan VAE, there is no {' or '.join(config.sources.tiny_decoder) or TINY_DECODER}"
    return replace(config, decoder="vae"), note


def has_tiny_decoder(config: WanConfig, directory: Path | HubSource | None) -> bool:
    """Whether weights of TAEHV lie in a folder; on the hub nothing is looked for that was not asked for."""
    names = (TINY_DECODER, *config.sources.tiny_decoder)
    return isinstance(directory, Path) and any((directory / name).is_file() for name in names)


class _Reader:
    """`gather`, step by step."""

    def __init__(self, config: WanConfig, directory: Path | HubSource, digests: bool) -> None:
        self.config, self.directory, self.digests = config, directory, digests
        self.converted = self._own(MODEL) is not None
        self.found = WanTensors()

    def _own(self, name: str) -> Path | None:
        """A file of a converted folder."""
        path = self.directory / name if isinstance(self.directory, Path) else None
        return path if path is not None and path.is_file() else None

    def read(self, part: str) -> None:
        if part == "dit":
            self._read_dit()
        elif part == "vae":
            self.found.vae = self._codec(part, "wan_vae", self.config.sources.vae, TOKENIZER)
        else:
            tensors = self._codec(part, "taehv", self.config.sources.tiny_decoder, TINY_DECODER)
            self.found.tiny_decoder = trim_grow_layers(tensors, self.config.tiny_decoder.decoder_dims)

    def _read_dit(self) -> None:
        channels = self.config.dit.latent_channels + self.config.dit.motion_channels
        path = self._own(MODEL)
        if path is not None:
            tensors = read_tensors(path)
            self.found.dit = restored(part_of(tensors, "dit"))
            self.found.motion_encoder = part_of(tensors, "motion_encoder") or None
            self._check(path, self.found.dit)
            self._note("dit", path, "streamgen", "")
        else:
            sources = self.config.sources
            self.found.dit = self._foreign("dit", "wan_dit", sources.dit, sources.section)
            self._expect_model(self.found.dit)
            if sources.lora:
                self.found.dit = self._with_lora(self.found.dit, sources)
        if "patch_embedding.weight" not in self.found.dit:
            raise CheckpointError(f"weights {self._place}: patch_embedding.weight: missing")
        try:
            self.found.dit = widen_patch_embedding(self.found.dit, channels)
        except ValueError as error:
            raise CheckpointError(f"weights {self._place}: {error}") from None

    def _with_lora(self, tensors: Tensors, sources: Sources) -> Tensors:
        wanted = ("generator_lora", "model", "")
        lora = self._foreign("lora", "lora", sources.lora, wanted)
        path = existing(self.directory, sources.lora)
        try:
            return merge_lora(tensors, read_lora(lora), sources.lora_alpha, sources.lora_rank)
        except ValueError as error:
            raise CheckpointError(f"weights {path}: {error}") from None

    def _codec(self, part: str, kind: Kind, names: tuple[str, ...], own: str) -> Tensors:
        path = self._own(own)
        if path is not None:
            tensors = read_tensors(path)
            self._check(path, tensors)
            self._note(part, path, kind, "")
            return tensors
        return self._foreign(part, kind, names, ("", "state_dict", "model"))

    def _foreign(self, part: str, kind: Kind, names: tuple[str, ...], wanted: tuple[str, ...]) -> Tensors:
        path = existing(self.directory, names)
        if path is None:
            expected = " or ".join(names) or f"{part} in this model's config"
            raise CheckpointError(
                f"weights {self.directory}: {part}: expected {expected}, found none; streamgen adopt makes a "
                "config for files of other names"
            )
        found = read_foreign(path, wanted, kind)
        expect_kind(path, found.kind, kind)
        self._note(part, path, found.kind, found.section, tuple(found.notes()))
        return found.tensors

    @property
    def _place(self) -> str:
        """The file of the network."""
        return self.found.place("dit", str(self.directory))

    def _expect_model(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise CheckpointError where a DiT is another model as a whole; single tensors are compared
        later.
        """
        other, own = foreign_layers(tensors), self.config.dit
        weight = tensors.get("patch_embedding.weight")
        if other is not None:
            raise CheckpointError(f"weights {self._place}: {other}, which no text-to-video model is")
        if weight is None or weight.dim() != 5 or weight.shape[0] == own.dim:
            return
        found, expected = size_word(weight.shape[0]), size_word(own.dim)
        raise CheckpointError(
            f"weights {self._place}: patch_embedding.weight: a DiT of {found} (width {weight.shape[0]}), "
            f"this model's config is of {expected} (width {own.dim})"
        )

    def _check(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        try:
            check_dtypes(tensors)
        except ValueError as error:
            raise CheckpointError(f"weights {path}: {error}") from None

    def _note(self, part: str, path: Path, kind: Kind, section: str, notes: tuple[str, ...] = ()) -> None:
        sha256 = file_sha256(path) if self.digests else None
        size = path.stat().st_size
        self.found.files.append(SourceFile(part, path.name, kind, section, size, sha256, notes))


def assign(
    module: nn.Module,
    tensors: Tensors,
    where: str,
    device: torch.device,
    dtype: torch.dtype,
    tell: Callable[[float], None] = lambda share: None,
    quantize: Quantization | None = None,
) -> None:
    """Give a module that was built on the meta device its weights, one after the other, so that memory holds
    them once; `tensors` is emptied.

    Args:
        tell: called with the share in 0..1 that is placed, after each tensor.
        quantize: what a diffusion network's linear layers are to be in: the same numbers as
            `engine.quantize.quantized` gives, and nothing of them in full precision.

    Raises:
        CheckpointError: missing or surplus names, other shapes, or numbers that are not finite.
    """
    check_tensors(module.state_dict(), tensors, where)
    placed: Tensors = {}
    small: dict[str, tuple[Tensor, Tensor]] = {}
    total, done = max(1, sum(x.numel() for x in tensors.values())), 0
    for name in list(tensors):
        # a copy: what was read may be a map of the file
        x = torch.empty(tensors[name].shape, device=device, dtype=dtype).copy_(tensors.pop(name))
        done += x.numel()
        if quantize is not None and is_rounded(name):
            small[name] = rounded(x, quantize)
        else:
            placed[name] = x
        tell(done / total)
    module.load_state_dict(placed, strict=not small, assign=True)
    if small and quantize is not None:
        hold_rounded(module, small, quantize)
    module.eval().requires_grad_(False)


def random_tensors(module: nn.Module, seed: int, dtype: torch.dtype) -> Tensors:
    """Random weights for a module, of sizes that keep its signals finite; norm scales are 1."""
    draw = torch.Generator().manual_seed(seed)
    out: Tensors = {}
    for name, tensor in module.state_dict().items():
        fan = tensor[0].numel() if tensor.dim() > 1 else 1
        is_scale = name.endswith("gamma") or ("norm" in name and name.endswith("weight"))
        if is_scale:
            out[name] = torch.ones(tensor.shape, dtype=dtype)
        elif tensor.dim() > 1 and "modulation" not in name:
            value = torch.randn(tensor.shape, generator=draw, dtype=torch.float32)
            out[name] = value.mul_(fan**-0.5).to(dtype)
        else:
            out[name] = torch.randn(tensor.shape, generator=draw).mul_(0.02).to(dtype)
    return out


def trim_grow_layers(tensors: Tensors, dims: tuple[int, ...]) -> Tensors:
    """A TAEHV whose first scale was made to double frames, for use without: of each layer that grows frames
    the last rows, as the published loader does.
    """
    out = dict(tensors)
    for index, rows in ((7, dims[0]), (13, 2 * dims[1]), (19, 2 * dims[2])):
        name = f"decoder.{index}.conv.weight"
        if name in out and out[name].shape[0] > rows:
            out[name] = out[name][-rows:]
    return out


def existing(directory: Path | HubSource, names: tuple[str, ...]) -> Path | None:
    """The first of the files that is there: names inside `directory`, absolute paths, or names on the hub,
    which are downloaded.

    Raises:
        CheckpointError: the hub cannot be reached or refuses.
    """
    for name in names:
        if is_hub(name):
            return fetch_weights(parse_hub(name))
        if isinstance(directory, Path) or Path(name).is_absolute():
            path = directory / name if isinstance(directory, Path) else Path(name)
            if path.is_file():
                return path
    inside = tuple(name for name in names if not Path(name).is_absolute())
    found = directory.find(inside) if isinstance(directory, HubSource) else None
    return None if found is None else fetch_weights(found)
