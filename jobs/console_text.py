"""What is printed for people: names in it come from files, and may be anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_LONGEST = 1500
"""Letters of a message: a name may have a million."""


def plain_console(**options: Any) -> Console:
    """A console that shows names as they are, `[` and `:` in them included; on stderr unless `file` is given."""
    from rich.console import Console  # late: the parser of every command imports this module

    return Console(stderr="file" not in options, markup=False, emoji=False, **options)


def one_line(text: str) -> str:
    """A message as one line that a terminal shows as it is."""
    words = " ".join(text.split("\n"))
    safe = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in words)
    return safe if len(safe) <= _LONGEST else f"{safe[: _LONGEST - 500]} ... {safe[-500:]}"
