"""Record what torchattacks, foolbox and ART find on the parity model, as `attacks.npz` beside this file, in float64.

    python tests/parity/record_attacks.py

It needs torch, torchattacks, foolbox and adversarial-robustness-toolbox, and the tests do not: they read the recorded points.
Where a constant of a peer's own would hide what is compared it is set to zero, or to its double, here.
"""

from __future__ import annotations

import importlib.metadata
import sys
import warnings
from pathlib import Path
from typing import Any

import attacks_model
import foolbox
import numpy as np
import torch
import torchattacks
from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier

N, EPS, STEP, STEPS = 64, 0.1, 0.02, 10
EPS_L2, STEP_L2 = 0.8, 0.2


class FromColor(torch.nn.Module):
    """The model of the mean of three channels: torchattacks smooths the gradients of images with three only."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x.mean(1, keepdim=True))


def of_torchattacks(model: Any, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
    linf, ta = {"eps": EPS, "alpha": STEP, "steps": STEPS}, torchattacks
    color = FromColor(model).eval()
    smooth = ta.TIFGSM(color, **linf, diversity_prob=0.0)
    wide = ta.TIFGSM(color, **linf, diversity_prob=0.0, decay=1.0)
    for attack in (smooth, wide):
        attack.stacked_kernel = attack.stacked_kernel.double()
    l2 = {"eps": EPS_L2, "alpha": STEP_L2, "steps": STEPS, "random_start": False, "eps_for_division": 0.0}
    colored = x.expand(-1, 3, -1, -1)
    return {
        "torchattacks/fgsm": ta.FGSM(model, eps=EPS)(x, y),
        "torchattacks/bim": ta.BIM(model, **linf)(x, y),
        "torchattacks/pgd": ta.PGD(model, **linf, random_start=False)(x, y),
        "torchattacks/pgd_l2": ta.PGDL2(model, **l2)(x, y),
        "torchattacks/mifgsm": ta.MIFGSM(model, **linf, decay=0.9)(x, y),
        "torchattacks/nifgsm": ta.NIFGSM(model, **linf, decay=0.9)(x, y),
        "torchattacks/tifgsm": smooth(colored, y)[:, :1],
        "torchattacks/tifgsm_momentum": wide(colored, y)[:, :1],
    }


def of_foolbox(model: Any, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
    wrapped, fa = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), foolbox.attacks
    attacks = {
        "foolbox/fgsm": (fa.LinfFastGradientAttack(random_start=False), EPS),
        "foolbox/bim": (fa.LinfBasicIterativeAttack(abs_stepsize=STEP, steps=STEPS, random_start=False), EPS),
        "foolbox/pgd_l2": (
            fa.L2ProjectedGradientDescentAttack(abs_stepsize=STEP_L2, steps=STEPS, random_start=False),
            EPS_L2,
        ),
    }
    # A call also tells where it has succeeded; `run` is the attack itself.
    return {name: attack.run(wrapped, x, y, epsilon=eps) for name, (attack, eps) in attacks.items()}


def of_art(model: Any, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
    for name, module in list(sys.modules.items()):
        if name.startswith("art.") and hasattr(module, "ART_NUMPY_DTYPE"):
            module.ART_NUMPY_DTYPE = np.float64
    loss = torch.nn.CrossEntropyLoss()
    wrapped = PyTorchClassifier(model, loss=loss, input_shape=(1, 8, 8), nb_classes=10, clip_values=(0.0, 1.0))
    fgm = FastGradientMethod(wrapped, eps=EPS, batch_size=N)
    pgd = ProjectedGradientDescent(wrapped, eps=EPS, eps_step=STEP, max_iter=STEPS, batch_size=N, verbose=False)
    images, labels = x.numpy(), y.numpy()
    return {"art/fgm": fgm.generate(images, labels), "art/pgd": pgd.generate(images, labels)}


def unsure(model: Any, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The first examples whose loss is not about 0, where slopes in float32 would be what rounding leaves of them."""
    logits = model(torch.tensor(images).permute(0, 3, 1, 2))
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels).long(), reduction="none")
    return np.flatnonzero(loss.numpy() > 1e-3)[:N]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_default_dtype(torch.float64)
    model = attacks_model.torch_module(torch.float64)
    images, labels = attacks_model.examples(512, np.float64)
    rows = unsure(model, images, labels)
    images, labels = images[rows], labels[rows]
    x, y = torch.tensor(images).permute(0, 3, 1, 2), torch.tensor(labels).long()
    found = {**of_torchattacks(model, x, y), **of_foolbox(model, x, y), **of_art(model, x, y)}
    stored = {name: np.moveaxis(np.asarray(points), 1, -1) for name, points in found.items()}
    for name, points in stored.items():
        print(f"{name:30} {points.dtype} {points.shape} moved {np.abs(points - images).max():.3f}")
    versions = {
        package: importlib.metadata.version(package)
        for package in ("torch", "torchattacks", "foolbox", "adversarial-robustness-toolbox")
    }
    numbers = {"eps": EPS, "step_size": STEP, "steps": STEPS, "eps_l2": EPS_L2, "step_size_l2": STEP_L2}
    path = Path(__file__).with_name("attacks.npz")
    np.savez_compressed(path, versions=np.array(str(versions)), rows=rows, **stored, **numbers)
    print(f"wrote {path.name}, {path.stat().st_size / 1000:.0f} kB, from {versions}")
