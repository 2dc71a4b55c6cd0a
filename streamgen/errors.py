"""Errors that are shown to the user as one line, without a traceback."""


class StreamgenError(Exception):
    """A user-facing error: its text is one line, `exit_code` is the exit status of the command line."""

    exit_code = 2


class InputError(StreamgenError):
    """Bad input: a prompt, job, motion file, clip, image, option or output folder."""


class OutputError(InputError):
    """Output that cannot be written: no other item of the run would fare better."""


class CheckpointError(StreamgenError):
    """Weights that are missing, damaged or do not fit."""


class Interrupted(StreamgenError):
    """The user stopped the work; its text says what was kept."""

    exit_code = 130


class NonFiniteError(StreamgenError):
    """A chunk came to NaN or infinity; the stream is as it was before it."""
