"""What tests of streams share: prompts, and taking chunks."""

from collections.abc import Mapping

import torch
from torch import Tensor

from streamgen import Session, StreamEvent

RED, BLUE = "a red circle", "a blue star over sand"


def take(session: Session, chunks: int) -> Tensor:
    """Pictures of the next chunks."""
    empty = torch.empty(0, 32, 32, 3, dtype=torch.uint8)
    return torch.cat([empty, *(next(session).frames for _ in range(chunks))])


def changed_latents(session: Session, changes: Mapping[int, StreamEvent], chunks: int) -> list[Tensor]:
    """Latents of the next chunks, each change submitted before the chunk of its number."""
    made = []
    for chunk in range(chunks):
        if chunk in changes:
            session.submit(changes[chunk])
        made.append(next(session).latents)
    return made


def context_keys(session: Session) -> Tensor:
    """Keys of the context, the last chunk committed."""
    settle_session(session)
    latents = session.state.latents
    return latents.ring.state(latents.cursor)["keys"]


def settle_session(session: Session) -> None:
    """Commit the last chunk now, as the next step would."""
    from dataclasses import replace

    from streamgen.stream.rollout import settle

    state = session.state
    latents = settle(session.runner, state.latents, state.noise)
    session._now = replace(session._now, state=replace(state, latents=latents))
