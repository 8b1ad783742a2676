"""Defences: wrappers around a system whose training makes it robust."""

from fulmen.compose.defence import Defence
from fulmen.core.verbs import ascent, defence_losses
from fulmen.robust.certified.ibp import IBP
from fulmen.robust.defences.adversarial import Adversarial, AttackSchedule, AttackTrained
from fulmen.robust.defences.divergence import MART, TRADES
from fulmen.robust.defences.example_gradients import VAT, GradAlign
from fulmen.robust.defences.free import FreeAdversarial
from fulmen.robust.defences.guard import OverfittingGuard
from fulmen.robust.defences.starts import NFGSM, Gaussian, fast_fgsm
from fulmen.robust.defences.weights import AWP, SAM, WorseWeights

__all__ = [
    "AWP", "Adversarial", "AttackSchedule", "AttackTrained", "Defence", "FreeAdversarial", "Gaussian", "GradAlign", "IBP",
    "MART", "NFGSM", "OverfittingGuard", "SAM", "TRADES", "VAT", "WorseWeights", "ascent", "defence_losses", "fast_fgsm",
]  # fmt: skip
