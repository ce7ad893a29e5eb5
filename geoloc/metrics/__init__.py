"""Scores: pure functions of coordinates and distances, no torch."""
