"""What the device reaches by itself, and which attention kernels it really takes."""

from collections import Counter
from typing import Any

import torch
from torch.nn.attention import SDPBackend, current_flash_attention_impl
from torch.profiler import ProfilerActivity, profile

from models.attention import attend
from models.context import ChunkPlan
from models.kv_cache import CacheCursor, CacheRing, CacheShape

from ..engine.attention import SAGE, attention_kernels, attention_scope
from ..engine.quantize import Quantization, kernel_missing, product, rounded
from ..engine.runner import CommitTask, PlainRunner
from ..machine import synchronize
from ..roofline.peaks import best_seconds, measure_peaks
from .plan import LONG_LIVE, Plan, Row

# by kernel: what torch calls it, and a part of the name that it has on the device
_KERNELS: dict[SDPBackend | None, tuple[str, str]] = {
    None: ("_scaled_dot_product_flash_attention_for_cpu", ""),
    SDPBackend.CUDNN_ATTENTION: ("_scaled_dot_product_cudnn_attention", "cudnn"),
    SDPBackend.FLASH_ATTENTION: ("_scaled_dot_product_flash_attention", "flash"),
    SDPBackend.EFFICIENT_ATTENTION: ("_scaled_dot_product_efficient_attention", "fmha"),
    SDPBackend.MATH: ("_scaled_dot_product_attention_math", ""),
}
_OPERATIONS = {operation for operation, _ in _KERNELS.values()}
_SHOWN = 120


def ceilings(plan: Plan, row: Row) -> None:
    """Products of matrices, memory and attention at best, by the precision of the numbers."""
    for dtype in (torch.bfloat16, torch.float32):
        row(str(dtype).removeprefix("torch."), measure_peaks(plan.device, dtype, plan.probe).to_json())
    for kind in ("int8", "fp8"):
        row(kind, _eight_bits(plan, kind))


@torch.no_grad()
def _eight_bits(plan: Plan, kind: Quantization) -> dict[str, Any]:
    """Products of matrices in eight bits, scaling included."""
    reason = kernel_missing(plan.device, plan.dtype, kind)
    if reason is not None:
        return {"missing": reason}
    n = plan.probe.matrix
    rows, scale = rounded(torch.randn(n, n, device=plan.device, dtype=plan.dtype), kind)
    work = lambda: product(kind, rows, scale, plan.dtype)  # noqa: E731
    return {"gemm_tflops": round(2 * n**3 / best_seconds(work, plan.device, plan.probe.seconds) / 1e12, 4)}


def kernels(plan: Plan, row: Row) -> None:
    """The kernels of a pass as the profiler sees them, against the one that is asked for first."""
    pipeline = plan.wan(LONG_LIVE, "dit.layers=2", "decoder=none")
    dit, layout = pipeline.dit, pipeline.plan
    runner = PlainRunner(dit)
    shape = CacheShape(dit.config.layers, dit.config.heads, dit.config.head_dim, pipeline.geometry.token_grid)
    ring = CacheRing(shape, layout, dit.rope, plan.device, plan.dtype)
    geometry, length = pipeline.geometry, layout.chunk_frames
    size = (1, length, geometry.latent_channels, geometry.latent_height, geometry.latent_width)
    latents = torch.zeros(size, device=plan.device, dtype=plan.dtype)
    text, cursor = pipeline.text("a boat").context, CacheCursor(frames=layout.attention_frames)
    task = CommitTask(ring, cursor, latents, (0.0,) * length, text, None)
    found = _profiled(lambda: runner.commit(task), plan)
    # each layer looks at the context and at the words
    row("a pass", _judged(found, plan, dit.config.head_dim, 2 * dit.config.layers))
    row("behind a mask", _masked(plan, layout, dit.config.heads, dit.config.head_dim, shape.tokens))


def _masked(plan: Plan, layout: ChunkPlan, heads: int, width: int, tokens: int) -> dict[str, Any]:
    """Attention as a compiled pass has it until the window is full; nobody promises a kernel here."""
    queries, keys = layout.chunk_frames * tokens, layout.attention_frames * tokens
    q, k = (torch.zeros(1, n, heads, width, device=plan.device, dtype=plan.dtype) for n in (queries, keys))
    mask = (torch.arange(keys, device=plan.device) < keys // 2)[None, None, None]
    order = attention_kernels(plan.device, plan.dtype, width)

    def work() -> None:
        with attention_scope(order):
            attend(q, k, k, mask)

    return _told(_profiled(work, plan))


def _profiled(work: Any, plan: Plan) -> tuple[Counter[str], Counter[str]]:
    """Attention operations of torch, and names of kernels on the device, with how often they ran."""
    activities = [ProfilerActivity.CPU]
    if plan.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with torch.no_grad():
        work()
        synchronize(plan.device)
        with profile(activities=activities) as seen:
            work()
            synchronize(plan.device)
    operations: Counter[str] = Counter()
    on_device: Counter[str] = Counter()
    for event in seen.events() or []:
        if event.device_type.name == "CUDA":
            on_device[event.name] += 1
        elif (name := event.name.removeprefix("aten::")) in _OPERATIONS:
            operations[name] += 1
    return operations, on_device


def _judged(
    found: tuple[Counter[str], Counter[str]], plan: Plan, width: int, expected: int
) -> dict[str, Any]:
    """Whether all attention of a pass was by the kernel that is asked for first."""
    order = attention_kernels(plan.device, plan.dtype, width)
    operation, mark = _KERNELS[order[0] if order else None]
    if mark == "flash" and current_flash_attention_impl() == SAGE:
        mark = "attn"
    operations, on_device = found
    right = operations == Counter({operation: expected})
    if on_device and mark:
        # where the driver lets nobody look at it, torch's own word has to do
        right = right and sum(n for name, n in on_device.items() if mark in name.lower()) >= expected
    return {"ok": right, "asked": operation} | _told(found)


def _told(found: tuple[Counter[str], Counter[str]]) -> dict[str, Any]:
    operations, on_device = found
    marks = {mark for _, mark in _KERNELS.values() if mark} | {"sdpa", "softmax"}
    attention = [name for name in on_device if any(mark in name.lower() for mark in marks)]
    return {
        "found": "; ".join(f"{name} x {count}" for name, count in operations.items()) or "none",
        "on_device": "; ".join(name[:_SHOWN] for name in attention) or "none",
        "kernels": dict(on_device.most_common(40)),
    }
