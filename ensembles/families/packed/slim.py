"""Narrowing any network by surgery on its modules: a member of a packed ensemble."""

import math
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor, nn

from ..surgery import (
    HEAD_SIZE_ATTRIBUTES,
    LAYERS,
    WIDTH_ATTRIBUTES,
    copied,
    raw_parameters,
    shapes_beside,
    width_axis,
)
from .drawing import Redrawing
from .survey import Survey, attention_width, heads_of, survey, walk
from .widths import MOST_WIDENING, Widths


@dataclass(frozen=True)
class Plan:
    """What a slim version of one architecture looks like; it narrows any network of that kind.

    Attributes:
        survey: What was seen on an image's way through the network.
        widths: The rule of new widths.
        gamma: Groups of interior convolutions.
    """

    survey: Survey
    widths: Widths
    gamma: int

    @classmethod
    def of(
        cls,
        model: nn.Module,
        *,
        num_members: int,
        alpha: Fraction,
        gamma: int,
        image_shape: tuple[int, int, int],
    ) -> "Plan":
        """Look at a network once, which comes out unchanged, and decide each of its widths.

        Raises:
            ValueError: The network holds something that cannot be narrowed, gamma has nothing to
                act on, or rounding would widen a tensor by more than a quarter.
        """
        seen = survey(model, image_shape)
        if gamma > 1 and not seen.interior:
            raise ValueError(
                f"gamma must be 1, got {gamma}: {seen.name} has no interior convolution that it "
                "could split into groups"
            )
        pairs = list(seen.heads)
        for name, layer in seen.layers.items():
            pairs += [(width, seen.groups(name, gamma)) for width in (layer.inputs, layer.outputs)]
        multiples: dict[int, int] = {}
        for width, number in pairs:
            multiples[width] = math.lcm(multiples.get(width, 1), number)
        plan = cls(seen, Widths(alpha, num_members, multiples), gamma)
        plan._refuse_widening()
        plan = plan._with_groups_of_joined_tensors(model, image_shape)
        plan._refuse_widening()
        return plan

    def narrow(
        self, model: nn.Module, image_shape: tuple[int, int, int], *, drawn: bool = True
    ) -> nn.Module:
        """Make a network of the surveyed kind slim, in place.

        One image's pass: each layer's input width follows what arrives, its output width is the
        rule's. A tensor that changes its shape is drawn from the distribution of the original's
        entries, scaled to the fan-in of a group, by torch's global generator for the CPU; all
        others stay as they are, and parameters that modules share stay shared. Without ``drawn``
        it is zero instead.

        Raises:
            ValueError: A module cannot be narrowed; it is named.
        """
        done: set[nn.Module] = set()
        redrawing = Redrawing(f"{self.survey.name} cannot be narrowed", model, drawn=drawn)
        for module, key, parameter in list(raw_parameters(model)):
            axis, shape = width_axis(parameter), list(parameter.shape)
            if axis is not None and shape[axis] in self.survey.known_widths:
                old, shape[axis] = shape[axis], self.widths(shape[axis])
                redrawing.parameter(module, key, tuple(shape), 1.0)
                self._narrow_shapes(module, old, parameter.numel())
        for module in model.modules():
            self._narrow_attributes(module)

        def narrow(name: str, module: nn.Module, arriving: Tensor) -> None:
            if name in self.survey.layers and module not in done:
                done.add(module)
                self._check_arriving(name, arriving)
                self._narrow_layer(redrawing, name, module, arriving)

        scores = walk(model, image_shape, narrow, refusal=redrawing.refusal)
        if scores.shape[-1] != self.survey.classes:
            raise ValueError(
                f"{redrawing.refusal}: its {self.survey.classes} class scores would become "
                f"{scores.shape[-1]}, since no single layer makes them; a deep ensemble takes any "
                "network"
            )
        return model

    def _check_arriving(self, name: str, arriving: Tensor) -> None:
        """Refuse channels that do not follow the rule, such as a fixed number cut out of more."""
        layer = self.survey.layers[name]
        width, exact = arriving.shape[layer.axis], self.widths.exact(layer.inputs)
        fixed = width == layer.inputs and width in self.survey.fixed_widths
        # Maps of one channel stay; some may stand among those that were joined.
        follows = exact <= width <= max(exact + 2, MOST_WIDENING * exact)
        if not (layer.image or fixed or follows):
            raise ValueError(
                f"{self.survey.name} cannot be narrowed: {width} channels arrive at {name} where "
                f"{layer.inputs} did, not about {float(exact):.4g}: the network seems to cut or "
                "make a fixed number of channels, or to mix positions; a deep ensemble takes any "
                "network"
            )

    def rounding(self) -> dict[int, tuple[float, int]]:
        """Widths that were rounded up: from the original one to the exact and the new one."""
        return {
            width: (float(self.widths.exact(width)), self.widths(width))
            for width in sorted(self.survey.known_widths)
            if self.widths.widening(width) > 1
        }

    def _refuse_widening(self) -> None:
        widths, classes = self.widths, self.survey.classes
        decided = sorted(self.survey.known_widths)
        for name, layer in self.survey.layers.items():
            if layer.decides == layer.outputs == classes > 1 == widths(classes):
                raise ValueError(
                    f"{self.survey.name} cannot be narrowed: {name} gives as many channels as "
                    "there are classes, and one of them would be left to stand for all; a deep "
                    "ensemble takes any network"
                )
        worst = max(decided, key=widths.widening, default=1)
        if widths.widening(worst) > MOST_WIDENING:
            name = next(n for n, s in self.survey.layers.items() if s.decides == worst)
            raise ValueError(
                f"alpha = {float(widths.alpha):g}, num_members = {widths.num_members} and gamma = "
                f"{self.gamma} would round the width {worst} of {name} from "
                f"{float(widths.exact(worst)):.4g} up to {widths(worst)}, by more than 25 %; the "
                f"smallest alpha that works is {float(widths.smallest_alpha(decided)):g}"
            )

    def _with_groups_of_joined_tensors(
        self, model: nn.Module, image_shape: tuple[int, int, int]
    ) -> "Plan":
        """Where tensors of several widths are joined, their sum must be divisible too."""
        plan = self
        while True:
            try:
                with torch.random.fork_rng(devices=[]):
                    plan.narrow(copied(model), image_shape, drawn=False)
            except IndivisibleError as found:
                everywhere = math.lcm(plan.widths.everywhere, found.groups)
                if everywhere == plan.widths.everywhere:
                    raise
                plan = replace(plan, widths=replace(plan.widths, everywhere=everywhere))
            else:
                return plan

    def _narrow_layer(
        self, redrawing: Redrawing, name: str, module: nn.Module, arriving: Tensor
    ) -> None:
        seen = self.survey.layers[name]
        width = arriving.shape[seen.axis]
        if isinstance(module, nn.Conv2d):
            self._narrow_convolution(redrawing, name, module, width)
        elif isinstance(module, nn.Linear):
            scale = math.sqrt(module.in_features / width)
            module.in_features, module.out_features = width, self._outputs(name)
            redrawing.layer(module, (module.out_features, width), scale=scale)
        elif isinstance(module, nn.MultiheadAttention):
            self._narrow_attention(redrawing, module, width)
        elif isinstance(module, nn.LayerNorm):
            kept = tuple(arriving.shape[-len(module.normalized_shape) :])
            module.normalized_shape = (width,) if seen.axis == 1 else kept
            redrawing.norm(module, module.normalized_shape)
        else:
            if isinstance(module, nn.GroupNorm) and module.num_groups > 1:
                module.num_groups = width // seen.groups  # its groups keep their size
            for attribute in ("num_features", "num_channels", "num_parameters"):
                if hasattr(module, attribute) and getattr(module, attribute) > 1:
                    setattr(module, attribute, width)
                    redrawing.norm(module, (width,))

    def _narrow_convolution(
        self, redrawing: Redrawing, name: str, module: nn.Conv2d, width: int
    ) -> None:
        before = module.in_channels // module.groups
        if self.survey.layers[name].depthwise:
            multiplier = module.out_channels // module.in_channels
            module.groups, module.out_channels = width, width * multiplier
        else:
            module.groups = self.survey.groups(name, self.gamma)
            module.out_channels = self._outputs(name)
        for count in (width, module.out_channels):
            if count % module.groups:
                raise IndivisibleError(name, count, module.groups)
        module.in_channels = width
        inputs = width // module.groups
        shape = (module.out_channels, inputs, *module.kernel_size)
        redrawing.layer(module, shape, scale=math.sqrt(before / inputs))
        own_scale = getattr(module, "scale", None)
        if isinstance(own_scale, float) and "gain" in module._parameters:  # standardised weights
            module.scale = own_scale * math.sqrt(before / inputs)  # type: ignore[assignment]

    def _narrow_attention(
        self, redrawing: Redrawing, module: nn.MultiheadAttention, width: int
    ) -> None:
        scale = math.sqrt(module.embed_dim / width)
        module.embed_dim = module.kdim = module.vdim = width
        module.head_dim = width // module.num_heads
        redrawing.parameter(module, "in_proj_weight", (3 * width, width), scale)
        redrawing.parameter(module, "in_proj_bias", (3 * width,), scale)
        module.out_proj.in_features = module.out_proj.out_features = width
        redrawing.layer(module.out_proj, (width, width), scale=scale)

    def _outputs(self, name: str) -> int:
        """A layer's new output width: a joint query, key and value projection has three."""
        layer = self.survey.layers[name]
        if not layer.decides:
            return layer.outputs
        return layer.outputs // layer.decides * self.widths(layer.decides)

    def _narrow_shapes(self, module: nn.Module, width: int, entries: int) -> None:
        for key, value in shapes_beside(module, width, entries):
            narrow = tuple(self.widths(size) if size == width else size for size in value)
            setattr(module, key, narrow)

    def _narrow_attributes(self, module: nn.Module) -> None:
        if isinstance(module, LAYERS):
            return
        heads, size = heads_of(module), attention_width(module)
        for attribute in WIDTH_ATTRIBUTES:
            value = getattr(module, attribute, None)
            if isinstance(value, int) and value in self.survey.known_widths:
                setattr(module, attribute, self.widths(value))
        if heads is None or size is None:
            return
        before, after = size // heads, self.widths(size) // heads
        for attribute in HEAD_SIZE_ATTRIBUTES:
            if getattr(module, attribute, None) == before:
                setattr(module, attribute, after)
        if getattr(module, "scale", None) == before**-0.5:
            module.scale = after**-0.5  # type: ignore[assignment]


class IndivisibleError(ValueError):
    """A layer's width is no multiple of its groups."""

    def __init__(self, name: str, width: int, groups: int) -> None:
        super().__init__(f"the {width} channels at {name} are no multiple of its {groups} groups")
        self.groups = groups
