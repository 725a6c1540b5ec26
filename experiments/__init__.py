"""What makes the numbers, tables and pictures of the pages in docs, each by `python -m experiments.NAME`."""
