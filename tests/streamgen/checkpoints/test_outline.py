"""Networks of shapes alone: those of the meta device, without what torch imports for it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from models.causal_dit import CausalDiT
from models.text_encoder import TextEncoder
from models.video_tokenizer import VideoTokenizer
from streamgen.checkpoints.outline import ShapesAlone
from streamgen.tiny.config import read_tiny_config
from tests.command_line import ROOT, environment
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_models import assert_needs

SHIPPED = ROOT / "streamgen" / "weights" / "tiny"


def test_shapes_are_those_of_the_network_and_no_matrix_is_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read_tiny_config(write_checkpoint(tmp_path / "m"))

    def made() -> nn.ModuleDict:
        dit = CausalDiT(config.dit)
        parts = {"text": TextEncoder(config.text_encoder), "tokenizer": VideoTokenizer(config.tokenizer)}
        return nn.ModuleDict({"dit": dit, **parts})

    with torch.device("meta"):
        expected = {name: (x.shape, x.dtype) for name, x in made().named_parameters()}

    def check() -> None:
        with ShapesAlone():
            found = made()
        assert {name: (x.shape, x.dtype) for name, x in found.named_parameters()} == expected
        layers = (nn.Linear, nn.Conv3d, nn.Embedding)
        weights = [module.weight for module in found.modules() if isinstance(module, layers)]
        assert len(weights) > 20
        assert all(weight.is_meta for weight in weights)
        assert found["dit"].blocks[0].modulation.is_meta

    plain = lambda self, func, types, args=(), kwargs=None: func(*args, **(kwargs or {}))  # noqa: E731
    assert_needs(check, monkeypatch, ShapesAlone, "__torch_function__", plain)


@pytest.mark.slow
def test_loading_a_small_model_imports_no_compiler() -> None:
    """It would take longer than all else that the first frame needs."""
    code = (
        "import sys; from streamgen import load_pipeline; load_pipeline(sys.argv[1], device='cpu'); "
        "heavy = {'torch._dynamo', 'sympy'} & set(sys.modules); sys.exit(repr(heavy) if heavy else 0)"
    )
    command = [sys.executable, "-c", code, str(SHIPPED)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
