"""Loss terms as pure functions, and their weighted sum."""
