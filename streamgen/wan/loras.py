"""LoRAs that a user gives beside a model: where they are, how strong, and merging them at load."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from models.live_lora import MAX_STRENGTH, LiveLoras, check_live, factor_count
from models.lora import Lora, merge_lora, read_lora
from models.state_dict import Tensors

from ..checkpoints.foreign import SUFFIXES, expect_kind, fetch_weights, names_weights, one_line, read_foreign
from ..checkpoints.header import read_header
from ..checkpoints.hub import fetch, is_hub, list_files, parse_hub
from ..errors import CheckpointError, InputError
from ..suggest import shorten

SECTIONS = ("generator_lora", "generator_ema", "generator", "model", "state_dict", "")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf(inity)?)", re.IGNORECASE)
# PEFT writes how it was trained beside the file, diffusers into its header
_BESIDE, _INSIDE = "adapter_config.json", "lora_adapter_metadata"
_USUAL = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class LoraFile:
    """A LoRA by its file or folder, or by its name on the hub, and its strength: 0 changes nothing, 1 is as
    trained.
    """

    place: str
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not abs(self.strength) <= MAX_STRENGTH:
            most = f"{MAX_STRENGTH:g}"
            raise InputError(
                f"--lora {self.place}: strength: expected a number in -{most}..{most}, found "
                f"{shorten(self.strength)}"
            )


def parse_loras(texts: Sequence[str]) -> tuple[LoraFile, ...]:
    """LoRAs from `FILE[:strength]`.

    Raises:
        InputError: a strength that is no number in -100..100, or the same file twice.
    """
    found = tuple(_parse(text) for text in texts)
    check_twice(found)
    return found


def check_twice(loras: Sequence[LoraFile]) -> None:
    """Raise InputError where a LoRA is given twice: one strength says what two would."""
    seen: set[str] = set()
    for lora in loras:
        place = lora.place if is_hub(lora.place) else str(Path(lora.place).resolve())
        if place in seen:
            raise InputError(f"--lora {lora.place}: given twice, expected once with one strength")
        seen.add(place)


def _parse(text: str) -> LoraFile:
    place, colon, tail = text.rpartition(":")
    if not colon or tail.startswith("//") or Path(text).is_file():
        return LoraFile(text)
    if _NUMBER.fullmatch(tail.strip()):
        return LoraFile(place, float(tail))
    if len(place) == 1 or "/" in tail or "\\" in tail:
        # a drive, or a name on the hub
        return LoraFile(text)
    raise InputError(f"--lora {shorten(text)}: strength: expected a number, found {shorten(tail)}")


def with_loras(tensors: Tensors, loras: Sequence[LoraFile]) -> tuple[Tensors, list[str]]:
    """A DiT with LoRAs merged into it, one after the other, and a line on each.

    Raises:
        CheckpointError: missing, no LoRA, or one for another model.
    """
    check_twice(loras)
    notes = []
    for lora in loras:
        path = _path(lora)
        change = load_lora(path)
        try:
            tensors = merge_lora(tensors, change, strength=lora.strength)
        except ValueError as error:
            raise CheckpointError(f"--lora {lora.place}: {one_line(error)}") from None
        ranks = ", ".join(map(str, change.ranks())) or "none"
        count = len(change.pairs) + len(change.diffs)
        notes.append(f"{path.name}: {count} changes (rank {ranks}) merged at strength {lora.strength:g}")
    return tensors, notes


def live_loras(tensors: Tensors, loras: Sequence[LoraFile]) -> LiveLoras | None:
    """LoRAs that stay beside a DiT, by the names of their files; None without any.

    Raises:
        CheckpointError: missing, no LoRA, one for another model, or one that can only be merged; InputError:
            two of one name.
    """
    names: list[str] = []
    changes: list[Lora] = []
    for lora in loras:
        path = _path(lora)
        name = live_name(lora)
        if name in names:
            raise InputError(f"--live-lora {lora.place}: two are called {name}, rename one")
        change = load_lora(path)
        try:
            check_live(tensors, change)
        except ValueError as error:
            raise CheckpointError(f"--live-lora {lora.place}: {one_line(error)}") from None
        names.append(name)
        changes.append(change)
    return LiveLoras(tuple(names), tuple(lora.strength for lora in loras), tuple(changes)) if loras else None


def live_factor_count(loras: Sequence[LoraFile]) -> int:
    """How many numbers LoRAs will hold beside a network.

    Raises:
        CheckpointError: missing, or no LoRA.
    """
    return factor_count([load_lora(_path(lora)) for lora in loras])


def _path(lora: LoraFile) -> Path:
    """The local file of a LoRA that is named by its file or by the folder it lies in, of one on the hub with
    what was written of its training beside it.

    Raises:
        CheckpointError: nothing there, or several that might be meant.
    """
    if not is_hub(lora.place):
        path = Path(lora.place)
        if not path.is_dir():
            return path
        return path / _one_file(lora.place, [file.name for file in path.iterdir() if file.is_file()])
    source = parse_hub(lora.place)
    if not names_weights(source):
        inside = f"{source.path}/" if source.path else ""
        names = [name for name in list_files(source.repo, source.revision) if name.startswith(inside)]
        below = [name.removeprefix(inside) for name in names]
        source = source.file(_one_file(lora.place, [name for name in below if "/" not in name]))
    told = replace(source, path=PurePosixPath(source.path).with_name(_BESIDE).as_posix())
    if told.path in list_files(source.repo, source.revision):
        fetch(told)
    return fetch_weights(source)


def _one_file(place: str, names: Sequence[str]) -> str:
    """The weights file of a folder's names: the one that PEFT or diffusers writes, or the only one."""
    found = sorted(n for n in names if n.endswith(SUFFIXES) and not n.endswith(".json"))
    usual = [name for name in found if name in _USUAL] or found
    if len(usual) == 1:
        return usual[0]
    what = f"{len(usual)} ({', '.join(map(shorten, usual[:3]))}, ...): name one of them" if usual else "none"
    raise CheckpointError(f"--lora {place}: expected one LoRA file ({_USUAL[0]} or another), found {what}")


def live_name(lora: LoraFile) -> str:
    """What a live LoRA is called in the setting `lora`: its file's name, less what the setting is made of."""
    place = re.sub(r"@[^/]*$", "", lora.place) if is_hub(lora.place) else lora.place
    return re.sub(r"[\s,:]+", "-", Path(place).stem)


def live_notes(live: LiveLoras | None) -> list[str]:
    """A line on each LoRA that stays beside the network."""
    if live is None:
        return []
    rows = zip(live.names, live.defaults, live.loras, strict=True)
    return [
        f"{name}: {len(lora.pairs)} changes live at strength {strength:g} (--set lora={name}:{strength:g})"
        for name, strength, lora in rows
    ]


def load_lora(path: Path) -> Lora:
    """A LoRA from its file, with the scale that was written beside it or into its header.

    Raises:
        CheckpointError: missing, unreadable, no LoRA, or scaled in a way that is not read.
    """
    found = read_foreign(path, SECTIONS, "lora")
    expect_kind(path, found.kind, "lora")
    try:
        lora = read_lora(found.tensors)
        _check_finite(lora)
        return _declared(lora, _training(path))
    except ValueError as error:
        raise CheckpointError(f"weights {path}: {one_line(error)}") from None


def _check_finite(lora: Lora) -> None:
    """Raise ValueError for a change that would leave a network without finite numbers; what alpha may be is
    said where it is used.
    """
    factors = {
        f"{layer}: {part}": x
        for layer, pair in lora.pairs.items()
        for part, x in vars(pair).items()
        if x is not None and part != "alpha"
    }
    for name, x in (factors | lora.diffs).items():
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"{name}: expected finite numbers, found NaN or infinity")


def _declared(lora: Lora, training: Mapping[str, Any]) -> Lora:
    """The LoRA with the alpha of its training where its tensors have none."""
    alpha = training.get("lora_alpha")
    if alpha is None:
        return lora
    if training.get("alpha_pattern") or not isinstance(alpha, int | float):
        raise ValueError(
            "alpha_pattern: expected one lora_alpha for all layers, or .alpha beside each of them"
        )
    rooted = bool(training.get("use_rslora"))
    pairs = {}
    for layer, pair in lora.pairs.items():
        # rank-stabilised LoRAs (arXiv 2312.03732) divide by the root of the rank
        own = alpha * math.sqrt(pair.down.shape[0]) if rooted else alpha
        pairs[layer] = pair if pair.alpha is not None else replace(pair, alpha=torch.tensor(float(own)))
    return replace(lora, pairs=pairs)


def _training(path: Path) -> Mapping[str, Any]:
    """What PEFT or diffusers wrote of a LoRA's training; nothing where they did not."""
    beside = path.with_name(_BESIDE)
    try:
        if beside.is_file():
            values = json.loads(beside.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            values = json.loads(read_header(path).metadata.get(_INSIDE, "{}"))
            prefixes = ("transformer.", "unet.")
            values = {key.removeprefix(next((p for p in prefixes if key.startswith(p)), "")): value
                      for key, value in values.items()}  # fmt: skip
        else:
            values = {}
    except (OSError, ValueError, AttributeError, RecursionError):
        raise CheckpointError(f"weights {path}: {_BESIDE} or its metadata: expected JSON") from None
    return values if isinstance(values, dict) else {}
