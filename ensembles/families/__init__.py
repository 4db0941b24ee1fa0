"""Ensemble families: how members hold their parameters."""
