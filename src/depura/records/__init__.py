"""Records of runs: what is written, in which layout, and how it is read. Imports nothing else of depura."""
