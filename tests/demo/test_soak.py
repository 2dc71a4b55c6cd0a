"""An hour of the demo with three viewers who steer, pause, go back, reload and leave: `pytest -m soak`.

`STREAMGEN_SOAK_SECONDS` sets another length.
"""

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from demo.messages import FRAME_HEADER
from tests.demo.test_browser import PATIENCE
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
SECONDS = float(os.environ.get("STREAMGEN_SOAK_SECONDS", "3600"))
WORDS = [
    "a small red circle moves right over the sea",
    "a large blue star stays over sand",
    "a medium yellow star moves left over the grass",
    "a large purple diamond moves up over snow",
]
# Nothing for this long means that a stream is stuck.
_STUCK_SECONDS = 60.0
# A display's turn: how often a viewer looks at its clock.
_TURN_SECONDS = 0.03
# Growth of the server between the first and the last fifth of the time, MiB: rewind marks, caches of three
# sessions and allocator slack are there from the first fifth on.
_GROWTH_MB = 150.0
# Pools grow to their size late, and viewers come and go while it is read.
_SPARE_THREADS, _SPARE_FILES = 8, 12


@dataclass
class Tally:
    """What one viewer has seen."""

    frames: int = 0
    backwards: int = 0
    errors: list[str] = field(default_factory=list)
    failed: int = 0
    applied: int = 0
    longest_wait: float = 0.0
    places: int = 0


class Soaker:
    """A viewer with a clock like the page's and restless hands."""

    def __init__(self, port: int, seed: int) -> None:
        self.base, self.tally, self.random = f"127.0.0.1:{port}", Tally(), random.Random(seed)
        self.epoch = self.end = self.seq = self.number = 0
        self.shown, self.head, self.rate, self.playing = -1, 0.0, 0.0, False
        self.marks: deque[int] = deque(maxlen=20)
        self.takes: list[int] = []
        self.last = time.monotonic()
        # what was said last, both ways, for when something goes wrong
        self.trail: deque[str] = deque(maxlen=40)

    async def run(self, until: float) -> None:
        """Watch and steer; connections end and come back in between."""
        token = ""
        while time.monotonic() < until:
            if not token:
                async with httpx.AsyncClient() as client:
                    answer = await client.post(f"http://{self.base}/live/session", timeout=PATIENCE)
                token = answer.json()["session"]
                # a stranger again: nothing to say before a stream of its own has begun
                self.epoch, self.playing = 0, False
            try:
                async with connect(f"ws://{self.base}/live/ws/{token}", open_timeout=PATIENCE) as socket:
                    leaving = await self._stay(socket, until)
                token = "" if leaving else token
            except ConnectionClosed as closed:
                if closed.rcvd is None or closed.rcvd.code not in (4003, 4404):
                    self.tally.errors.append(str(closed))
                token = ""
            await asyncio.sleep(self.random.uniform(0, 2))

    async def _stay(self, socket: ClientConnection, until: float) -> bool:
        """One connection of up to five minutes; True when the viewer leaves for good."""
        end = min(until, time.monotonic() + self.random.uniform(60, 300))
        hands = asyncio.create_task(self._steer(socket))
        heard = time.monotonic()
        try:
            while time.monotonic() < end:
                try:
                    data = await asyncio.wait_for(socket.recv(), _TURN_SECONDS)
                except TimeoutError:
                    data = None
                now = time.monotonic()
                before = int(self.head)
                self._advance(now)
                if isinstance(data, bytes):
                    self._frame(data)
                    self.tally.longest_wait = max(self.tally.longest_wait, now - heard)
                    heard = now
                elif data is not None:
                    await self._message(socket, json.loads(data))
                # as the protocol asks: for what arrives and for what is shown
                if self.epoch and (isinstance(data, bytes) or int(self.head) > before):
                    await self._acknowledge(socket)
                heard = heard if self.playing else now
                assert now - heard < _STUCK_SECONDS, f"the stream is stuck: {[*self.trail]}"
        finally:
            hands.cancel()
            await asyncio.gather(hands, return_exceptions=True)
        return self.random.random() < 0.5

    def _advance(self, now: float) -> None:
        if self.playing:
            self.head = min(self.head + (now - self.last) * self.rate, max(self.head, float(self.end)))
        self.last = now

    def _frame(self, data: bytes) -> None:
        _, _, _, self.seq, epoch, frame, _, _ = FRAME_HEADER.unpack(data[: FRAME_HEADER.size])
        if epoch != self.epoch:
            return
        self.tally.frames += 1
        self.tally.backwards += frame <= self.shown
        self.shown = frame

    async def _acknowledge(self, socket: ClientConnection) -> None:
        row = {"type": "ack", "seq": self.seq, "epoch": self.epoch, "shown": max(self.shown, 0)}
        await socket.send(json.dumps(row | {"head": self.head}))

    async def _message(self, socket: ClientConnection, message: dict[str, Any]) -> None:
        kind = message["type"]
        self._note(message)
        if kind == "state":
            self.playing = message["state"] == "playing"
            self.tally.failed += message["state"] == "failed"
            if message["state"] == "ready":
                seed = self.random.randrange(1000)
                row = {"type": "start", "prompt": self.random.choice(WORDS), "seed": seed}
                await socket.send(json.dumps(row))
        elif kind == "place":
            self.epoch, self.end, self.head = message["epoch"], message["frame"], float(message["frame"])
            self.shown = message["frame"] - 1
            self.marks = deque((mark["id"] for mark in message["marks"]), maxlen=20)
            self.takes = [take["id"] for take in message["takes"]]
            self.tally.places += 1
        elif kind == "chunk" and message["epoch"] == self.epoch:
            self.end, self.rate = message["end"], message["rate"]
        elif kind == "mark":
            self.marks.append(message["id"])
        elif kind == "receipt":
            self.tally.applied += message["status"] == "applied"
        elif kind == "error" and message["code"] != "gone":
            self.tally.errors.append(message["text"])
            sys.stdout.write(f"{message['text']}: {[*self.trail]}\n")

    async def _steer(self, socket: ClientConnection) -> None:
        while True:
            await asyncio.sleep(self.random.uniform(0.5, 6))
            if not self.epoch:
                continue
            for row in self._gesture():
                self._note(row)
                await socket.send(json.dumps(row))
                await asyncio.sleep(0.2)

    def _note(self, message: dict[str, Any]) -> None:
        if message["type"] not in ("stats", "mark"):
            small = {key: value for key, value in message.items() if isinstance(value, str | int | float)}
            self.trail.append(f"{self.head:.1f} of {self.end}: {json.dumps(small)[:160]}")

    def _gesture(self) -> list[dict[str, Any]]:
        self.number += 1
        said = {"id": self.number, "epoch": self.epoch}
        drawn = {**said, "frame": max(self.shown, 0)}
        x, y = self.random.random(), self.random.random()
        rest = {"type": "camera", "pan": [0, 0], "zoom": 1, "rotate": 0}
        policy = self.random.choice(("recache", "keep", "clear"))
        gestures: list[list[dict[str, Any]]] = [
            [{"type": "event", **said, "prompt": self.random.choice(WORDS), "policy": policy}],
            [{"type": "event", **said, "settings": {"text_guidance": self.random.uniform(1, 4)}}],
            [
                {"type": "stroke", **drawn, "phase": "begin", "points": [[0, x, y]]},
                {"type": "stroke", **drawn, "phase": "move", "points": [[400, y, x]]},
                {"type": "stroke", **drawn, "phase": "end", "points": []},
            ],
            [{"type": "path", **drawn, "points": [[0, x, y], [900, y, x]]}],
            [{"type": "pins", "points": [[x, y]]}, {**rest, "pan": [0.1, 0]}, rest, {"type": "clear"}],
            [{"type": "pause"}, {"type": "step", "frame": self.shown + 1}, {"type": "resume"}],
            [{"type": "rewind", "mark": mark} for mark in list(self.marks)[:1]],
            [{"type": "take", "take": take} for take in self.takes[:1]],
            [{"type": "awake"}],
        ]
        return self.random.choice(gestures)


@dataclass
class Usage:
    """What the server takes, along the way: memory (MiB), threads, open files."""

    memory: list[float] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    def read(self, server: psutil.Process) -> None:
        """One reading."""
        self.memory.append(server.memory_info().rss / 2**20)
        self.threads.append(server.num_threads())
        self.files.append(server.num_fds())

    def growth(self, name: str) -> float:
        """From the most of the first fifth of the readings to the most of the last."""
        values = vars(self)[name]
        fifth = max(1, len(values) // 5)
        return float(max(values[-fifth:]) - max(values[:fifth]))


async def soak(port: int, server: psutil.Process) -> tuple[list[Tally], Usage]:
    """Three viewers until the time is over; what they saw, and what the server took."""
    until = time.monotonic() + SECONDS
    viewers = [Soaker(port, seed) for seed in range(3)]
    watching = asyncio.gather(*(viewer.run(until) for viewer in viewers))
    usage = Usage()
    while not watching.done():
        usage.read(server)
        await asyncio.wait([watching], timeout=max(1.0, SECONDS / 100))
    await watching
    return [viewer.tally for viewer in viewers], usage


@pytest.mark.soak
def test_an_hour_with_three_viewers() -> None:
    port = free_port()
    command = [sys.executable, "-m", "demo", "--port", str(port), "--max-sessions", "3"]
    with subprocess.Popen(command, cwd=ROOT) as server:
        try:
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    httpx.get(f"http://127.0.0.1:{port}/live/health", timeout=5)
                    break
                except httpx.HTTPError:
                    assert time.monotonic() < deadline, "the demo does not come up"
                    time.sleep(0.2)
            tallies, usage = asyncio.run(soak(port, psutil.Process(server.pid)))
            time.sleep(6)
            left = httpx.get(f"http://127.0.0.1:{port}/live/health", timeout=PATIENCE).json()
        finally:
            server.terminate()
    grown = {name: round(usage.growth(name)) for name in ("memory", "threads", "files")}
    sys.stdout.write(f"{tallies}\n{left}\nat the end {usage.memory[-1]:.0f} MiB; grown by {grown}\n")
    for tally in tallies:
        assert tally.frames > 0.5 * SECONDS
        assert (tally.backwards, tally.failed, tally.errors) == (0, 0, [])
        assert tally.applied > 0
    assert grown["memory"] < _GROWTH_MB
    assert grown["threads"] <= _SPARE_THREADS
    assert grown["files"] <= _SPARE_FILES
    assert left == {"running": 0, "waiting": 0, "watching": 0}
