"""Purification methods, one paper per file, each a short composition of the parts."""
