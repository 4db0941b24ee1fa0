"""Any network of timm, fresh or pre-trained."""

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from .network import Network
from .published import Task, adapt_stem, loads_weights, nearest, pre_trained


def timm_network(name: str, task: Task) -> Network:
    """Build a network of timm with a head for the task's classes.

    Freshly drawn (``resnet18``): the input takes the task's channels, networks made for one image
    size take the task's, and for small images a ResNet-like stem is adapted (see
    :func:`~.published.adapt_stem`). Pre-trained (``resnet18@pretrained``,
    ``resnet18.a1_in1k@pretrained``): the network stays as published, behind a
    :class:`~.preprocessing.Preprocessing` to its image size and normalisation. The head is a fresh
    ``nn.Linear``, or a pre-trained network's own where the number of classes agrees; of the mean of
    two heads, and of norms and convolutions, the linear map that they are in evaluation. What is no
    linear map of the features is left out, with a warning.

    Raises:
        ModuleNotFoundError: If timm is not installed.
        ValueError: If the name is unknown (the nearest known are named), or asks for anything
            but ``@pretrained``.
        ConnectionError: If the weights are not on this machine and cannot be downloaded.

    Example:
        >>> from deepens.ensembles.backbones.published import Task
        >>> from deepens.ensembles.backbones.timm_models import timm_network
        >>> network = timm_network("resnet18", Task(num_classes=10, channels=3, image_size=32))
        >>> network.head
        Linear(in_features=512, out_features=10, bias=True)
    """
    check_timm_name(name)
    import timm

    model_name, _, weights_name = name.partition("@")
    configuration = timm.get_pretrained_cfg(model_name)
    if weights_name:
        return _pre_trained(model_name, configuration, task)
    fixed = configuration is not None and configuration.fixed_input_size
    options: dict[str, Any] = {"img_size": task.image_size} if fixed else {}
    model = timm.create_model(
        model_name, pretrained=False, in_chans=task.channels, num_classes=0, **options
    )
    adapt_stem(model, name=f"timm:{model_name}", image_size=task.image_size)
    return Network(model, nn.Linear(_feature_size(model), task.num_classes))


def check_timm_name(name: str) -> None:
    """Refuse a name that `timm_network` does not know; nothing is built."""
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"timm:{name} needs the package timm: pip install 'deepens[timm]'"
        ) from error
    model_name, _, weights_name = name.partition("@")
    if not timm.is_model(model_name):
        raise ValueError(
            f"name must be a network of timm, got 'timm:{model_name}'"
            f"{nearest(model_name, timm.list_models())}"
        )
    if "@" in name and weights_name != "pretrained":
        raise ValueError(
            f"weights of timm:{model_name} must be 'pretrained' (a tag belongs to the name: "
            f"resnet18.a1_in1k@pretrained), got {weights_name!r}"
        )
    try:
        timm.get_pretrained_cfg(model_name)
    except RuntimeError as error:
        tags = timm.list_pretrained(model_name.partition(".")[0] + "*")
        raise ValueError(
            f"name must have a tag that timm knows, got 'timm:{model_name}'"
            f"{nearest(model_name, tags)}"
        ) from error


def _pre_trained(model_name: str, configuration: Any, task: Task) -> Network:
    """Load the weights, and put the preprocessing that they expect before them."""
    import timm

    if configuration is None or not timm.models.is_model_pretrained(model_name):
        raise ValueError(
            f"name must be a network that timm has weights for, got 'timm:{model_name}@pretrained'"
        )
    try:
        model: Any = timm.create_model(model_name, pretrained=loads_weights())
    except OSError as error:
        raise ConnectionError(
            f"weights of timm:{model_name} are not on this machine and cannot be downloaded "
            f"({error}): fetch the Hugging Face repository {configuration.hf_hub_id} elsewhere "
            "with `huggingface-cli download` and copy its cache folder here"
        ) from error
    head = _own_head(model, model_name, configuration.input_size, task)
    return pre_trained(
        model,
        head,
        task,
        features=_feature_size(model),
        mean=configuration.mean,
        std=configuration.std,
        size=configuration.input_size[-1],
        interpolation="bilinear" if configuration.interpolation == "bilinear" else "bicubic",
    )


def _own_head(
    model: Any, model_name: str, image_shape: tuple[int, int, int], task: Task
) -> nn.Module:
    """Take a network's head off, as one linear layer where that gives the network's own logits."""
    head = model.get_classifier()
    if model.num_classes != task.num_classes or not loads_weights():
        model.reset_classifier(0)
        return head
    images = torch.randn(2, *image_shape, generator=torch.Generator().manual_seed(0))
    training = model.training
    with torch.no_grad():
        wanted = model.eval()(images)
        model.reset_classifier(0)
        features = model.eval()(images)
    model.train(training)
    linear = head if isinstance(head, nn.Linear) else _as_linear(head, features.shape[1])
    same = linear is not None and _close(linear, features, wanted)
    if not same:
        kept = "its linear head is kept alone" if linear is head else "a new head is drawn"
        warnings.warn(
            f"timm:{model_name} makes its logits by more than a linear map of its features: "
            f"{kept}, which has to be trained",
            UserWarning,
            stacklevel=2,
        )
    return linear if linear is not None and (same or linear is head) else nn.Identity()


@torch.no_grad()
def _as_linear(head: Any, size: int) -> nn.Linear | None:
    """The linear layer that a head is in evaluation, if it is one; None if it takes no features.

    It may be a pair of heads whose results are averaged, a convolution of one place, or contain a
    norm.
    """
    heads = [
        copy.deepcopy(h).double().eval() for h in (head if isinstance(head, tuple) else [head])
    ]

    def logits(inputs: Tensor) -> Tensor:
        places = [inputs[:, :, None, None] if isinstance(h, nn.Conv2d) else inputs for h in heads]
        results = [h(own).flatten(1) for h, own in zip(heads, places, strict=True)]
        return torch.stack(results).mean(0)

    try:
        bias = logits(torch.zeros(1, size, dtype=torch.float64))
        weight = (logits(torch.eye(size, dtype=torch.float64)) - bias).mT
    except (RuntimeError, TypeError):
        return None
    linear = nn.utils.skip_init(nn.Linear, size, len(weight))
    linear.weight.copy_(weight)
    linear.bias.copy_(bias[0])
    return linear


@torch.no_grad()
def _close(linear: nn.Linear, features: Tensor, wanted: Tensor) -> bool:
    if features.shape[1:] != (linear.in_features,) or wanted.shape[1:] != (linear.out_features,):
        return False
    return bool((linear(features) - wanted).abs().max() <= 1e-3 * wanted.abs().max())


def _feature_size(model: Any) -> int:
    """Return the size of what the head sees: behind MobileNetV3's last layer, not before it."""
    return int(getattr(model, "head_hidden_size", None) or model.num_features)
