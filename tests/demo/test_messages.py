"""What pages say: parsed, or refused by name."""

import json
import re
from typing import Any

import pytest

from demo.messages import (
    _PARSERS,
    _SIMPLE,
    FRAME_HEADER,
    MAX_MESSAGE_BYTES,
    PNG,
    SETTINGS,
    BadMessage,
    Event,
    Pins,
    Simple,
    Start,
    Stroke,
    pack_frame,
    parse,
)

BAD = [
    ("", "JSON object"),
    ("{", "JSON object"),
    ("[1]", "JSON object"),
    ("[" * 20000, "JSON object"),
    ('{"type": 5}', "unknown type"),
    ('{"type": "shutdown"}', "unknown type"),
    ('{"type": "pause", "now": 1}', "unknown field"),
    ('{"type": "start", "prompt": "a", "seed": -1}', "seed"),
    ('{"type": "start", "prompt": "a", "seed": true}', "seed"),
    ('{"type": "start", "prompt": " ", "seed": 1}', "prompt"),
    ('{"type": "start", "prompt": "' + "a" * 10001 + '", "seed": 1}', "prompt"),
    ('{"type": "start", "prompt": "a", "seed": 1, "picture": "/etc/passwd"}', "picture"),
    ('{"type": "start", "prompt": "a", "seed": 1, "settings": {"steps": 1000}}', "steps"),
    ('{"type": "start", "prompt": "a", "seed": 1, "settings": {"window_frames": 900}}', "settings"),
    ('{"type": "event", "id": 1, "epoch": 1}', "none of them"),
    ('{"type": "event", "id": 1, "epoch": 1, "settings": {"steps": 2.5}}', "whole"),
    ('{"type": "event", "id": 1, "epoch": 1, "settings": {"lora": 2.5}}', "lora: expected text"),
    (json.dumps({"type": "event", "id": 1, "epoch": 1, "settings": {"lora": "a" * 501}}), "up to 500"),
    ('{"type": "event", "id": 1, "epoch": 1, "prompt": "a", "policy": "forget"}', "policy"),
    ('{"type": "event", "id": 1, "epoch": 1, "cache": "forget"}', "cache"),
    ('{"type": "event", "id": 1, "epoch": 1, "cache": "keep", "policy": "clear"}', "same field"),
    ('{"type": "event", "id": 1, "epoch": 1, "settings": {"text_guidance": NaN}}', "JSON object"),
    ('{"type": "event", "id": 1, "epoch": 1, "settings": {"text_guidance": 1e999}}', "text_guidance"),
    ('{"type": "event", "id": 1, "epoch": 1, "blend": [{"prompt": "a", "weight": 0}]}', "only 0"),
    ('{"type": "event", "id": 1, "epoch": 1, "blend": [{"prompt": "a", "weight": -1}]}', "at least 0"),
    ('{"type": "event", "id": 1, "epoch": 1, "blend": ' + json.dumps([["a", 1]] * 100) + "}", "1 to 16"),
    ('{"type": "event", "id": 1, "epoch": 1, "blend": 5}', "1 to 16"),
    ('{"type": "event", "id": 1, "epoch": 1, "prompt": "a", "blend": [["b", 1]]}', "found both"),
    ('{"type": "event", "id": 1, "epoch": 1, "prompt": "a", "over": 61}', "over"),
    ('{"type": "event", "id": 1, "epoch": 1, "cache": "recache", "over": 2}', "new words"),
    ('{"type": "event", "id": 1, "epoch": 1, "prompt": "a", "over": 2, "way": "square"}', "way"),
    ('{"type": "stroke", "id": 1, "epoch": 1, "frame": 0, "phase": "begin", "points": []}', "points"),
    ('{"type": "stroke", "id": 1, "epoch": 1, "frame": 0, "phase": "up", "points": [[0,0,0]]}', "phase"),
    ('{"type": "stroke", "id": 1, "epoch": 1, "frame": 0, "phase": "move", "points": [[0,1.5,0]]}', "points"),
    ('{"type": "path", "id": 1, "epoch": 1, "frame": 0, "points": [[5,0,0],[1,0,0]]}', "times"),
    ('{"type": "path", "id": 1, "epoch": 1, "frame": 0, "points": [[0,0,0],[99999,0,0]]}', "ms"),
    ('{"type": "pins", "points": [[0.5]]}', "numbers each"),
    ('{"type": "pins", "points": ' + json.dumps([[0.5, 0.5]] * 65) + "}", "points"),
    ('{"type": "camera", "pan": [9, 0], "zoom": 1, "rotate": 0}', "pan"),
    ('{"type": "camera", "pan": [0, 0], "zoom": 0, "rotate": 0}', "zoom"),
    ('{"type": "ack", "seq": 1, "epoch": 1, "shown": 1, "head": -1}', "head"),
    ('{"type": "ack", "seq": 4294967296, "epoch": 1, "shown": 1, "head": 1}', "seq"),
    ('{"type": "rewind"}', "mark"),
    (" " * (MAX_MESSAGE_BYTES + 1), "bytes"),
]


@pytest.mark.parametrize(("text", "reason"), BAD, ids=lambda value: value[:40])
def test_bad_messages_are_refused_by_name(text: str, reason: str) -> None:
    with pytest.raises(BadMessage, match=reason):
        parse(text)


def numbers_in(row: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in a message a number stands."""
    if isinstance(row, dict | list):
        places = row.items() if isinstance(row, dict) else enumerate(row)
        return [place for key, value in places for place in numbers_in(value, (*where, key))]
    return [where] if isinstance(row, int | float) and not isinstance(row, bool) else []


ALL_NUMBERS: list[dict[str, Any]] = [
    {"type": "start", "prompt": "a", "seed": 1, "settings": dict.fromkeys(SETTINGS, 1)},
    {"type": "event", "id": 1, "epoch": 1, "settings": dict.fromkeys(SETTINGS, 1)},
    {"type": "event", "id": 1, "epoch": 1, "blend": [{"prompt": "a", "weight": 1}, ["b", 2]], "over": 2},
    {"type": "stroke", "id": 1, "epoch": 1, "frame": 1, "phase": "move", "points": [[0, 0, 0]]},
    {"type": "path", "id": 1, "epoch": 1, "frame": 1, "points": [[0, 0, 0]] * 2, "grid": [1, 1, 0.1]},
    {"type": "box", "id": 1, "epoch": 1, "frame": 1, "points": [[0, 0, 0, 1, 1]] * 2, "spacing": 0.1},
    {"type": "pins", "id": 1, "points": [[0, 0], [0, 0, 1, 1, 0.1]]},
    {"type": "remove", "id": 1, "number": 1},
    {"type": "camera", "id": 1, "pan": [0, 0], "zoom": 1, "rotate": 0, "seconds": 1},
    {"type": "ack", "seq": 1, "epoch": 1, "shown": 1, "head": 1},
    {"type": "step", "frame": 1},
    {"type": "rewind", "mark": 1},
    {"type": "take", "take": 1},
    {"type": "pause", "id": 1},
]


@pytest.mark.parametrize("row", ALL_NUMBERS, ids=lambda row: row["type"])
def test_every_number_of_a_message_has_an_end_on_both_sides(row: dict[str, Any]) -> None:
    """A whole number that no float holds once ended the connection: it was not compared, but converted."""
    parse(json.dumps(row))
    assert {row["type"] for row in ALL_NUMBERS} == {*_PARSERS, *_SIMPLE} - {*_SIMPLE[1:]}
    for place in numbers_in(row):
        for value in (1e30, -1e30, 10**30, 10**400, -(10**400)):
            changed = inside = json.loads(json.dumps(row))
            for key in place[:-1]:
                inside = inside[key]
            inside[place[-1]] = value
            with pytest.raises(BadMessage, match=r"expected .*found") as refusal:
                parse(json.dumps(changed))
            named = [key for key in place if isinstance(key, str) and key != "settings"][-1]
            assert re.search(rf"\b({named}|grid|blend: weight): expected", str(refusal.value))
            assert len(str(refusal.value)) < 200


def test_good_messages_pass() -> None:
    assert parse('{"type": "start", "prompt": "a b", "seed": 3, "settings": {"text_guidance": 2}}') == Start(
        "a b", 3, {"text_guidance": 2.0}
    )
    event = parse('{"type": "event", "id": 1, "epoch": 2, "prompt": "a", "policy": "clear", "sink": "keep"}')
    assert event == Event(1, 2, "a", None, "clear", "keep")
    assert parse('{"type": "event", "id": 1, "epoch": 2, "cache": "recache"}') == Event(1, 2, cache="recache")
    plain = parse('{"type": "event", "id": 1, "epoch": 2, "settings": {"steps": 2}}')
    assert plain == Event(1, 2, None, {"steps": 2}), "settings alone say nothing of the past"
    text = '{"type": "event", "id": 1, "epoch": 2, "blend": [{"prompt": "a"}, ["b", 3]], "over": 2}'
    assert parse(text) == Event(1, 2, blend=(("a", 1.0), ("b", 3.0)), over=2.0)
    assert parse('{"type": "pins", "points": [], "id": 4}') == Pins((), 4)
    assert parse('{"type": "clear", "id": 4}') == Simple("clear", 4)
    stroke = parse('{"type": "stroke", "id": 1, "epoch": 1, "frame": 9, "phase": "end", "points": []}')
    assert stroke == Stroke(1, 1, 9, "end", ())


def test_a_frame_says_what_it_is() -> None:
    packed = pack_frame(b"png", PNG, 7, 2, 41, 11, 1.5)
    assert FRAME_HEADER.size == 28
    assert FRAME_HEADER.unpack(packed[:28]) == (1, PNG, 0, 7, 2, 41, 11, 1.5)
    assert packed[28:] == b"png"
