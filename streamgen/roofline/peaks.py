"""Ceilings of a device, measured: products of matrices, memory, attention. What a chunk reaches is told as a
share of them, so both are taken in one run: clocks of a device change with its load and heat.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F

from ..engine.attention import attention_kernels, attention_scope
from ..machine import synchronize

_ROUNDS = 5


@dataclass(frozen=True)
class Probe:
    """How large the pieces are that a device is measured with.

    Attributes:
        matrix: side of the square matrices.
        copied: bytes of the tensor that is copied; well beyond the caches.
        attention: heads, their width, queries and keys.
        seconds: of each round; the best round counts.
    """

    matrix: int
    copied: int
    attention: tuple[int, int, int, int]
    seconds: float

    @classmethod
    def of(cls, device: torch.device) -> "Probe":
        """What fills a device of this kind. On GPUs attention is that of a Wan 1.3B chunk of 3 latent frames
        at 480x832 with 12 in reach.
        """
        if device.type == "cuda":
            return cls(8192, 2**31, (12, 128, 4680, 18720), 0.1)
        return cls(768, 2**28, (8, 64, 512, 2048), 0.1)


@dataclass(frozen=True)
class Peaks:
    """What a device reached at best.

    Attributes:
        gemm_tflops: products of square matrices, 10^12 operations a second.
        bandwidth_gbs: bytes read and written by a copy, 10^9 a second.
        attention_tflops: attention by the first kernel that is asked for there.
    """

    gemm_tflops: float
    bandwidth_gbs: float
    attention_tflops: float

    def to_json(self) -> dict[str, float]:
        """Plain values."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


@torch.no_grad()
def measure_peaks(device: torch.device, dtype: torch.dtype, probe: Probe | None = None) -> Peaks:
    """Measure a device's ceilings; about a second, and on GPUs about 6 GiB.

    Args:
        dtype: of the matrices and of attention.
    """
    probe = probe or Probe.of(device)
    n = probe.matrix
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    gemm = best_seconds(lambda: a @ b, device, probe.seconds)
    source = torch.zeros(probe.copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = best_seconds(lambda: target.copy_(source), device, probe.seconds)
    # memory for the next piece
    source = target = torch.empty(0)
    heads, width, queries, keys = probe.attention
    q, k = (torch.randn(1, heads, length, width, device=device, dtype=dtype) for length in (queries, keys))
    with attention_scope(attention_kernels(device, dtype, width)):
        attention = best_seconds(lambda: F.scaled_dot_product_attention(q, k, k), device, probe.seconds)
    return Peaks(
        2 * n**3 / gemm / 1e12,
        2 * probe.copied / copy / 1e9,
        4 * heads * width * queries * keys / attention / 1e12,
    )


def best_seconds(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Seconds of one call: the best of five rounds of as many calls as fit into `seconds`, without waiting
    in between.
    """
    work()
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    calls = max(1, round(seconds / max(time.perf_counter() - began, 1e-7)))
    best = float("inf")
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        for _ in range(calls):
            work()
        synchronize(device)
        best = min(best, (time.perf_counter() - began) / calls)
    return best
