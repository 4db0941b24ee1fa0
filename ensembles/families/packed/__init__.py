"""Packed ensembles: several slim members at the cost of one network."""

from .ensemble import PackedEnsemble, pack

__all__ = ["PackedEnsemble", "pack"]
