"""Learn, store and serve a coordinate system for single-cell atlases."""
