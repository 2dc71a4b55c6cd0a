"""Prompts of the Wan family: the UMT5-XXL encoder through transformers, and a stand-in without weights.

Wan reads 512 embeddings of which those past the prompt are zero: the padded ones take part in attention.
transformers is an optional dependency (extra `wan`) and imported on first use only.
"""

import hashlib
import html
import re
import threading
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.state_dict import umt5_to_transformers
from models.text_encoder import Words, beginning

from ..checkpoints.foreign import expect_kind, fetch_weights, names_weights, read_foreign
from ..checkpoints.hub import fetch, is_hub, list_files, parse_hub
from ..engine.quantize import QuantizedLinear, kernel_missing
from ..errors import CheckpointError
from ..machine import give_back
from .config import TextConfig
from .options import TextOptions

_KEPT = 256
# the tokenizer that Wan was trained with, by its name on the hub and in Wan's own folders
_TOKENIZER = "google/umt5-xxl"
# how Wan calls the file of its encoder
_PUBLISHED = "models_t5_*.pth"
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})


def clean_prompt(prompt: str) -> str:
    """A prompt as Wan cleans it: HTML entities resolved, quotes straight, white space collapsed."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(prompt)).translate(_QUOTES)).strip()


def zero_padded(embedding: Tensor, length: int) -> Tensor:
    """`(L, dim)` of a prompt's own tokens as `(1, length, dim)`, zero past them."""
    out = embedding.new_zeros(1, length, embedding.shape[1])
    out[0, : len(embedding)] = embedding[:length]
    return out


class HashedPrompts:
    """Every word has a random embedding that is a function of the word alone; for models of random weights,
    where no download is wanted. It means nothing.
    """

    vocabulary, quick = None, True

    def __init__(self, config: TextConfig) -> None:
        self.config, self.length = config, config.length

    def words(self, prompt: str) -> Words:
        """See `PromptEncoder`."""
        cleaned, length = clean_prompt(prompt), self.config.length
        found = cleaned.lower().split()
        ids = [int.from_bytes(_hash(word)[:4], "big") for word in found[:length]]
        cut = beginning(" ".join(cleaned.split()[length:]))
        return Words(torch.tensor(ids, dtype=torch.long), (), max(0, len(found) - length), cut)

    def embed(self, prompt: str) -> Tensor:
        """See `PromptEncoder`."""
        rows = [
            torch.randn(self.config.dim, generator=torch.Generator().manual_seed(int(seed)))
            for seed in self.words(prompt).ids
        ]
        empty = torch.zeros(0, self.config.dim)
        return zero_padded(torch.stack(rows) if rows else empty, self.config.length)

    def null(self) -> Tensor:
        """See `PromptEncoder`."""
        return zero_padded(torch.zeros(0, self.config.dim), self.config.length)

    def prepare(self, prompt: str) -> None:
        """There is nothing to prepare, see `UMT5Prompts.prepare`."""

    def free(self) -> None:
        """There is nothing to free, see `UMT5Prompts.free`."""


class UMT5Prompts:
    """The UMT5 encoder of a local folder or the hub; loaded when the first prompt needs it.

    Args:
        source: a folder of transformers, a folder as Wan2.1-T2V publishes it (`models_t5_*.pth` beside
            `google/umt5-xxl`), one weights file in either naming, quantised or inside a whole checkpoint;
            any of them on the hub (`hf://owner/repo[/folder or file]`), or the name of a repository there.
        config: the width and length that the network reads.
    """

    vocabulary, quick = None, False

    def __init__(self, source: str, config: TextConfig, options: TextOptions | None = None) -> None:
        self.length = config.length
        self.source, self.config, self.options = source, config, options or TextOptions()
        self._tokenizer: Any = None
        self._model: Any = None
        self._cached: dict[str, Tensor] = {}
        # prompts come from several threads; what takes seconds and gigabytes to load is loaded once
        self._lock = threading.RLock()

    def words(self, prompt: str) -> Words:
        """See `PromptEncoder`."""
        ids = self._tokens(prompt)
        length = self.config.length
        cut = self._cut(prompt) if len(ids) > length else ""
        return Words(torch.tensor(ids[:length]), (), max(0, len(ids) - length), cut)

    def embed(self, prompt: str) -> Tensor:
        """See `PromptEncoder`. Found in memory, on disk, or made with the encoder.

        Raises:
            CheckpointError: the encoder is needed and cannot be loaded.
        """
        text = clean_prompt(prompt)
        found = self._cached.get(text)
        if found is None:
            found = self._read(text)
        if found is None:
            found = self._encode(text)
            self._write(text, found)
            if not self.options.keep:
                self.free()
        with self._lock:
            if len(self._cached) >= _KEPT:
                self._cached.pop(next(iter(self._cached)))
            self._cached[text] = found
        return zero_padded(found, self.config.length)

    def null(self) -> Tensor:
        """Embedding of the empty prompt: its end token, then zeros."""
        return self.embed("")

    def prepare(self, prompt: str) -> None:
        """Encode a prompt where the cache on disk does not have it; one that is there is not read.

        Raises:
            CheckpointError: see `embed`.
        """
        file = self._file(clean_prompt(prompt))
        if file is None or not file.is_file():
            self.embed(prompt)

    def free(self) -> None:
        """Give the encoder's memory back; it is loaded again when needed."""
        with self._lock:
            self._model = None
        give_back(torch.device(self.options.device))

    @torch.no_grad()
    def _encode(self, text: str) -> Tensor:
        """`(L, dim)` of the prompt's own tokens; padding, masked in the encoder, is left out."""
        ids = torch.tensor([self._tokens(text)[: self.config.length]], device=self.options.device)
        model = self._load()
        hidden: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        return hidden[0].float().cpu()

    def _tokens(self, prompt: str) -> list[int]:
        with self._lock:
            if self._tokenizer is None:
                place, options = _tokenizer_place(self.source)
                self._tokenizer = _from_pretrained("AutoTokenizer", place, **options)
            # a fast tokenizer's truncation settings are its own state
            ids: list[int] = self._tokenizer(clean_prompt(prompt), add_special_tokens=True)["input_ids"]
        if len(ids) > self.config.length:
            # what is cut off at the end must not be the end token
            ids = [*ids[: self.config.length - 1], ids[-1], *ids[self.config.length - 1 : -1]]
        return ids

    def _cut(self, prompt: str) -> str:
        """The beginning of what does not fit; "" where the tokenizer does not tell where its tokens lie."""
        text = clean_prompt(prompt)
        with self._lock:
            if not self._tokenizer.is_fast:
                return ""
            offsets = self._tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        # the last place is the end token's
        return beginning(text[offsets[self.config.length - 1][0] :].strip())

    def _load(self) -> Any:
        """The encoder, loaded by one thread while others wait for it."""
        with self._lock:
            if self._model is None:
                self._model = self._loaded()
            return self._model

    def _loaded(self) -> Any:
        path = _encoder_file(self.source)
        if path is not None:
            model = _encoder_of_file(path, self.options.dtype)
        else:
            place, options = _pretrained_place(self.source, ("text_encoder",))
            model = _from_pretrained("UMT5EncoderModel", place, dtype=self.options.dtype, **options)
        found = int(model.config.d_model)
        if found != self.config.dim:
            raise CheckpointError(
                f"text encoder {self.source}: expected width {self.config.dim} (dit.text_dim), found {found}"
            )
        try:
            if self.options.int8:
                in_eight_bits(model, torch.device(self.options.device))
            return model.to(self.options.device).eval().requires_grad_(False)
        except (RuntimeError, ValueError) as error:
            # a folder that transformers saved in eight bits stays where its library puts it
            raise CheckpointError(
                f"text encoder: device {self.options.device}: {str(error).splitlines()[0]}"
            ) from None

    def _file(self, text: str) -> Path | None:
        if self.options.cache is None:
            return None
        precision = f"{self.options.dtype}{' int8' if self.options.int8 else ''}"
        key = f"{self.source}|{self.config.dim}|{self.config.length}|{precision}|{text}"
        return self.options.cache / f"{_hash(key).hex()}.safetensors"

    def _read(self, text: str) -> Tensor | None:
        file = self._file(text)
        if file is None or not file.is_file():
            return None
        try:
            with safe_open(file, "pt") as opened:
                embedding: Tensor = opened.get_tensor("embedding").float()
        except (SafetensorError, OSError):
            # a damaged file is made anew
            return None
        return embedding if embedding.dim() == 2 and embedding.shape[1] == self.config.dim else None

    def _write(self, text: str, embedding: Tensor) -> None:
        file = self._file(text)
        if file is None:
            return
        part = file.with_name(file.name + ".part")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # in the encoder's own precision, which loses nothing
            kept = embedding.to(self.options.dtype).contiguous()
            save_file({"embedding": kept}, part, {"prompt": text, "encoder": self.source})
            part.replace(file)
        except OSError as error:
            raise CheckpointError(f"prompt cache {file}: cannot be written ({error})") from None


def in_eight_bits(model: nn.Module, device: torch.device) -> None:
    """Put the linear layers of an encoder in eight bits, in place and one by one: memory holds one of them
    twice.

    Args:
        device: where it is to compute.

    Raises:
        CheckpointError: the device has no kernel for that.
    """
    reason = kernel_missing(device, torch.bfloat16, "int8")
    if reason is not None:
        raise CheckpointError(f"text encoder: int8: {reason}")
    for holder in list(model.modules()):
        for name, child in list(holder.named_children()):
            if isinstance(child, nn.Linear) and not (child.in_features % 16 or child.out_features % 16):
                holder._modules[name] = QuantizedLinear(child, "int8")


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _first_folder(source: str, inside: tuple[str, ...], otherwise: str | None = None) -> str:
    """The first of the folders inside a local source that is there, else `otherwise`, the source itself."""
    folders = (Path(source) / name for name in inside) if Path(source).is_dir() else ()
    return next((str(folder) for folder in folders if folder.is_dir()), otherwise or source)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise CheckpointError(
            "text encoder: needs transformers, which is not installed (pip install 'streamgen[wan]')"
        ) from None
    return transformers


def _from_pretrained(kind: str, source: str, **options: Any) -> Any:
    """A class of transformers from a folder or the hub."""
    loader = getattr(_transformers(), kind)
    try:
        return loader.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        text = " ".join(str(error).split())
        raise CheckpointError(f"text encoder {source}: cannot be loaded ({text[:160]})") from None


def _encoder_file(source: str) -> Path | None:
    """The one weights file that an encoder is read from; None where transformers reads it by itself.

    Raises:
        CheckpointError: on the hub, where it cannot be had.
    """
    if is_hub(source):
        remote = parse_hub(source)
        if names_weights(remote):
            return fetch_weights(remote)
        names = [PurePosixPath(name) for name in list_files(remote.repo, remote.revision)]
        inside = [name.name for name in names if name.parent == PurePosixPath(remote.path)]
        published = next((name for name in inside if fnmatch(name, _PUBLISHED)), None)
        return None if published is None else fetch(remote.file(published))
    path = Path(source)
    if path.is_dir():
        return next(iter(sorted(path.glob(_PUBLISHED))), None)
    return path if path.is_file() else None


def _pretrained_place(source: str, inside: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """What transformers loads: the first of the folders inside a source that is there, else the source; and
    what it has to be told besides, of a name on the hub.
    """
    if not is_hub(source):
        return _first_folder(source, inside), {}
    remote = parse_hub(source)
    names = list_files(remote.repo, remote.revision)
    folders = [normpath(PurePosixPath(remote.path) / name) for name in inside]
    found = next((f for f in folders if any(name.startswith(f"{f}/") for name in names)), remote.path)
    return remote.repo, {"revision": remote.revision or "main", "subfolder": found}


def _tokenizer_place(source: str) -> tuple[str, dict[str, Any]]:
    """Where an encoder's tokenizer is: inside its folder or beside its file, else the published one."""
    inside = (_TOKENIZER, "tokenizer", "../tokenizer")
    if is_hub(source):
        # of a file alone it is not known that it has one
        alone = names_weights(parse_hub(source))
        return (_TOKENIZER, {}) if alone else _pretrained_place(source, inside)
    path = Path(source)
    if not path.is_file():
        return _first_folder(source, inside), {}
    return _first_folder(str(path.parent), ("umt5-xxl", *inside), _TOKENIZER), {}


def _encoder_of_file(path: Path, dtype: torch.dtype) -> Any:
    """The encoder of one file, in Wan2.1's naming or that of transformers, with the sizes read from its
    tensors.
    """
    read = read_foreign(path, ("", "model"), "umt5")
    if read.kind != "umt5":
        expect_kind(path, read.kind, "wan_umt5")
    transformers = _transformers()
    try:
        tensors = umt5_to_transformers(read.tensors) if read.kind == "wan_umt5" else read.tensors
        # of a whole model, the half that encodes
        tensors = {n: x.to(dtype) for n, x in tensors.items() if n.startswith(("shared.", "encoder."))}
        # one table of words under two names
        words = tensors.get("shared.weight", tensors.get("encoder.embed_tokens.weight"))
        if words is None:
            raise KeyError("shared.weight")
        tensors |= {"shared.weight": words, "encoder.embed_tokens.weight": words}
        config = transformers.UMT5Config(**_umt5_sizes(tensors))
        with torch.device("meta"):
            model = transformers.UMT5EncoderModel(config)
        model.load_state_dict(tensors, assign=True)
    except KeyError as error:
        raise CheckpointError(f"text encoder {path}: {error.args[0]}: missing") from None
    except (RuntimeError, ValueError, IndexError, AssertionError, ZeroDivisionError) as error:
        text = " ".join(str(error).split())
        raise CheckpointError(f"text encoder {path}: does not fit ({text[:160]})") from None
    return model


def _umt5_sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What transformers has to be told of an encoder with these tensors, under its own names.

    Raises:
        KeyError, ValueError: too little is there to say.
    """
    first = "encoder.block.0.layer."
    buckets, heads = tensors[f"{first}0.SelfAttention.relative_attention_bias.weight"].shape
    blocks = {int(found[1]) for name in tensors if (found := re.match(r"encoder\.block\.(\d{1,4})\.", name))}
    vocabulary, width = tensors["shared.weight"].shape
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": tensors[f"{first}0.SelfAttention.q.weight"].shape[0] // heads,
        "d_ff": tensors[f"{first}1.DenseReluDense.wi_0.weight"].shape[0],
        "num_layers": len(blocks),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
    }
