"""Record what foolbox's, torchattacks' and the authors' attacks find that look for the nearest adversarial point.

    python tests/parity/record_minimal.py

It writes `minimal.npz` beside this file, in float64. It needs torch, foolbox, torchattacks and pyautoattack, the authors' code of
FAB as a package; the tests do not, they read the recorded points. What a peer adds for "numerical stability" is taken away,
where it would hide what is compared, and its casts to single precision are replaced.
"""

from __future__ import annotations

import functools
import importlib.metadata
import warnings
from pathlib import Path
from typing import Any

import foolbox
import numpy as np
import torch
import torchattacks
from attacks_model import examples, torch_module
from pyautoattack.fab_pt import FABAttack_PT

N = 16
FAB_STEPS, CW_STEPS, CW_SEARCHES = 10, 20, 4
CW_CONSTANT, CW_CONFIDENCE = 2.0**-2, 0.5  # in a power of two foolbox's rounding to float32 loses nothing
RADIUS = {"Linf": 0.1, "L2": 0.5, "L1": 2.0}


class LinfDeepFool(foolbox.attacks.LinfDeepFoolAttack):
    """foolbox adds 1e-4 to each step, and 1e-8 to norms."""

    def get_distances(self, losses: Any, grads: Any) -> Any:
        return abs(losses) / grads.abs().sum(axis=(2, 3, 4))

    def get_perturbations(self, distances: Any, grads: Any) -> Any:
        return (distances - 1e-4).reshape((-1, 1, 1, 1)) * grads.sign()


class L2DeepFool(foolbox.attacks.L2DeepFoolAttack):
    """The same."""

    def get_distances(self, losses: Any, grads: Any) -> Any:
        return abs(losses) / (grads**2).sum(axis=(2, 3, 4)).sqrt()

    def get_perturbations(self, distances: Any, grads: Any) -> Any:
        return ((distances - 1e-4) / (grads**2).sum(axis=(1, 2, 3)).sqrt()).reshape((-1, 1, 1, 1)) * grads


def deepfool(model: Any, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
    """Without a box, to which foolbox clips, and with one."""
    found = {}
    for name, bounds in (("unbounded", (-1e3, 1e3)), ("box", (0, 1))):
        wrapped = foolbox.PyTorchModel(model, bounds=bounds, device="cpu")
        for norm, attack in (("Linf", LinfDeepFool()), ("L2", L2DeepFool())):
            found[f"deepfool/{norm}/{name}"] = attack.run(wrapped, x, y)
    return found


def carlini_wagner(model: Any, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
    """One image at a time: foolbox ends the search for all of a batch where their summed loss stops falling."""
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    found = {}
    for name, confidence, stepsize in (("plain", 0.0, 0.1), ("confident", CW_CONFIDENCE, 0.1), ("long", 0.0, 0.2)):
        attack = foolbox.attacks.L2CarliniWagnerAttack(
            binary_search_steps=CW_SEARCHES,
            steps=CW_STEPS,
            stepsize=stepsize,
            confidence=confidence,
            initial_const=CW_CONSTANT,
        )
        found[f"carlini_wagner/{name}"] = torch.cat([attack.run(wrapped, x[i : i + 1], y[i : i + 1]) for i in range(N)])
    return found


def fab(model: Any, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
    found = {}
    for norm, eps in RADIUS.items():
        attack = FABAttack_PT(model, norm=norm, n_iter=FAB_STEPS, eps=eps, targeted=True, device="cpu")
        for rank in (1, 4):
            attack.target_class = rank + 1
            found[f"fab/{norm}/{rank}"] = attack.attack_single_run(x, y, is_targeted=True)
        # torchattacks' copy is not targeted; what it has of its own are the projections.
        other = torchattacks.FAB(model, norm=norm, eps=eps, steps=FAB_STEPS)
        second = _second(model, x, y)
        of = functools.partial(attack.get_diff_logits_grads_batch_targeted, la_target=second)
        other.get_diff_logits_grads_batch = of
        found[f"torchattacks/{norm}"] = other.attack_single_run(x, y)
    return found


def _second(model: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The likeliest other class of the images that are classified rightly."""
    logits = model(x)
    return logits.sort(dim=1)[1][:, -2][logits.argmax(1) == y]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = lambda self: self.to(torch.get_default_dtype())
    images, labels = examples(N, np.float64)
    x, y = torch.tensor(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels).long()
    model = torch_module(torch.float64)
    found = {**deepfool(model, x, y), **carlini_wagner(model, x, y), **fab(model, x, y)}
    stored = {name: np.moveaxis(points.detach().numpy(), 1, -1) for name, points in found.items()}
    for name, points in stored.items():
        fooled = (model(found[name]).argmax(1) != y).sum().item()
        print(f"{name:28} {points.dtype} {points.shape} moved {np.abs(points - images).max():.3f}, {fooled} fooled")
    packages = ("torch", "foolbox", "torchattacks", "pyautoattack")
    versions = {package: importlib.metadata.version(package) for package in packages}
    numbers = {
        "fab_steps": FAB_STEPS,
        "cw_steps": CW_STEPS,
        "cw_searches": CW_SEARCHES,
        "cw_constant": CW_CONSTANT,
        "cw_confidence": CW_CONFIDENCE,
    }
    path = Path(__file__).with_name("minimal.npz")
    np.savez_compressed(path, versions=np.array(str(versions)), **stored, **numbers)
    print(f"wrote {path.name}, {path.stat().st_size / 1000:.0f} kB, from {versions}")
