"""Errors of training that are shown to the user as one line."""

from streamgen.errors import StreamgenError


class TrainingError(StreamgenError):
    """Training cannot go on."""

    exit_code = 1


class GateError(TrainingError):
    """A stage ended below what it is to reach; `override` is the config override that goes on anyway."""

    def __init__(self, message: str, override: str) -> None:
        super().__init__(message)
        self.override = override
