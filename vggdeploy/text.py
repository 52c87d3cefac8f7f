"""Text that others may have written, made safe to show: it moves no cursor and forges no line."""

from __future__ import annotations

import unicodedata

LONGEST = 400
"""Characters of a text that `clean` leaves."""

_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
_TURNING = frozenset(("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"))


def printable(text: str) -> str:
    """`text` on one line, character for character, without control characters, halves of surrogate
    pairs or marks that turn the direction of writing."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(" " if char.isspace() else _UNKNOWN if _unsafe(char) else char for char in text)


def clean(text: str) -> str:
    """`printable`, and not endless."""
    return printable(text[:LONGEST]) + ("…" if len(text) > LONGEST else "")


def _unsafe(char: str) -> bool:
    turns = unicodedata.bidirectional(char) in _TURNING or char in "\u200e\u200f\u061c"
    return turns or unicodedata.category(char) in ("Cc", "Cs", "Cn", "Co")
