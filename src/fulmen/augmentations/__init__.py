"""Augmentations: components whose `augment` changes a batch in the training step."""

from fulmen.augmentations.augmentation import Augment, Augmentation, Augmentations, Cutout, Flip, Noise, ShiftCrop
from fulmen.augmentations.mixing import CutMix, Mixup

__all__ = ["Augment", "Augmentation", "Augmentations", "CutMix", "Cutout", "Flip", "Mixup", "Noise", "ShiftCrop"]
