"""matplotlib without a screen: it is an extra, and says so where it is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unicoord_atlas.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

try:
    import matplotlib as mpl
except ImportError:
    raise ConfigError("figures need matplotlib, which is not installed: pip install 'unicoord-atlas[report]'") from None

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D

mpl.rcParams["text.parse_math"] = False  # a $ in the name of a type begins no formula

__all__ = ["Line2D", "Normalize", "ScalarMappable", "plt", "save"]


def save(figure: Figure, path: Path) -> None:
    """Write and forget a figure."""
    figure.savefig(path, dpi=150)
    plt.close(figure)
