"""report: one self-contained page about a run."""

from __future__ import annotations

import json
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unicoord_atlas.checksums import file_checksum
from unicoord_atlas.errors import AlreadyDone, DataError, UsageError
from unicoord_atlas.loaders.soma_address import is_soma
from unicoord_atlas.loaders.zarr_layout import MANIFEST
from unicoord_atlas.report.page import DATA_ID, page

from .report_inputs import Inputs, open_inputs
from .workdir import describe_input, finished_directory, finished_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unicoord_atlas.report.page import Section

    from .report_album import Album

MADE_FROM = "made-from"
"""Among the numbers of a page: what tells its inputs from others."""


@dataclass(frozen=True)
class ReportOptions:
    """What `unicoord-atlas report` is asked to do."""

    run: Path
    out: Path
    atlas: Path | None = None
    latents: Path | None = None
    mapped: Path | None = None
    figures: Path | None = None
    """A directory for the figures as PNG and SVG."""

    def given(self) -> list[Path]:
        """All that the page is made from."""
        return [path for path in (self.run / "model", self.atlas, self.latents, self.mapped) if path]

    def made_from(self) -> list[dict[str, Any]]:
        """What tells the inputs from others, what was added to an atlas included."""
        found = [describe_input(path) for path in self.given()]
        found += [{"manifest": file_checksum(path / MANIFEST)} for path in self.given() if (path / MANIFEST).exists()]
        if self.atlas is not None and is_soma(self.atlas):
            from unicoord_atlas.loaders.soma_additions import all_additions  # late: tiledbsoma takes seconds

            found.append(all_additions(self.atlas))
        return found


def run(options: ReportOptions) -> dict[str, Any]:
    """Open, draw, write.

    Raises
    ------
    AlreadyDone
        If the page is there, made from the same.
    UnicoordError
        Naming the input, what is wrong with it and the way out.
    """
    if options.out.suffix != ".html":
        raise UsageError(f"--out {options.out}: give it a name that ends in .html")
    if options.figures is None and options.out.is_file() and page_is_of(options.out, options.made_from()):
        raise AlreadyDone(options.out)
    for taken in (options.out, options.figures):
        if taken is not None and taken.exists():
            raise DataError(f"{taken} exists already; remove it or choose another name")
    inputs = open_inputs(options.run, options.atlas, options.latents, options.mapped)
    with finished_file(options.out) as partial, _album(options) as album:
        found = _sections(inputs, album)
        numbers = {section.anchor: part for section, part in found if part} | {MADE_FROM: options.made_from()}
        sections = [section for section, _ in found]
        partial.write_text(page(f"unicoord-atlas run {options.run.name}", sections, numbers), encoding="utf-8")
    left_out = {section.anchor: section.left_out for section in sections if section.left_out}
    return {"report": str(options.out), "bytes": options.out.stat().st_size, "left_out": left_out}


def page_is_of(out: Path, made_from: list[dict[str, Any]]) -> bool:
    """Whether a page is there that was made from these very inputs: a kill may have come just after it got its name."""
    try:
        data = out.read_text(encoding="utf-8").split(f'id="{DATA_ID}">')[1].split("</script>")[0]
        return bool(json.loads(data)[MADE_FROM] == made_from)
    except (OSError, ValueError, LookupError, TypeError):
        return False


@contextmanager
def _album(options: ReportOptions) -> Iterator[Album]:
    from .report_album import Album  # matplotlib is an extra

    if options.figures is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Album(Path(folder), svg=False)
        return
    with finished_directory(options.figures, options.given(), {}) as partial:
        yield Album(partial, svg=True)


def _sections(inputs: Inputs, album: Album) -> list[tuple[Section, dict[str, Any]]]:
    from . import report_cells as cells
    from . import report_predictions as predictions
    from . import report_sections as sections

    return [
        sections.trained_on_section(inputs, album),
        sections.losses_section(inputs, album),
        sections.reconstruction_section(inputs),
        predictions.predictions_section(inputs, album),
        cells.map_section(inputs, album),
        predictions.continuous_section(inputs, album),
        cells.activities_section(inputs, album),
        sections.graph_section(inputs),
        sections.throughput_section(inputs, album),
        sections.configuration_section(inputs),
    ]
