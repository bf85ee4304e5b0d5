"""Errors that a person can act on: one line, no traceback on the command line."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class PeiraError(Exception):
    """Something the caller can put right; the message says how."""


class DiskError(PeiraError):
    """A file that cannot be written; ends a study, because every other cell would meet it too."""


class CardError(PeiraError):
    """A `card.toml` that breaks its schema; names the file, the key and what was expected."""


class StudyError(PeiraError):
    """A study asked for something that does not exist or contradicts its card."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """A ` Did you mean ...?` clause, or the list of choices when nothing is close."""
    choices = sorted(choices)
    close = get_close_matches(word, choices, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"choose from: {', '.join(choices) or 'none'}"
