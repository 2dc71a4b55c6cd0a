"""The two families of models as the stages train them: `tiny`, made from nothing, and `wan`."""

from .config import DiffusionRun
from .family import Family, NetworkSpec
from .tiny import TinyFamily
from .wan import WanFamily

__all__ = ["DiffusionRun", "NetworkSpec", "TinyFamily", "family_of"]


def family_of(config: DiffusionRun) -> type[Family]:
    """The family that a stage's config trains a model of."""
    return TinyFamily if config.wan is None else WanFamily
