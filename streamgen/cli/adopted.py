"""What `streamgen adopt` found, as lines to read."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

# parts as they are called in a sentence
_PARTS = {
    "dit": "network",
    "vae": "VAE",
    "tiny_decoder": "TAEHV",
    "lora": "LoRA",
    "text_encoder": "text encoder",
}


def show_adopted(report: Mapping[str, Any], as_json: bool) -> None:
    """The report of `wan.adopt.adopt` on stdout, as one JSON object or as lines: each file and what it is,
    what is taken of them, how it streams, what is in the way, and what to type next.
    """
    for line in [json.dumps(report, ensure_ascii=False)] if as_json else _lines(report):
        print(line)


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    for place, file in report["files"].items():
        if "kind" not in file:
            # what is said of it below names its place
            continue
        yield place
        yield from (f"    {line}" for line in _file_lines(file))
    for part, place in report["taken"].items():
        yield f"{_PARTS[part]}: {place}"
    for part, place in report.get("published", {}).items():
        option = f"--{part.replace('_', '-')}"
        yield f"{_PARTS[part]}: {place}, downloaded when it is needed ({option} names another)"
    if "settings_of" in report:
        yield f"settings of {report['settings_of']}"
        if "settings" in report:
            yield f"    {report['settings']}"
    if "note" in report:
        yield f"note: {report['note']}"
    # the first problem of what cannot be used is the error
    yield from (f"problem: {problem}" for problem in report["problems"][0 if report["usable"] else 1 :])
    if "written" in report:
        yield f"written: {report['written']}"
    if report["next"] is not None:
        yield f"next: {report['next']}"


def _file_lines(file: Mapping[str, Any]) -> Iterator[str]:
    size = f" of {file['size']}" if "size" in file else ""
    for_whom = f", for {file['for']}" if "for" in file else ""
    ranks = ", ".join(map(str, file.get("rank", ())))
    lora = f", rank {ranks or 'none'} in {file['layers']} layers" if "rank" in file else ""
    whole = f", {file['whole']} whole differences" if file.get("whole") else ""
    yield f"{file['kind']}{size}{lora}{whole}{for_whom}"
    numbers = f"{file['parameters']:,} numbers in {file['tensors']} tensors, {', '.join(file['dtypes'])}"
    wrapped = [
        f"{word} {file[word]}" for word in ("section", "prefix", "quantisation") if file[word] != "none"
    ]
    wrapped += [f"wrapper {name}" for name in file.get("wrappers", ())]
    yield "; ".join((numbers, *wrapped))
    if "release" in file:
        note = f"; {file['release_note']}" if "release_note" in file else ""
        yield f"release: {file['release']}{note}"
    for what in ("missing", "surplus"):
        names = file.get(what, ())
        if names:
            yield f"{what}: {len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
    if "beside" in file:
        yield "beside it: " + ", ".join(f"{name} ({count})" for name, count in file["beside"].items())
    yield from file.get("notes", ())
