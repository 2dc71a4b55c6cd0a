"""The run as one HTML page that opens from the folder: no server, no scripts, nothing from elsewhere."""

import contextlib
import html
import os
import time
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from ..video.outputs import STRIP_FRAMES
from .folder import PAGE, STRIPS, OutputFolder
from .manifest import Entry

# A page of 10,000 items takes about half a second to write: at most this share of the time goes into pages.
_SHARE = 0.02
_FIRST_WAIT_SECONDS = 2.0

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
h1 { font-size: 1.3rem; } header p { margin: .2rem 0; opacity: .75; }
main { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); }
figure { margin: 0; padding: .6rem; border: 1px solid #8884; border-radius: .5rem;
  content-visibility: auto; contain-intrinsic-size: auto 28rem; }
video { width: 100%; background: #000; image-rendering: pixelated; aspect-ratio: var(--ratio);
  object-fit: cover; object-position: left; }
img { width: 100%; display: block; margin-top: .4rem; image-rendering: pixelated; }
figcaption { margin-top: .4rem; overflow-wrap: anywhere; unicode-bidi: plaintext; }
small { display: block; opacity: .7; } .failed { border-color: #c33; } .failed b { color: #c33; }
"""


class PageWriter:
    """Writes a folder's page now and then, and at the end; any process of a run may."""

    def __init__(self, folder: OutputFolder, title: str) -> None:
        self._folder, self._title = folder, title
        self._next = time.monotonic() + _FIRST_WAIT_SECONDS

    def __call__(self) -> None:
        """Write the page if it is time."""
        if time.monotonic() >= self._next:
            self.write()

    def write(self) -> None:
        """Write the page now, unless another process is at it or it cannot be written: videos matter more."""
        began = time.monotonic()
        with contextlib.suppress(OSError), self._folder.page_claim() as mine:
            if mine:
                self._folder.manifest.refresh()
                text = page_html(self._folder.manifest.entries(), self._title, self._folder.path)
                part = self._folder.path / f"{PAGE}.part"
                part.write_text(text, encoding="utf-8")
                os.replace(part, self._folder.path / PAGE)
        ended = time.monotonic()
        self._next = ended + max((ended - began) / _SHARE, _FIRST_WAIT_SECONDS)


def page_html(entries: Iterable[Entry], title: str, folder: Path) -> str:
    """The page of a folder's items: every video with its strip, prompt, seed and record; failures with their
    reason.
    """
    rows = list(entries)
    made = [entry for entry in rows if entry.status == "ok" and entry.file is not None]
    frames = sum(entry.frames for entry in made)
    failed = len(rows) - len(made)
    summary = f"{len(made)} videos, {frames} frames" + (f", {failed} failed" if failed else "")
    figures = "\n".join(_figure(entry, folder) for entry in rows)
    name = html.escape(title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; media-src 'self' file:; "
        "img-src 'self' file:; style-src 'unsafe-inline'\">\n"
        f"<title>{name}</title>\n<style>{_STYLE}:root {{ --ratio: {_ratio(made, folder):.4f}; }}\n</style>\n"
        "</head>\n<body>\n"
        f"<header><h1>{name}</h1><p>{html.escape(summary)}</p></header>\n<main>\n{figures}\n</main>\n"
        "</body>\n</html>\n"
    )


def _figure(entry: Entry, folder: Path) -> str:
    caption = f"<figcaption>{html.escape(entry.prompt)}"
    facts = [entry.name, f"seed {entry.sample_seed}"] + ([f"line {entry.line}"] if entry.line else [])
    if entry.status != "ok" or entry.file is None:
        reason = html.escape(entry.error or "no reason is known")
        facts_text = html.escape(" · ".join(facts))
        text = f"{caption}<b> failed: {reason}</b><small>{facts_text}</small></figcaption>"
        return f'<figure class="failed">{text}</figure>'
    stem = Path(entry.file).stem
    strip = f"{STRIPS}/{stem}.jpg"
    facts += [f"{entry.frames} frames", f"{entry.seconds:.1f} s"]
    image = poster = ""
    if (folder / strip).is_file():
        image = f'<img loading="lazy" alt="frames of {html.escape(stem)}" src="{quote(strip)}">'
        # of the strip, the box shows the left end, which is the first frame
        poster = f' poster="{quote(strip)}"'
    record = f'<a href="{quote(stem)}.json">record</a>'
    return (
        f'<figure><video controls loop muted playsinline preload="none" src="{quote(entry.file)}"{poster}>'
        "</video>"
        f"{image}{caption}<small>{html.escape(' · '.join(facts))} · {record}</small></figcaption></figure>"
    )


def _ratio(made: Iterable[Entry], folder: Path) -> float:
    """Width over height of the videos, of one size in a run, by the first strip that is there; else 1."""
    for entry in made:
        strip = folder / STRIPS / f"{Path(str(entry.file)).stem}.jpg"
        with contextlib.suppress(OSError), Image.open(strip) as image:
            return image.width / min(STRIP_FRAMES, max(entry.frames, 1)) / image.height
    return 1.0
