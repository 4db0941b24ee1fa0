"""Measurements behind the claims about speed and memory; each is run with ``python -m``."""
