"""The verdict on a photograph's quality: is it like the training images. It never keeps one from being graded."""

from retina_ray.bundle_manifest import QualityLimits
from retina_ray.data.quality import ImageMeasures
from retina_ray.serving.schema import ImageQuality


def judge(measures: ImageMeasures, limits: QualityLimits) -> ImageQuality:
    """Compare a photograph's measures with the limits that the training images set; the first it fails is named."""
    checks = (
        (measures.brightness < limits.min_brightness, "too dark", measures.brightness, limits.min_brightness),
        (measures.brightness > limits.max_brightness, "too bright", measures.brightness, limits.max_brightness),
        (measures.contrast < limits.min_contrast, "too little contrast", measures.contrast, limits.min_contrast),
        (measures.sharpness < limits.min_sharpness, "out of focus", measures.sharpness, limits.min_sharpness),
    )
    for fails, what, value, limit in checks:
        if fails:
            reason = f"retake: {what} ({value:.1f}, the limit set by the training images is {limit:.1f})"
            return ImageQuality(ok=False, reason=reason)
    return ImageQuality(ok=True)
