"""The exits of one network as members: the contract, one way through, the loss, and cascades.

Tolerances are for float64, unless a test says otherwise.
"""

import copy
import csv
import math
import re

import pytest
import torch
import torch.nn.functional as F
from contract import CLASSES, EnsembleContract, images_like, randomise
from deepens.datasets import load
from deepens.datasets.image_format import ImageFormat
from deepens.ensembles import CrossEntropy, DeepEnsemble, Greedy, MixupMP
from deepens.ensembles.backbones import build, build_multi_exit
from deepens.ensembles.families.multi_exit import MultiExitEnsemble
from deepens.ensembles.optimization import clip_members
from deepens.ensembles.policies import Cascade, CascadeQueue, WindowPolicy, ensemble_stages, replay
from deepens.ensembles.policy import Answers
from deepens.experiments.cli.commands import run_cascade
from deepens.experiments.config import TrainConfig
from deepens.experiments.cost.macs import count_macs
from deepens.experiments.evaluation.assemble import assemble
from deepens.experiments.evaluation.cascade import load_cascade, stage_macs
from deepens.experiments.evaluation.options import CascadeConfig
from deepens.experiments.evaluation.predict import predict_folder
from deepens.experiments.evaluation.train_and_evaluate import train_and_evaluate as train
from deepens.experiments.store.progress import Display
from deepens.experiments.training.building import build_ensemble
from one_step import made
from PIL import Image
from stored_logits import load_logits
from torch import nn

QUIET = Display(quiet=True)


def network(num_exits=3, layers=14):
    return build_multi_exit(f"resnet{layers}", num_classes=CLASSES, channels=1, num_exits=num_exits)


def make(num_members=3):
    return MultiExitEnsemble(lambda: network(num_members), seeds=[7, 8, 9][:num_members])


def images_for(count, size=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, size, size, dtype=torch.float64, generator=generator)


def targets_for(count):
    return torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(2))


def halving(logits, pool="mean"):
    """The policy by which about half of the images go on from every stage."""
    windows = []
    for number in range(1, len(logits)):
        answers = replay(WindowPolicy(windows), logits[:number], pool=pool)
        middle = float(answers.confidence[answers.stage == number].median())
        windows.append((0.0, middle))
    return WindowPolicy(windows, threshold=windows[0][1])


def count_images(ensemble):
    """How many images each part of the body has run on since, by place."""
    seen = {}
    for place, part in enumerate(ensemble.network.body[:-2]):
        part.register_forward_hook(
            lambda _, __, output, place=place: seen.setdefault(place, []).append(len(output))
        )
    return seen


STAGES = (range(5), range(5, 7), range(7, 9))
"""Places in the body of 14 layers: a stem of three modules, and two blocks a stage."""


class TestMultiExitEnsemble(EnsembleContract):
    order = (0, 1, 2)  # an exit goes on from those before it

    def make(self, num_members):
        return make(num_members)

    def plain(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            return build("resnet14", num_classes=CLASSES, channels=1, image_size=8)

    def test_member_state_is_that_of_the_member_and_writable(self, ensemble):
        other = make().double().eval()
        randomise(other)
        images = images_like(self, 4)
        for index in range(3):
            state = ensemble.member_state(index)
            assert state.keys() == ensemble.member(index).state_dict().keys()
            for name, value in other.member_state(index).items():
                state[name].copy_(value)
            torch.testing.assert_close(
                ensemble(images, members=[index]), other(images, members=[index])
            )


class TestAirbenchExits(EnsembleContract):
    order = (0, 1, 2)

    def make(self, num_members):
        def factory():
            return build_multi_exit(
                "airbench96",
                num_exits=num_members,
                num_classes=CLASSES,
                channels=1,
                image_size=8,
                width=0.02,
            )

        ensemble = MultiExitEnsemble(factory, seeds=[7, 8, 9][:num_members])
        return ensemble.requires_grad_()  # the contract knows of no frozen parameters

    def plain(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            sizes = {"num_classes": CLASSES, "channels": 1, "image_size": 8, "width": 0.02}
            return build("airbench96", **sizes)

    @pytest.mark.skip("exits share parameters; what holds of them is tested below")
    def test_member_state_is_that_of_the_member_and_writable(self, ensemble):
        pass


def test_members_are_the_network_s_exits_bit_for_bit():
    ensemble = make().double().eval()
    images = images_for(5)
    expected = ensemble.network.exits(images)
    assert torch.equal(ensemble(images), expected)
    for index in range(3):
        assert torch.equal(ensemble(images, members=[index])[0], expected[index])


def test_blocks_run_once_and_none_behind_the_last_exit_asked_for():
    ensemble = make().double().eval()
    seen = count_images(ensemble)
    for members, places in [(None, 9), ([2, 0], 9), ([1], 7), ([1, 0], 7), ([0], 5)]:
        seen.clear()
        ensemble(images_for(6), members=members)
        assert seen == {place: [6] for place in range(places)}


def test_a_training_step_goes_through_the_network_once():
    ensemble = make().double().train()
    seen = count_images(ensemble)
    CrossEntropy()(ensemble, images_for(6), targets_for(6)).loss.backward()
    assert seen == {place: [6] for place in range(9)}


def test_member_cross_entropy_is_the_exits_loss_and_so_are_its_gradients():
    images, targets = images_for(6), targets_for(6)
    ensemble = make().double()
    twin = copy.deepcopy(ensemble)
    mean = F.cross_entropy(twin.network.exits(images).flatten(0, 1), targets.repeat(3))
    loss, values = CrossEntropy()(ensemble, images, targets)
    torch.testing.assert_close(loss, 3 * mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(values.mean(), mean.detach(), rtol=0, atol=1e-12)
    other = CrossEntropy(reduction="mean_members")(copy.deepcopy(ensemble), images, targets)
    torch.testing.assert_close(other.loss, mean, rtol=0, atol=1e-12)
    loss.backward()
    mean.backward()
    for own, expected in zip(ensemble.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(own.grad, 3 * expected.grad, rtol=1e-10, atol=1e-12)


def test_clipping_is_of_the_one_gradient_of_all_exits():
    ensemble = make().double()
    CrossEntropy()(ensemble, images_for(6), targets_for(6)).loss.backward()
    before = torch.cat([p.grad.flatten() for p in ensemble.parameters()])
    bound = before.norm().item() / 4
    clip_members(ensemble, bound)
    after = torch.cat([p.grad.flatten() for p in ensemble.parameters()])
    torch.testing.assert_close(after, before / 4, rtol=1e-6, atol=0)


def test_the_first_seed_alone_draws_the_network():
    one, other = (
        MultiExitEnsemble(network, seeds=seeds).state_dict() for seeds in ([7, 1, 2], [7, 3, 4])
    )
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_stage_macs_are_those_by_hand_and_sum_to_the_network_s():
    ensemble = MultiExitEnsemble(
        lambda: build_multi_exit("resnet8", num_exits=3, num_classes=10, channels=3),
        seeds=[1, 2, 3],
    )
    form = ImageFormat(tuple("abcdefghij"), 3, (32, 32), (0.5,) * 3, (0.5,) * 3)
    macs = stage_macs(ensemble, form, [0, 1, 2])
    assert macs == [5_161_120, 3_670_336, 3_670_656]  # as counted by hand in test_multi_exit.py
    assert sum(macs) == count_macs(ensemble, form.shape)
    # Without the second exit the last stage runs its blocks too, and one head less.
    assert stage_macs(ensemble, form, [0, 2]) == [macs[0], macs[1] + macs[2] - 32 * 10]


@pytest.mark.parametrize("pool", ["mean", "last"])
@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2), (1, 2)])
def test_a_cascade_is_the_replay_and_runs_each_block_on_its_survivors_alone(pool, order):
    ensemble = make().double().eval()
    randomise(ensemble)
    images = images_for(60)
    with torch.no_grad():
        logits = [ensemble(images)[[index]] for index in order]
    policy = halving(logits, pool)
    expected = replay(policy, logits, pool=pool)
    assert len(expected.stage.unique()) == len(order)  # some leave at every stage
    seen = count_images(ensemble)
    answers = Cascade(ensemble_stages(ensemble, order), policy, pool=pool)(images)
    torch.testing.assert_close(answers.log_probs, expected.log_probs, rtol=0, atol=1e-12)
    assert torch.equal(answers.stage, expected.stage)
    assert torch.equal(answers.accepted, expected.accepted)
    survivors = [int((expected.stage >= number).sum()) for number in range(1, len(order) + 1)]
    by_section, before = {}, -1
    for member, count in zip(order, survivors, strict=True):
        by_section |= dict.fromkeys(range(before + 1, member + 1), count)
        before = member
    assert seen == {
        place: [count] for section, count in by_section.items() for place in STAGES[section]
    }


def test_images_that_wait_across_batches_go_on_from_their_own_hidden_states():
    ensemble = make().double().eval()
    randomise(ensemble)
    images = images_for(60)
    with torch.no_grad():
        logits = list(ensemble(images)[:, None])
    policy = halving(logits)
    expected = replay(policy, logits)
    cascade = Cascade(ensemble_stages(ensemble), policy)
    queue = CascadeQueue(cascade, batch_size=16, deadline=math.inf)
    finished = []
    for keys in torch.arange(60).split(7):
        finished += queue.submit(keys.tolist(), images[keys])
    finished += queue.close()
    places = torch.tensor([key for part, _ in finished for key in part]).argsort()
    answers = Answers.join([part for _, part in finished])
    torch.testing.assert_close(answers.log_probs[places], expected.log_probs, rtol=0, atol=1e-12)
    assert torch.equal(answers.stage[places], expected.stage)


def test_exits_run_in_the_order_of_the_network():
    line = "order must name exits from the first to the last, .*, got [2, 0]"
    with pytest.raises(ValueError, match=re.escape(line).replace(r"\.\*", ".*")):
        ensemble_stages(make(), [2, 0])


def test_another_number_of_exits_than_seeds_is_refused():
    with pytest.raises(ValueError, match="factory must build 2 exits, one per seed, got 3"):
        MultiExitEnsemble(network, seeds=[1, 2])
    with pytest.raises(ValueError, match=r"index must be in \[0, 3\), got 3"):
        network().up_to(3)


@pytest.mark.parametrize(
    ("objective", "line"),
    [
        (MixupMP(), "MixupMP shows each member images of its own, but members of a MultiExit"),
        (CrossEntropy(members_at_once=1), "members_at_once must be left out, .*, got 1"),
        (Greedy(CrossEntropy()), "greedy trains members one after the other, but those of a"),
        (made("weights"), "repulsion moves each member by itself, but those of a MultiExitEns"),
        (made("functions"), "repulsion moves each member by itself"),
        (made("identity"), "repulsion moves each member by itself"),
    ],
)
def test_what_takes_members_for_independent_refuses_exits(objective, line):
    with pytest.raises(ValueError, match=line):
        objective.check(make())
    deep = DeepEnsemble(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)), seeds=[1, 2])
    objective.check(deep)
    objective.check(make(1))  # one exit shares with none


def config_of(path, **options):
    options = {"members": 3, "backbone": "resnet8", "batches": "shared", "epochs": 2, **options}
    return TrainConfig(out=str(path), ensemble="multi-exit", quiet=True, **options)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"batches": "own"}, "share parameters and are trained on one batch, .*--batches shared"),
        ({"member": 1, "batches": "own"}, "none can be trained alone; leave --member out"),
        (
            {"members": 4},
            "members must be from 1 to 3 .* multi-exit and resnet8, .*, got 4",
        ),
        ({"backbone": "small-cnn"}, "backbone must have .* as resnet8, .*, got 'small-cnn'"),
        ({"objective": "weight-repulsion"}, "repulsion moves each member by itself"),
        ({"objective": "greedy"}, "greedy trains members one after the other"),
        ({"objective": "mixupmp"}, "MixupMP shows each member images of its own"),
        ({"members_at_once": 1}, "members_at_once must be left out"),
        ({"base": "x.safetensors"}, "base must be left out with --ensemble multi-exit"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_there_is_a_directory(
    options, line, tmp_path
):
    with pytest.raises(ValueError, match=line):
        train(config_of(tmp_path / "run", **options), splits=load("digits"), display=QUIET)
    assert not (tmp_path / "run").exists()


def test_width_and_depth_reach_the_network():
    form = ImageFormat(tuple("abc"), 1, (8, 8), (0.5,), (0.5,))
    ensemble = build_ensemble(config_of("unused", width=0.5, depth=2.0), form)
    expected = build_multi_exit("resnet14", num_exits=3, num_classes=3, channels=1, width=0.5)
    found = {name: value.shape for name, value in ensemble.network.state_dict().items()}
    assert found == {name: value.shape for name, value in expected.state_dict().items()}


def rows_of(file):
    """Accuracy by policy and split."""
    with file.open(newline="") as table:
        return {(row["policy"], row["split"]): row["accuracy"] for row in csv.DictReader(table)}


@pytest.mark.slow
def test_from_training_to_predictions_of_a_cascade(tmp_path):
    run = train(config_of(tmp_path / "run"), splits=load("digits"), display=QUIET)
    logits, targets = load_logits(run)["test"]
    assert len(logits) == 3
    accuracy = (logits.argmax(-1) == targets).double().mean(1)
    assert accuracy.max() > 0.5  # of ten classes
    with pytest.raises(ValueError, match="trains a whole ensemble; only runs of --member fit"):
        assemble([run.path], None, display=QUIET)
    (tmp_path / "images").mkdir()
    for number, image in enumerate(load("digits")["test"].images[:60, 0].numpy()):
        Image.fromarray(image).save(tmp_path / "images" / f"{number:03d}.png")
    for pool in ("mean", "last"):
        answers_as_replayed(run, pool, logits, tmp_path)


def answers_as_replayed(run, pool, logits, folder):
    """Calibrate a cascade, run it on the folder's images, and compare with the saved logits."""
    file = folder / f"{pool}.json"
    options = {"target_coverage": 0.8, "width": 0.5, "pool": pool, "out": str(file), "quiet": True}
    assert run_cascade(CascadeConfig(str(run.path), **options)) == 0
    stored = load_cascade(run, file)
    assert (stored.order, stored.pool) == ((0, 1, 2), pool)
    out = folder / f"{pool}-answers.csv"
    predict_folder(run, f"folder:{folder / 'images'}", out, display=QUIET, cascade=stored)
    with out.open(newline="") as table:
        rows = list(csv.DictReader(table))
    expected = replay(stored.policy, list(logits[:, None, :60]), pool=pool)
    policies = rows_of(file.with_suffix(".csv"))
    everything = logits[-1:] if pool == "last" else logits
    right = everything.double().softmax(-1).mean(0).argmax(-1) == load("digits")["test"].targets
    assert float(policies["all stages", "test"]) == pytest.approx(right.double().mean().item())
    assert [row["class"] for row in rows] == [str(int(each)) for each in expected.predicted]
    assert [int(row["stage"]) for row in rows] == expected.stage.tolist()
    assert len(expected.stage.unique()) > 1
    for row, confidence in zip(rows, expected.confidence.tolist(), strict=True):
        assert float(row["confidence"]) == pytest.approx(confidence, abs=1e-5)
