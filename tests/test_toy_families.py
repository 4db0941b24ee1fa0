"""The contract carries discrete initialisation and buffers that differ by member."""

import pytest
import torch
from contract import CLASSES, EnsembleContract, most_coincidences
from deepens.ensembles import CrossEntropy, DeepEnsemble, Network
from torch import nn
from toy_families import FixedMasks, Mask, RandomSigns, signs


class _Toy(EnsembleContract):
    shares_weights = True

    def make(self, num_members):
        return self.family(64, 24, CLASSES, seeds=[7, 8, 9][:num_members])

    def plain(self):
        """By hand, from the seed alone."""
        generator = torch.Generator().manual_seed(7)
        weight = torch.randn(24, 64, generator=generator) / 8
        output = torch.randn(CLASSES, 24, generator=generator)
        own = torch.Generator().manual_seed(7)
        return self.by_hand(weight, output, own)


class TestRandomSigns(_Toy):
    family = RandomSigns

    def by_hand(self, weight, output, own):
        weight = weight * signs(64, own) * signs(24, own)[:, None]
        return nn.Sequential(nn.Flatten(), linear(weight), nn.Tanh(), linear(output))


class TestFixedMasks(_Toy):
    family = FixedMasks

    def by_hand(self, weight, output, own):
        mask = (signs(24, own) + 1) / 2
        return nn.Sequential(nn.Flatten(), linear(weight), nn.Tanh(), linear(output * mask))


class TestMaskedNetworks(EnsembleContract):
    """Separate networks, each with a mask of its own among its buffers."""

    def network(self):
        mask = Mask(torch.randint(2, (32,)).float())
        body = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), mask)
        return Network(body, nn.Linear(32, CLASSES))

    def make(self, num_members):
        return DeepEnsemble(self.network, seeds=[7, 8, 9][:num_members])

    def plain(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            return self.network()


def linear(weight):
    layer = nn.Linear(*weight.shape[::-1], bias=False)
    layer.weight = nn.Parameter(weight)
    return layer


@pytest.mark.parametrize("family", [RandomSigns, FixedMasks])
def test_members_that_share_weights_learn_from_one_batch(family):
    ensemble = family(64, 24, CLASSES, seeds=[1, 2, 3])
    images = torch.randn(40, 1, 8, 8)
    targets = torch.randint(CLASSES, (40,))
    optimizer = torch.optim.SGD(ensemble.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss, _ = CrossEntropy()(ensemble, images, targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_signs_that_members_share_in_part_are_noticed():
    first = signs(1000, torch.Generator().manual_seed(1))
    other = signs(1000, torch.Generator().manual_seed(2))
    assert (first == other).double().mean() < most_coincidences(first, other)
    other[:500] = first[:500]
    assert (first == other).double().mean() > most_coincidences(first, other)
