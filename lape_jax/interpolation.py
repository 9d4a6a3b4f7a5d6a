"""Filters by which training images are resized and warped: the choices of `data.interpolation`, on host and device."""

from lape_jax.errors import UserError, nearest

# Name -> the filters of which each image gets one.
INTERPOLATIONS = {"bicubic": ("bicubic",), "bilinear": ("bilinear",), "random": ("bilinear", "bicubic")}


def check(interpolation: str) -> None:
    """Raises UserError for a name that is not among `INTERPOLATIONS`."""
    if interpolation not in INTERPOLATIONS:
        raise UserError(f"data.interpolation: {nearest(interpolation, INTERPOLATIONS)}")


def filters_of(interpolation: str) -> tuple[str, ...]:
    """The filters of which each image gets one. Raises UserError as `check`."""
    check(interpolation)
    return INTERPOLATIONS[interpolation]
