"""Networks with their weights: by name, from checkpoint files, and the bundled ones."""
