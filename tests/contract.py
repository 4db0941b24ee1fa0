"""The properties of every ensemble and every objective; each implementation's tests inherit them.

The classes do not begin with ``Test``, so that pytest collects only what inherits from them.
Tolerances are for float64.
"""

import copy

import pytest
import torch
from deepens.ensembles import Ensemble, Objective
from deepens.ensembles.policies import Cascade, WindowPolicy, ensemble_stages, replay
from deepens.metrics.core.mixture import mixture_log_probs
from torch import Tensor, nn

CLASSES = 5


def images_like(ensemble: "EnsembleContract | ObjectiveContract", *leading: int) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    return torch.randn(*leading, *ensemble.image_shape, generator=generator, dtype=torch.float64)


class EnsembleContract:
    """Inherit, and say how an ensemble is made: small, since every property makes copies of it."""

    image_shape = (1, 8, 8)
    num_members = 3
    shares_weights = False
    """Whether members share a base: then a member's state holds its own part under own names."""
    order = (2, 0, 1)
    """In which the members run in a cascade."""

    def make(self, num_members: int) -> Ensemble:
        """A new ensemble of CLASSES classes; the same at each call."""
        raise NotImplementedError

    def plain(self) -> nn.Module:
        """The network that an ensemble of one equals, with the same weights and fixed masks."""
        raise NotImplementedError

    def made(self, num_members: int) -> Ensemble:
        """A copy of what `make` makes, in float64 and evaluation mode; made once for each class."""
        known = type(self).__dict__.get("_made")
        if known is None:
            type(self)._made = known = {}
        if num_members not in known:
            known[num_members] = self.make(num_members).double().eval()
        return copy.deepcopy(known[num_members])

    @pytest.fixture
    def ensemble(self) -> Ensemble:
        return self.made(self.num_members)

    def test_logits_put_members_first(self, ensemble):
        logits = ensemble(images_like(self, 4))
        assert logits.shape == (self.num_members, 4, CLASSES)

    def test_ensemble_of_one_equals_the_plain_network(self):
        images = images_like(self, 4)
        expected = self.plain().double().eval()(images)
        torch.testing.assert_close(self.made(1)(images)[0], expected)

    def test_members_subset_equals_rows_of_the_whole(self, ensemble):
        images = images_like(self, 4)
        whole = ensemble(images)
        for chosen in ([0], [self.num_members - 1], [2, 0]):
            torch.testing.assert_close(ensemble(images, members=chosen), whole[chosen])

    def test_members_subset_runs_only_these_members(self, ensemble):
        images = images_like(self, 4)
        needed = {*slots(ensemble, 0), *slots(ensemble, 2)}  # which members may share
        own = [
            parameter.detach() if index is None else parameter.detach()[index]
            for slot, (parameter, index) in slots(ensemble, 1).items()
            if slot not in needed
        ]
        others = {v.data_ptr() for i in (0, 2) for v in ensemble.member_state(i).values()}
        own += [
            value
            for value in ensemble.member_state(1).values()
            if value.is_floating_point() and value.data_ptr() not in others
        ]
        for value in own:
            value.fill_(float("nan"))
        assert torch.isfinite(ensemble(images, members=[0, 2])).all()
        assert torch.isnan(ensemble(images, members=[1])).any() == bool(own)

    def test_expanded_shared_batch_equals_shared_batch(self, ensemble):
        images = images_like(self, 4)
        expanded = images.expand(self.num_members, *images.shape)
        torch.testing.assert_close(ensemble(expanded), ensemble(images))

    def test_each_member_reads_its_own_batch(self, ensemble):
        images = images_like(self, self.num_members, 4)
        logits = ensemble(images)
        for index in range(self.num_members):
            torch.testing.assert_close(logits[index], ensemble(images[index], members=[index])[0])

    def test_member_wise_batches_follow_the_order_of_members(self, ensemble):
        images = images_like(self, 2, 4)
        logits = ensemble(images, members=[2, 0])
        torch.testing.assert_close(logits[0], ensemble(images[0], members=[2])[0])
        torch.testing.assert_close(logits[1], ensemble(images[1], members=[0])[0])

    def test_forward_is_head_of_features_of_prefix(self, ensemble):
        images = images_like(self, 4)
        members = [2, 1]
        features = ensemble.features(ensemble.prefix(images), members)
        assert isinstance(features, list)
        torch.testing.assert_close(ensemble.head(features, members), ensemble(images, members))

    def test_prefix_is_indexable_by_image(self, ensemble):
        images = images_like(self, 4)
        members = list(range(self.num_members))
        survivors = torch.tensor([3, 1])
        features = ensemble.features(ensemble.prefix(images)[survivors], members)
        torch.testing.assert_close(ensemble.head(features, members), ensemble(images[survivors]))

    def test_cascade_of_members_answers_as_the_whole_where_all_logits_are_at_hand(self, ensemble):
        ensemble.eval()
        images = images_like(self, 12)
        with torch.no_grad():
            logits = ensemble(images)
        policy = WindowPolicy([(0.0, 1.0), (0.0, 1.0)])
        order = self.order
        confidence = replay(policy, [logits[[i]] for i in order]).confidence
        middle = float(confidence.median())  # about half of the images go on
        policy = WindowPolicy([(0.0, middle), (0.0, 1.0)], threshold=middle)
        answers = Cascade(ensemble_stages(ensemble, order), policy)(images)
        expected = replay(policy, [logits[[i]] for i in order])
        torch.testing.assert_close(answers.log_probs, expected.log_probs, rtol=1e-5, atol=1e-5)
        assert torch.equal(answers.stage, expected.stage)

    def test_permuting_members_leaves_the_mixture_unchanged(self, ensemble):
        images = images_like(self, 4)
        mixture = mixture_log_probs(ensemble(images))
        permuted = mixture_log_probs(ensemble(images, members=[2, 0, 1]))
        torch.testing.assert_close(permuted, mixture, rtol=0, atol=1e-12)

    def test_gradients_reach_every_member_and_only_its_own_parameters(self, ensemble):
        randomise(ensemble)  # zero-initialised weights would make this check vacuous
        ensemble.train()
        logits = ensemble(images_like(self, 4))
        for i in range(self.num_members):
            ensemble.zero_grad()
            (logits[i] * torch.randn_like(logits[i])).sum().backward(retain_graph=True)
            mine = slots(ensemble, i)
            for j in range(self.num_members):
                for slot, (parameter, index) in slots(ensemble, j).items():
                    own = (
                        parameter.grad
                        if index is None or parameter.grad is None
                        else (parameter.grad[index])
                    )
                    if slot in mine:
                        assert own is not None
                        assert own.abs().sum() > 0
                    else:
                        assert own is None or own.abs().sum() == 0

    def test_member_parameters_of_two_members_overlap_only_where_the_family_says_so(self, ensemble):
        found = [slot for i in range(self.num_members) for slot in slots(ensemble, i)]
        assert (len(set(found)) < len(found)) == ensemble.shares_parameters
        for i in range(self.num_members):
            assert len(slots(ensemble, i)) == len(ensemble.member_parameters(i))
        whole = {name for name, index in found if index is None}
        assert not whole & {name for name, index in found if index is not None}

    def test_state_dict_round_trip_restores_the_logits(self, ensemble):
        other = self.made(self.num_members)
        randomise(other)
        for buffer in other.buffers():  # fixed masks have to be stored too
            if buffer.is_floating_point():
                buffer.copy_(1 - buffer)
        images = images_like(self, 4)
        assert not torch.allclose(other(images), ensemble(images))
        other.load_state_dict(ensemble.state_dict())
        assert torch.equal(other(images), ensemble(images))

    def test_member_is_a_standalone_network_with_the_same_logits(self, ensemble):
        images = images_like(self, 4)
        logits = ensemble(images)
        members = [ensemble.member(i) for i in range(self.num_members)]
        randomise(ensemble)
        for index, member in enumerate(members):
            torch.testing.assert_close(member.eval()(images), logits[index])

    def test_member_state_is_that_of_the_member_and_writable(self, ensemble):
        images = images_like(self, 4)
        expected = ensemble(images, members=[0])
        source = {name: value.clone() for name, value in ensemble.member_state(0).items()}
        if not self.shares_weights:
            assert source.keys() == ensemble.member(0).state_dict().keys()
        for name, value in ensemble.member_state(1).items():
            value.copy_(source[name])
        torch.testing.assert_close(ensemble(images, members=[1]), expected)

    def test_every_drawn_tensor_is_an_independent_draw_for_each_member(self):
        """Of continuous values and of discrete ones, such as random signs and fixed masks."""
        first, again = self.make(self.num_members), self.make(self.num_members)
        for i in range(self.num_members):
            mine, same = first.member_state(i), again.member_state(i)
            for name, value in mine.items():
                assert torch.equal(value, same[name]), f"{name} is no function of the seed"
            for j in range(i):
                theirs = first.member_state(j)
                for name, value in mine.items():
                    if first.shares_parameters and not comparable(value, theirs.get(name)):
                        continue  # one tensor of both, or a part of another size
                    constant = value.numel() == 1 or value.unique().numel() == 1
                    if not constant and not fixed_by_design(value):
                        other = theirs[name]
                        assert not torch.equal(value, other), f"{name} is that of {i} and {j}"
                        equal = float((value == other).double().mean())
                        most = most_coincidences(value, other)
                        assert equal < most, f"{name} is shared by {i} and {j}"

    @pytest.mark.parametrize(
        ("members", "line"),
        [([3], "members must be in"), ([-1], "members must be in"), ([], "at least one member")],
    )
    def test_unknown_members_are_refused(self, ensemble, members, line):
        with pytest.raises(ValueError, match=line):
            ensemble(images_like(self, 2), members=members)

    def test_wrong_number_of_member_wise_batches_is_refused(self, ensemble):
        with pytest.raises(ValueError, match="one batch for each of the 3 chosen members"):
            ensemble(images_like(self, 2, 4))


class ObjectiveContract:
    """Inherit, and say how an objective is made."""

    image_shape = (1, 8, 8)

    def make(self) -> Objective:
        """A new objective, prepared."""
        raise NotImplementedError

    def ensemble(self, num_members: int) -> Ensemble:
        """An ensemble of CLASSES classes to try it on; by default a deep one of linear networks."""
        from deepens.ensembles import DeepEnsemble, Network

        def factory():
            body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh())
            return Network(body, nn.Linear(16, CLASSES))

        return DeepEnsemble(factory, seeds=list(range(num_members))).double()

    def batch(self, *leading: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(3)
        return images_like(self, *leading), torch.randint(CLASSES, leading, generator=generator)

    def test_loss_is_a_scalar_and_values_are_one_detached_number_a_member(self):
        loss, values = self.make()(self.ensemble(3), *self.batch(6))
        assert loss.shape == ()
        assert loss.requires_grad
        assert values.shape == (3,)
        assert not values.requires_grad

    def test_every_member_gets_a_gradient(self):
        ensemble = self.ensemble(3)
        self.make()(ensemble, *self.batch(6)).loss.backward()
        for index in range(3):
            for parameter, _ in ensemble.member_parameters(index):
                assert parameter.grad.abs().sum() > 0

    def test_same_batch_for_all_members_is_the_shared_batch(self):
        images, targets = self.batch(6)
        ensemble = self.ensemble(3)
        shared = self.make()(ensemble, images, targets)
        own = self.make()(ensemble, images.expand(3, *images.shape), targets.expand(3, -1))
        torch.testing.assert_close(own.loss, shared.loss, rtol=0, atol=1e-12)
        torch.testing.assert_close(own.values, shared.values, rtol=0, atol=1e-12)

    def test_one_hot_soft_labels_equal_class_indices(self):
        images, targets = self.batch(6)
        ensemble = self.ensemble(3)
        soft = nn.functional.one_hot(targets, CLASSES).double()
        hard = self.make()(ensemble, images, targets)
        torch.testing.assert_close(
            self.make()(ensemble, images, soft).loss, hard.loss, rtol=0, atol=1e-12
        )

    def test_permuting_members_permutes_the_values_and_gradients(self):
        images, targets = self.batch(6)
        ensemble = self.ensemble(3)
        permuted = copy.deepcopy(ensemble)
        for position, source in enumerate([2, 0, 1]):
            for name, value in permuted.member_state(position).items():
                value.copy_(ensemble.member_state(source)[name])
        value, other = (self.make()(each, images, targets) for each in (ensemble, permuted))
        torch.testing.assert_close(other.values, value.values[[2, 0, 1]], rtol=0, atol=1e-12)
        value.loss.backward()
        other.loss.backward()
        for position, source in enumerate([2, 0, 1]):
            pairs = zip(
                self.gradients(permuted, position), self.gradients(ensemble, source), strict=True
            )
            for found, expected in pairs:
                assert expected.abs().sum() > 0
                torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)

    @staticmethod
    def gradients(ensemble: Ensemble, index: int) -> list[Tensor]:
        """A member's gradients, of the parameters that it learns."""
        return [
            parameter.grad if position is None else parameter.grad[position]
            for parameter, position in ensemble.member_parameters(index)
            if parameter.requires_grad
        ]

    def test_state_dict_round_trip_restores_the_objective(self):
        objective, other = self.make(), self.make()
        other.load_state_dict(objective.state_dict())
        ensemble = self.ensemble(3)
        batch = self.batch(6)
        assert torch.equal(other(ensemble, *batch).loss, objective(ensemble, *batch).loss)

    def test_targets_out_of_range_are_refused(self):
        images, targets = self.batch(6)
        targets[2] = CLASSES
        with pytest.raises(ValueError, match=r"targets must be in \[0, 5\), got 5"):
            self.make()(self.ensemble(3), images, targets)


def slots(ensemble: Ensemble, index: int) -> dict[tuple[int, int | None], tuple]:
    """A member's parameters by what tells them apart."""
    return {(id(p), place): (p, place) for p, place in ensemble.member_parameters(index)}


def fixed_by_design(value: Tensor) -> bool:
    """Whether a tensor is a count or a table of indices, which nothing draws."""
    return not value.is_floating_point() and value.dtype is not torch.bool


def most_coincidences(value: Tensor, other: Tensor) -> float:
    """Share of places in which independent draws of these values agree, and a margin of 5 sd.

    Draws of few values coincide by chance: two random signs half of the time.
    """
    _, places = torch.cat([value.flatten(), other.flatten()]).unique(return_inverse=True)
    mine, theirs = (part.bincount(minlength=len(places)) for part in places.chunk(2))
    expected = float((mine.double() * theirs).sum()) / value.numel() ** 2
    return expected + 5 * (expected * (1 - expected) / value.numel()) ** 0.5 + 0.01


def comparable(value: Tensor, other: Tensor | None) -> bool:
    """Whether two tensors are of one shape, and not one tensor."""
    return other is not None and value.shape == other.shape and value.data_ptr() != other.data_ptr()


def randomise(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
