"""Any network of timm, fresh or pre-trained."""

from typing import Any

from torch import nn

from .network import Network
from .published import Task, adapt_stem, loads_weights, nearest, pre_trained


def timm_network(name: str, task: Task) -> Network:
    """Build a network of timm with a head for the task's classes.

    Freshly drawn (``resnet18``): the input takes the task's channels, networks made for one image
    size take the task's, and for small images a ResNet-like stem is adapted (see
    :func:`~.published.adapt_stem`). Pre-trained (``resnet18@pretrained``,
    ``resnet18.a1_in1k@pretrained``): the network stays as published, behind a
    :class:`~.preprocessing.Preprocessing` to its image size and normalisation. The head is a fresh
    ``nn.Linear``, or a pre-trained network's own where the number of classes agrees.

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
        configuration = timm.get_pretrained_cfg(model_name)
    except RuntimeError as error:
        tags = timm.list_pretrained(model_name.partition(".")[0] + "*")
        raise ValueError(
            f"name must have a tag that timm knows, got 'timm:{model_name}'"
            f"{nearest(model_name, tags)}"
        ) from error
    if weights_name:
        return _pre_trained(model_name, configuration, task)
    fixed = configuration is not None and configuration.fixed_input_size
    options: dict[str, Any] = {"img_size": task.image_size} if fixed else {}
    model = timm.create_model(
        model_name, pretrained=False, in_chans=task.channels, num_classes=0, **options
    )
    adapt_stem(model, name=f"timm:{model_name}", image_size=task.image_size)
    return Network(model, nn.Linear(_feature_size(model), task.num_classes))


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
    head = model.get_classifier()
    model.reset_classifier(0)
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


def _feature_size(model: Any) -> int:
    """Return the size of what the head sees: behind MobileNetV3's last layer, not before it."""
    return int(getattr(model, "head_hidden_size", None) or model.num_features)
