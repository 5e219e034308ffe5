"""Make a version of a registered model its champion, if the rule of ``promotion`` allows it or it is forced.

What is not here: where both models' predictions are found and compared (``paired_predictions``).
"""

from dataclasses import dataclass

from retina_ray.bundle import Bundle
from retina_ray.config import RunConfig
from retina_ray.errors import BundleError, PromotionError, RetinaRayError
from retina_ray.model_versions import (
    CHAMPION,
    HASH_TAG,
    RegisteredModel,
    find_model,
    move_champion,
    resolve_model,
    show_model,
)
from retina_ray.orchestration.paired_predictions import paired_gains
from retina_ray.promotion import Comparison, compare


@dataclass(frozen=True)
class Promotion:
    """A champion that was chosen.

    Attributes:
        name: of the registered model.
        before: version that was the champion; None where there was none.
        after: version that is it now; that of ``before`` where nothing was changed.
        comparison: of the two; its objections were overruled by force.
    """

    name: str
    before: int | None
    after: int
    comparison: Comparison


def promote(config: RunConfig, name: str, which: str, *, force: bool = False) -> Promotion:
    """Move the alias ``champion`` to a version of a registered model.

    Args:
        config: says where MLflow keeps its records and where the cache is.
        name: of the registered model.
        which: the version's number or alias.
        force: overrule what speaks against it. A bundle that is missing, damaged or replaced is never promoted.

    Raises:
        PromotionError: the version may not take the champion's place, or the champion was moved meanwhile.
        BundleError: there is no such version, or its bundle is missing, damaged or not the one that was registered.
        ResourceError: when MLflow cannot be reached.
    """
    chosen = show_model(config, name, which)
    champion = find_model(config, name, CHAMPION)
    if champion is None:
        _load(config, chosen)
        comparison = Comparison()
    elif champion.version == chosen.version:
        return Promotion(name, champion.version, chosen.version, Comparison())
    else:
        comparison = _compare(config, champion, chosen)
        _require(comparison, champion, chosen, force=force)
    before = champion.version if champion else None
    move_champion(config, name, chosen.version, present=before)
    return Promotion(name, before, chosen.version, comparison)


def _require(comparison: Comparison, champion: RegisteredModel, chosen: RegisteredModel, *, force: bool) -> None:
    if comparison.objections and not force:
        raise PromotionError(
            f"version {chosen.version} of {chosen.name} may not take the place of its champion, "
            f"version {champion.version}",
            "; ".join(comparison.objections),
            "register a version that is as good on the champion's test images, or add --force",
        )


def _compare(config: RunConfig, champion: RegisteredModel, chosen: RegisteredModel) -> Comparison:
    new = _load(config, chosen)
    try:
        old = _load(config, champion)
    except RetinaRayError as error:  # a champion that cannot be read must not be irreplaceable
        return Comparison(objections=(f"the champion's bundle cannot be read ({error})",))
    gains = paired_gains((champion.source, old.manifest), (chosen.source, new.manifest))
    return compare(old.manifest, new.manifest, gains)


def _load(config: RunConfig, model: RegisteredModel) -> Bundle:
    address = f"models:/{model.name}/{model.version}"
    bundle = Bundle.load(resolve_model(address, config=config))
    registered = model.tags.get(HASH_TAG, bundle.hash)
    if bundle.hash != registered:
        what = f"the bundle of {address} is no longer the one that was registered, {registered}"
        raise BundleError(
            what, f"{bundle.hash} in {model.source}", "register it again with `retina-ray train --resume`"
        )
    return bundle
