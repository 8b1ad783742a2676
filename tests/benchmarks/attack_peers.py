"""The minimal-norm attacks, the steps in L1 and Square beside those of adv-lib, foolbox, torchattacks and ART, with equal steps.

    python tests/benchmarks/attack_peers.py train robust.npz              # with Fulmen: a net that was trained by PGD-7
    python tests/benchmarks/attack_peers.py peers robust.npz peers.npz    # with torch and the four libraries
    python tests/benchmarks/attack_peers.py fulmen robust.npz peers.npz   # with Fulmen: prints the table

Three batches of `--n` test digits, on the plain net of `tests/parity` and on the robust one; for attacks that draw random numbers,
the first batch with three seeds. For each attack: the median norm over the correctly classified digits (a failure counts as
infinite), as the mean of the three, with the difference of the largest and the smallest of them; for a fixed radius the robust
accuracy. Times are those of all three, the first one with compiling.

With `--n 64`, adv-lib 0.2.8, foolbox 3.3.4, torchattacks 3.5.1 and ART: on both nets no median is worse than the best peer's by more
than the spread over the batches. DDN, PDPGD and σ-zero equal adv-lib's; FMN is nearer in L1 and L2 (.563 for .891 of foolbox on the
plain net), where the peers clip after the projection; DeepFool has .558 for .556 of foolbox on the plain net, and .698 for .723
(foolbox), .727 (ART) and .971 (torchattacks) on the robust one.

With `--n 64 --only Smallest Square PDPGD`, three seeds, plain / robust net: Smallest around APGD-20, eight trials, beside adv-lib's
`minimal_apgd`: L2 .558 / .701 for .566 / .708, L∞ .1104 / .1612 for .1099 / .1642 (spreads up to .012). Square with 500 queries
(`rescaled=True`, as the peers'), robust accuracy in L2 .146 / .260 for .214 / .344 of torchattacks and .484 / .557 of ART, in L∞
.542 / .797 for .609 / .823 and .609 / .828 (spreads up to .08). In L1 the elastic net of ART finds 1.477 / 1.553 and that of foolbox
2.152 / 1.882 for 1.527 / 1.543 of PDPGD, spread over batches .13 / .21, and FMN 1.414 / 1.496.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import time
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))
import attacks_model

PLAIN = attacks_model.PATH
ORDERS = {"L0": 0, "L1": 1, "L2": 2, "Linf": math.inf}
STEPS = {"FMN": 100, "DDN": 100, "SigmaZero": 200, "PDPGD": 200, "DeepFool": 50, "CarliniWagner": 100, "SLIDE": 40}
STEPS |= {"Smallest": 20, "Square": 500}
SEARCHES, STEP, TRIALS = 5, 0.25, 8
RADII = {"L1/SLIDE": 2.0, "L2/Square": 1.0, "Linf/Square": 0.1}
FIRST = {"L2": 1.0, "Linf": 0.1}  # the first radius of `Smallest`
DRAWS = ("SLIDE", "Smallest", "Square")


def batches(name: str, n: int) -> list[tuple[Any, Any]]:
    """The data of the three runs of an attack, `net/norm/attack` with or without a library."""
    draws = name.split("/")[2] in DRAWS
    x, y = attacks_model.examples(n if draws else 3 * n)
    return [(x, y)] * 3 if draws else [(x[i : i + n], y[i : i + n]) for i in range(0, 3 * n, n)]


def train(path: str) -> None:
    import jax
    import optax
    from sklearn.datasets import load_digits

    import fulmen as fm

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))[512:]  # as in `attacks_model`
    x, y = (images[order].reshape(-1, 8, 8, 1) / 16).astype(np.float32), labels[order].astype(np.int32)
    attack = fm.PGD(fm.LinfBall(0.1) & fm.Box(0, 1), step_size=0.025, steps=7)
    system = fm.Adversarial(attacks_model.described(), attack)
    state, _ = fm.fit(system, (x, y), optimizer=optax.adam, lr=fm.cosine(2e-3), epochs=15, batch_size=64, progress=False)
    weights = [np.asarray(leaf) for leaf in jax.tree.leaves(state.system.system) if isinstance(leaf, jax.Array)][:8]
    stored = attacks_model.arrays()
    np.savez_compressed(path, **{**stored, **{f"weight{i}": weight for i, weight in enumerate(weights)}})


# The peers


def peer_attacks(model: Any) -> dict[str, Any]:
    """By `norm/attack/library`, functions of images and labels, channels first, as torch tensors."""
    import torch

    sys.modules |= dict.fromkeys(("torchvision", "torchvision.transforms", "visdom"), MagicMock())
    import foolbox
    import torchattacks
    from adv_lib.attacks import ddn, fmn, sigma_zero
    from adv_lib.attacks.auto_pgd import minimal_apgd
    from adv_lib.attacks.primal_dual_gradient_descent import pdpgd
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    art = PyTorchClassifier(model, torch.nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu")
    of_foolbox = lambda attack, **o: lambda x, y: attack.run(wrapped, x, y, **o)
    of_art = lambda attack: lambda x, y: torch.tensor(attack.generate(x.numpy(), y.numpy()))
    fb, found = foolbox.attacks, {}
    for norm, order in ORDERS.items():
        found[f"{norm}/FMN/adv-lib"] = lambda x, y, order=order: fmn(model, x, y, order, steps=STEPS["FMN"])
        kind = {"L0": fb.L0FMNAttack, "L1": fb.L1FMNAttack, "L2": fb.L2FMNAttack, "Linf": fb.LInfFMNAttack}[norm]
        found[f"{norm}/FMN/foolbox"] = of_foolbox(kind(steps=STEPS["FMN"]))
    found["L0/SigmaZero/adv-lib"] = lambda x, y: sigma_zero(model, x, y, num_steps=STEPS["SigmaZero"])
    for norm in ("L1", "L2", "Linf"):
        found[f"{norm}/PDPGD/adv-lib"] = lambda x, y, norm=norm: pdpgd(model, x, y, ORDERS[norm], num_steps=STEPS["PDPGD"])
    found["L1/PDPGD/foolbox EAD"] = of_foolbox(
        fb.EADAttack(binary_search_steps=SEARCHES, steps=40, initial_stepsize=0.05, regularization=0.05)
    )
    found["L2/DDN/adv-lib"] = lambda x, y: ddn(model, x, y, steps=STEPS["DDN"], levels=None)
    found["L2/DDN/foolbox"] = of_foolbox(fb.DDNAttack(steps=STEPS["DDN"]))
    found["L2/DeepFool/foolbox"] = of_foolbox(fb.L2DeepFoolAttack(steps=STEPS["DeepFool"]))
    found["Linf/DeepFool/foolbox"] = of_foolbox(fb.LinfDeepFoolAttack(steps=STEPS["DeepFool"]))
    cw = dict(binary_search_steps=SEARCHES, steps=STEPS["CarliniWagner"], stepsize=0.05, initial_const=0.1)
    found["L2/CarliniWagner/foolbox"] = of_foolbox(fb.L2CarliniWagnerAttack(**cw))
    elastic = dict(binary_search_steps=SEARCHES, max_iter=40, learning_rate=0.05, beta=0.05, initial_const=0.1)
    found["L1/PDPGD/ART ElasticNet"] = of_art(
        evasion.ElasticNet(art, **elastic, batch_size=128, decision_rule="L1", verbose=False)
    )
    radius = RADII["L1/SLIDE"]
    slide = fb.SparseL1DescentAttack(quantile=0.95, rel_stepsize=STEP / radius, steps=STEPS["SLIDE"], random_start=True)
    found["L1/SLIDE/foolbox"] = of_foolbox(slide, epsilon=radius)
    for norm, first in FIRST.items():  # ART's Square scales its schedule to the number of queries
        search = dict(
            norm=ORDERS[norm], max_eps=first, binary_search_steps=TRIALS, n_iter=STEPS["Smallest"], loss_function="ce"
        )
        found[f"{norm}/Smallest/adv-lib"] = lambda x, y, search=search: minimal_apgd(model, x, y, **search)
        eps, queries = RADII[f"{norm}/Square"], STEPS["Square"]
        square = functools.partial(torchattacks.Square, model, norm, eps, queries, resc_schedule=True)
        found[f"{norm}/Square/torchattacks"] = lambda x, y, square=square: square(seed=torch.initial_seed())(x, y)
        found[f"{norm}/Square/ART"] = of_art(
            evasion.SquareAttack(art, ORDERS[norm], eps=eps, max_iter=queries, nb_restarts=1, verbose=False)
        )
    found["L2/DeepFool/torchattacks"] = torchattacks.DeepFool(model, steps=STEPS["DeepFool"])
    found["L2/DeepFool/ART"] = of_art(
        evasion.DeepFool(art, max_iter=STEPS["DeepFool"], epsilon=0.02, batch_size=128, verbose=False)
    )
    return found


def run_peers(nets: dict[str, Any], out: str, n: int, only: list[str]) -> None:
    import torch

    torch.set_num_threads(1)
    stored: dict[str, Any] = dict(np.load(out)) if Path(out).exists() else {}
    for net, path in nets.items():
        attacks_model.PATH = Path(path)
        model = attacks_model.torch_module()
        for name, attack in peer_attacks(model).items():
            if f"{net}/{name}" in stored or name.split("/")[1] not in only:  # stored by a run that was stopped
                continue
            begun, points = time.perf_counter(), []
            for seed, (images, labels) in enumerate(batches(f"{net}/{name}", n)):
                torch.manual_seed(seed)
                np.random.seed(seed)  # noqa: NPY002  # ART draws from it
                x = torch.tensor(images).permute(0, 3, 1, 2).contiguous()
                points.append(np.moveaxis(attack(x, torch.tensor(labels).long()).detach().numpy(), 1, -1))
            stored[f"{net}/{name}"] = np.stack(points)
            stored[f"{net}/{name}/seconds"] = time.perf_counter() - begun
            print(net, name, f"{stored[f'{net}/{name}/seconds']:.1f} s", flush=True)
            np.savez_compressed(out, **stored)


# Fulmen's


def own_attacks() -> dict[str, Any]:
    import fulmen as fm
    from fulmen import attacks

    box = fm.Box(0, 1)
    balls = {"L0": attacks.L0Ball(64), "L1": fm.L1Ball(9.0), "L2": fm.L2Ball(9.0), "Linf": fm.LinfBall(1.0)}
    found = {f"{norm}/FMN": attacks.FMN(ball & box, STEPS["FMN"]) for norm, ball in balls.items()}
    found["L0/SigmaZero"] = attacks.SigmaZero(balls["L0"] & box, STEPS["SigmaZero"])
    for norm in ("L1", "L2", "Linf"):
        found[f"{norm}/PDPGD"] = attacks.PDPGD(balls[norm] & box, STEPS["PDPGD"])
    found["L2/DDN"] = attacks.DDN(balls["L2"] & box, STEPS["DDN"])
    for norm in ("L2", "Linf"):
        found[f"{norm}/DeepFool"] = attacks.DeepFool(balls[norm] & box, STEPS["DeepFool"])
    found["L2/CarliniWagner"] = attacks.CarliniWagner(
        box & balls["L2"], STEPS["CarliniWagner"], searches=SEARCHES, step_size=0.05, constant=0.1
    )
    found["L1/SLIDE"] = attacks.SLIDE(fm.L1Ball(RADII["L1/SLIDE"]) & box, STEP, STEPS["SLIDE"])
    for norm, first in FIRST.items():
        start = fm.replace(balls[norm], eps=first) & box
        found[f"{norm}/Smallest"] = attacks.Smallest(attacks.APGD(start, STEPS["Smallest"]), TRIALS)
        region = fm.replace(balls[norm], eps=RADII[f"{norm}/Square"]) & box
        found[f"{norm}/Square"] = attacks.Square(region, STEPS["Square"], rescaled=True)
    return found


def figures(name: str, points: Any, model: Any) -> tuple[float, float]:
    """The mean of the three runs, and the difference of the largest and the smallest."""
    found, fixed = [], "/".join(name.split("/")[1:3]) in RADII
    for there, (x, y) in zip(points, batches(name, len(points[0])), strict=True):
        right, wrong = (np.asarray(model(v)).argmax(1) == y for v in (x, there))
        far = np.linalg.norm((there - x).reshape(len(x), -1).astype(np.float64), ORDERS[name.split("/")[1]], axis=1)
        far = np.where(wrong, np.inf, far)
        found.append(float((right & wrong).mean()) if fixed else float(np.median(far[right])))
    return float(np.mean(found)), max(found) - min(found) if np.isfinite(found).all() else math.inf


def compare(nets: dict[str, Any], peers: str, n: int, only: list[str]) -> None:
    import jax
    import jax.numpy as jnp

    import fulmen as fm

    with np.load(peers) as stored:
        theirs = dict(stored)
    print(
        f"{'net':7}{'attack':20}{'median':>9}{'spread':>8}{'s':>7}  peers: median, spread, s (of SLIDE and Square the robust accuracy)"
    )
    for net, path in nets.items():
        attacks_model.PATH = Path(path)
        system = attacks_model.classifier()
        model = jax.jit(lambda x, system=system: system.model(jnp.asarray(x)))
        for name, attack in own_attacks().items():
            if name.split("/")[1] not in only:
                continue
            begun = time.perf_counter()
            run = lambda seed, batch, attack=attack, system=system: fm.perturb(attack, system, batch, jax.random.key(seed)).x
            points = [np.asarray(run(seed, batch)) for seed, batch in enumerate(batches(f"{net}/{name}", n))]
            seconds = time.perf_counter() - begun
            own, spread = figures(f"{net}/{name}", points, model)
            others = []
            for key in (key for key in theirs if key.startswith(f"{net}/{name}/") and not key.endswith("seconds")):
                median, width = figures(key, theirs[key], model)
                others.append(f"{key.split('/')[3]} {median:.4f} {width:.4f} {float(theirs[f'{key}/seconds']):.1f}")
            print(f"{net:7}{name:20}{own:9.4f}{spread:8.4f}{seconds:7.1f}  {'; '.join(others)}", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("train", "peers", "fulmen"))
    parser.add_argument("robust", help="the file of the robust net")
    parser.add_argument("peers", nargs="?", help="the file of the peers' points")
    parser.add_argument("--n", type=int, default=128, help="the number of digits in a batch")
    parser.add_argument("--nets", nargs="+", choices=("plain", "robust"), default=["plain", "robust"])
    parser.add_argument("--only", nargs="+", choices=(*STEPS,), default=[*STEPS], help="the attacks")
    options = parser.parse_args()
    if options.part == "train":
        train(options.robust)
    else:
        paths = {"plain": PLAIN, "robust": options.robust}
        run = {"peers": run_peers, "fulmen": compare}[options.part]
        run({net: paths[net] for net in options.nets}, options.peers, options.n, options.only)
