"""Augmentations: components whose `augment` changes a batch in the training step."""

from fulmen.augmentations.image_augmentations import (
    Augmentation,
    Augmentations,
    CutMix,
    Cutout,
    Flip,
    Mixup,
    Noise,
    ShiftCrop,
)

__all__ = [
    "Augmentation",
    "Augmentations",
    "CutMix",
    "Cutout",
    "Flip",
    "Mixup",
    "Noise",
    "ShiftCrop",
]
