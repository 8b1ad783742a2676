"""Augmentations: components whose `augment` changes a batch in the training step."""

from fulmen.augmentations.image_augmentations import *
