"""Students whose patches overlap."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill.config import ConfigError
from distill.stages import load_run
from distill.stages.self_forcing import SelfForcingStage
from distill.trainer import Tick
from tests.rolled_streams import GRID, rolled, script_of, streamed
from tests.tiny_models import randomize
from tests.tiny_stages import CPU, NETWORK, init_run, self_forcing_run

CONFIGS = Path(__file__).parents[2] / "configs"


def test_a_student_whose_tokens_overlap_starts_from_one_whose_do_not(tmp_path: Path) -> None:
    """It has the same weights and 9 tokens for 4, rolls out what its sessions stream, and is scored by those
    it came from.
    """
    teacher = init_run(tmp_path).teacher
    network = replace(NETWORK, patch_stride=1)
    config = self_forcing_run(tmp_path, network=network, teacher=teacher, scoring="chunks")
    made = SelfForcingStage(config, CPU)
    assert made.student.new_cache(1, GRID).shape.grid == (3, 3)
    assert made.teacher.dit.config.patches.stride == 2
    side_by_side = SelfForcingStage(self_forcing_run(tmp_path, teacher=teacher, scoring="chunks"), CPU)
    for name, value in side_by_side.student.state_dict().items():
        assert torch.equal(made.student.state_dict()[name], value), name
    for module in (made.student, made.critic):
        randomize(module, 7)
        loss, _ = made.loss(module, replace(made.batch(Tick(0, 0, 0, 1, 1, 0.5)), first=False))
        loss.backward()
        for part in (module.dit.patch_embedding, module.dit.head.head):
            assert part.weight.grad is not None
            assert float(part.weight.grad.abs().sum()) > 0
    script = script_of(made, 7, tracks=True)
    expected = streamed(made, script, 7, tmp_path / "export")
    torch.testing.assert_close(rolled(made, script, 12), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [0, -1, 3, 4])
def test_strides_that_do_not_divide_are_refused(stride: int) -> None:
    with pytest.raises(ConfigError, match=rf"network.patch_stride: expected .* \(2\), found {stride}"):
        load_run(CONFIGS / "distill/tiny/causal.yaml", [f"network.patch_stride={stride}"])
