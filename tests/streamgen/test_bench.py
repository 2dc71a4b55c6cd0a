"""How bench tells the parts of a chunk apart."""

from pathlib import Path

import pytest

import streamgen.bench
from streamgen import StreamEvent, load_pipeline
from tests.streams import BLUE, RED
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs


def test_parts_wait_for_the_device_outside_of_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It used to wait in a hook of the network: a compiled one was compiled anew, or could not be with a wait
    in the middle.
    """
    pipeline = load_pipeline(write_checkpoint(tmp_path / "model"), runner="plain")
    waits: list[str] = []
    monkeypatch.setattr(streamgen.bench, "synchronize", lambda device: waits.append(device.type))

    def check() -> None:
        waits.clear()
        session = pipeline.open(RED, 1)
        runner = session.runner
        next(session)
        with streamgen.bench._parts(session, True) as copies:
            assert not pipeline.dit._forward_hooks
            # the commit that was due, and the wait before the pictures are copied
            next(session)
            assert (len(waits), len(copies)) == (2, 1)
            session.submit(StreamEvent(prompt=BLUE))
            # both chunks so far anew, the one that was due among them, and the pictures
            next(session)
            assert (len(waits), len(copies)) == (2 + 2 + 1, 2)
        assert session.runner is runner

    assert_needs(check, monkeypatch, streamgen.bench, "_waiting", lambda work, device: work)
