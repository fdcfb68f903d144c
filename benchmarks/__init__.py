"""Measurements; their results are in RESULTS.md, and what was tried on the way in TRIED.md."""
