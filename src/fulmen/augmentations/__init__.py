"""Augmentations: components whose `augment` changes a batch in the training step."""

from fulmen.augmentations.augmentation import Augmentation, Augmentations, Cutout, Flip, Noise, ShiftCrop
from fulmen.augmentations.mixing import CutMix, Mixup
from fulmen.augmentations.per_image import Augment

__all__ = ["Augment", "Augmentation", "Augmentations", "CutMix", "Cutout", "Flip", "Mixup", "Noise", "ShiftCrop"]
