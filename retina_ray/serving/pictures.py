"""An answer's maps and masks as the PNG files that the sender gets."""

from retina_ray.data.schema import LESIONS
from retina_ray.serving.drawing import area, lesion_mask, mask_png, overlay_png, picture_png
from retina_ray.serving.exchange import Answer
from retina_ray.serving.preparation import Prepared
from retina_ray.serving.schema import GradeResponse, Lesion, Overlays
from retina_ray.serving.service import GradeOptions


def with_pictures(answer: Answer, prepared: Prepared, options: GradeOptions) -> GradeResponse:
    """Return the response with the pictures that were asked for.

    Args:
        answer: of the networks.
        prepared: what they were shown, over which heat is drawn.
        options: what was asked for.
    """
    update: dict[str, Overlays | dict[str, Lesion] | bytes] = {}
    if options.explain is not None or options.lesions:
        update["fundus"] = picture_png(prepared.pixels)
    # Constructed, not validated: validation would take the files for base64.
    if options.explain is not None:
        drawn = {task: overlay_png(prepared.pixels, heat) for task, heat in answer.maps.items()}
        update["explanation"] = Overlays.model_construct(method=options.explain, tasks=drawn)
    if answer.lesions is not None:
        masks = {lesion: lesion_mask(found) for lesion, found in zip(LESIONS, answer.lesions, strict=True)}
        update["lesions"] = {
            lesion: Lesion.model_construct(area=area(mask), mask=mask_png(mask)) for lesion, mask in masks.items()
        }
    if answer.enhanced is not None:
        update["enhanced"] = picture_png(answer.enhanced)
    return answer.response.model_copy(update=update)
