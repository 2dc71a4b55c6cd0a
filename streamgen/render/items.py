"""Items of work: one video each, with a name and a seed that no other process or shard changes."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..suggest import shorten
from .job import RenderJob


@dataclass(frozen=True)
class RenderItem:
    """One video.

    Attributes:
        job: what to render, with the sample's own seed.
        name: of its files, without suffix.
        copy: how many rows before this one ask for the very same video.
    """

    job: RenderJob
    name: str
    copy: int = 0


@dataclass(frozen=True)
class Shard:
    """Every `count`-th item from `index` on."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """From "i/n", i from 0.

        Raises:
            InputError: another form, or i not below n.
        """
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
        if found is None or not int(found[1]) < int(found[2]):
            raise InputError(
                f"--shard: expected I/N such as 0/4, with I from 0 to N - 1, found {shorten(text)}"
            )
        return cls(int(found[1]), int(found[2]))

    def of(self, items: Sequence[RenderItem]) -> list[RenderItem]:
        """This shard's items, in order."""
        return list(items[self.index :: self.count])


def items_of(jobs: Iterable[RenderJob]) -> list[RenderItem]:
    """All samples of all jobs, in order."""
    items: list[RenderItem] = []
    seen: Counter[str] = Counter()
    for job in jobs:
        for number in range(job.samples):
            sample = job.sample(number)
            content = repr(sample.to_json())
            items.append(
                RenderItem(sample, item_name(job.index, sample.label, sample.seed), copy=seen[content])
            )
            seen[content] += 1
    return items


def slug(text: str, limit: int = 80) -> str:
    """A file name from any text: letters and digits of any script, ".", "_" and "-"; never hidden or empty.

    Longer names than `limit` UTF-8 bytes are cut and end in a digest of the whole text, so they stay apart.
    """
    normal = unicodedata.normalize("NFC", text)
    kept = "".join(char if char.isalnum() or char in "._-" else " " for char in normal)
    name = "-".join(kept.split()).strip("._-")
    # Windows opens devices by these names, whatever the suffix.
    stem = name.split(".")[0].casefold()
    if stem in ("con", "prn", "aux", "nul") or (stem[:3] in ("com", "lpt") and stem[3:].isdecimal()):
        name = f"job-{name}"
    encoded = name.encode()
    if len(encoded) > limit:
        digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
        name = encoded[: limit - 9].decode(errors="ignore").rstrip("._-") + "-" + digest
    return name or "job"


def item_name(index: int, label: str, seed: int) -> str:
    """`{index}-{slug}-s{seed}`: sorts in the order of the job file, says what it is, at most 111 bytes."""
    return f"{index:05d}-{slug(label, 64)}-s{seed}"
