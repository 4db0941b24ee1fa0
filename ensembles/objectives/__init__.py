"""Objectives: what the members minimise together."""
