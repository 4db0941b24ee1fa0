"""Conformal prediction sets."""
