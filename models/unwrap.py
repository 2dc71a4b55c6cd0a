"""How weights lie in files of others, as rules that compose: nested sections, wrapper infixes, prefixes, what
lies beside a network, adapters that were saved unmerged, quantisation, naming.

Each rule knows nothing of the others, so that a file which combines them in a way nobody listed is read, too.
Seen in files of: Self-Forcing, Causal-Forcing, LongLive and their derivatives (sections, FSDP infixes, heads
of the critic), rCM (`net.`, a linear patch embedding), ComfyUI (`model.diffusion_model.` beside `vae.` and
`text_encoders.`), PEFT (`base_model.model.`, `base_layer`), diffusers. All of it works on tensors of the meta
device, too. Errors are ValueErrors that name the key, what was expected and what was found.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .dequantize import dequantized
from .lora import merged_bundle
from .state_dict import (
    INFIXES,
    Kind,
    Tensors,
    check_dtypes,
    identify,
    strip_infixes,
    to_wan,
    with_convolved_patches,
)

GENERATOR_SECTIONS = ("generator_ema", "generator", "model", "state_dict", "")
# in this order where the caller's own sections say nothing
_PREFERRED = (
    *("generator_ema", "net_ema", "model_ema", "ema", "generator", "net", "student", "generator_lora"),
    *("model", "state_dict", ""),
)
# what may lie between a section and the names of a network, without a meaning of its own
_PLAIN = (
    *("model", "module", "diffusion_model", "transformer", "base_model", "unet", "state_dict"),
    *("pipe", "dit"),
)
_PARTS = ("vae", "first_stage_model", "text_encoder", "text_encoders", "cond_stage_model", "umt5xxl")
# networks of a training that are not what streams
_COMPANIONS = (
    *("critic", "critic_lora", "fake_score", "real_score", "net_fake_score", "net_teacher", "teacher"),
    *("discriminator", "optimizer", "generator_optimizer", "critic_optimizer"),
)
_TOKENS = frozenset((*_PREFERRED, *_PLAIN, *_PARTS, *_COMPANIONS)) - {""}
# where the names of a network begin, whatever lies before them
_ROOT = re.compile(
    r"(?:^|(?<=\.))(?:"
    r"blocks\.\d+\.|patch_embedding\.|(?:text|time)_embedding\.\d|time_projection\.\d|"
    r"head\.(?:head|modulation|diff_m)|condition_embedder\.|scale_shift_table$|proj_out\.|"
    r"img_emb\.|vace_blocks\.|vace_patch_embedding\.|"
    r"(?:en|de)coder\.|conv[12]\.|(?:post_)?quant_conv\.|"
    r"token_embedding\.|shared\.weight$|norm\.weight$|"
    r"lora_(?:unet|transformer)_|lycoris_)"
)
_BESIDE: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("heads of a critic", re.compile(r"(?:^|\.)_?(?:cls_pred_branch|register_tokens|gan_ca_blocks)\b")),
    ("position tables", re.compile(r"(?:^|\.)(?:rope\.)?(?:freqs|freqs_cis|inv_freq)$")),
    ("counters", re.compile(r"(?:^|\.)(?:(?:global_)?(?:step|epoch|iteration|num_updates)|accum_\w+)$")),
    ("a vocabulary", re.compile(r"(?:^|\.)spiece_model$")),
)
_MEMORY = re.compile(r"(?:^|\.)(memory_\w+)")
_DEEPEST, _LONGEST = 4, 300


@dataclass(frozen=True)
class Unwrapped:
    """Weights under our names, and how they lay.

    Attributes:
        kind: what they are; a diffusers file is a Wan one by now.
        naming: the kind before renaming.
        section: of a trainer's file, `generator_ema` for instance; "" for none.
        prefix: what lay before every name, infixes taken out: `model.diffusion_model.`.
        infixes: wrappers that were taken out of names.
        quantisation: a word for it, or None.
        merged: layers whose unmerged adapter was merged into them.
        dropped: what was left out of the group that was read, and how many tensors of it.
        beside: other groups of the file and how many tensors they have.
    """

    kind: Kind
    naming: Kind
    tensors: Tensors
    section: str = ""
    prefix: str = ""
    infixes: tuple[str, ...] = ()
    quantisation: str | None = None
    merged: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    beside: Mapping[str, int] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """What a user should know of how the file was read, one line for each."""
        out = [f"left out: {count} tensors, {what}" for what, count in self.dropped.items()]
        if self.merged:
            out.append(f"the adapters of {self.merged} layers were merged, at strength 1")
        if self.quantisation is not None:
            out.append(f"dequantised from {self.quantisation}")
        return out


@dataclass
class _Group:
    """Tensors that share what lies before their names."""

    outer: str
    path: str
    tensors: Tensors = field(default_factory=dict)
    kind: Kind | None = None

    @property
    def tokens(self) -> list[str]:
        return [token for token in f"{self.outer}.{self.path}".split(".") if token]

    @property
    def section(self) -> str:
        """The word by which a config calls it."""
        named = [token for token in self.tokens if token not in _PLAIN]
        return named[0] if named else self.outer.split(".")[0]


def unwrap(payload: Any, wanted: Iterable[str] = GENERATOR_SECTIONS, kind: Kind | None = None) -> Unwrapped:
    """Weights under our names out of whatever wraps them.

    Args:
        payload: what a file holds: named tensors, nested or not, with anything beside them.
        wanted: sections in order of preference; others are taken where none of them is there, but never
            those of a critic or teacher.
        kind: what is looked for (in our naming) where a file holds several networks; None takes the first.

    Raises:
        ValueError: no tensors, no known kind, an unknown prefix, or weights that cannot be used.
    """
    wanted = tuple(wanted)
    found = sections(payload)
    own = next((tensors for tensors in found.values() if "dit.patch_embedding.weight" in tensors), None)
    if own is not None:
        return Unwrapped("streamgen", "streamgen", own)
    groups, dropped, infixes = _groups(found)
    known = [group for group in groups if all(token in _TOKENS for token in group.tokens)]
    chosen = _choose(known, groups, wanted, kind)
    _refuse_memory(chosen)
    tensors, quantisation = dequantized(chosen.tensors)
    tensors, merged = merged_bundle(tensors)
    naming = identify(tensors)
    check_dtypes(tensors)
    beside = {f"{g.outer}.{g.path}".strip(".") or "top": len(g.tensors) for g in groups if g is not chosen}
    return Unwrapped(
        our_kind(naming),
        naming,
        with_convolved_patches(to_wan(tensors, naming)),
        chosen.section,
        chosen.path,
        tuple(infixes),
        quantisation,
        merged,
        dropped,
        beside,
    )


def our_kind(naming: Kind) -> Kind:
    """The kind of weights once they have our names."""
    ours: dict[Kind, Kind] = {"diffusers_dit": "wan_dit", "diffusers_vae": "wan_vae"}
    return ours.get(naming, naming)


def sections(payload: Any) -> dict[str, Tensors]:
    """The dictionaries of tensors in what a checkpoint file holds, by name, those in others as `outer.inner`;
    "" for tensors at the top.

    Raises:
        ValueError: no tensors anywhere, or names that no network has.
    """
    if not isinstance(payload, Mapping):
        raise ValueError(f"expected named tensors, found {type(payload).__name__}")
    found: dict[str, Tensors] = {}
    _collect(payload, "", found, _DEEPEST)
    if not found:
        some = ", ".join(str(name)[:40] for name in list(payload)[:5])
        raise ValueError(f"expected named tensors, found {some or 'nothing'}")
    return found


def _collect(values: Mapping[Any, Any], name: str, found: dict[str, Tensors], depth: int) -> None:
    tensors = {str(key): value for key, value in values.items() if isinstance(value, Tensor)}
    strange = next((key for key in tensors if not key.isprintable() or len(key) > _LONGEST), None)
    if strange is not None:
        raise ValueError(f"{strange[:40]!r}: expected printable names of at most {_LONGEST} characters")
    if tensors:
        found[name] = tensors
    if depth > 0:
        for key, value in values.items():
            if isinstance(value, Mapping) and value is not values:
                _collect(value, f"{name}.{key}" if name else str(key), found, depth - 1)


def _groups(found: Mapping[str, Tensors]) -> tuple[list[_Group], dict[str, int], list[str]]:
    """Tensors by section and prefix, what was left out, and the infixes that were taken out."""
    groups: dict[tuple[str, str], _Group] = {}
    dropped: dict[str, int] = {}
    infixes = [i for i in INFIXES if any(i in name for section in found.values() for name in section)]
    for outer, tensors in found.items():
        rootless: Tensors = {}
        for name, tensor in strip_infixes(tensors).items():
            junk = next((what for what, pattern in _BESIDE if pattern.search(name)), None)
            root = _ROOT.search(name)
            if junk is not None:
                dropped[junk] = dropped.get(junk, 0) + 1
            elif root is None:
                rootless[name] = tensor
            else:
                path = name[: root.start()]
                group = groups.setdefault((outer, path), _Group(outer, path))
                group.tensors[name[len(path) :]] = tensor
        _place_rootless(outer, rootless, groups)
    for group in groups.values():
        group.kind = _kind_of(group.tensors)
    return list(groups.values()), dropped, infixes


def _kind_of(names: Iterable[str]) -> Kind | None:
    names = list(names)
    if any(".base_layer." in name for name in names):
        # a network with its adapters is a network
        names = [name for name in names if ".lora_" not in name]
    try:
        return our_kind(identify(names))
    except ValueError:
        return None


def _place_rootless(outer: str, rootless: Tensors, groups: dict[tuple[str, str], _Group]) -> None:
    """Names that no network has go to the group they lie in, where they are surplus; the rest is a group."""
    paths = sorted((path for section, path in groups if section == outer), key=len, reverse=True)
    for name, tensor in rootless.items():
        path = next((p for p in paths if name.startswith(p)), "")
        groups.setdefault((outer, path), _Group(outer, path)).tensors[name.removeprefix(path)] = tensor


def _choose(known: list[_Group], groups: list[_Group], wanted: tuple[str, ...], kind: Kind | None) -> _Group:
    candidates = [group for group in known if group.kind is not None]
    usable = [group for group in candidates if not set(group.tokens) & set(_COMPANIONS)]
    right = [group for group in usable if kind is None or group.kind == kind] or usable
    if right:
        best = min(right, key=lambda group: _rank(group, wanted))
        names = set(best.tensors)
        # an average that was saved before it was complete
        whole = [g for g in right if g.kind == best.kind and names < set(g.tensors)]
        return min(whole, key=lambda group: _rank(group, wanted)) if whole else best
    if candidates:
        expected = ", ".join(name or "tensors at the top" for name in wanted)
        found = ", ".join(sorted({group.section for group in candidates}))
        raise ValueError(f"expected one of the sections {expected}, found {found}")
    strange = next((group for group in groups if group.kind is not None), None)
    if strange is not None:
        expected = ", ".join(f"{token}." for token in (*_PREFERRED[:-1], *_PLAIN[1:5]))
        found = ".".join(strange.tokens)[:80]
        raise ValueError(f"unknown prefix {found}.: expected none or one of {expected}")
    return _nameless(groups)


def _nameless(groups: list[_Group]) -> _Group:
    """Raise ValueError for a file without a network that is known."""
    names = [name for group in groups for name in group.tensors]
    memory = next((match for name in names if (match := _MEMORY.search(name))), None)
    if memory is not None:
        raise ValueError(_memory_text(memory[1]))
    identify(names)
    raise ValueError("expected the weights of one network, found parts of several")


def _rank(group: _Group, wanted: tuple[str, ...]) -> tuple[int, int, int]:
    """Groups of a wanted section first, in the order wanted; then by what is usual; whole ones before parts
    that belong to another model of the file.
    """
    tokens = group.tokens or [""]
    return (
        min((wanted.index(token) for token in tokens if token in wanted), default=len(wanted)),
        min((_PREFERRED.index(token) for token in tokens if token in _PREFERRED), default=len(_PREFERRED)),
        sum(token in _PARTS for token in tokens),
    )


def _refuse_memory(group: _Group) -> None:
    found = next((match for name in group.tensors if (match := _MEMORY.search(name))), None)
    if found is not None:
        raise ValueError(_memory_text(found[1]))


def _memory_text(name: str) -> str:
    return (
        f"{name}: `memory_` weights need a memory expert, a second network that writes the context "
        "(Self Gradient Forcing+), which streamgen does not have"
    )
