"""Figures beside tables: where matplotlib is not installed they are left out, and one line says so."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def can_draw() -> bool:
    """Whether there is matplotlib; if not, one line on stderr names the extra that it comes with."""
    if find_spec("matplotlib") is not None:
        return True
    print(
        "no figures: matplotlib is not installed; pip install 'unicoord-atlas[report]', then give the command again "
        "with another --out",
        file=sys.stderr,
    )
    return False
