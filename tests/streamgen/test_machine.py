"""What is asked of a machine with an Apple GPU, on one without: torch's answers are made here."""

import pytest
import torch

from streamgen import machine
from streamgen.errors import InputError

MPS = torch.device("mps")
MEGABYTE = 2**20


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    called: list[str] = []
    answers = {"recommended_max_memory": 1000, "current_allocated_memory": 300}
    answers["driver_allocated_memory"] = 400
    for name, megabytes in answers.items():
        monkeypatch.setattr(torch.mps, name, lambda megabytes=megabytes: megabytes * MEGABYTE)
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.mps, name, lambda name=name: called.append(name))
    return called


def test_memory_and_queue_are_its_own(apple: list[str]) -> None:
    assert machine.free_bytes(MPS) == 700 * MEGABYTE
    assert machine.memory_mb(MPS) == 300
    assert machine.peak_memory_mb(MPS) == 400
    assert machine.default_dtype(MPS) == torch.bfloat16
    machine.synchronize(MPS)
    machine.give_back(MPS)
    assert apple == ["synchronize", "empty_cache"]


def test_the_peak_begins_anew_where_the_system_can() -> None:
    cpu = torch.device("cpu")
    held = torch.ones(64 * MEGABYTE // 4)
    least = machine.memory_mb(cpu)
    del held
    peak = machine.peak_memory_mb(cpu)
    # the system counts pages in bundles
    assert peak > least - 8
    if machine.forget_peak(cpu):
        assert machine.peak_memory_mb(cpu) < peak - 32
        held = torch.ones(64 * MEGABYTE // 4)
        assert machine.peak_memory_mb(cpu) > machine.memory_mb(cpu) - 8
        assert float(held[-1]) == 1.0


def test_a_full_one_has_nothing_free(apple: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 2000 * MEGABYTE)
    assert machine.free_bytes(MPS) == 0


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="has an Apple GPU")
def test_a_machine_without_says_so_in_one_line() -> None:
    with pytest.raises(InputError, match="device mps: needs a GPU of Apple") as caught:
        machine.device_of("mps")
    assert "\n" not in str(caught.value)
