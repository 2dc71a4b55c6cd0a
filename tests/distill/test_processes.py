"""The processes that make streams for evaluations and exams."""

import os
import signal

import pytest

from distill.evaluation.pool import each
from streamgen import StreamgenError


def _killed_at(wanted: int, task: int) -> int:
    if task == wanted:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


@pytest.mark.slow
def test_a_killed_process_is_one_line() -> None:
    with pytest.raises(StreamgenError, match="one of its processes was killed") as error:
        list(each(2, _killed_at, range(4), 1))
    assert "\n" not in str(error.value)
