"""The space of a search: the distribution of each searched setting, and the fixed overrides."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from fashion_lit.config.compose import compose_jobs
from fashion_lit.config.groups import SPACES, parse_override
from fashion_lit.config.overrides import expand, prepare_overrides
from fashion_lit.config.schema import check
from fashion_lit.config.settings import Config
from fashion_lit.config.typed import check_mode, check_names
from fashion_lit.data.datamodule import FashionMNISTDataModule
from fashion_lit.errors import UserError
from fashion_lit.parts.arguments import keyword_fields
from fashion_lit.runs.initial_weights import with_settings_of_source

if TYPE_CHECKING:
    import optuna

SPACE = "space"  # the override that chooses a file of conf/search/
SEARCH_LAUNCHERS = ("local", "parallel")


def read_space(
    overrides: Sequence[str],
) -> tuple[dict[str, "optuna.distributions.BaseDistribution"], list[str]]:
    """Split overrides into the search space and the overrides that all trials share.

    Returns ({setting: distribution}, shared overrides). Raises UserError if nothing is searched.
    """
    prepared = prepare_overrides(expand(overrides, SPACE, SPACES))
    check_mode(prepared, multirun=True)
    check_names(prepared)
    parsed = [parse_override(text) for text in prepared]
    space = {o.key_or_group: distribution(o) for o in parsed if o.is_sweep_override()}
    if not space:
        raise UserError(
            "Expected a setting to search, such as space=lr_batch_size or "
            "'optimizer.lr=tag(log,interval(1e-2,1))', but every setting has one value."
        )
    if chosen := [key for key in space if decides_data(key)]:
        raise UserError(
            f"Expected trials on the same data, but `{chosen[0]}` decides what the images are, so "
            "their accuracies could not be compared; give it one value."
        )
    fixed = [str(o.input_line) for o in parsed if not o.is_sweep_override()]
    return space, [*fixed, "++test=false"]


def decides_data(key: str) -> bool:
    """Return whether a setting decides what the images are, not how they are split or used."""
    group, _, rest = key.partition(".")
    return group == "data" and rest.split(".")[0] not in keyword_fields(FashionMNISTDataModule)


def check_corners(
    space: Mapping[str, "optuna.distributions.BaseDistribution"], fixed: Sequence[str]
) -> Config:
    """Check the configurations made of all first values and of all last values of the space.

    Returns the configuration of the first values. Raises UserError if either is invalid, or if
    their launcher cannot run a search.
    """
    corners = [[f"{key}={ends(values)[i]}" for key, values in space.items()] for i in (0, 1)]
    overrides = [[*fixed, *prepare_overrides(corner)] for corner in corners]
    first, last = (compose_jobs(corner, multirun=False)[0] for corner in overrides)
    for config, corner in zip((first, last), overrides, strict=True):
        check(with_settings_of_source(config, corner))
    name, possible = first["launcher"]["name"], ", ".join(SEARCH_LAUNCHERS)
    if name not in SEARCH_LAUNCHERS:
        raise UserError(
            f"Expected `launcher` to be one of {possible}, since each trial of a search depends on "
            f"those before it, but got {name!r}; on a cluster, run this command with the same "
            "sweep_name in several jobs."
        )
    return first


def ends(space: "optuna.distributions.BaseDistribution") -> tuple[Any, Any]:
    """Return the first and the last value of a distribution."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(space, CategoricalDistribution):
        return space.choices[0], space.choices[-1]
    assert isinstance(space, FloatDistribution | IntDistribution)
    return space.low, space.high


def distribution(swept: Override) -> "optuna.distributions.BaseDistribution":
    """Convert Hydra's choice, range, interval or tag(log, …) to an Optuna distribution.

    interval(a,b) is continuous, int(interval(a,b)) gives integers. Raises UserError for an interval
    that is empty, or logarithmic and not positive.
    """
    from optuna import distributions

    value = swept.value()
    try:
        if isinstance(value, IntervalSweep):
            assert value.start is not None
            assert value.end is not None
            log = "log" in value.tags
            if isinstance(value.start, int) and isinstance(value.end, int):
                return distributions.IntDistribution(value.start, value.end, log=log)
            return distributions.FloatDistribution(value.start, value.end, log=log)
        if isinstance(value, RangeSweep):
            numbers = [int(text) for text in swept.sweep_string_iterator()]
            step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
            return distributions.IntDistribution(numbers[0], numbers[-1], step=step)
        return distributions.CategoricalDistribution(list(swept.sweep_string_iterator()))
    except (ValueError, IndexError) as error:
        raise UserError(
            f"Expected `{swept.key_or_group}` to be a range that can be searched, but got "
            f"{str(swept.input_line).partition('=')[2]} ({error})."
        ) from None
