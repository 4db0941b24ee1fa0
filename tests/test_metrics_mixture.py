import jaxtyping
import numpy as np
import pytest
import torch
from deepens.metrics import (
    member_log_probs,
    mixture_log_probs,
    pool_log_probs,
    validate_logits,
    validate_targets,
)
from scipy.special import logsumexp, softmax


def test_mixture_is_the_mean_of_the_members_softmaxes():
    logits = torch.randn(5, 40, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    reference = np.log(softmax(logits.numpy(), axis=-1).mean(0))
    np.testing.assert_allclose(mixture_log_probs(logits).numpy(), reference, atol=1e-12)


def test_mixture_is_a_distribution_even_where_members_are_certain():
    logits = torch.tensor([[[800.0, 0.0, -800.0]], [[-800.0, 0.0, 800.0]]], dtype=torch.float64)
    log_probs = mixture_log_probs(logits)
    assert log_probs.isfinite().all()
    np.testing.assert_allclose(logsumexp(log_probs.numpy(), axis=-1), 0.0, atol=1e-12)
    assert log_probs[0, 0].exp().item() == pytest.approx(0.5, abs=1e-12)


def test_mixture_of_one_member_is_that_member_bit_for_bit():
    logits = torch.randn(1, 30, 5)
    assert torch.equal(mixture_log_probs(logits), member_log_probs(logits)[0])
    torch.testing.assert_close(mixture_log_probs(logits), logits[0].log_softmax(-1))
    assert torch.equal(pool_log_probs(member_log_probs(logits)), mixture_log_probs(logits))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised_before_the_softmax(dtype):
    logits = torch.randn(3, 50, 10).to(dtype)
    log_probs = mixture_log_probs(logits)
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs, mixture_log_probs(logits.float()), rtol=0, atol=0)


def test_bfloat16_logits_do_not_collapse_confidences():
    logits = (3 * torch.randn(1, 20_000, 10)).bfloat16()
    in_half = logits[0].softmax(-1).amax(-1).unique().numel()
    assert in_half < 500 < 15_000 < mixture_log_probs(logits).amax(-1).unique().numel()


def test_mixture_does_not_depend_on_the_order_of_members():
    logits = torch.randn(6, 20, 4, dtype=torch.float64)
    shuffled = mixture_log_probs(logits[torch.randperm(6)])
    torch.testing.assert_close(shuffled, mixture_log_probs(logits), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.zeros(3, 4), r"3 dimensions .* got shape \[3, 4\]"),
        (torch.zeros(2, 3, 4, dtype=torch.int64), "floating point, got torch.int64"),
        (torch.zeros(0, 3, 4), r">= 1 member.* got shape \[0, 3, 4\]"),
        (torch.zeros(2, 0, 4), r">= 1 sample.* got shape \[2, 0, 4\]"),
        (torch.zeros(2, 3, 1), r">= 2 classes, got shape \[2, 3, 1\]"),
        (torch.tensor([[[0.0, torch.nan]]]), r"logits must be finite, got nan at \[0, 0, 1\]"),
        (torch.tensor([[[0.0, 1.0], [-torch.inf, 0.0]]]), r"got -inf at \[0, 1, 0\]"),
    ],
)
def test_bad_logits_are_refused_by_name_bound_and_value(logits, message):
    with pytest.raises(ValueError, match=message):
        validate_logits(logits)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([0.0, 1.0]), "targets must be integers, got torch.float32"),
        (torch.tensor([True, False]), "targets must be integers, got torch.bool"),
        (torch.tensor([0, 1, 2]), r"targets must have shape \[2\], got \[3\]"),
        (torch.tensor([[0, 1]]), r"targets must have shape \[2\], got \[1, 2\]"),
        (torch.tensor([0, 3]), r"targets must lie in \[0, 3\), got 3 at position 1"),
        (torch.tensor([-100, 0]), r"targets must lie in \[0, 3\), got -100 at position 0"),
    ],
)
def test_bad_targets_are_refused_by_name_bound_and_value(targets, message):
    with pytest.raises(ValueError, match=message):
        validate_targets(targets, num_samples=2, num_classes=3)


def test_bad_inputs_are_refused_where_shapes_are_not_checked_by_annotation():
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match="3 dimensions"):
            mixture_log_probs(torch.zeros(3, 4))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_narrow_labels_are_compared_with_more_classes_than_their_type_holds(dtype):
    validate_targets(torch.tensor([0, 100], dtype=dtype), num_samples=2, num_classes=70_000)
