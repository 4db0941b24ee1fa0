"""The stored logits and labels of a run, for tests that compute from them anew."""

from deepens.experiments.evaluation.predictions import Predictions


def load_logits(run):
    """All stored member logits ``[M, N, C]`` and targets ``[N]`` (None for OOD), by split."""
    predictions = Predictions(run)
    return {
        name: (predictions.logits(name), predictions.targets(name)) for name in predictions.splits
    }
