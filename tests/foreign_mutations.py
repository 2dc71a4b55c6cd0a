"""Damaged weights files, drawn from a seed: names, tensors, nesting, objects, bytes and indices."""

import collections
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.foreign_layouts import INFIXES, NAMINGS, PREFIXES, QUANTISATIONS, SECTIONS, Layout, State, plain

WORDS = (
    "", ".", "model", "generator", "blocks", "blocks.x", "blocks.-1", "blocks.99999999999999999999", "weight",
    "lora_A", "lora_B.default", "alpha", "diff", "base_layer", "scale_weight", "int8_weight", "_orig_mod",
    "memory_q", "k_img", "dit", "head", "encoder", "decoder.0", "conv1", "\n", "\0", "é", "x" * 500, "net",
    "lora_unet_blocks_0_ffn_0", "critic", "state_dict", "modules_to_save.default", "dora_scale", "hada_w1",
)  # fmt: skip


class Unwanted:
    """An object that no weights file should hold."""


def strange_tensors(draw: random.Random) -> Tensor:
    """A tensor that a network's layer is not."""
    made: tuple[Callable[[], Tensor], ...] = (
        lambda: torch.zeros(()),
        lambda: torch.zeros(0),
        lambda: torch.zeros(3, 0, 2),
        lambda: torch.zeros(1).expand(1000, 1000),
        lambda: torch.zeros(24, 24, dtype=torch.complex64),
        lambda: torch.zeros(24, 24, dtype=torch.int64),
        lambda: torch.zeros(24, 24, dtype=torch.bool),
        lambda: torch.full((24, 24), float("nan")),
        lambda: torch.zeros(24, 24, dtype=torch.uint8),
        lambda: torch.zeros(24, 24, dtype=torch.float8_e4m3fn),
        lambda: torch.eye(4).to_sparse(),
        lambda: torch.nn.Parameter(torch.zeros(2, 2)),
        lambda: torch.zeros(*(1,) * draw.randint(1, 6)),
        lambda: torch.zeros(draw.randint(1, 40), draw.randint(1, 40)),
    )
    return draw.choice(made)()


def strange_values(draw: random.Random) -> Any:
    """What lies in place of tensors."""
    nested: Any = {"a": torch.zeros(1)}
    for _ in range(draw.randint(1, 60)):
        nested = {draw.choice(WORDS): nested}
    return draw.choice(
        [
            None, 3, -1.5, "text", b"bytes", [1, 2], (1, {"a": 2}), {}, {1: 2}, [torch.zeros(2)], nested,
            collections.OrderedDict(a=torch.zeros(1)), Unwanted(), np.zeros(3), {3: torch.zeros(2)}, {1, 2},
            torch.float32, torch.Size([1]), {(1, 2): torch.zeros(1)}, torch.device("cpu"),
        ]
    )  # fmt: skip


def lora(draw: random.Random) -> State:
    """A LoRA of the network in one of the namings."""
    end = draw.choice(["lora_A.weight lora_B.weight", "lora_down.weight lora_up.weight", "lora_A lora_B"])
    down, up = end.split()
    prefix = draw.choice(["", "diffusion_model.", "base_model.model.", "transformer.", "lora_unet_"])
    out: State = {}
    for name, x in plain().items():
        if name.startswith("blocks.") and x.dim() == 2:
            stem = name.removesuffix(".weight")
            stem = stem.replace(".", "_") if prefix == "lora_unet_" else stem
            rank = draw.randint(1, 3)
            out[f"{prefix}{stem}.{down}"] = torch.zeros(rank, x.shape[1])
            out[f"{prefix}{stem}.{up}"] = torch.zeros(x.shape[0], rank)
            out[f"{prefix}{stem}.alpha"] = torch.tensor(float(rank))
    return out


def payload(draw: random.Random) -> Any:
    """A good file's content."""
    if draw.random() < 0.25:
        found = lora(draw)
        return draw.choice([found, {"generator_lora": found}, {"generator_ema": found}])
    return Layout(
        draw.choice([*QUANTISATIONS]), draw.random() < 0.3, draw.choice([*NAMINGS]), draw.choice([*INFIXES]),
        draw.choice(PREFIXES), draw.choice([*SECTIONS]),
    ).payload()  # fmt: skip


def renamed(draw: random.Random, name: str) -> str:
    """A name with one thing wrong."""
    parts = name.split(".")
    place = draw.randrange(len(parts))
    how = draw.randrange(5)
    if how == 0:
        parts[place] = draw.choice(WORDS)
    elif how == 1:
        parts.insert(place, draw.choice(WORDS))
    elif how == 2:
        del parts[place]
    elif how == 3:
        parts[place] += draw.choice(["x", "0", " ", "_"])
    else:
        draw.shuffle(parts)
    return ".".join(parts)


def mutate(draw: random.Random, content: Any) -> Any:
    """The content with one thing wrong somewhere."""
    if not isinstance(content, dict) or not content:
        return strange_values(draw)
    keys = [*content]
    inner = [key for key in keys if isinstance(content[key], dict)]
    if inner and draw.random() < 0.7:
        key = draw.choice(inner)
        return content | {key: mutate(draw, content[key])}
    out, key = dict(content), draw.choice(keys)
    how = draw.randrange(8)
    if how == 0:
        out[renamed(draw, str(key))] = out.pop(key)
    elif how == 1:
        out[key] = strange_tensors(draw)
    elif how == 2:
        out[key] = strange_values(draw)
    elif how == 3:
        del out[key]
    elif how == 4:
        some = draw.sample(keys, max(1, len(keys) // 2))
        out = {renamed(draw, str(k)) if k in some else k: x for k, x in out.items()}
    elif how == 5:
        other = payload(draw)
        out |= other if isinstance(other, dict) else {}
    elif how == 6:
        out = {draw.choice(WORDS): out, draw.choice(WORDS): strange_values(draw)}
    else:
        out[draw.choice(WORDS)] = strange_tensors(draw)
    return out


def damage(draw: random.Random, data: bytes) -> bytes:
    """Bytes cut, changed, put in or put behind."""
    how, place = draw.randrange(5), draw.randrange(max(1, len(data)))
    if how == 0:
        return data[:place]
    if how == 1:
        near = draw.randrange(min(len(data), 400)) if data else 0
        changed = bytearray(data)
        for i in (near, place):
            changed[i : i + 1] = bytes([draw.randrange(256)])
        return bytes(changed)
    if how == 2:
        return data + draw.randbytes(draw.randint(1, 40))
    if how == 3:
        return draw.choice([10**9, 2**63, 0, 5, len(data)]).to_bytes(8, "little") + data[8:]
    return data[:place] + draw.randbytes(8) + data[place:]


def flat(content: Any) -> State:
    """What of a content safetensors can hold."""
    out: State = {}
    for name, x in content.items() if isinstance(content, dict) else ():
        for inner, y in x.items() if isinstance(x, dict) else [(None, x)]:
            if isinstance(y, Tensor) and y.layout == torch.strided and y.dtype != torch.complex64:
                out[str(name) if inner is None else f"{name}.{inner}"] = y.detach().clone().contiguous()
    return out


def write_mutation(seed: int, folder: Path) -> Path:
    """The file of a seed: a good one with up to three things wrong in its content, its bytes or its index."""
    draw = random.Random(seed)
    content = payload(draw)
    for _ in range(draw.randint(0, 3)):
        content = mutate(draw, content)
    suffix = draw.choice([".pt", ".pt", ".safetensors", ".safetensors", ".index.json", ".pth", ".bin"])
    path = folder / f"m{seed}{suffix}"
    if suffix == ".index.json":
        save_file(flat(content), folder / "shard.safetensors")
        names: Any = dict.fromkeys(flat(content), "shard.safetensors")
        for name in list(names)[: draw.randint(0, 2)]:
            places = ["no.safetensors", "../x.pt", path.name, 3, None, "", "a\0b.pt", "x" * 300 + ".pt", {}]
            names[name] = draw.choice(places)
        index = draw.choice([{"weight_map": names}, names, [names], {"weight_map": [*names]}])
        path.write_text(json.dumps(index), encoding="utf-8")
    elif suffix == ".safetensors":
        save_file(flat(content), path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=draw.random() < 0.8)
    if draw.random() < 0.4:
        path.write_bytes(damage(draw, path.read_bytes()))
    return path
