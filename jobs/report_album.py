"""The figures of a report: each drawn into a folder as PNG, on request also as SVG, and taken into the page."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

from PIL import Image

from unicoord_atlas.report.page import Picture

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Album:
    """A folder that figures are drawn into, numbered as they come."""

    def __init__(self, folder: Path, svg: bool) -> None:
        self._folder, self._suffixes, self._count = folder, [".png", *([".svg"] if svg else [])], 0

    def picture(self, title: str, draw: Callable[[Path], object], many_colours: bool = False) -> Picture:
        """Draw a figure under a name made of its title; one of many colours keeps them all."""
        self._count += 1
        name = f"{self._count:02d}-{re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')[:60]}"
        for suffix in self._suffixes:
            draw(self._folder / f"{name}{suffix}")
        path = self._folder / f"{name}.png"
        return Picture(title, path.read_bytes() if many_colours else _fewer_colours(path))


def _fewer_colours(path: Path) -> bytes:
    """The PNG with a palette of 256: a third of the bytes where there are many points."""
    data = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").quantize(256).save(data, "PNG", optimize=True)
    return data.getvalue()
