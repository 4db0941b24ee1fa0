"""From a trained run to its predictions, metrics, cascades and answers."""
