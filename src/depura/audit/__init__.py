"""Is the gradient of a defence its derivative? Checks of the whole, and a search for the part to blame."""
