"""A look at a network on an image's way through it: its layers, and what each one does."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.backends import mha

from ..surgery import HEAD_SIZE_ATTRIBUTES, LAYERS, failing_module, forgetting, graph_nodes


@dataclass(frozen=True)
class SeenLayer:
    """One layer with parameters.

    Attributes:
        inputs: Width of what arrives.
        outputs: Width of what it returns.
        axis: The axis of its input that runs over channels.
        image: Whether its input comes from the image alone, and is not narrowed.
        decides: The width of its output, a third of that for a joint query, key and value
            projection; 0 where it follows its input (depthwise, norms), is that of class scores, or
            is fixed.
        groups: Of the original layer; the channels in a group of GroupNorm.
        depthwise: Whether it is a depthwise convolution.
        fixed: Whether its output stays as wide as it is (a layer with ``fixed_width``).
    """

    inputs: int
    outputs: int
    axis: int
    image: bool
    decides: int = 0
    groups: int = 1
    depthwise: bool = False
    fixed: bool = False


@dataclass(frozen=True)
class Survey:
    """What was seen.

    Attributes:
        name: The network's class, for messages.
        classes: Number of class scores.
        layers: By module name.
        heads: Widths that attention splits into heads, and into how many.
        interior: Names of the convolutions that take gamma: all but those that read the image,
            depthwise ones, 1x1 convolutions of one position (squeeze-and-excitation) and 1x1
            convolutions of a shortcut, which read the same tensor as another convolution that is
            larger, narrower or of a smaller stride.
    """

    name: str
    classes: int
    layers: dict[str, SeenLayer]
    heads: tuple[tuple[int, int], ...]
    interior: frozenset[str]

    @property
    def known_widths(self) -> frozenset[int]:
        """The widths that some layer decides, by which raw parameters are recognised."""
        return frozenset(layer.decides for layer in self.layers.values()) - {0}

    @property
    def fixed_widths(self) -> frozenset[int]:
        """The widths that some layer keeps."""
        return frozenset(layer.outputs for layer in self.layers.values() if layer.fixed)

    def groups(self, name: str, gamma: int) -> int:
        """What a layer's widths must be multiples of: its groups, or GroupNorm's group size."""
        layer = self.layers[name]
        if layer.depthwise:
            return 1
        return layer.groups * (gamma if name in self.interior else 1)


def survey(model: nn.Module, image_shape: tuple[int, int, int]) -> Survey:
    """Pass one image through a network, which comes out unchanged, and note its layers.

    Raises:
        ValueError: The network fails on such an image, returns something other than class scores,
            or holds a module that cannot be narrowed; it is named.
    """
    title = type(model).__name__
    _refuse_unknown_layers(model, title)
    inputs: dict[str, Tensor] = {}

    def note(name: str, module: nn.Module, arriving: Tensor) -> None:
        if isinstance(module, LAYERS):
            inputs.setdefault(name, arriving)  # kept alive: equal objects are equal tensors

    # With a graph, so that what comes from the image alone can be told apart from what layers made.
    with _made_by(model) as made:
        scores = walk(model, image_shape, note, refusal=f"{title} cannot be packed", graph=True)
    modules = {name: model.get_submodule(name) for name in inputs}
    _refuse_idle_layers(model, modules, scores, title)
    maps = {n: m for n, m in modules.items() if isinstance(m, nn.Conv2d | nn.Linear)}
    classes = scores.shape[-1]
    heads = _heads(scores, maps, made)
    layers = {
        n: _see(n, m, _parent(model, n), inputs[n], is_head=n in heads)
        for n, m in modules.items()
        if not _mixes_heads(m, _parent(model, n))
    }
    pairs = [(attention_width(module), heads_of(module)) for module in model.modules()]
    attention = tuple((width, heads) for width, heads in pairs if width and heads)
    convolutions = {n: m for n, m in modules.items() if isinstance(m, nn.Conv2d)}
    interior = frozenset(_interior(convolutions, inputs, layers, heads))
    return Survey(title, classes, layers, attention, interior)


def walk(
    model: nn.Module,
    image_shape: tuple[int, int, int],
    visit: Callable[[str, nn.Module, Tensor], None],
    *,
    refusal: str,
    graph: bool = False,
) -> Tensor:
    """Pass one image through a network to class scores ``[1, C]``, with a call before each module.

    Args:
        model: A network.
        image_shape: Channels, height and width of an image.
        visit: Gets a module's name, the module, and its first argument.
        refusal: How the message begins if a module fails.
        graph: Whether to build a graph, as if all parameters were trained.

    Raises:
        ValueError: A module fails, and is named, or what comes out is no row of class scores.
    """
    refused: list[Exception] = []
    like = next(model.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, *image_shape, generator=generator).to(like.device, like.dtype)

    def before(
        name: str, module: nn.Module, given: tuple[object, ...], named: dict[str, object]
    ) -> None:
        arriving = next((v for v in (*given, *named.values()) if isinstance(v, Tensor)), None)
        if arriving is not None:
            try:
                visit(name, module, arriving)
            except Exception as error:
                refused.append(error)
                raise

    with forgetting(model), ExitStack() as stack, torch.set_grad_enabled(graph):
        stack.callback(mha.set_fastpath_enabled, mha.get_fastpath_enabled())
        mha.set_fastpath_enabled(False)  # it would pass modules by
        for name, module in model.named_modules():
            hook = module.register_forward_pre_hook(partial(before, name), with_kwargs=True)
            stack.enter_context(hook)
            stack.callback(setattr, module, "training", module.training)
        for parameter in model.parameters() if graph else ():
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(True)
        try:
            scores = model.eval()(images)
        except Exception as error:
            if refused:
                raise
            place, part = failing_module(model, error)
            named = f"the module {place!r} ({type(part).__name__})" if place else "its own code"
            which = f"{refusal}: {named}"
            if not graph:  # as it was it did not fail
                raise ValueError(
                    f"{which} does not run with fewer channels, since {_fixed_size(model)}; a deep "
                    "ensemble takes any network"
                ) from error
            raise ValueError(
                f"{which} fails on images of shape {list(image_shape)}: "
                f"{' '.join(str(error).split())[:160]}; a deep ensemble takes any network"
            ) from error
    if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != 1:
        shown = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"{refusal}: it must return class scores [batch, classes], got {shown}")
    return scores


def heads_of(module: nn.Module) -> int | None:
    """The number of heads of an attention module, None for others."""
    found = (getattr(module, name, None) for name in ("num_heads", "num_attention_heads"))
    return next((heads for heads in found if isinstance(heads, int) and heads > 0), None)


def attention_width(module: nn.Module) -> int | None:
    """The width that an attention module splits into its heads, None for others."""
    if (heads := heads_of(module)) is None:
        return None
    for attribute in HEAD_SIZE_ATTRIBUTES:
        if isinstance(size := getattr(module, attribute, None), int):
            return heads * size
    for attribute, parts in (("qkv", 3), ("q", 1), ("query", 1), ("q_proj", 1)):
        if isinstance(linear := getattr(module, attribute, None), nn.Linear):
            return linear.out_features // parts
    return None


def _parent(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _mixes_heads(module: nn.Module, parent: nn.Module) -> bool:
    """Whether a linear layer maps attention's heads to each other; their number stays."""
    return (
        isinstance(module, nn.Linear)
        and module.in_features == module.out_features == heads_of(parent)
        and attention_width(parent) != module.in_features
    )


def _see(
    name: str, module: nn.Module, parent: nn.Module, arriving: Tensor, *, is_head: bool
) -> SeenLayer:
    image = not arriving.requires_grad
    joint = name.rpartition(".")[2] == "qkv"
    if isinstance(module, nn.Conv2d):
        inputs, outputs, groups = module.in_channels, module.out_channels, module.groups
        depthwise = groups == inputs > 1
        joint = joint and outputs == 3 * (attention_width(parent) or 0)
        fixed = getattr(module, "fixed_width", False)
        decides = 0 if is_head or depthwise or fixed else outputs // 3 if joint else outputs
        return SeenLayer(inputs, outputs, 1, image, decides, groups, depthwise, fixed)
    if isinstance(module, nn.Linear):
        inputs, outputs = module.in_features, module.out_features
        joint = joint and outputs == 3 * inputs
        decides = 0 if is_head else outputs // 3 if joint else outputs
        return SeenLayer(inputs, outputs, -1, image, decides)
    if isinstance(module, nn.MultiheadAttention):
        return SeenLayer(module.embed_dim, module.embed_dim, -1, image, module.embed_dim)
    axis = 1
    if isinstance(module, nn.LayerNorm):
        size = tuple(module.normalized_shape)
        last = tuple(arriving.shape[-len(size) :]) == size
        # Subclasses for images normalise the second axis, which may be as long as the last.
        if last and (type(module) is nn.LayerNorm or tuple(arriving.shape[1:2]) != size):
            axis = -1
    width = arriving.shape[axis]
    groups = module.num_groups if isinstance(module, nn.GroupNorm) else 1
    return SeenLayer(width, width, axis, image, groups=width // groups if groups > 1 else 1)


@contextmanager
def _made_by(model: nn.Module) -> Iterator[dict[Node, str]]:
    """A dictionary that fills with the graph's nodes in which layers end, and the layers' names."""
    made: dict[Node, str] = {}

    def note(name: str, _: nn.Module, __: object, result: object) -> None:
        if isinstance(result, Tensor) and result.grad_fn is not None:
            made[result.grad_fn] = name

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                stack.enter_context(module.register_forward_hook(partial(note, name)))
        yield made


def _heads(
    scores: Tensor, maps: Mapping[str, nn.Conv2d | nn.Linear], made: Mapping[Node, str]
) -> frozenset[str]:
    """The layers behind which no other comes, if all have the classes as outputs.

    They are several where the scores of several heads are averaged. Otherwise it is the last
    layer that has.
    """
    classes = scores.shape[-1]
    last = frozenset(made[node] for node in graph_nodes(scores, made) if node in made)
    if last and all(name in maps and _outputs(maps[name]) == classes for name in last):
        return last
    fitting = [name for name, layer in maps.items() if _outputs(layer) == classes]
    return frozenset(fitting[-1:])


def _fixed_size(model: nn.Module) -> str:
    """Why a network may need the channels that it has, as the end of a sentence."""
    for name, part in model.named_modules():
        if type(part).__name__.lower().startswith(("rotary", "rope")):
            return f"the rotation of its positions, {name!r}, has a fixed number of channels"
    return "it, or a module before it, works with a fixed number of them"


def _outputs(module: nn.Conv2d | nn.Linear) -> int:
    return module.out_channels if isinstance(module, nn.Conv2d) else module.out_features


def _interior(
    convolutions: dict[str, nn.Conv2d],
    inputs: dict[str, Tensor],
    layers: dict[str, SeenLayer],
    heads: frozenset[str],
) -> Iterator[str]:
    for name, own in list(convolutions.items())[1:]:
        seen = layers[name]
        single = inputs[name].shape[-2:] == own.kernel_size == (1, 1)
        excites = single and own.bias is not None  # as in squeeze-and-excitation
        out = name in heads or seen.image or seen.depthwise or excites
        if not (out or _is_shortcut(name, convolutions, inputs)):
            yield name


def _is_shortcut(name: str, convolutions: dict[str, nn.Conv2d], inputs: dict[str, Tensor]) -> bool:
    own = convolutions[name]
    return own.kernel_size == (1, 1) and any(
        other.kernel_size != (1, 1)
        or other.out_channels < own.out_channels
        or other.stride < own.stride
        for key, other in convolutions.items()
        if key != name and inputs[key] is inputs[name]
    )


def _refuse_unknown_layers(model: nn.Module, title: str) -> None:
    known = (*LAYERS, nn.ParameterList, nn.ParameterDict)
    for name, module in model.named_modules():
        kind, own = type(module), module._parameters
        plain = isinstance(module, nn.Conv2d | nn.Linear)
        if hasattr(module, "parametrizations") or (plain and "weight" not in own):
            reason = "its parameters are computed from others"
        elif isinstance(module, nn.modules.lazy.LazyModuleMixin):
            reason = "it has no sizes before its first image"
        elif isinstance(module, nn.MultiheadAttention) and (
            module.in_proj_weight is None or module.bias_k is not None
        ):
            reason = "its projections are not those of plain self-attention"
        elif (
            kind.__module__.startswith("torch.")
            and not isinstance(module, known)
            and not (
                isinstance(module, nn.Conv1d) and module.in_channels == module.out_channels == 1
            )
            and any(parameter is not None for parameter in own.values())
        ):
            reason = "there is no rule for its parameters"
        else:
            continue
        raise ValueError(
            f"{title} cannot be packed: the module {name!r} ({kind.__name__}) cannot be narrowed, "
            f"since {reason}; a deep ensemble takes any network"
        )


def _refuse_idle_layers(
    model: nn.Module, called: dict[str, nn.Module], scores: Tensor, title: str
) -> None:
    attention = [part for part in model.modules() if isinstance(part, nn.MultiheadAttention)]
    known = {*called.values(), *(child for part in attention for child in part.children())}
    used = {id(getattr(node, "variable", None)) for node in graph_nodes(scores)}
    for name, module in model.named_modules():
        has_parameters = next(module.parameters(recurse=False), None) is not None
        if isinstance(module, LAYERS) and has_parameters and module not in known:
            shown = f"{title} cannot be packed: the module {name!r} ({type(module).__name__})"
            if any(id(parameter) in used for parameter in module.parameters(recurse=False)):
                raise ValueError(
                    f"{shown} is used through its weight alone, without being called, so that "
                    "nothing can be learned of its input; a deep ensemble takes any network"
                )
            raise ValueError(
                f"{shown} is not called for an image, so that its new widths are unknown; remove "
                "it, or use a deep ensemble"
            )
