"""Proper scores, accuracy and uncertainty scores."""
