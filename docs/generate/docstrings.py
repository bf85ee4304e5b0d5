"""Griffe extension: docstrings as people write them, in the form that the site's parser reads."""

from __future__ import annotations

import re
from typing import Any

import griffe

# Names that share one description, wrapped: the parser wants them on one line.
WRAPPED = re.compile(r"^( +(?:\w+, )*\w+,)\n +(?=[\w, ]+[,:])", re.MULTILINE)
# The plural makes a section with highlighted code; the singular would be read as prose.
EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)


class Readable(griffe.Extension):
    """Rewrites docstrings as they are loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by Griffe for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = readable(obj.docstring.value)


def readable(text: str) -> str:
    """`text` with its examples as a section and each shared description on one line."""
    text = EXAMPLE.sub("Examples:", text)
    joined = WRAPPED.sub(r"\1 ", text)
    return joined if joined == text else readable(joined)
