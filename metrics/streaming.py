"""Abstract bases of the `torchmetrics` shells: data comes batch by batch, results do not care.

The states are sums or per-sample values that add up, so that one batch, many batches and many
processes give the same number. They are float64 or whole numbers and stay so: a float32
accumulator loses digits at millions of samples.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from .mixture import mixture_log_probs, validate_logits, validate_targets
from .scoring import correctness
from .uncertainty import maximum_probability
