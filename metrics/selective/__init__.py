"""Selective prediction: risk and coverage."""
