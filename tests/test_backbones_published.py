"""Networks of torchvision and timm, and what pre-trained ones expect of their images."""

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from deepens.ensembles.backbones import Normalisation, Preprocessing, architecture_only, build
from torch import nn

IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CIFAR = Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
MNIST = Normalisation(mean=(0.1307,), std=(0.3081,))


@pytest.fixture(autouse=True)
def _one_thread():
    """Small passes on many threads mostly wait for one another where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def normalise(images, normalisation):
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (normalisation.mean, normalisation.std)
    )
    return (images - mean) / std


def light(name, **options):
    with torch.device("meta"):
        return build(name, **({"num_classes": 7, "channels": 3, "image_size": 32} | options))


@pytest.fixture
def stored_resnet18(tmp_path, monkeypatch):
    """A stand-in for the downloaded file: torchvision finds it and does not go to the network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(5)
    model = torchvision.models.resnet18().eval()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, std=0.1)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    torch.save(model.state_dict(), folder / url.rpartition("/")[2])
    return model


@pytest.mark.parametrize("given", [CIFAR, None])
def test_preprocessing_undoes_the_datas_normalisation_and_does_the_networks(given):
    images = torch.rand(2, 3, 8, 8)
    incoming = images if given is None else normalise(images, given)
    preprocessing = Preprocessing(given, IMAGENET, channels=3, size=8)
    torch.testing.assert_close(preprocessing(incoming), normalise(images, IMAGENET))


def test_preprocessing_repeats_grey_images_before_the_networks_normalisation():
    images = torch.rand(2, 1, 8, 8)
    preprocessing = Preprocessing(MNIST, IMAGENET, channels=1, size=8)
    expected = normalise(images.expand(-1, 3, -1, -1), IMAGENET)
    torch.testing.assert_close(preprocessing(normalise(images, MNIST)), expected)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [5, 21])
def test_preprocessing_resizes_as_torchvisions_transform_does(size, interpolation):
    images = torch.rand(2, 3, 11, 11)
    preprocessing = Preprocessing(
        None, IMAGENET, channels=3, size=size, interpolation=interpolation
    )
    resized = torchvision.transforms.functional.resize(
        images,
        [size, size],
        interpolation=torchvision.transforms.InterpolationMode(interpolation),
        antialias=True,
    )
    torch.testing.assert_close(
        preprocessing(images), normalise(resized, IMAGENET), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("size", [5, 21])
def test_preprocessing_can_be_differentiated_twice(size):
    preprocessing = Preprocessing(None, IMAGENET, channels=3, size=size).double()
    images = torch.rand(1, 3, 7, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(
        lambda images: preprocessing(images).square().sum(), images, fast_mode=True
    )


def test_equal_normalisations_cancel_exactly():
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(Preprocessing(CIFAR, CIFAR, channels=3, size=8)(images), images)


def test_preprocessing_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"must have one mean per channel \(3\), got 1"):
        Preprocessing(MNIST, IMAGENET, channels=3, size=8)
    with pytest.raises(ValueError, match="interpolation must be 'bilinear' or 'bicubic', got 'n"):
        Preprocessing(None, IMAGENET, channels=3, size=8, interpolation="nearest")
    with pytest.raises(ValueError, match="channels must be 1 or 3, got 2"):
        Preprocessing(None, IMAGENET, channels=2, size=8)
    with pytest.raises(ValueError, match=r"std must have as many entries as mean \(1\), got 2"):
        Normalisation(mean=(0.5,), std=(0.5, 0.5))
    with pytest.raises(ValueError, match=r"std must be > 0 in every channel, got \(0.0,\)"):
        Normalisation(mean=(0.5,), std=(0.0,))


def test_a_pre_trained_body_holds_the_stored_weights_and_a_fresh_head(stored_resnet18):
    network = build("torchvision:resnet18@IMAGENET1K_V1", num_classes=7, channels=3, image_size=32)
    body = network.body[1].state_dict()
    stored = stored_resnet18.state_dict()
    assert set(stored) - set(body) == {"fc.weight", "fc.bias"}
    assert all(torch.equal(body[key], stored[key]) for key in body)
    assert network.head.weight.shape == (7, 512)
    assert network.head.weight.std() > 0


def test_a_pre_trained_network_with_its_own_classes_is_the_stored_one(stored_resnet18):
    network = build(
        "torchvision:resnet18@IMAGENET1K_V1",
        num_classes=1000,
        channels=3,
        image_size=32,
        normalisation=CIFAR,
    ).eval()
    images = torch.rand(2, 3, 32, 32)
    resized = F.interpolate(images, size=224, mode="bilinear", antialias=True)
    expected = stored_resnet18(normalise(resized, IMAGENET))
    actual = network(normalise(images, CIFAR))
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


def test_weights_that_cannot_be_downloaded_are_one_clear_line(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    with pytest.raises(ConnectionError, match="cannot be downloaded") as error:
        build("torchvision:resnet18@DEFAULT", num_classes=7, channels=3, image_size=32)
    line = str(error.value)
    assert "\n" not in line
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in line
    assert str(tmp_path / "hub" / "checkpoints") in line


def test_timm_weights_that_cannot_be_downloaded_are_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match="cannot be downloaded") as error:
        build("timm:resnet18@pretrained", num_classes=7, channels=3, image_size=32)
    assert "timm/resnet18.a1_in1k" in str(error.value)


def test_unknown_weights_are_refused_with_the_known():
    with pytest.raises(ValueError, match=r"must be one of \['DEFAULT', 'IMAGENET1K_V1'\], got 'x'"):
        light("torchvision:resnet18@x")
    with pytest.raises(ValueError, match=r"timm:resnet18 must be 'pretrained' .* got 'x'"):
        light("timm:resnet18@x")


@pytest.mark.parametrize(
    "name", ["torchvision:resnet18", "timm:resnet18", "torchvision:resnext50_32x4d"]
)
def test_a_resnet_loses_stride_and_pooling_for_small_images_only(name):
    small, large = light(name, channels=1).body, light(name, image_size=96).body
    assert small.conv1.kernel_size == (3, 3)
    assert small.conv1.stride == (1, 1)
    assert small.conv1.in_channels == 1
    assert isinstance(small.maxpool, nn.Identity)
    assert large.conv1.kernel_size == (7, 7)
    assert isinstance(large.maxpool, nn.MaxPool2d)


def test_the_adapted_torchvision_resnet18_is_the_cifar_one():
    ours, theirs = (
        build(name, num_classes=7, channels=3, image_size=32)
        for name in ("resnet18", "torchvision:resnet18")
    )
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["torchvision:densenet121", "timm:densenet121", "torchvision:googlenet"]
)
def test_other_stems_with_early_pooling_are_adapted_too(name):
    body = light(name).body
    first = next(part for part in body.modules() if isinstance(part, nn.Conv2d))
    assert (first.kernel_size, first.stride) == ((3, 3), (1, 1))


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "timm:efficientnet_b0"])
def test_a_stem_without_a_rule_stays_and_a_warning_says_so(name):
    with pytest.warns(UserWarning, match="has no rule for small images: only its head and input"):
        body = light(name, channels=1).body
    first = next(part for part in body.modules() if isinstance(part, nn.Conv2d))
    assert first.stride == (2, 2)
    assert first.in_channels == 1


def test_a_stem_without_stride_needs_no_rule():
    assert light("torchvision:vgg11_bn").body.features[0].stride == (1, 1)


def test_torchvisions_vision_transformer_draws_its_head_and_its_positions():
    one, other = (
        build("torchvision:vit_b_32", num_classes=7, channels=3, image_size=96) for _ in range(2)
    )
    # torchvision itself would leave the head at zero.
    for first, second in (
        (one.head.weight, other.head.weight),
        (one.body.encoder.pos_embedding, other.body.encoder.pos_embedding),
    ):
        assert first.std() > 0.01
        assert (first != second).float().mean() > 0.99
    assert one.body.encoder.pos_embedding.shape == (1, 10, 768)


def test_a_size_that_does_not_fit_the_patches_is_refused():
    with pytest.raises(ValueError, match=r"image_size must be a multiple of 32 for .*, got 48"):
        light("torchvision:vit_b_32", image_size=48)


def test_a_network_without_a_linear_head_is_refused():
    with pytest.raises(ValueError, match="must be a network that ends in a linear layer, got"):
        light("torchvision:squeezenet1_1")


def test_timm_is_asked_for_by_name_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"needs the package timm: pip install 'deepens\[t"
    ):
        light("timm:resnet18")


FAMILIES = (
    "torchvision:alexnet",
    "timm:convnext_atto",
    "torchvision:densenet121",
    "torchvision:inception_v3",
    "torchvision:maxvit_t",
    "torchvision:mnasnet0_5",
    "torchvision:mobilenet_v2",
    "torchvision:swin_t",
    "torchvision:vit_l_32",
    "timm:deit_tiny_distilled_patch16_224",
    "timm:mobilenetv3_small_100",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_features_fit_the_head_in_every_family(name):
    network = light(name, image_size=224, channels=1)
    images = torch.empty(2, 1, 224, 224, device="meta")
    assert network.features(images).shape == (2, network.head.in_features)
    assert network(images).shape == (2, 7)


@pytest.mark.slow
@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_features_fit_the_head_in_every_network_of_torchvision(name):
    if name.startswith("squeezenet"):
        pytest.skip("ends in a convolution")
    if name.startswith("regnet"):
        if int(name.split("_")[2].rstrip("mgf")) in (8, 16, 32, 128):
            pytest.skip("too big to build for real, and its construction needs its weights")
        network = build(f"torchvision:{name}", num_classes=7, channels=1, image_size=224)
        network, images = network.eval(), torch.zeros(1, 1, 224, 224)
    else:
        network = light(f"torchvision:{name}", image_size=224, channels=1)
        images = torch.empty(2, 1, 224, 224, device="meta")
    assert network(images).shape == (len(images), 7)


def test_a_pre_trained_file_that_runs_code_is_refused(tmp_path, monkeypatch):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    torch.save({"conv1.weight": Bomb()}, folder / url.rpartition("/")[2])
    with pytest.raises(ValueError, match="hold something other than tensors; delete the file"):
        build("torchvision:resnet18@IMAGENET1K_V1", num_classes=7, channels=3, image_size=32)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.filterwarnings("ignore:.*no rule for small images")
@pytest.mark.parametrize("size", [8, 32])
def test_images_too_small_for_a_network_are_refused(size):
    line = f"torchvision:alexnet cannot take images of {size} x {size} pixels"
    with pytest.raises(ValueError, match=line):
        build("torchvision:alexnet", num_classes=7, channels=3, image_size=size)


def test_dry_run_leaves_a_fresh_network_as_it_was_drawn():
    torch.manual_seed(1)
    network = build("torchvision:resnet18", num_classes=7, channels=3, image_size=32)
    drawn = torch.rand(3)
    assert network.training
    assert all(
        (part.running_mean == 0).all() and part.num_batches_tracked == 0
        for part in network.modules()
        if isinstance(part, nn.BatchNorm2d)
    )
    torch.manual_seed(1)
    build("torchvision:resnet18", num_classes=7, channels=3, image_size=32)
    assert torch.equal(torch.rand(3), drawn)


def test_architecture_alone_takes_a_runs_weights_without_the_download(stored_resnet18, tmp_path):
    name = "torchvision:resnet18@IMAGENET1K_V1"
    trained = build(name, num_classes=7, channels=3, image_size=32, normalisation=CIFAR).eval()
    (stored,) = (tmp_path / "hub" / "checkpoints").iterdir()
    stored.unlink()
    with architecture_only():
        network = build(name, num_classes=7, channels=3, image_size=32, normalisation=CIFAR).eval()
    network.load_state_dict(trained.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(network(images), trained(images))


@pytest.fixture
def downloaded(monkeypatch):
    """Networks of timm come with weights, which are drawn: nothing can be downloaded."""
    create = timm.create_model

    def drawn(name, *, pretrained=False, **options):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", drawn)


HEADS = ["levit_128s", "efficientformer_l1", "repvit_m0_9", "resnet18"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [*HEADS, pytest.param("resnetv2_50", marks=pytest.mark.slow)])
def test_pre_trained_network_keeps_its_own_head_of_every_linear_kind(name, downloaded):
    network = build(f"timm:{name}@pretrained", num_classes=1000, channels=3, image_size=32)
    published = timm.create_model(name).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = published(network.body[0](images))
        difference = (network.eval()(images) - expected).abs().max()
    assert difference <= 1e-5 * expected.abs().max()
    assert isinstance(network.head, nn.Linear)
    with architecture_only():
        empty = build(f"timm:{name}@pretrained", num_classes=1000, channels=3, image_size=32)
    empty.load_state_dict(network.state_dict())


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("deit_tiny_distilled_patch16_224", "a new head is drawn"),
        ("volo_d1_224", "its linear head is kept alone"),
    ],
)
def test_pre_trained_network_whose_head_cannot_be_kept_says_so(name, what, downloaded):
    with pytest.warns(UserWarning, match=f"timm:{name} makes its logits by more .*{what}"):
        build(f"timm:{name}@pretrained", num_classes=1000, channels=3, image_size=32)


@pytest.mark.filterwarnings("error")
def test_another_number_of_classes_needs_no_word_about_a_new_head(downloaded):
    name = "timm:deit_tiny_distilled_patch16_224@pretrained"
    assert build(name, num_classes=7, channels=3, image_size=32).head.out_features == 7
