"""Metrics as `torchmetrics.Metric`: batch by batch, and over processes, with the same results."""
