"""Record what APGD and AutoAttack find in the authors' code and in torchattacks, as `apgd.npz` beside this file.

    python tests/parity/record_apgd.py

It needs torch 2.13.0, torchattacks 3.5.1 and pyautoattack 0.2.0, the authors' code as a package; the tests do not, they read
the recorded numbers. The peers' casts to single precision and the draws of their first points are replaced.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchattacks
from attacks_model import examples, torch_module
from pyautoattack import AutoAttack, autopgd_base
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted, L1_projection

EPS = {"Linf": 0.1, "L2": 0.5, "L1": 2.0}
N = 16


def direction(x: torch.Tensor) -> torch.Tensor:
    """In which direction from an image the attack starts: any function of the image alone, `(n, 1, 8, 8)`."""
    return torch.cos(40 * x + torch.arange(64, dtype=x.dtype).reshape(1, 1, 8, 8))


def start(norm: str, x: torch.Tensor) -> torch.Tensor:
    t, eps = direction(x), EPS[norm]
    if norm == "Linf":
        return (x + eps * t / t.abs().amax((1, 2, 3), keepdim=True)).clamp(0, 1)
    if norm == "L2":
        return (x + eps * t / (t**2).sum((1, 2, 3), keepdim=True).sqrt()).clamp(0, 1)
    return x + t + L1_projection(x, t, eps)


def authors(norm: str, loss: str, steps: int, model: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    options = {"norm": norm, "eps": EPS[norm], "n_iter": steps, "device": "cpu"}
    if loss == "dlr-targeted":
        attack = APGDAttack_targeted(model, **options)
        attack.y_target = model(x).sort(dim=1)[1][:, -2]
    else:
        attack = APGDAttack(model, loss=loss, **options)
    attack.init_hyperparam(x)
    return attack.attack_single_run(x, y, x_init=start(norm, x))[0]


def shrinking(model: Any, x: torch.Tensor, y: torch.Tensor, steps: int) -> torch.Tensor:
    """The L1 attack in balls of three radii."""
    attack = APGDAttack(model, norm="L1", eps=EPS["L1"], n_iter=steps, loss="ce", device="cpu")
    attack.init_hyperparam(x)
    drawn, torch.randn_like = torch.randn_like, lambda x: direction(x)
    shares = [round(share * steps) for share in (0.3, 0.3, 0.4)]
    found = attack.decr_eps_pgd(x, y, [factor * EPS["L1"] for factor in (3.0, 2.0, 1.0)], shares)[0]
    torch.randn_like = drawn
    return found


def theirs(norm: str, loss: str, steps: int, model: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """torchattacks, which draws by `rand` and `randn`."""
    drawn = torch.rand, torch.randn
    torch.rand, torch.randn = (lambda shape: (direction(x) + 1) / 2), (lambda shape: direction(x))
    attack = torchattacks.APGD(model, norm=norm, eps=EPS[norm], steps=steps, loss=loss)
    found = attack.attack_single_run(x, y)[0]
    torch.rand, torch.randn = drawn
    return found


def run(case: str, dtype: Any, moved: float = 0.0) -> torch.Tensor:
    """What one of them finds, `(n, 1, 8, 8)`, from images all of whose pixels are moved a little."""
    who, norm, loss, steps = case.split("/")
    torch.set_default_dtype(dtype)
    x, y = examples(N, np.float64)
    x, y = torch.tensor(x).permute(0, 3, 1, 2).to(dtype) * (1 - moved), torch.tensor(y).long()
    if loss == "shrinking":
        return shrinking(torch_module(dtype), x, y, int(steps)).detach()
    return (theirs if who == "torchattacks" else authors)(norm, loss, int(steps), torch_module(dtype), x, y).detach()


def robust() -> dict[str, np.ndarray]:
    """Which of 128 images the standard AutoAttack at full budgets leaves, in single precision."""
    torch.set_default_dtype(torch.float32)
    model = torch_module(torch.float32)
    x, y = examples(128)
    images, labels = torch.tensor(x).permute(0, 3, 1, 2).contiguous(), torch.tensor(y).long()
    attacked = {
        "torchattacks": torchattacks.AutoAttack(model, norm="Linf", eps=0.1, seed=0)(images, labels),
        "authors": AutoAttack(model, norm="Linf", eps=0.1, seed=0).run_standard_evaluation(images, labels)[0],
    }
    return {f"robust/{who}": (model(points).argmax(1) == labels).numpy() for who, points in attacked.items()}


CASES = (
    "authors/Linf/ce/100",
    "torchattacks/Linf/ce/100",
    "authors/Linf/dlr/10",
    "authors/Linf/dlr-targeted/10",
    "authors/L2/ce/10",
    "torchattacks/L2/ce/10",
    "authors/L2/dlr/10",
    "torchattacks/L2/dlr/10",
    "authors/L2/dlr-targeted/10",
    "authors/L1/shrinking/10",
)


def main() -> None:
    torch.Tensor.float = lambda self: self.to(torch.get_default_dtype())
    # (x + d) − d is not x in floating point, so that unmoved coordinates would count as moved.
    autopgd_base.L0_norm = lambda v: (v.abs() > 1e-6).flatten(1).sum(1)
    recorded = {}
    for case in CASES:
        found = run(case, torch.float64)
        far = lambda other, found=found: (found - other.double()).abs().amax((1, 2, 3)).numpy()
        recorded[case] = found.permute(0, 2, 3, 1).numpy()
        # By how much what it finds for an image changes where the computation changes by rounding errors.
        moved = [far(run(case, torch.float64, by)) for by in (1e-14, -1e-14, 3e-14, 1e-13)]
        recorded[f"{case}/unsteadiness"] = np.max(moved, 0)
        recorded[f"{case}/unsteadiness32"] = far(run(case, torch.float32))
        print(case, *(np.sort(recorded[f"{case}/{name}"])[8:] for name in ("unsteadiness", "unsteadiness32")), flush=True)
    recorded |= robust()
    np.savez_compressed(Path(__file__).with_name("apgd.npz"), **recorded)


if __name__ == "__main__":
    main()
