"""Intervals, tests and error rates; numpy and scipy only."""
