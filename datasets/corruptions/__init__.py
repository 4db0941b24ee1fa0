"""Corruptions of the CIFAR-10-C kind, and the shifted splits made by them."""
