"""One attention operator per file; each maps (b, c, h, w) to (b, c, h, w)."""
