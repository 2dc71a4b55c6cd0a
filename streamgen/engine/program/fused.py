"""The diffusion network as a program computes it: the numbers of `models.causal_dit` in fewer operations.

Three things differ from the network as it reads. Queries, keys and values are one product. Modulation comes
in as a table, made once for each noise level and position of the sliders and not in every pass. And what lies
between two products is written down here as functions of tensors alone, so that a compiler makes one kernel
of each. They round to the network's precision where the network as it reads does, so that it stays what they
are compared with; a compiler that leaves such roundings out has to be told not to (`program.compiled`).
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import RMSNorm, attend
from models.causal_dit import CausalDiT, DiTBlock, timestep_embedding
from models.context import AttentionContext

from ..quantize import QuantizedLinear

# noise levels times positions of the sliders; a table is 1.1 MB at Wan size
_MOST_TABLES = 64


@dataclass(frozen=True)
class Modulation:
    """What a noise level and the sliders make of every norm of the network.

    Attributes:
        blocks: `(layers, 6, 1, T, 1, D)`: shift, one plus scale, and gate of attention and of feed-forward.
        head: `(2, 1, T, 1, D)`: shift, and one plus scale.
    """

    blocks: Tensor
    head: Tensor


class ModulationTables:
    """Modulations of a network, kept from chunk to chunk.

    Args:
        dit: whose weights stay as they are.
    """

    def __init__(self, dit: CausalDiT) -> None:
        self.dit = dit
        self._made: OrderedDict[tuple[float, tuple[float, float] | None, int], Modulation] = OrderedDict()
        self._making = threading.Lock()

    def at(self, timestep: float, strengths: tuple[float, float] | None, frames: int) -> Modulation:
        """The modulation of so many latent frames at a timestep of 0 to 1000; strengths of guidance for a
        network that takes them, None for no wish.
        """
        key = (timestep, strengths, frames)
        with self._making:
            if key not in self._made:
                self._made[key] = self._table(*key)
                if len(self._made) > _MOST_TABLES:
                    self._made.popitem(last=False)
            self._made.move_to_end(key)
            return self._made[key]

    @torch.no_grad()
    def _table(self, timestep: float, strengths: tuple[float, float] | None, frames: int) -> Modulation:
        dit, weight = self.dit, self.dit.head.head.weight
        # all rows, as the network has them: one row alone may be rounded otherwise
        levels = torch.full((1, frames), timestep, device=weight.device)
        time = dit.time_embedding(timestep_embedding(levels, dit.config.freq_dim).to(weight.dtype))
        if dit.config.guidance and strengths is not None:
            told = torch.stack([torch.full_like(levels, value) for value in strengths], -1)
            time = time + dit.embed_guidance(told, weight.dtype)
        shared = dit.time_projection(time).unflatten(-1, (6, dit.config.dim))
        rows = []
        for block in dit.blocks:
            shift1, scale1, gate1, shift2, scale2, gate2 = (cast(DiTBlock, block).modulation + shared).unbind(
                2
            )
            rows.append(torch.stack([shift1, 1 + scale1, gate1, shift2, 1 + scale2, gate2]))
        shift, scale = (dit.head.modulation + time[:, :, None]).unbind(2)
        return Modulation(torch.stack(rows)[:, :, :, :, None], torch.stack([shift, 1 + scale])[:, :, :, None])


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Layer norm of tokens `(B, T, N, D)`, times one plus scale, plus shift, both `(1, T, 1, D)`."""
    return F.layer_norm(x, x.shape[-1:], eps=eps) * scale + shift


def normed_heads(x: Tensor, norm: RMSNorm, heads: int) -> Tensor:
    """Queries or keys `(B, L, D)`, normed over their full width, as heads `(B, L, H, D / H)`."""
    normed: Tensor = norm(x)
    return normed.unflatten(-1, (heads, -1))


def gated_residual(x: Tensor, gate: Tensor, made: Tensor) -> Tensor:
    """What a part has made of tokens, through its gate `(1, T, 1, D)`, added to them."""
    return x + gate * made


class FusedNetwork(nn.Module):
    """A network for passes of one stream, over the weights of another one; the merged products are its own,
    three `D x D` a layer.

    Args:
        dit: in full precision or in eight bits.
    """

    def __init__(self, dit: CausalDiT) -> None:
        super().__init__()
        self.config, self.dit = dit.config, dit
        self.merged = nn.ModuleList(
            joined([block.self_attn.q, block.self_attn.k, block.self_attn.v]) for block in self._blocks()
        )

    def forward(
        self,
        x: Tensor,
        motion: Tensor | None,
        modulation: Modulation,
        words: tuple[Sequence[Tensor], Sequence[Tensor]],
        context: AttentionContext,
    ) -> Tensor:
        """Velocity `(1, T, C, H, W)`, as of `CausalDiT.forward`.

        Args:
            x: `(1, T, C, H, W)` noisy latents.
            motion: `(1, T, motion_channels, H, W)`; None for a network without.
            words: keys and values of the text, `(1, 1, L, heads, head_dim)` for each layer.
            context: what the tokens attend to besides text.
        """
        dit, patches = self.dit, self.config.patches
        pixels = x if motion is None else torch.cat([x, motion], 2)
        weight, bias = dit.patch_embedding.weight.flatten(1), dit.patch_embedding.bias
        hidden = F.linear(patches.cut(pixels), weight, bias)
        keys, values = words
        for layer in range(self.config.layers):
            table = modulation.blocks[layer].unbind(0)
            hidden = self._block(layer, hidden, table, (keys[layer], values[layer]), context)
        shift, scale = modulation.head.unbind(0)
        out = dit.head.head(modulated_norm(hidden, shift, scale, self.config.eps))
        return patches.joined(out, patches.grid(*x.shape[3:]))

    def _block(
        self,
        layer: int,
        x: Tensor,
        table: tuple[Tensor, ...],
        words: tuple[Tensor, Tensor],
        context: AttentionContext,
    ) -> Tensor:
        """As `DiTBlock.forward`."""
        block, heads = self._blocks()[layer], self.config.heads
        shift1, scale1, gate1, shift2, scale2, gate2 = table
        attention, cross = block.self_attn, block.cross_attn
        flat = modulated_norm(x, shift1, scale1, block.eps).flatten(1, 2)
        q, k, v = self.merged[layer](flat).chunk(3, -1)
        q, k = normed_heads(q, attention.norm_q, heads), normed_heads(k, attention.norm_k, heads)
        seen = context.attend(layer, q, k, v.unflatten(-1, (heads, -1)))
        x = gated_residual(x, gate1, attention.o(seen.flatten(2)).view_as(x))
        asked = normed_heads(cross.q(block.norm3(x).flatten(1, 2)), cross.norm_q, heads)
        read = attend(asked, words[0][:, 0], words[1][:, 0])
        x = x + cross.o(read.flatten(2)).view_as(x)
        return gated_residual(x, gate2, block.ffn(modulated_norm(x, shift2, scale2, block.eps)))

    def _blocks(self) -> list[DiTBlock]:
        return cast("list[DiTBlock]", list(self.dit.blocks))


def joined(parts: Sequence[nn.Module]) -> nn.Module:
    """Linear layers of one input as one, its outputs side by side; in eight bits the same numbers, since each
    channel has a scale of its own.
    """
    if all(isinstance(part, QuantizedLinear) for part in parts):
        return QuantizedLinear.joined(cast("Sequence[QuantizedLinear]", parts))
    linears = cast("Sequence[nn.Linear]", parts)
    width, weight = sum(part.out_features for part in linears), linears[0].weight
    made = nn.Linear(weight.shape[1], width, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        made.weight.copy_(torch.cat([part.weight for part in linears]))
        made.bias.copy_(torch.cat([part.bias for part in linears]))
    return made.requires_grad_(False)
