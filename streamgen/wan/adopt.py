"""Weights that somebody has: what they are, and a model config that streams them. Names and shapes alone are
read, no number.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from models.lora import read_lora
from models.state_dict import Kind
from models.unwrap import GENERATOR_SECTIONS, Unwrapped, unwrap

from ..checkpoints.directory import with_settings
from ..checkpoints.foreign import KIND_NAMES, SUFFIXES, names_weights, one_line, read_names
from ..checkpoints.hub import is_hub, list_files, parse_hub, pinned
from ..errors import CheckpointError, InputError, StreamgenError
from ..structured import StructureError, build, read_yaml, to_plain
from .beside import look_beside
from .config import CONFIG, CONFIGS, WanConfig, config_file, wan_model_names
from .inspect import compare_names
from .releases import Release, find_release
from .sizes import HEAD_DIM, dit_config_of, expected_module, foreign_layers, size_word, vae_config_of

DEFAULT = "wan-1.3b-self-forcing"
# what every model of the family streams with, downloaded when it is first needed
PUBLISHED: Mapping[str, str] = {
    "vae": "hf://Wan-AI/Wan2.1-T2V-1.3B/Wan2.1_VAE.pth",
    "text_encoder": "hf://Wan-AI/Wan2.1-T2V-1.3B",
}
CARD = "adopted.json"
_PARTS: Mapping[Kind, str] = {"wan_dit": "dit", "wan_vae": "vae", "taehv": "tiny_decoder", "lora": "lora"}
# options of what streams with a network alone
_ALONE: Mapping[Kind, str] = {
    "wan_vae": "--vae",
    "taehv": "--tiny-decoder",
    "umt5": "--text-encoder",
    "wan_umt5": "--text-encoder",
}
_MOST_FILES, _DEEPEST = 64, 4
_INDEX = ".index.json"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class AdoptOptions:
    """What `adopt` may be told.

    Attributes:
        like: the config whose chunks, window, sink, steps and positions are taken; None: the release's own.
        vae, tiny_decoder: files or names on the hub for what the source does not hold.
        text_encoder: a folder, a file, or a name on the hub.
        overrides: changes of the written config, dotted `key=value`.
    """

    like: str | None = None
    vae: str | None = None
    tiny_decoder: str | None = None
    text_encoder: str | None = None
    overrides: tuple[str, ...] = ()


@dataclass
class Adopted:
    """One file of the source.

    Attributes:
        place: absolute path, or name on the hub.
        report: what it is, plain values.
        read: how it lies; None where it cannot be used.
        release: the release that it belongs to by its name.
    """

    place: str
    report: dict[str, Any]
    read: Unwrapped | None = None
    release: Release | None = None

    @property
    def part(self) -> str | None:
        """The part of a model that it is: `dit`, `vae`, `tiny_decoder`, `lora`."""
        return None if self.read is None else _PARTS.get(self.read.kind)


@dataclass
class Adoption:
    """What was found, and what a config is made of."""

    files: list[Adopted]
    chosen: dict[str, Adopted] = field(default_factory=dict)
    text_encoder: str | None = None

    def published(self) -> dict[str, str]:
        """By part what the config names on the hub, since nothing of it was found here."""
        decoded = {"vae", "tiny_decoder"} & set(self.chosen)
        absent = {"vae": not decoded, "text_encoder": self.text_encoder is None}
        return {part: place for part, place in PUBLISHED.items() if absent[part]}

    def report(self) -> dict[str, Any]:
        """Plain values: every file, and which are taken."""
        taken = {part: file.place for part, file in self.chosen.items()}
        if self.text_encoder is not None:
            taken["text_encoder"] = self.text_encoder
        return {"files": {file.place: file.report for file in self.files}, "taken": taken}


def adopt(source: str, output: Path | None = None, options: AdoptOptions | None = None) -> dict[str, Any]:
    """Say what weights are and, with `output`, write a model config that every command takes as `--model`.

    Args:
        source: a file, a folder, or `hf://owner/repo[/file][@revision]`.
        output: a folder that is empty or not there yet.

    Returns:
        a report of plain values; `problems` has a line for each thing that keeps it from streaming, `next` is
        what to type then.

    Raises:
        StreamgenError: nothing there that could be read, or no network to write a config for.
    """
    options = options or AdoptOptions()
    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"-o {output}: expected a folder that is empty or not there yet")
    adoption = Adoption([describe(place) for place in places(source)])
    _choose(adoption, options)
    report = adoption.report()
    problems = _problems(adoption)
    config: WanConfig | None = None
    if "dit" in adoption.chosen:
        name, how = _base(adoption.chosen["dit"], options)
        report |= {"settings_of": f"{name} ({how})", "published": adoption.published()}
        try:
            config = config_of(adoption, options)
            report["settings"] = _settings(config)
        except CheckpointError as error:
            if output is not None:
                raise
            problems.append(str(error))
        networks = sum(file.part == "dit" for file in adoption.files)
        if networks > 1:
            report["note"] = f"one of {networks} networks is taken: name a file to take another"
    report["problems"] = problems
    report["usable"] = any(_is_usable(file) for file in adoption.files)
    report["next"] = _next(adoption, source, output)
    if output is None:
        return report
    if config is None:
        first = next((f.report["problem"] for f in adoption.files if "problem" in f.report), None)
        raise CheckpointError(first or f"{source}: {problems[-1]}")
    output.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(
        OmegaConf.create(to_plain(config) | {"sampling": config.sampling.to_json()}), output / CONFIG
    )
    (output / CARD).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report | {"written": str(output)}


def _is_usable(file: Adopted) -> bool:
    known = file.part is not None or (file.read is not None and file.read.kind in _ALONE)
    return known and "problem" not in file.report


def _settings(config: WanConfig) -> str:
    """How a config streams, in words."""
    plan, sampling = config.plan, config.sampling
    first = f", {sampling.first_steps} for the first chunk" if sampling.first_steps else ""
    return (
        f"chunk {plan.chunk_frames}, sink {plan.sink_frames}, window {plan.window_frames} latent frames; "
        f"{sampling.steps} steps{first}; positions {sampling.rope}; {config.width}x{config.height}"
    )


def _next(adoption: Adoption, source: str, output: Path | None) -> str | None:
    """The command that comes after this one; None where nothing can be done with what was found."""
    if "dit" not in adoption.chosen:
        lora = next((f.place for f in adoption.files if f.part == "lora" and "problem" not in f.report), None)
        known = f"streamgen render PROMPT --model MODEL --lora {lora} -o clip.mp4"
        return known if lora is not None else None
    if output is not None:
        return f"streamgen render PROMPT --model {output} -o clip.mp4"
    return f"streamgen adopt {source} -o my-model"


def places(source: str) -> list[str]:
    """The weights files of a source, those of a folder without the shards that an index names.

    Raises:
        CheckpointError: nothing there, or the hub cannot be reached or refuses.
    """
    if is_hub(source):
        remote = pinned(parse_hub(source))
        if names_weights(remote):
            return [str(remote)]
        inside = f"{remote.path}/" if remote.path else ""
        names = [name for name in list_files(remote.repo, remote.revision) if name.startswith(inside)]
        found = [str(replace(remote, path=name)) for name in _weights_alone(names)]
    else:
        path = Path(source)
        if source and path.is_file():
            return [str(path.resolve())]
        if not source or not path.is_dir():
            raise CheckpointError(f"{source or 'no name'}: no such file or folder")
        names = [file.relative_to(path).as_posix() for file in sorted(path.rglob("*")) if file.is_file()]
        found = [str((path / name).resolve()) for name in _weights_alone(names)]
    if not found:
        raise CheckpointError(f"{source}: expected weights files ({', '.join(SUFFIXES)}), found none")
    return found


def _weights_alone(names: Sequence[str]) -> list[str]:
    """Weights files of a listing: an index in place of its shards."""
    weights = [n for n in names if n.endswith(SUFFIXES) and (n.endswith(_INDEX) or not n.endswith(".json"))]
    weights = [n for n in weights if n.count("/") < _DEEPEST]
    indices = [name.removesuffix(_INDEX) for name in weights if name.endswith(_INDEX)]
    stems = [index.removesuffix(".safetensors").removesuffix(".bin") + "-0" for index in indices]
    return [name for name in weights if not name.startswith(tuple(stems))][:_MOST_FILES] if stems else weights


def describe(place: str, kind: Kind | None = None) -> Adopted:
    """What a file is, or its part of a `kind`; one that cannot be used has a `problem`."""
    release = find_release(place.removeprefix("hf://"))
    try:
        read = unwrap(read_names(place), _sections(release), kind)
    except StreamgenError as error:
        return Adopted(place, {"problem": str(error)}, None, release)
    except ValueError as error:
        return Adopted(place, {"problem": f"weights {place}: {one_line(error)}"}, None, release)
    report: dict[str, Any] = {
        "kind": KIND_NAMES[read.naming],
        "tensors": len(read.tensors),
        "parameters": sum(x.numel() for x in read.tensors.values()),
        "dtypes": sorted({str(x.dtype).removeprefix("torch.") for x in read.tensors.values()}),
        "section": read.section or "none",
        "prefix": read.prefix or "none",
        "quantisation": read.quantisation or "none",
    }
    if read.infixes:
        report["wrappers"] = [infix.rstrip(".") for infix in read.infixes]
    if read.beside:
        report["beside"] = dict(read.beside)
    if read.notes():
        report["notes"] = read.notes()
    if release is not None:
        report["release"] = f"{release.name}, by its name; licence {release.licence}"
        if release.note:
            report["release_note"] = f"it {release.note}"
    try:
        report |= _sizes(read)
    except (ValueError, KeyError, IndexError, RuntimeError) as error:
        report["problem"] = f"incomplete ({one_line(error)})"
    if "problem" in report:
        report["problem"] = f"weights {place}: {report['problem']}"
    return Adopted(place, report, read, release)


def _sections(release: Release | None) -> tuple[str, ...]:
    """The sections that a release's config reads, in its order."""
    if release is None or release.config is None:
        return GENERATOR_SECTIONS
    return tuple(read_yaml(CONFIGS / f"{release.config}.yaml")["sources"]["section"])


def _sizes(read: Unwrapped) -> dict[str, Any]:
    """What the shapes say."""
    if read.kind == "lora":
        lora = read_lora(read.tensors)
        width = next((p.down.shape[1] for n, p in lora.pairs.items() if n.endswith("self_attn.q")), None)
        size = {"for": f"a DiT of {size_word(width)} (width {width})"} if width is not None else {}
        return {"rank": lora.ranks(), "layers": len(lora.pairs), "whole": len(lora.diffs)} | size
    module = expected_module(read.kind, read.tensors)
    if module is None:
        return {}
    compared = compare_names(read.tensors, module.state_dict())
    out: dict[str, Any] = {name: compared[name] for name in ("missing", "surplus") if compared[name]}
    if read.kind == "wan_dit":
        dit = dit_config_of(read.tensors)
        heads = f"{dit.heads} heads" if dit.dim % HEAD_DIM == 0 else "heads unknown"
        out["size"] = f"{size_word(dit.dim)}: width {dit.dim}, {dit.layers} layers, {heads}"
        foreign = foreign_layers(read.tensors)
        if foreign is not None:
            out["problem"] = f"{foreign}, which does not stream here: take a text-to-video model of Wan2.1"
    if compared["missing"]:
        some = ", ".join(compared["missing"][:3])
        out["problem"] = f"{len(compared['missing'])} tensors are missing ({some}, ...)"
    return out


def _choose(adoption: Adoption, options: AdoptOptions) -> None:
    """Take one file for each part: what the options name, known releases first, what lies beside a file."""
    for part in ("dit", "vae", "tiny_decoder"):
        given = {"vae": options.vae, "tiny_decoder": options.tiny_decoder}.get(part)
        if given is not None:
            adoption.chosen[part] = _given(given, part)
            continue
        fit = [f for f in adoption.files if f.part == part and "problem" not in f.report]
        known = [f for f in fit if f.release is not None and f.release.config is not None]
        if fit:
            adoption.chosen[part] = (known or fit)[0]
    dit = adoption.chosen.get("dit")
    if dit is None:
        return
    base = config_file(_base(dit, options)[0])
    named = {} if base is None else read_yaml(base)["sources"]
    for part in ("vae", "tiny_decoder"):
        if part not in adoption.chosen:
            inside = _vae_inside(dit) if part == "vae" else None
            found = inside or _beside(dit, part, named)
            adoption.chosen |= {} if found is None else {part: found}
    if dit.release is not None and dit.release.needs_lora:
        loras = [f for f in adoption.files if f.part == "lora" and "problem" not in f.report]
        found = loras[0] if loras else _beside(dit, "lora", named)
        adoption.chosen |= {} if found is None else {"lora": found}
    adoption.text_encoder = _text_encoder(adoption, dit, options.text_encoder, named)


def _given(place: str, part: str) -> Adopted:
    """The file that an option names for a part.

    Raises:
        InputError: it is of another kind, or cannot be read.
    """
    file = describe(str(pinned(parse_hub(place))) if is_hub(place) else str(Path(place).resolve()))
    if file.part == part and "problem" not in file.report:
        return file
    expected = {"vae": "a Wan VAE", "tiny_decoder": "TAEHV"}[part]
    found = file.report.get("problem") or f"found {file.report['kind']}"
    raise InputError(f"--{part.replace('_', '-')} {place}: expected {expected}: {found}")


def _beside(dit: Adopted, part: str, named: Mapping[str, Any]) -> Adopted | None:
    """A part that lies beside the file of a network, or in a folder above it; `named` are the sources of the
    config that streams it.
    """
    path = None if is_hub(dit.place) else look_beside(Path(dit.place), part, named.get(part, ()))
    file = None if path is None else describe(str(path))
    return file if file is not None and file.part == part and "problem" not in file.report else None


def _text_encoder(
    adoption: Adoption, dit: Adopted, given: str | None, named: Mapping[str, Any]
) -> str | None:
    """Where the text encoder is: a folder, a file, or a name on the hub; None where only its published name
    is known.

    Raises:
        InputError: what was given is none of these.
    """
    if given is not None:
        if is_hub(given):
            return str(pinned(parse_hub(given)))
        if Path(given).exists():
            return str(Path(given).resolve())
        if not _REPOSITORY.fullmatch(given):
            raise InputError(f"--text-encoder {given}: no such file or folder, nor owner/repo on the hub")
        return given
    found = next((place for f in adoption.files if (place := _encoder_place(f)) is not None), None)
    if found is not None:
        return found
    if dit.read is not None and any("text_encoder" in name for name in dit.read.beside):
        inside = describe(dit.place, "umt5")
        if inside.read is not None and inside.read.kind == "umt5":
            return dit.place
    places = [file.place for file in (dit, adoption.chosen.get("vae")) if file is not None]
    own = [Path(place) for place in places if not is_hub(place)]
    near = (look_beside(path, "text_encoder", named.get("text_encoder", ())) for path in own)
    return next((str(path) for path in near if path is not None), None)


def _encoder_place(file: Adopted) -> str | None:
    """What the text encoder is loaded from where a file is one: the folder of Wan's own, and of one of
    transformers with its config beside it, else the file itself.
    """
    if file.read is None or file.read.kind not in ("umt5", "wan_umt5") or "problem" in file.report:
        return None
    if is_hub(file.place):
        remote = parse_hub(file.place)
        return str(remote.folder()) if remote.path.endswith(".json") else file.place
    path = Path(file.place)
    if path.name.startswith("models_t5") or path.with_name("config.json").is_file():
        return str(path.parent)
    return None if path.suffix == ".json" else str(path)


def _vae_inside(dit: Adopted | None) -> Adopted | None:
    """The VAE of a whole checkpoint, in the file of the network."""
    if dit is None or dit.read is None or not any("vae" in name for name in dit.read.beside):
        return None
    file = describe(dit.place, "wan_vae")
    return file if file.part == "vae" and "problem" not in file.report else None


def _problems(adoption: Adoption) -> list[str]:
    out = [str(file.report["problem"]) for file in adoption.files if "problem" in file.report]
    dit = adoption.chosen.get("dit")
    if dit is None:
        if any(file.part == "lora" and "problem" not in file.report for file in adoption.files):
            return [*out, "a LoRA alone: it is given as --lora FILE[:strength] beside a model"]
        for kind, option in _ALONE.items():
            if any(file.read is not None and file.read.kind == kind for file in adoption.files):
                return [*out, f"{KIND_NAMES[kind]} alone: it is given as {option} FILE beside a network"]
        own = [f.place for f in adoption.files if f.read is not None and f.read.kind == "streamgen"]
        if own:
            return [*out, f"a checkpoint of streamgen itself: --model {Path(own[0]).parent} takes its folder"]
        return out or ["no network among the files: nothing to stream"]
    if dit.release is not None and dit.release.config is None:
        out.append(f"{dit.release.name} {dit.release.note}")
    if dit.release is not None and dit.release.needs_lora and "lora" not in adoption.chosen:
        out.append(f"{dit.release.name} {dit.release.note}, which is not there")
    return out


def _base(dit: Adopted, options: AdoptOptions) -> tuple[str, str]:
    """The config whose settings are taken, and why that one."""
    if options.like is not None:
        return options.like, "as asked for"
    if dit.release is not None and dit.release.config is not None:
        return dit.release.config, f"known as {dit.release.name} by its name"
    return (
        DEFAULT,
        "assumed: no tensor tells chunk, window, sink and steps; --like or --model-set change them",
    )


def config_of(adoption: Adoption, options: AdoptOptions) -> WanConfig:
    """The config that streams what was found: sizes of the tensors, settings of the release or of `like`.

    Raises:
        CheckpointError: sizes that do not fit each other, or an override that does not fit.
    """
    dit = adoption.chosen["dit"]
    assert dit.read is not None
    name, _ = _base(dit, options)
    base = config_file(name)
    if base is None:
        raise InputError(f"--like {name}: expected one of {', '.join(wan_model_names())}")
    content = read_yaml(base)
    sizes = dit_config_of(dit.read.tensors)
    tracks = content["dit"]["motion_channels"]
    if sizes.motion_channels > tracks:
        raise CheckpointError(
            f"weights {dit.place}: patch_embedding.weight: reads {sizes.motion_channels} channels besides "
            f"its latents, {name} has {tracks}: a control model, or one for tracks (--like wan-1.3b-motion)"
        )
    content["dit"] = content["dit"] | asdict(sizes) | {"motion_channels": tracks}
    # a published width has heads of 128; another one is what the config says
    if sizes.dim % HEAD_DIM:
        content["dit"]["heads"] = int(read_yaml(base)["dit"]["heads"])
    content["text"]["dim"] = sizes.text_dim
    vae = adoption.chosen.get("vae")
    if vae is not None and vae.read is not None:
        content["vae"] |= _plain_vae(vae.read)
    if "vae" not in adoption.chosen and "tiny_decoder" in adoption.chosen:
        content["decoder"] = "tiny"
    content["sources"] = _sources(content["sources"], adoption)
    own = () if dit.release is None or options.like is not None else dit.release.overrides
    return _checked(content, (*own, *options.overrides))


def _checked(content: Mapping[str, Any], overrides: tuple[str, ...]) -> WanConfig:
    """The config of a content with its overrides, checked as a config file is."""
    try:
        merged = OmegaConf.merge(OmegaConf.create(dict(content)), OmegaConf.from_dotlist(list(overrides)))
        values = {str(key): value for key, value in to_plain(OmegaConf.to_container(merged)).items()}
        return build(WanConfig, with_settings(values))
    except (StructureError, InputError, OmegaConfBaseException, YAMLError, ValueError) as error:
        raise CheckpointError(f"adopted config: {one_line(error)}") from None


def _plain_vae(read: Unwrapped) -> dict[str, Any]:
    values = to_plain(vae_config_of(read.tensors))
    return {
        name: values[name] for name in ("dim", "latent_channels", "res_blocks", "latent_mean", "latent_std")
    }


def _sources(names: Mapping[str, Any], adoption: Adoption) -> dict[str, Any]:
    """Where the config finds its files; a LoRA has the rank that it has."""
    out = dict(names)
    for part in ("dit", "vae", "tiny_decoder"):
        file = adoption.chosen.get(part)
        out[part] = [file.place] if file is not None else []
    lora = adoption.chosen.get("lora")
    out["lora"] = [lora.place] if lora is not None else []
    out["lora_rank"] = None
    if adoption.text_encoder is not None:
        out["text_encoder"] = [adoption.text_encoder]
    return out | {part: [place] for part, place in adoption.published().items()}
