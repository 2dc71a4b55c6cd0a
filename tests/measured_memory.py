"""What a model and a stream take of a process's own memory, beside what is computed before: each case in a
process of its own. `python -m tests.measured_memory` prints the table
(or the rows named); `--full` at the 1.3B shape.

The streams switch their prompt between two chunks, so that a recache is among what is measured.
"""

import gc
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from tests.command_line import ROOT, environment

# About a twelfth of the 1.3B shape. Where convolutions have 32 channels oneDNN may unfold their input, 27
# times its size, which it does not at the widths of Wan's decoder.
TWELFTH = (
    "dit.dim=512", "dit.heads=4", "dit.ffn_dim=2816", "dit.layers=20", "vae.dim=64", "text.length=128",
    "text.dim=1024", "dit.text_dim=1024", "tiny_decoder.encoder_dim=32",
    "tiny_decoder.decoder_dims=[128,64,32,32]",
)  # fmt: skip
WIDE = ("width=112", "height=64", "sampling.steps=1")
UPRIGHT = ("width=64", "height=112", "sampling.steps=1")
SMALL_PICTURE = ("width=80", "height=48", "sampling.steps=1")
CHUNKS = 2


@dataclass(frozen=True)
class Case:
    """A model and a stream of it.

    Attributes:
        model: a config by name.
        overrides: of the config.
        loras: ranks of live LoRAs over all linear layers of the blocks.
        quantize: what is asked for at load.
        fit: share of what the model needs as it is that it may take; None: as the config says.
    """

    model: str
    overrides: tuple[str, ...] = ()
    loras: tuple[int, ...] = ()
    quantize: str | None = None
    fit: float | None = None
    sizes: tuple[str, ...] = TWELFTH


@dataclass(frozen=True)
class Measured:
    """Bytes that were computed and that were taken at most, and what `--fit` said."""

    computed: int
    taken: int
    notes: list[str] = field(default_factory=list)

    @property
    def off(self) -> float:
        """By which share more was taken than was computed."""
        return self.taken / self.computed - 1


SELF_FORCING, LONGLIVE, FRAME = "wan-1.3b-self-forcing", "wan-1.3b-longlive", "wan-1.3b-causal-forcing-frame"
VAE, TINY = "decoder=vae", "decoder=tiny"
CASES = {
    "plain, Wan VAE": Case(SELF_FORCING, (*WIDE, VAE)),
    "plain, TAEHV": Case(SELF_FORCING, (*WIDE, TINY)),
    "joint recache": Case(LONGLIVE, (*WIDE, TINY)),
    "frame-wise": Case(FRAME, (*WIDE, VAE)),
    "upright": Case(SELF_FORCING, (*UPRIGHT, VAE)),
    "two live LoRAs": Case(SELF_FORCING, (*WIDE, TINY), loras=(128, 32)),
    "int8": Case(SELF_FORCING, (*WIDE, TINY), quantize="int8"),
    "int8+cache": Case(SELF_FORCING, (*WIDE, TINY), quantize="int8+cache"),
    "--fit 70 %": Case(SELF_FORCING, (*WIDE, VAE), fit=0.7),
    "--fit 50 %": Case(SELF_FORCING, (*WIDE, VAE), fit=0.5),
}
FULL_CASES = {
    "1.3B, Wan VAE": Case(LONGLIVE, (*SMALL_PICTURE, VAE), sizes=()),
    "1.3B, int8": Case(LONGLIVE, (*SMALL_PICTURE, TINY), quantize="int8", sizes=()),
}


def measure(case: Case, folder: Path) -> Measured:
    """Measure a case in a process of its own.

    Args:
        folder: for its weights.
    """
    order = vars(case) | {"folder": str(folder)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.measured_memory", "--one", json.dumps(order)],
        cwd=ROOT,
        # small blocks are given back as large ones are: at full size all that counts is large
        env=environment() | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "131072"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def _write(config: Any, folder: Path, ranks: list[int]) -> list[Any]:
    """Files of random weights, and LoRAs over all linear layers of the blocks. Files, not `--random-weights`:
    what is read of a file is not memory of the process.
    """
    import torch
    from safetensors.torch import save_file

    from models.causal_dit import CausalDiT
    from models.tiny_decoder import TinyDecoder
    from models.wan_vae import WanVAE
    from streamgen.wan.loras import LoraFile

    torch.manual_seed(0)
    dit = CausalDiT(config.dit)
    save_file(dit.state_dict(), folder / "dit.safetensors")
    save_file(WanVAE(config.vae).state_dict(), folder / "vae.safetensors")
    save_file(TinyDecoder(config.tiny_decoder).state_dict(), folder / "tiny_decoder.safetensors")
    for rank in ranks:
        tensors = {}
        for name, module in dit.named_modules():
            if isinstance(module, torch.nn.Linear) and name.startswith("blocks."):
                tensors[f"{name}.lora_A.weight"] = torch.full((rank, module.in_features), 0.01)
                tensors[f"{name}.lora_B.weight"] = torch.full((module.out_features, rank), 0.01)
        save_file(tensors, folder / f"rank{rank}.safetensors")
    return [LoraFile(str(folder / f"rank{rank}.safetensors"), 0.5) for rank in ranks]


def _one(order: dict[str, Any]) -> dict[str, Any]:
    """Measure in this process, which has done nothing before."""
    import torch

    from streamgen import StreamEvent, load_pipeline
    from streamgen.wan import load
    from streamgen.wan.config import CONFIGS, read_wan_config
    from streamgen.wan.memory import GIB, check_memory, memory_parts
    from streamgen.wan.options import TextOptions, WanOptions

    overrides = (*order["sizes"], *order["overrides"], "text.kind=hashed")
    config = read_wan_config(CONFIGS / f"{order['model']}.yaml", overrides)
    folder = Path(order["folder"])
    loras = _write(config, folder, order["loras"])
    files = [f"sources.{part}=[{part}.safetensors]" for part in ("dit", "vae", "tiny_decoder")]
    plain = load.setup_of(config, torch.device("cpu"), torch.float32, TextOptions())
    fit = None if order["fit"] is None else order["fit"] * sum(memory_parts(config, plain).values()) / GIB
    options = WanOptions(
        folder, overrides=(*overrides, "sources.lora=[]", *files), live_loras=tuple(loras), fit=fit
    )
    computed: list[int] = []

    def noted(*about: Any) -> dict[str, int]:
        parts = check_memory(*about)
        computed.append(sum(parts.values()))
        return parts

    _warm_up()
    with mock.patch("streamgen.wan.load.check_memory", noted), _peak() as taken:
        pipeline = load_pipeline(order["model"], "cpu", torch.float32, options, "plain", order["quantize"])
        session = pipeline.open("a red boat", 1)
        for number in range(CHUNKS):
            if number == CHUNKS - 1:
                session.submit(StreamEvent("a storm"))
            next(session)
    return {"computed": computed[-1], "taken": taken[0], "notes": list(pipeline.parts.notes)}


def _warm_up() -> None:
    """Stream a small model: what the first pass of anything leaves behind is no model's."""
    from streamgen import StreamEvent, load_pipeline
    from streamgen.wan.options import WanOptions
    from tests.tiny_wan import SMALL

    for decoder in (VAE, TINY):
        options = WanOptions(random_weights=True, overrides=(*SMALL, decoder))
        session = load_pipeline(LONGLIVE, "cpu", wan=options).open("a red boat")
        next(session)
        session.submit(StreamEvent("a storm"))
        next(session)


@contextmanager
def _peak() -> Iterator[list[int]]:
    """Most bytes that the process takes within, more than before; known behind it."""
    gc.collect()
    start, found, over = _own(), [0], threading.Event()

    def watch() -> None:
        while not over.is_set():
            found[0] = max(found[0], _own() - start)
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def _own() -> int:
    """Bytes of the process's own memory: not of files that are mapped."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def main(arguments: list[str]) -> None:
    """Print the table, or measure one case."""
    if arguments[:1] == ["--one"]:
        sys.stdout.write(json.dumps(_one(json.loads(arguments[1]))) + "\n")
        return
    cases = FULL_CASES if arguments[:1] == ["--full"] else CASES
    wanted = arguments[1:] if arguments[:1] == ["--full"] else arguments
    for name in wanted or cases:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(cases[name], Path(folder))
        told = next((note for note in found.notes if note.startswith("--fit")), "")
        row = (f"{found.computed / 2**20:.0f}", f"{found.taken / 2**20:.0f}", f"{found.off:+.1%}", told)
        sys.stdout.write(f"| {name} | {' | '.join(row)} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
