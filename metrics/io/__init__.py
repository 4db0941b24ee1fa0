"""Logits and labels from arrays and files of any framework."""
