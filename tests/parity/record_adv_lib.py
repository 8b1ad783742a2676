"""Record what adv-lib's minimal-norm attacks find.

    python tests/parity/record_adv_lib.py

It writes `adv_lib.npz` beside this file, in float64. It needs torch and adv-lib; the tests do not, they read the recorded points.
Casts to single precision are replaced, and DDN's quantization is off.
"""

from __future__ import annotations

import importlib.metadata
import math
import sys
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch
from attacks_model import examples, torch_module

torch.set_default_dtype(torch.float64)
torch.float = torch.float64  # adv-lib keeps some radii in single precision
sys.modules |= dict.fromkeys(("torchvision", "visdom", "tqdm"), MagicMock())  # imported, and not used by these attacks

from adv_lib.attacks import ddn, fmn, sigma_zero  # noqa: E402
from adv_lib.attacks.primal_dual_gradient_descent import pdpgd  # noqa: E402

N = 16
STEPS = {"short": 15, "long": 200}
NORMS = {"L0": 0, "L1": 1, "L2": 2, "Linf": math.inf}

if __name__ == "__main__":
    images, labels = examples(N, np.float64)
    x, y = torch.tensor(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels).long()
    model, found = torch_module(torch.float64), {}
    for name, steps in STEPS.items():
        found[f"ddn/L2/{name}"] = ddn(model, x, y, steps=steps, levels=None)
        found[f"sigma_zero/L0/{name}"] = sigma_zero(model, x, y, num_steps=steps)
        for norm, order in NORMS.items():
            found[f"fmn/{norm}/{name}"] = fmn(model, x, y, order, steps=steps)
            if order:
                found[f"pdpgd/{norm}/{name}"] = pdpgd(model, x, y, order, num_steps=steps)
    target = (y + 1) % 10
    found["fmn/L2/target"] = fmn(model, x, target, 2, targeted=True, steps=STEPS["short"])
    found["ddn/L2/target"] = ddn(model, x, target, targeted=True, steps=STEPS["short"], levels=None)
    stored = {name: np.moveaxis(points.detach().numpy(), 1, -1) for name, points in found.items()}
    for name, points in stored.items():
        size = np.linalg.norm((points - images).reshape(N, -1), NORMS[name.split("/")[1]], axis=1)
        fooled = int((model(found[name]).argmax(1) != y).sum())
        print(f"{name:22} {points.dtype} {points.shape} median {np.median(size):.4f}, {fooled} fooled")
    versions = {package: importlib.metadata.version(package) for package in ("torch", "adv-lib")}
    path = Path(__file__).with_name("adv_lib.npz")
    np.savez_compressed(path, versions=np.array(str(versions)), **stored, **{f"{k}_steps": v for k, v in STEPS.items()})
    print(f"wrote {path.name}, {path.stat().st_size / 1000:.0f} kB, from {versions}")
