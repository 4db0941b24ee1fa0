"""How images become batches."""
