"""Augmentations: components whose `augment` changes a batch in the training step."""

from fulmen.augmentations.augmentation import Augmentation, Augmentations, Cutout, Flip, Noise, ShiftCrop
from fulmen.augmentations.mixing import CutMix, Mixup

__all__ = ["Augmentation", "Augmentations", "CutMix", "Cutout", "Flip", "Mixup", "Noise", "ShiftCrop"]
