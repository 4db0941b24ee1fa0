"""The registry of ensemble families and training objectives by name, open to other packages.

Nothing heavy is imported, so that the command line lists what is registered at once.
"""

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ... import ensembles
from ...ensembles.options import LoRA, Mixup, Noise, Packed, Repulsion, register_options
from ..config import Recipe, TrainConfig, plugin_hint
from ..store.errors import unknown
from ..store.seeds import derive_seed

Build = Callable[..., Any]
"""``build(config, image_format, base, seeds)``, as `register_family` describes it."""

Ingredient = Callable[[Recipe], Any]
"""From a recipe to what it adds to the objective, as `register_objective` describes it."""

NO_OPTIONS: Mapping[str, type] = {}


@dataclass(frozen=True)
class Family:
    """An ensemble family, as `register_family` describes it.

    ``matched`` is the method that scales a single model to an ensemble's cost; none if empty.
    """

    name: str
    build: Build
    label: str
    description: str
    has_base: bool = False
    batches: Literal["own", "shared"] = "own"
    matched: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class ObjectiveEntry:
    """A training objective, or a part of one, as `register_objective` describes it."""

    name: str
    make: Ingredient
    label: str = ""
    description: str = ""
    options: tuple[str, ...] = ()


FAMILIES: dict[str, Family] = {}
OBJECTIVES: dict[str, ObjectiveEntry] = {}


def register_family(
    name: str,
    build: Build,
    *,
    label: str = "",
    description: str = "",
    options: Mapping[str, type] = NO_OPTIONS,
    has_base: bool = False,
    batches: Literal["own", "shared"] = "own",
) -> None:
    """Add an ensemble family: an ``--ensemble``, and the methods ``NAME`` and ``wide-NAME``.

    ``wide-NAME`` is a single model whose width is scaled to the family's MACs.

    Args:
        name: Letters, digits and dashes.
        build: ``build(config, image_format, base, seeds)`` returns the ensemble, one member for
            each seed; ``base`` is a network or None.
        label: The family in tables and sentences; ``NAME ensemble`` by default.
        description: The method; ``{members}`` and ``{backbone}`` are filled in.
        options: Option groups of the family, by name: frozen dataclasses.
        has_base: Whether members start from one network that is trained before them.
        batches: Whether members may draw batches of their own or have to share one.

    Raises:
        ValueError: The name is taken, or an option group does not fit.

    Example:
        >>> from deepens.experiments.training.registry import FAMILIES
        >>> FAMILIES["packed"].label, FAMILIES["packed"].matched
        ('packed ensemble', 'wide-packed')
    """
    label = label or f"{name} ensemble"
    description = description or f"{label} of {{members}} {{backbone}}"
    matched, groups = f"wide-{name}", tuple(options)
    family = Family(name, build, label, description, has_base, batches, matched, groups)
    _add("ensemble family", FAMILIES, family, options)


def register_objective(
    name: str,
    make: Ingredient,
    *,
    label: str = "",
    description: str = "",
    options: Mapping[str, type] = NO_OPTIONS,
) -> None:
    """Add a training objective, or a term that can be added to others with ``+``.

    Args:
        name: Letters, digits and dashes.
        make: From a recipe to a ``Likelihood``, that members are trained on; a ``RepulsionTerm``,
            that pushes them apart; a function that makes an ``Objective`` of a likelihood; or an
            ``Objective`` of its own, which stands alone.
        label: The kind of ensemble that it trains. With it, ``NAME`` is a method of ``compare``: a
            deep ensemble trained by this objective.
        description: That method; ``{members}`` and ``{backbone}`` are filled in.
        options: Option groups of the objective, by name: frozen dataclasses.

    Raises:
        ValueError: The name is taken, or an option group does not fit.

    Example:
        >>> from deepens.experiments.config import TrainConfig
        >>> from deepens.experiments.training.registry import OBJECTIVES
        >>> type(OBJECTIVES["forde"].make(TrainConfig())).__name__
        'FoRDE'
    """
    description = description or f"{{members}} {{backbone}}, trained by {name}"
    entry = ObjectiveEntry(name, make, label, description, tuple(options))
    _add("objective", OBJECTIVES, entry, options)


def _add(kind: str, registered: dict[str, Any], entry: Any, options: Mapping[str, type]) -> None:
    for group, kind_of_group in options.items():
        register_options(group, kind_of_group)
    if (name := entry.name) in registered:
        raise ValueError(f"the {kind} {name!r} is registered already; choose another name")
    if not name or not all(part.isalnum() for part in name.split("-")):
        raise ValueError(f"the name of a {kind} must be letters, digits and dashes, got {name!r}")
    registered[name] = entry


def family_of(config: TrainConfig) -> Family:
    """The family of a run; a ValueError that names the configuration's plugins if it is unknown."""
    return _find("ensemble", config.ensemble, FAMILIES, config.plugins)


def check_sharing(config: TrainConfig, *, shares: bool = False) -> None:
    """Refuse to train members that share parameters alone, or on batches of their own.

    The registration of a run's family says whether they do, unless ``shares`` is known.
    """
    if not shares and (family_of(config).batches == "own" or config.members == 1):
        return
    whose = f"members of --ensemble {config.ensemble} share parameters"
    if config.member is not None:
        raise ValueError(f"{whose}, so that none can be trained alone; leave --member out")
    if config.batches == "own":
        raise ValueError(
            f"{whose} and are trained on one batch, but batches: own gives each its own; set "
            "--batches shared"
        )


def objectives_of(config: Recipe) -> dict[str, ObjectiveEntry]:
    """The parts of a recipe's objective by name; an unknown or repeated one is refused."""
    names = config.objective.split("+")
    if len(set(names)) < len(names):
        raise ValueError(f"objective {config.objective!r} names one part twice")
    return {name: _find("objective", name, OBJECTIVES, config.plugins) for name in names}


def _find(kind: str, name: str, known: Mapping[str, Any], plugins: Iterable[str]) -> Any:
    if name not in known:
        raise ValueError(f"{unknown(kind, name, sorted(known))}{plugin_hint(plugins)}")
    return known[name]


def member_seeds(config: TrainConfig, members: Sequence[int] | None = None) -> list[int]:
    """The seeds of some members, or of all that a run trains."""
    if members is None:
        members = range(config.members) if config.member is None else [config.member]
    return [derive_seed(config.seed, "member", index) for index in members]


def base_run(config: TrainConfig) -> TrainConfig | None:
    """The run that trains a family's base; None without a base, or with one trained elsewhere."""
    family = family_of(config)
    if not family.has_base or "@" in config.backbone or config.base is not None:
        return None
    return dataclasses.replace(
        config,
        ensemble="deep",
        members=1,
        member=None,
        seed=derive_seed(config.seed, "base"),
        epochs=config.base_epochs or config.epochs,
        members_at_once=None,
        objective="cross-entropy",
        adapters=None,
        out=str(config.directory() / "base"),
    )


def when_called(module: str, function: str, *fixed: Any) -> Callable[..., Any]:
    """A function whose module, relative to ``deepens.experiments``, is imported at its first call.

    ``fixed`` are the first arguments of every call.
    """

    def call(*arguments: Any) -> Any:
        home = importlib.import_module(f"{__package__.rpartition('.')[0]}.{module}")
        return getattr(home, function)(*fixed, *arguments)

    return call


def _built_in(function: str) -> Build:
    return when_called("training.building", function)


FAMILIES["deep"] = Family(
    "deep",
    _built_in("build_deep"),
    "deep ensemble",
    "deep ensemble of {members} {backbone}",
    matched="wide",
)
register_family(
    "packed",
    _built_in("build_packed"),
    description="packed ensemble of {members} slim {backbone}",
    options={"packed": Packed},
)
register_family(
    "lora",
    _built_in("build_lora"),
    label="LoRA-ensemble",
    description="LoRA-ensemble of {members} on one {backbone}",
    options={"lora": LoRA},
    has_base=True,
)
register_family(
    "explicit",
    _built_in("build_explicit"),
    description="{members} {backbone}, all fine-tuned from one base",
    has_base=True,
)
FAMILIES["multi-exit"] = Family(
    "multi-exit",
    _built_in("build_multi_exit_ensemble"),
    "multi-exit network",
    "one {backbone} with {members} exits, whose answers are pooled",
    batches="shared",
)


def _likelihood_options(config: Recipe) -> dict[str, Any]:
    return {"members_at_once": config.members_at_once, "smoothing": config.label_smoothing}


register_objective(
    "cross-entropy", lambda config: ensembles.CrossEntropy(**_likelihood_options(config))
)
register_objective(
    "mixupmp",
    lambda config: ensembles.MixupMP(config.mixup, **_likelihood_options(config)),
    options={"mixup": Mixup},
)
_terms: dict[str, Ingredient] = {
    "forde": lambda config: ensembles.FoRDE(config.repulsion),
    "weight-repulsion": lambda config: ensembles.WeightSpace(config.repulsion),
    "function-repulsion": lambda config: ensembles.FunctionSpace(config.repulsion),
}
for _name, _term in _terms.items():
    register_objective(_name, _term, options={"repulsion": Repulsion})


def _greedy(config: Recipe) -> Callable[[Any], Any]:
    seed = derive_seed(config.seed, "noise")
    return lambda likelihood: ensembles.Greedy(likelihood, config.noise, seed=seed)


register_objective("greedy", _greedy, options={"noise": Noise})
