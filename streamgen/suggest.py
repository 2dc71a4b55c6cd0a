"""The "did you mean" part of messages about unknown keys."""

import difflib
import reprlib
from collections.abc import Iterable

# Beyond some 4300 digits Python writes no whole number.
_MAX_BITS = 10_000


def unknown_key(key: object, known: Iterable[str], noun: str = "key", where: str = "") -> str:
    """One-line text that names an unknown `key` and the closest of the `known` ones, or all of them.

    `noun` says what it is a key of or instead of one; `where` is its place, put before both names:
    `unknown config key 'optim.rate' (did you mean 'optim.lr'?)`.
    """
    names = list(known)
    close = difflib.get_close_matches(str(key), names, n=1)
    hint = f"did you mean {where + close[0]!r}?" if close else f"known: {', '.join(names) or 'none'}"
    return f"unknown {noun} {shorten(f'{where}{key}' if where else key)} ({hint})"


def shorten(value: object, limit: int = 60) -> str:
    """`repr(value)` on one line of at most `limit` characters, for quoting foreign input in a message.

    Of nested values only the beginning is looked at: a few lines of YAML can unfold to billions.
    """
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        return f"a number of {value.bit_length()} bits"
    text = repr(value) if isinstance(value, str | int | float | None) else _bounded(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _bounded(value: object) -> str:
    shortener = reprlib.Repr()
    shortener.maxlevel, shortener.maxdict, shortener.maxset = 4, 12, 12
    shortener.maxlist = shortener.maxtuple = 30
    shortener.maxstring = shortener.maxlong = shortener.maxother = 200
    try:
        return shortener.repr(value)
    except ValueError:  # such a number in it
        return f"a {type(value).__name__}"
