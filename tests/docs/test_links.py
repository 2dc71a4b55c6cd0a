"""Every relative link of the Markdown files leads somewhere, and so does every page that code speaks of.

Anchors are made by GitHub's rules. Links to other sites are not followed.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What git ignores or has for itself; hidden folders hold nothing to read but .ci.
NOT_OURS = {"runs", "build", "dist", "venv", "__pycache__"}

FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,}).*?(?:^ {0,3}\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.+?)(?:[ \t]+#+)?[ \t]*$", re.MULTILINE)
INLINE = re.compile(r"\]\(\s*(<[^>\n]*>|[^\s)]+)(?:\s+[\"'(][^)]*)?\s*\)")
REFERENCE = re.compile(r"^ {0,3}\[[^\]\n]+\]:\s+(\S+)", re.MULTILINE)
ATTRIBUTE = re.compile(r"<[^>\n]*\b(?:href|src)=[\"']([^\"']+)[\"']")
TARGET = re.compile(r"<[^>\n]*\b(?:id|name)=[\"']([^\"']+)[\"']")
# In comments and strings of code: docs/training.md, "Your own clips"
MENTION = re.compile(r"\b(docs/[\w./-]+\.md)(?:, (?:'([^'\n]+)'|\"([^\"\n]+)\"))?")


def files(root: Path, *suffixes: str) -> list[Path]:
    """The repository's own files with one of these suffixes."""
    found = []
    for folder, names, here in os.walk(root):
        names[:] = [n for n in names if n not in NOT_OURS and (not n.startswith(".") or n == ".ci")]
        found += [Path(folder, name) for name in here if name.endswith(suffixes)]
    return sorted(found)


def slugs(text: str) -> set[str]:
    """The anchors of a page: those of its headings, equal ones numbered, and those it names itself."""
    text = FENCE.sub("", text)
    seen: Counter[str] = Counter()
    anchors = set(TARGET.findall(CODE.sub("", text)))
    for heading in HEADING.findall(text):
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        anchors.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return anchors


def links(text: str) -> Iterator[str]:
    """The targets of a page's links and pictures, code left out."""
    text = CODE.sub("", FENCE.sub("", text))
    for pattern in (INLINE, REFERENCE, ATTRIBUTE):
        yield from (target.strip("<>") for target in pattern.findall(text))


def broken_links(root: Path, page: Path, text: str) -> list[str]:
    """What is wrong with the links of one page, a line each."""
    found = []
    for link in links(text):
        if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:|//", link):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = (root / name.lstrip("/") if name.startswith("/") else page.parent / name) if name else page
        target = target.resolve()
        if not target.is_relative_to(root) or not target.exists():
            found.append(f"{page.relative_to(root)}: no file for {link}")
        elif anchor and target.suffix == ".md":
            there = text if target == page else target.read_text(encoding="utf-8")
            if anchor not in slugs(there):
                found.append(f"{page.relative_to(root)}: no heading for {link}")
    return found


def broken_mentions(root: Path, file: Path, text: str) -> list[str]:
    """Pages of docs/ that a source file speaks of and that are not there, or lack the heading it quotes."""
    found = []
    for name, *quoted in MENTION.findall(text):
        heading = next(filter(None, quoted), "")
        page = root / name
        headings = HEADING.findall(FENCE.sub("", page.read_text(encoding="utf-8"))) if page.exists() else []
        if not page.exists() or not any(h.startswith(heading) for h in headings):
            found.append(f"{file.relative_to(root)}: {name} {heading}".rstrip())
    return found


def offences(root: Path) -> list[str]:
    """All that is wrong below a folder."""
    pages = [
        line for page in files(root, ".md") for line in broken_links(root, page, page.read_text("utf-8"))
    ]
    sources = [file for file in files(root, ".py", ".yaml", ".toml") if file != Path(__file__).resolve()]
    return pages + [line for file in sources for line in broken_mentions(root, file, file.read_text("utf-8"))]


def test_links_and_mentions_lead_somewhere() -> None:
    assert offences(ROOT) == []


def test_the_pages_are_found() -> None:
    """A check that looked nowhere would pass."""
    pages = {page.relative_to(ROOT).as_posix() for page in files(ROOT, ".md")}
    assert {
        "README.md",
        "CONTRIBUTING.md",
        "docs/README.md",
        "docs/decisions/README.md",
        "streamgen/weights/tiny/README.md",
    } <= pages
    assert sum(1 for page in pages for _ in links((ROOT / page).read_text("utf-8"))) > 50


@pytest.mark.parametrize(
    ("page", "good", "bad"),
    [
        ("README.md", "(docs/demo.md)", "(docs/demos.md)"),
        ("README.md", "(docs/media/prompts.png)", "(docs/media/prompt.png)"),
        ("docs/decisions/README.md", "(../README.md#words)", "(../README.md#word)"),
        ("docs/decisions/stream.md", "(#text-guidance-is-2-motion-guidance-4)", "(#text-guidance)"),
    ],
)
def test_a_broken_link_is_found(page: str, good: str, bad: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    assert good in text
    assert broken_links(ROOT, ROOT / page, text) == []
    assert len(broken_links(ROOT, ROOT / page, text.replace(good, bad, 1))) == 1


def test_every_form_of_link_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(
        "# A `b_c`, d!\n\n## E\n\n## E\n\n```\n# no heading\n```\n\n<a id='own'></a>\n"
    )
    (tmp_path / "run.py").write_text("# docs/lost.md, 'Title'\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](a.md#a-b_c-d) [e](a.md#e-1) [o](a.md#own) ![p](run.py 'title') `[no](no.md)` <a.md>\n"
    )
    assert offences(tmp_path) == ["run.py: docs/lost.md Title"]
    page.write_text(
        "[1](b.md) [2](a.md#no-heading) [3](#page) ![4](p.png 'title') [5](../outside.md)\n\n"
        "[6]: lost.md\n\n<img src='lost.png'>\n\n[seven\nlines](lost.md \"title\")\n[x](https://example.org/no)\n"
    )
    assert len(offences(tmp_path)) == 8 + 1


def test_a_mention_of_a_heading_is_checked(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("# Page\n\n## Ranks are places\n")
    source = tmp_path / "a.py"
    assert broken_mentions(tmp_path, source, "see docs/a.md, 'Ranks'; docs/a.md; docs/a.md, \"Page\"") == []
    assert broken_mentions(tmp_path, source, "see docs/a.md, 'Times'") == ["a.py: docs/a.md Times"]
