"""Policies and cascades: what is skipped changes nothing, and every share is the calibrated one."""

import itertools
import math
import warnings

import pytest
import torch
from deepens.ensembles import DeepEnsemble
from deepens.ensembles.policies import (
    Cascade,
    CascadeQueue,
    PassThroughMonitor,
    Task,
    WindowPolicy,
    calibrate,
    calibrate_passing,
    ensemble_stages,
    halves,
    replay,
    search,
    search_windows,
    threshold_at_coverage,
    threshold_at_risk,
    window_around,
)
from deepens.ensembles.policies.calibration import assess
from deepens.ensembles.policies.window import NOTHING
from deepens.ensembles.policy import Answers
from deepens.metrics import mixture_log_probs
from torch import nn

CLASSES, STAGES = 5, 3


def draw(n=400, seed=0, stages=STAGES, signal=1.5):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(CLASSES, (n,), generator=generator)
    common = torch.randn(n, CLASSES, generator=generator, dtype=torch.float64)
    common[torch.arange(n), targets] += signal
    noise = torch.randn(stages, n, CLASSES, generator=generator, dtype=torch.float64)
    return list((common + noise).unsqueeze(1)), targets


def networks(count=STAGES):
    torch.manual_seed(3)
    return [
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, CLASSES))
        .double()
        .eval()
        for _ in range(count)
    ]


class Counted:
    """A stage that counts the images that it runs on."""

    def __init__(self, network):
        self.network, self.images = network, 0

    def __call__(self, images):
        self.images += len(images)
        return images, self.network(images)[None]


def same(one: Answers, other: Answers, tolerance=0.0):
    assert torch.equal(one.stage, other.stage)
    assert torch.equal(one.accepted, other.accepted)
    torch.testing.assert_close(one.log_probs, other.log_probs, rtol=0, atol=tolerance)
    torch.testing.assert_close(one.confidence, other.confidence, rtol=0, atol=tolerance)


@pytest.mark.parametrize("confidence", ["msp", "energy"])
def test_full_windows_are_the_full_ensemble_bit_for_bit(confidence):
    logits, _ = draw()
    answers = replay(WindowPolicy.full(STAGES, confidence=confidence), logits)
    assert torch.equal(answers.log_probs, mixture_log_probs(torch.cat(logits)))
    assert (answers.stage == STAGES).all()


def test_empty_windows_are_the_first_member_bit_for_bit():
    logits, _ = draw()
    answers = replay(WindowPolicy.first(STAGES), logits)
    assert torch.equal(answers.log_probs, mixture_log_probs(logits[0]))
    assert answers.reached(STAGES).tolist() == [1.0, 0.0, 0.0]


def by_loop(logits, windows, confidence):
    """One image after the other, in plain words."""
    for place in range(logits[0].shape[1]):
        so_far = []
        for number, stage in enumerate(logits, start=1):
            so_far.append(stage[0, place])
            probs = torch.stack([z.softmax(-1) for z in so_far]).mean(0)
            energy = torch.stack([z.logsumexp(-1) for z in so_far]).mean()
            score = probs.max() if confidence == "msp" else energy
            low, high = windows[number - 1] if number <= len(windows) else NOTHING
            if not low <= score <= high:
                break
        yield probs, score, number


@pytest.mark.parametrize(
    ("confidence", "windows"),
    [("msp", [(0.4, 0.7), (0.3, 0.8)]), ("energy", [(1.0, 3.0), (1.5, 2.5)])],
)
def test_answers_are_those_of_a_loop_over_images(confidence, windows):
    logits, _ = draw()
    answers = replay(WindowPolicy(windows, confidence=confidence), logits)
    assert len(answers.stage.unique()) == STAGES  # some leave at every stage
    for place, (probs, score, number) in enumerate(by_loop(logits, windows, confidence)):
        assert answers.stage[place] == number
        torch.testing.assert_close(answers.log_probs[place].exp(), probs, rtol=0, atol=1e-13)
        torch.testing.assert_close(answers.confidence[place], score, rtol=0, atol=1e-12)


def test_energy_is_of_the_members_logits_and_not_of_the_pooled_probabilities():
    logits, _ = draw(n=5)
    answers = replay(WindowPolicy.full(STAGES, confidence="energy"), logits)
    expected = torch.cat(logits).logsumexp(-1).mean(0)
    torch.testing.assert_close(answers.confidence, expected, rtol=0, atol=1e-12)
    assert answers.confidence.abs().min() > 0.01


def test_nested_windows_pass_nested_sets_and_wider_ones_pass_more():
    logits, targets = draw(n=2000)
    before = torch.zeros(2000, dtype=torch.bool)
    for width in (0.0, 0.02, 0.05, 0.1, 0.3, 1.0):
        found = calibrate(logits[:2], targets, Task(target_coverage=0.7), width=width)
        passed = replay(found.policy, logits[:2]).stage > 1
        assert (passed | ~before).all()
        assert passed.sum() > before.sum() or width == 0
        before = passed
    assert before.all()


def test_a_tenth_on_each_side_passes_a_fifth_of_other_images():
    logits, targets = draw(n=10_000)
    found = calibrate(logits[:2], targets, Task(target_coverage=0.6))
    assert found.reached[1] == pytest.approx(0.2, abs=1e-3)
    other, labels = draw(n=10_000, seed=1)
    assert assess(found.policy, other[:2], labels).reached[1] == pytest.approx(0.2, abs=0.017)


def test_a_window_without_lower_end_is_the_single_threshold_policy():
    logits, targets = draw()
    task = Task(target_coverage=0.7)
    window = calibrate(logits, targets, task).policy
    for policy in (
        window.single_threshold,
        calibrate(logits, targets, task, single_threshold=True).policy,
    ):
        assert all(low == -math.inf for low, _ in policy.windows)
    single = window.single_threshold
    stage = replay(single, logits).stage
    first = mixture_log_probs(logits[0]).exp().amax(-1)
    second = mixture_log_probs(torch.cat(logits[:2])).exp().amax(-1)
    goes = first <= single.windows[0][1]
    expected = 1 + goes.long() + (goes & (second <= single.windows[1][1])).long()
    assert torch.equal(stage, expected)


@pytest.mark.parametrize("batch", [1, 7, 256])
@pytest.mark.parametrize("windows", [[(0.22, 0.23), (0.2, 0.3)], [NOTHING] * 2, [(0.0, 1.0)] * 2])
def test_compacted_equals_masked_and_every_stage_runs_on_its_survivors_alone(batch, windows):
    models = networks()
    images = torch.randn(300, 1, 6, 6, generator=torch.Generator().manual_seed(1)).double()
    policy = WindowPolicy(windows, threshold=0.22)
    stages = [Counted(model) for model in models]
    cascade = Cascade(stages, policy)
    with torch.no_grad():
        masked = replay(policy, [model(images)[None] for model in models])
    answers = Answers.join([cascade(part) for part in images.split(batch)])
    same(answers, masked, tolerance=1e-5)
    reached = (masked.reached(STAGES) * 300).round().long().tolist()
    assert [stage.images for stage in stages] == reached


def test_an_order_that_names_a_member_twice_is_refused():
    ensemble = DeepEnsemble(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), seeds=[1, 2])
    with pytest.raises(ValueError, match=r"order must name each member once, got \[0, 0\]"):
        ensemble_stages(ensemble, [0, 0])


def test_the_last_stage_alone_answers_where_later_exits_replace_earlier_ones():
    logits, _ = draw()
    answers = replay(WindowPolicy.full(STAGES), logits, pool="last")
    assert torch.equal(answers.log_probs, mixture_log_probs(logits[-1]))


@pytest.mark.parametrize("size", [1, 7, 64])
def test_a_queue_answers_every_image_once_as_the_cascade_does(size):
    models = networks()
    images = torch.randn(150, 1, 6, 6, generator=torch.Generator().manual_seed(2)).double()
    policy = WindowPolicy([(0.21, 0.24), (0.2, 0.3)], threshold=0.22)
    expected = Cascade([Counted(m) for m in models], policy)(images)
    queue = CascadeQueue(
        Cascade([Counted(m) for m in models], policy), batch_size=32, deadline=math.inf
    )
    finished = []
    for keys in torch.arange(150).split(size):
        finished += queue.submit(keys.tolist(), images[keys])
    finished += queue.close()
    assert len(queue) == 0
    keys = [key for part, _ in finished for key in part]
    assert sorted(keys) == list(range(150))
    answers = Answers.join([part for _, part in finished])
    places = torch.tensor(keys).argsort()
    for name in ("log_probs", "confidence"):
        torch.testing.assert_close(
            getattr(answers, name)[places], getattr(expected, name), rtol=0, atol=1e-12
        )
    assert torch.equal(answers.stage[places], expected.stage)
    assert torch.equal(answers.accepted[places], expected.accepted)


def test_a_later_stage_waits_for_a_full_batch_or_the_deadline():
    now = [0.0]
    models = [Counted(model) for model in networks(2)]
    cascade = Cascade(models, WindowPolicy([(0.0, 1.0)]))
    queue = CascadeQueue(cascade, batch_size=10, deadline=2.0, clock=lambda: now[0])
    images = torch.randn(6, 1, 6, 6).double()
    assert queue.submit(range(6), images) == []
    assert (len(queue), models[1].images) == (6, 0)
    (part,) = queue.submit(range(6, 12), images)
    assert part[0] == list(range(10))
    assert (len(queue), models[1].images) == (2, 10)
    now[0] = 1.9
    assert queue.poll() == []
    now[0] = 2.0
    ((keys, answers),) = queue.poll()
    assert keys == [10, 11]
    assert answers.stage.tolist() == [2, 2]
    assert len(queue) == 0


def test_threshold_at_risk_is_that_of_the_largest_coverage_also_with_ties():
    confidence = torch.tensor([0.9, 0.8, 0.8, 0.6, 0.5, 0.5])
    correct = torch.tensor([True, True, False, True, True, False])
    for risk in (0.0, 0.2, 0.25, 0.34, 1.0):
        shares = {}
        for value in confidence.unique():
            accepted = confidence >= value
            if 1 - correct[accepted].double().mean() <= risk + 1e-12:
                shares[accepted.sum().item()] = value.item()
        assert threshold_at_risk(confidence, correct, risk) == shares[max(shares)]


def test_a_risk_out_of_reach_says_the_best():
    with pytest.raises(ValueError, match=r"lowest is 0.5000, at a coverage of 1.0000"):
        threshold_at_risk(torch.tensor([0.9, 0.8]), torch.tensor([False, True]), 0.1)


def test_threshold_at_coverage_accepts_at_least_the_share():
    confidence = torch.rand(30, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    for share in (0.1, 1 / 3, 0.5, 0.95, 1.0):
        threshold = threshold_at_coverage(confidence, share)
        assert (confidence >= threshold).double().mean() >= share - 1e-12
        assert (confidence > threshold).double().mean() < share


def test_window_is_between_quantiles_around_the_threshold_s_rank():
    confidence = torch.randn(1000, generator=torch.Generator().manual_seed(0)).double()
    threshold = threshold_at_coverage(confidence, 0.7)
    low, high = window_around(confidence, threshold, below=0.1, above=0.05)
    inside = ((confidence >= low) & (confidence <= high)).double().mean().item()
    assert inside == pytest.approx(0.15, abs=2e-3)
    assert ((confidence >= low) & (confidence < threshold)).double().mean() == pytest.approx(
        0.1, abs=2e-3
    )
    assert window_around(confidence, threshold, below=0.4, above=0.8) == (-math.inf, math.inf)
    assert window_around(confidence, threshold, below=0.0, above=0.0) == NOTHING


def test_later_windows_are_calibrated_on_survivors_and_the_threshold_on_the_whole():
    logits, targets = draw(n=5000)
    task = Task(target_coverage=0.6)
    found = calibrate(logits, targets, task, width=0.2)
    answers = replay(found.policy, logits)
    assert found.reached[1] == pytest.approx(0.4, abs=2e-3)
    # of the 40 % that reach the second stage a window around their own threshold goes on
    middle = replay(WindowPolicy([found.policy.windows[0], NOTHING]), logits)
    tau = threshold_at_coverage(middle.confidence, 0.6)
    here = middle.confidence[middle.stage == 2]
    expected = window_around(here, tau, below=0.2, above=0.2)
    assert found.policy.windows[1] == pytest.approx(expected, abs=1e-12)
    assert found.policy.threshold == threshold_at_coverage(answers.confidence, 0.6)
    assert found.coverage == pytest.approx(0.6, abs=1e-3)
    assert found.average_macs([2.0, 3.0, 5.0]) == pytest.approx(
        2 + 3 * found.reached[1] + 5 * found.reached[2], abs=1e-12
    )


def test_without_a_threshold_the_least_certain_go_on():
    logits, targets = draw(n=1000, stages=2)
    found = calibrate(logits, targets, Task("accuracy"))
    first = mixture_log_probs(logits[0]).exp().amax(-1)
    passed = replay(found.policy, logits).stage == 2
    assert passed.double().mean() == pytest.approx(0.2, abs=2e-3)
    assert first[passed].max() < first[~passed].min()
    assert found.coverage == 1.0


@pytest.mark.usefixtures("unchecked")
def test_search_keeps_the_budget_and_is_no_worse_than_the_first_stage_where_it_is_chosen():
    logits, targets = draw(n=2000, stages=2)
    task, macs = Task(target_risk=0.1), [1.0, 1.0]
    found, other = search_windows(logits, targets, task, macs=macs, budget=1.25)
    assert found.average_macs(macs) <= 1.25
    assert (found.images, other.images) == (1000, 1000)
    alone, _ = search_windows(logits, targets, task, macs=macs, budget=1.0)
    assert alone.reached == (1.0, 0.0)
    assert found.coverage > alone.coverage
    assert other.policy == found.policy
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randperm(2000, generator=generator).tensor_split(2)
    assert assess(found.policy, [z[:, second] for z in logits], targets[second]).risk == other.risk
    assert found.risk <= 0.1
    assert assess(found.policy, [z[:, first] for z in logits], targets[first]).risk == found.risk


def test_few_images_are_warned_of_and_fewer_refused():
    logits, targets = draw(n=150, stages=2)
    notes = calibrate(logits, targets, Task(target_coverage=0.5)).notes
    assert "calibrated on 150 images, fewer than 200" in notes[-1]
    few = [each[:, :49] for each in logits]
    with pytest.raises(ValueError, match="calibrated on 49 images, of at least 50"):
        calibrate(few, targets[:49], Task(target_coverage=0.5))
    three, labels = draw(n=150)
    with pytest.raises(ValueError, match=r"after stage 2 .* on \d+ images, of at least 50"):
        calibrate(three, labels, Task(target_coverage=0.5))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "speed"}, "task must be one of selective, ood, scod, accuracy, got 'speed'"),
        ({}, "takes exactly one of target_risk, target_coverage, got none"),
        ({"target_risk": 0.1, "target_coverage": 0.5}, "exactly one of"),
        ({"kind": "ood", "target_risk": 0.1}, "exactly one of target_tpr"),
        ({"kind": "accuracy", "target_tpr": 0.9}, "takes no target"),
        ({"target_coverage": 0.0}, r"target_coverage must lie in \(0, 1\], got 0"),
        ({"kind": "ood", "target_tpr": 1.5}, r"target_tpr must lie in \(0, 1\], got 1.5"),
    ],
)
def test_tasks_without_sense_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Task(**arguments)


def test_bad_input_gets_one_line():
    logits, targets = draw()
    task = Task(target_coverage=0.5)
    with pytest.raises(ValueError, match="a cascade needs >= 2 stages, got 1"):
        calibrate(logits[:1], targets, task)
    with pytest.raises(ValueError, match=r"width must lie in \[0, 1\], got \(2.0, 2.0\)"):
        calibrate(logits, targets, task, width=2.0)
    with pytest.raises(ValueError, match=r"budget must be >= 1, .*, got 0.5"):
        search_windows(logits, targets, task, macs=[1.0, 1.0, 1.0], budget=0.5)
    ood = Task("ood", target_tpr=0.95)
    with pytest.raises(ValueError, match="budget cannot be searched for with the task ood"):
        search_windows(logits, targets, ood, macs=[1.0, 1.0, 1.0], budget=1.5)
    with pytest.raises(ValueError, match="logits must be of 3 stages on the same images"):
        replay(WindowPolicy.full(3), logits[:2])
    with pytest.raises(ValueError, match="logits must be of 2 stages on the same images"):
        replay(WindowPolicy.full(2), [logits[0], logits[1][:, :5]])
    with pytest.raises(
        ValueError, match="confidence must be one of msp, log_msp, energy, got 'entropy'"
    ):
        WindowPolicy.full(2, confidence="entropy")
    with pytest.raises(ValueError, match=r"policy must be of 1 stages, as there are, got 2"):
        Cascade([Counted(None)], WindowPolicy.full(2))
    with pytest.raises(ValueError, match="pool must be one of mean, last, got 'max'"):
        Cascade([Counted(None)], WindowPolicy.full(1), pool="max")


@pytest.mark.parametrize("policy", [WindowPolicy.full(3), WindowPolicy.first(2, threshold=0.5)])
def test_policies_survive_json(policy):
    import json

    again = WindowPolicy.from_dict(json.loads(json.dumps(policy.to_dict(), allow_nan=False)))
    assert again.to_dict() == policy.to_dict()
    assert again.windows == policy.windows
    with pytest.raises(ValueError, match="content must be of a window policy"):
        WindowPolicy.from_dict({"windows": 3})


def test_monitor_is_silent_on_calibrated_images_and_warns_of_drift_once():
    generator = torch.Generator().manual_seed(0)
    monitor = PassThroughMonitor([1.0, 0.2], calibrated=2000)

    def answers(share, n=500):
        stage = 1 + (torch.rand(n, generator=generator) < share).long()
        return Answers(torch.zeros(n, 2).double(), torch.zeros(n).double(), stage, stage > 0)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(10):
            monitor.watch(answers(0.2))
    with pytest.warns(RuntimeWarning, match="stage 2 runs on .* where 20.0% of 2000"):
        monitor.watch(answers(0.5, n=5000))
    monitor.watch(answers(0.5))  # said once


def test_monitor_s_z_is_the_test_of_two_shares():
    monitor = PassThroughMonitor([1.0, 0.25], calibrated=400)
    monitor.count(torch.tensor([1] * 60 + [2] * 40))
    pooled = (100 + 40) / 500
    expected = (0.4 - 0.25) / math.sqrt(pooled * (1 - pooled) * (1 / 400 + 1 / 100))
    assert monitor.drift() == pytest.approx([expected], abs=1e-12)


def test_the_baseline_at_a_given_cost_passes_the_least_certain():
    logits, targets = draw(n=2000)
    found = calibrate_passing(logits, targets, Task(target_coverage=0.7), passing=[0.2, 0.5])
    assert found.reached == pytest.approx((1.0, 0.2, 0.1), abs=2e-3)
    first = mixture_log_probs(logits[0]).exp().amax(-1)
    passed = replay(found.policy, logits).stage > 1
    assert first[passed].max() < first[~passed].min()
    with pytest.raises(ValueError, match="width must be one number, or 2 pairs, got 1 pairs"):
        calibrate_passing(logits, targets, Task(target_coverage=0.7), passing=[0.2])


def test_a_late_drift_is_seen_among_the_last_images():
    monitor = PassThroughMonitor([1.0, 0.2], calibrated=1000, window=1000)
    ordinary, drifted = torch.tensor([1] * 80 + [2] * 20), torch.tensor([1] * 50 + [2] * 50)
    for _ in range(200):
        monitor.count(ordinary)
    assert monitor.drift() == pytest.approx([0.0], abs=1e-12)
    for _ in range(10):
        monitor.count(drifted)
    assert monitor.live == [1000, 500]
    assert monitor.drift()[0] > 10


def test_a_target_that_only_the_whole_cascade_reaches_is_reached():
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(CLASSES, (200,), generator=generator)
    first = torch.randn(200, CLASSES, generator=generator).double()
    first[:20, :] = 0.0
    first[torch.arange(20), (targets[:20] + 1) % CLASSES] = 20.0  # most certain, and wrong
    second = torch.full((200, CLASSES), 0.0).double()
    second[torch.arange(200), targets] = 30.0
    logits = [first[None], second[None]]
    with pytest.raises(ValueError, match="a risk of 0.05 is out of reach"):
        threshold_at_risk(
            mixture_log_probs(logits[0]).exp().amax(-1), first.argmax(-1) == targets, 0.05
        )
    found = calibrate(logits, targets, Task(target_risk=0.05), width=1.0)
    assert found.risk <= 0.05
    chosen, _ = search_windows(logits, targets, Task(target_risk=0.05), macs=[1.0, 1.0], budget=2.0)
    assert chosen.risk <= 0.05
    with pytest.raises(ValueError, match="a risk of 0.05 is out of reach: the lowest is"):
        calibrate(logits, targets, Task(target_risk=0.05), width=0.0)


@pytest.mark.usefixtures("unchecked")
def test_search_finds_what_only_a_later_stage_gains():
    weak, targets = draw(n=1000, stages=1)
    strong, _ = draw(n=1000, stages=1, signal=6.0)
    logits = [weak[0], weak[0].clone(), strong[0]]  # the second says what the first did
    task, macs = Task(target_risk=0.1), [1.0, 1.0, 1.0]
    found, _ = search_windows(logits, targets, task, macs=macs, budget=2.5)
    alone, _ = search_windows(logits, targets, task, macs=macs, budget=1.0)
    assert found.reached[2] > 0.1
    assert found.coverage > alone.coverage + 0.05


def best_of_all(logits, targets, task, macs, budget, offsets):
    """Least loss, and then cost, of every combination of windows on the half to choose on."""
    here, _ = halves(len(targets), 0)
    part, labels = [each[:, here] for each in logits], targets[here]
    found = []
    pairs = itertools.product(offsets, repeat=2)
    for width in itertools.product(list(pairs), repeat=len(logits) - 1):
        try:
            policy = calibrate(part, labels, task, width=list(width)).policy
        except ValueError:  # out of reach, or too few images for a later window
            continue
        found.append(told(policy, part, labels, task, macs))
    return min((each for each in found if each[1] <= budget), default=None)


def told(policy, logits, targets, task, macs):
    """The loss and the average cost of a policy, by a count over images."""
    answers = replay(policy, logits)
    correct, accepted = answers.predicted == targets, answers.accepted
    costs = torch.tensor(macs, dtype=torch.float64).cumsum(0)
    loss = 1 - accepted.double().mean().item()
    if task.target_risk is None:
        loss = 1 - correct[accepted].double().mean().item()
    return loss, (costs[answers.stage - 1].mean() / macs[0]).item()


def chosen_and_best(monkeypatch, task, budget, *, stages, offsets, seed):
    monkeypatch.setattr(search, "OFFSETS", offsets)
    logits, targets = draw(n=600, stages=stages, seed=seed)
    macs = [1.0] * stages
    found, _ = search_windows(logits, targets, task, macs=macs, budget=budget)
    here, _ = halves(len(targets), 0)
    chosen = told(found.policy, [each[:, here] for each in logits], targets[here], task, macs)
    return chosen, best_of_all(logits, targets, task, macs, budget, offsets)


@pytest.mark.parametrize("budget", [1.1, 1.4])
@pytest.mark.parametrize(
    "task", [Task(target_risk=0.2), Task(target_coverage=0.7), Task("accuracy")], ids=str
)
def test_of_two_stages_the_search_finds_the_best_windows_of_all(monkeypatch, task, budget):
    options = {"stages": 2, "offsets": (0.0, 0.025, 0.1, 1.0), "seed": 0}
    chosen, best = chosen_and_best(monkeypatch, task, budget, **options)
    assert chosen == pytest.approx(best, abs=1e-12)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("task", [Task(target_risk=0.2), Task(target_coverage=0.7)], ids=str)
def test_of_three_stages_the_search_comes_near_the_best_windows_of_all(monkeypatch, task):
    options = {"stages": 3, "offsets": (0.0, 0.1, 0.3), "seed": 0}
    chosen, best = chosen_and_best(monkeypatch, task, 1.5, **options)
    assert best[0] <= chosen[0] <= 1.02 * best[0]


def test_of_two_stages_windows_on_one_side_are_found_where_no_even_ones_fit(monkeypatch):
    place = torch.arange(400)  # from the most certain down: 6 are wrong, 34 right, then each other
    wrong = (place < 6) | ((place >= 40) & (place % 2 == 0))
    targets = place % CLASSES
    probs = torch.linspace(0.95, 0.4, 400, dtype=torch.float64)
    first = ((1 - probs) / (CLASSES - 1))[:, None].repeat(1, CLASSES)
    first[place, (targets + wrong) % CLASSES] = probs
    second = torch.zeros(400, CLASSES).double()
    second[place, targets] = 30.0
    logits, task, macs = [first.log()[None], second[None]], Task(target_risk=0.05), [1.0, 1.0]
    with pytest.raises(ValueError, match="out of reach"):  # of the first stage alone
        calibrate(logits, targets, task, width=0.0)
    monkeypatch.setattr(search, "OFFSETS", (0.0, 0.2))  # on both sides they cost about 1.3
    found, _ = search_windows(logits, targets, task, macs=macs, budget=1.15)
    assert found.risk <= 0.05
    assert found.coverage > 0
    assert 1 < found.average_macs(macs) <= 1.15
    whole, _ = search_windows(logits, targets, task, macs=macs, budget=math.inf)
    assert whole.coverage > found.coverage  # though windows that keep no target were tried too


def test_windows_of_few_survivors_are_told_of_each():
    logits, targets = draw(n=300)
    notes = calibrate(logits, targets, Task(target_coverage=0.6)).notes
    assert any("the window after stage 2 was calibrated on" in note for note in notes)
    assert not any("calibrated on 300 images" in note for note in notes)


def test_stages_of_different_classes_are_refused():
    stages = [lambda x, c=c: (x, torch.zeros(1, len(x), c)) for c in (3, 4)]
    with pytest.raises(ValueError, match="same classes, got 3, and 4 of stage 2"):
        Cascade(stages, WindowPolicy.full(2))(torch.zeros(2, 1))


def test_survivors_keep_their_memory_layout():
    seen = []

    def stage(images):
        seen.append(images.is_contiguous(memory_format=torch.channels_last))
        return images, torch.linspace(0, 3, len(images))[None, :, None].expand(1, -1, 2) * (
            torch.tensor([1.0, 0.0])
        )

    images = torch.randn(8, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    Cascade([stage, stage], WindowPolicy([(0.0, 0.8)]))(images)
    assert seen == [True, True]


def test_a_stage_that_fails_loses_no_waiting_image():
    def fails(images):
        raise RuntimeError("out of memory")

    queue = CascadeQueue(
        Cascade([Counted(networks(1)[0]), fails], WindowPolicy([(0.0, 1.0)])),
        batch_size=4,
        deadline=math.inf,
    )
    with pytest.raises(RuntimeError, match="out of memory"):
        queue.submit(range(4), torch.randn(4, 1, 6, 6).double())
    assert len(queue) == 4


@pytest.mark.parametrize("coverage", [0.0, 1.5, -1.0])
def test_coverage_out_of_range_is_refused_and_the_smallest_accepts_one(coverage):
    confidence = torch.tensor([0.5, 0.9, 0.1])
    with pytest.raises(ValueError, match=r"coverage must lie in \(0, 1\]"):
        threshold_at_coverage(confidence, coverage)
    assert threshold_at_coverage(confidence, 1e-12) == confidence.max().item()
