"""Errors of training that are shown to the user as one line."""

from streamgen.errors import StreamgenError


class TrainingError(StreamgenError):
    """Training cannot go on."""

    exit_code = 1
