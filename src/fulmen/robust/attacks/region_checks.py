"""Checks of regions, and of clean inputs against them."""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from fulmen.core import concrete, number
from fulmen.core.verbs import validate
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.region import Box, Intersection, Patch, Region, balls, boxes, norm_balls


@dispatch
def validate(box: Box):
    lo, hi = concrete(box.lo), concrete(box.hi)
    if lo is not None and hi is not None and not (lo < hi).all():  # refuses NaN too
        raise ValueError(f"Box.lo must be below Box.hi, got lo = {number(box.lo)} and hi = {number(box.hi)}.")


@dispatch
def validate(patch: Patch):
    mask = concrete(patch.mask)
    if mask is not None and mask.dtype != bool:
        raise TypeError(f"Patch.mask must be booleans, got {mask.dtype}. Write `mask > 0`.")
    if mask is not None and not mask.any():
        raise ValueError("Patch.mask must be True somewhere: no coordinate may change.")


@dispatch
def validate(region: Intersection):
    norm_balls(region)


@dispatch
def validate(region: Region, system, batch):
    raise TypeError(
        f"evaluate: attack must be an Attack, got {region!r}; the attacks in a region are fm.autoattack(region)."
    )


def require_inside(region: Region, inputs: Iterable[Any]) -> None:
    """Raise if clean inputs are not floating-point numbers, or lie outside the region's boxes."""
    for x in inputs:
        values = np.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"x must be floating-point to be attacked, got {x.dtype} from {np.min(values)} to {np.max(values)}. "
                "Scale images of bytes: `(x / 255).astype(np.float32)`, with fm.Box(0, 1); of several arrays, name those to attack in "
                "the batch type: `attackable: ClassVar = ('image',)`."
            )
        for ball in balls(region):
            count = concrete(ball.eps)
            if ball.norm_order == 0 and count is not None and count.max() > values[0].size:
                raise ValueError(
                    f"L0Ball.eps must be at most the number of coordinates of an example, {values[0].size}, got {number(ball.eps)}."
                )
        for box in boxes(region) if values.size else ():
            lo, hi, least, most = concrete(box.lo), concrete(box.hi), values.min(), values.max()
            if np.isnan(least):
                raise ValueError(f"x must be in {box!r}, the box of the attack, got nan.")
            if lo is None or hi is None:
                continue
            if not ((values >= lo.astype(values.dtype)) & (values <= hi.astype(values.dtype))).all():
                raise ValueError(
                    f"x must be in {box!r}, the box of the attack, got values from {least:.6g} to {most:.6g}. Scale x, or use "
                    f"the range of the data: fm.Box({least:.6g}, {most:.6g})."
                )
