"""What is computed before loading is what a process takes at its peak."""

from pathlib import Path

import pytest

from tests.measured_memory import CASES, measure


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads /proc")
@pytest.mark.parametrize("name", ["plain, Wan VAE", "two live LoRAs", "int8+cache"])
def test_the_estimate_is_what_a_process_takes(name: str, tmp_path: Path) -> None:
    """Within a tenth; a little less is taken where the largest two things do not meet."""
    found = measure(CASES[name], tmp_path)
    assert -0.12 < found.off <= 0.1, found
