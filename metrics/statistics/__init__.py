"""Intervals, tests and comparisons of models."""
