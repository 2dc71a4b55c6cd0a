"""Streams that get longer over a run's budget."""

from dataclasses import replace
from pathlib import Path

import pytest

from distill.config import ConfigError
from distill.running import ScriptConfig
from distill.stages.self_forcing import SelfForcingStage
from distill.stages.self_forcing_config import RolloutConfig
from distill.trainer import Tick
from tests.tiny_stages import CPU, self_forcing_run


def test_streams_grow_longer_over_the_budget(tmp_path: Path) -> None:
    """By whole updates, from one window to all; and no switch is told to streams that end before it."""
    plain = RolloutConfig(window_frames=5, fresh_frames=3, max_frames=17, long_from=0.2)
    assert [plain.longest(p) for p in (0.0, 0.19, 0.2, 0.9)] == [5, 5, 17, 17]
    grown = replace(plain, grow_until=0.7)
    lengths = [grown.longest(step / 1000) for step in range(1000)]
    assert lengths == sorted(lengths)
    assert list(dict.fromkeys(lengths)) == [5, 8, 11, 14, 17]
    assert lengths[199] == lengths[299] == 5
    assert lengths[699] == lengths[700] == 17
    with pytest.raises(
        ConfigError, match=r"rollout\.grow_until: expected from rollout\.long_from \(0\.2\) to 1"
    ):
        replace(plain, grow_until=0.1)
    config = self_forcing_run(tmp_path, script=ScriptConfig(1.0, 3, 24))
    stage = SelfForcingStage(replace(config, rollout=replace(grown, batch=2, steps=2)), CPU)
    switches: dict[int, set[int | None]] = {}
    for step in range(60):
        batch = stage.batch(Tick(step, 0, 0, 1, 1, step / 60))
        assert batch.limit == stage.config.rollout.longest(step / 60)
        switches.setdefault(batch.limit, set()).add(batch.script.switch)
    assert switches.pop(5) == {None}
    for limit, found in switches.items():
        assert found <= set(range(5, limit - 2, 3))
    assert len(switches[17]) > 2
