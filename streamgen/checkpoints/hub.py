"""Weights by their name on the Hugging Face hub: `hf://owner/repo[/file][@revision]`.

Downloads, their cache, going on with half of one, and tokens are huggingface_hub's own; what it does not do
is compare a new file with the sha256 that the hub states, which is done here.
"""

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import CheckpointError, InputError
from ..suggest import shorten
from .digest import file_sha256

SCHEME = "hf://"
_NAME = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:/([^@]*))?(?:@([\w./-]+))?")
_CHUNK = 2**20


@dataclass(frozen=True)
class HubSource:
    """A repository, or a file or folder of it; `path` is "" for all of it, `revision` None for the newest."""

    repo: str
    path: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        inside = f"/{self.path}" if self.path else ""
        return f"{SCHEME}{self.repo}{inside}" + (f"@{self.revision}" if self.revision else "")

    def file(self, name: str) -> "HubSource":
        """A file of it by its name inside."""
        return replace(self, path=f"{self.path}/{name}" if self.path else name)

    def find(self, names: tuple[str, ...]) -> "HubSource | None":
        """The first of the files that the repository has; None where it has none of them.

        Raises:
            CheckpointError: the hub cannot be asked, or refuses.
        """
        there = set(list_files(self.repo, self.revision))
        return next((source for name in names if (source := self.file(name)).path in there), None)

    def folder(self) -> "HubSource":
        """The folder that a file lies in; the repository for one at its top."""
        return replace(self, path=PurePosixPath(self.path).parent.as_posix().strip("."))


def is_hub(text: str | Path) -> bool:
    """Whether a text names something on the hub. A `Path` made of it has lost a slash, and counts, too."""
    return str(text).startswith(("hf://", "hf:/"))


def parse_hub(text: str | Path) -> HubSource:
    """A name on the hub.

    Raises:
        InputError: not of the form `hf://owner/repo[/file][@revision]`.
    """
    name = re.sub(r"^hf:/+", SCHEME, str(text))
    match = _NAME.fullmatch(name)
    path = "" if match is None else (match[2] or "").strip("/")
    if match is None or ".." in path.split("/"):
        raise InputError(f"{shorten(str(text))}: expected hf://owner/repo[/file][@revision]")
    return HubSource(match[1], path, match[3])


def fetch(source: HubSource) -> Path:
    """The local file of a source: from the cache, else downloaded. A new one is compared with its sha256.

    Raises:
        CheckpointError: no such file, no network or permission, or damaged on the way.
    """
    import huggingface_hub as hub

    known = hub.try_to_load_from_cache(source.repo, source.path, revision=source.revision)
    with _one_line(source):
        path = Path(
            hub.hf_hub_download(source.repo, source.path, revision=source.revision, endpoint=_endpoint())
        )
    if not isinstance(known, str):
        _check_sum(source, path)
    return path


def pinned(source: HubSource) -> HubSource:
    """The source at the commit that its revision is now: it stays what it is, and is found in the cache
    without a question to the hub.

    Raises:
        CheckpointError: no such repository or revision, or nothing of it is known here.
    """
    import huggingface_hub as hub

    if re.fullmatch(r"[0-9a-f]{40}", source.revision or ""):
        return source
    try:
        with _one_line(source):
            info = hub.HfApi(endpoint=_endpoint()).model_info(source.repo, revision=source.revision or "main")
        return replace(source, revision=info.sha)
    except CheckpointError as error:
        folder = _cached_snapshot(source)
        if folder is None:
            raise error from None
        return replace(source, revision=folder.name)


@cache
def list_files(repo: str, revision: str | None) -> tuple[str, ...]:
    """Names of all files of a repository; those in the cache where the hub cannot be reached.

    Raises:
        CheckpointError: no such repository or revision, or nothing of it is known here.
    """
    import huggingface_hub as hub

    source = HubSource(repo, "", revision)
    try:
        with _one_line(source):
            found = hub.HfApi(endpoint=_endpoint()).list_repo_files(repo, revision=revision)
        return tuple(sorted(found))
    except CheckpointError as error:
        folder = _cached_snapshot(source)
        if folder is None:
            raise error from None
        return tuple(
            sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
        )


class RangeFile(io.RawIOBase):
    """A file on the hub, of which only what is read is downloaded."""

    def __init__(self, source: HubSource) -> None:
        import huggingface_hub as hub

        super().__init__()
        self.source, self._at = source, 0
        self._url = hub.hf_hub_url(
            source.repo, source.path, revision=source.revision, endpoint=_endpoint() or None
        )
        with _one_line(source):
            self.size = int(hub.get_hf_file_metadata(self._url).size or 0)

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See `io`."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """See `io`."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """See `io`; one request of the hub.

        Raises:
            CheckpointError: the hub cannot be reached, or does not give parts of files.
        """
        from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

        last = min(self._at + len(buffer), self.size) - 1
        if last < self._at:
            return 0
        headers = build_hf_headers() | {"Range": f"bytes={self._at}-{last}"}
        with _one_line(self.source):
            answer = get_session().get(self._url, headers=headers, follow_redirects=True)
            answer.raise_for_status()
        content = answer.content
        if answer.status_code != 206 or len(content) > len(buffer):
            raise CheckpointError(f"{self.source}: the server gives no parts of files, download it first")
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def open_remote(source: HubSource) -> tuple[io.BufferedReader, int]:
    """A file on the hub for reading a little of it, and its size in bytes.

    Raises:
        CheckpointError: no such file, no network or permission.
    """
    file = RangeFile(source)
    return io.BufferedReader(file, _CHUNK), file.size


def _endpoint() -> str | None:
    # read when it is needed, not when huggingface_hub happens to be imported
    return os.environ.get("HF_ENDPOINT") or None


def _cached_snapshot(source: HubSource) -> Path | None:
    import huggingface_hub as hub

    try:
        return Path(hub.snapshot_download(source.repo, revision=source.revision, local_files_only=True))
    except (OSError, ValueError):
        return None


def _check_sum(source: HubSource, path: Path) -> None:
    """Raise CheckpointError, and remove the file, where it is not what the hub says: the cache names large
    files by their sha256.
    """
    blob = path.resolve()
    expected = blob.name
    if re.fullmatch(r"[0-9a-f]{64}", expected) and file_sha256(blob) != expected:
        blob.unlink()
        raise CheckpointError(
            f"{source}: damaged on the way (its sha256 is not {expected[:12]}...), try again"
        )


@contextmanager
def _one_line(source: HubSource) -> Iterator[None]:
    """Errors of the hub and of the network as one line."""
    from huggingface_hub import errors

    network: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
    try:
        yield
    except errors.GatedRepoError:
        raise CheckpointError(
            f"{source}: needs permission: accept its terms on the hub, then `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{source}: no such revision") from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(f"{source}: no such repository, or a private one (`hf auth login`)") from None
    except errors.LocalEntryNotFoundError:
        raise CheckpointError(f"{source}: not in the cache, and the hub cannot be reached") from None
    except errors.EntryNotFoundError:
        raise CheckpointError(f"{source}: no such file in the repository") from None
    except (network, errors.OfflineModeIsEnabled, OSError, ValueError) as error:
        text = " ".join(str(error).split())
        raise CheckpointError(f"{source}: the hub cannot be reached or refuses ({text[:160]})") from None
