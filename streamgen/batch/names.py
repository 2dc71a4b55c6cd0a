"""File names out of prompts and ids."""

import hashlib
import unicodedata


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
