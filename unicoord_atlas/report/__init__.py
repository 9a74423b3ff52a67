"""One page about a run: its parts, and the plane that cells are drawn on."""
