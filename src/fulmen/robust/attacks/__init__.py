"""Attacks, their regions and their parts."""

from fulmen.core.verbs import (
    advance,
    aim,
    attempt,
    begin,
    bounds,
    channels_first,
    finish,
    for_examples,
    length,
    perturb,
    project,
    shortest,
    shown,
    start_point,
    succeeded,
    toward,
    transformation,
    views,
)
from fulmen.robust.attacks.adaptive import BPDA, Through
from fulmen.robust.attacks.adaptive_radius import DDN, FMN
from fulmen.robust.attacks.apgd import APGD, Boundary
from fulmen.robust.attacks.attack import FGSM, PGD, Attack, Clean, Start, Uniform
from fulmen.robust.attacks.attack_loop import AttackState, initial_fields, select
from fulmen.robust.attacks.attack_runs import adversarial
from fulmen.robust.attacks.boundary_attacks import FAB, DeepFool
from fulmen.robust.attacks.carlini_wagner import CarliniWagner
from fulmen.robust.attacks.chain_attacks import ChainState, fgm, fgsm, slide
from fulmen.robust.attacks.ensemble import WorstOf, autoattack, quick
from fulmen.robust.attacks.input_transform import Diverse, Nesterov, View
from fulmen.robust.attacks.iterated import BIM, DIFGSM, MIFGSM, NIFGSM, RFGSM, SLIDE, TIFGSM, RandomSign, momentum, smooth
from fulmen.robust.attacks.minimal_norm import (
    MinimalNorm,
    annealed,
    ascent,
    candidate_classes,
    clean_fields,
    is_adversarial,
    keep_nearest,
    limits,
    maximized,
    share_done,
)
from fulmen.robust.attacks.primal_dual import PDPGD
from fulmen.robust.attacks.problem import Problem, Seen
from fulmen.robust.attacks.region import (
    Ball,
    Box,
    Intersection,
    L0Ball,
    L1Ball,
    L2Ball,
    LinfBall,
    Patch,
    PerCoordinate,
    Region,
    ball_of,
)
from fulmen.robust.attacks.sigma_zero import SigmaZero
from fulmen.robust.attacks.smallest import Smallest
from fulmen.robust.attacks.square import Square
from fulmen.robust.attacks.targets import MALT, LikelyTarget, PredictedLabel, Target, Targeting, TrueLabel, Unrejected
from fulmen.robust.attacks.universal import Universal

__all__ = [
    "APGD", "Attack", "AttackState", "BIM", "Ball", "BPDA", "Boundary", "Box", "CarliniWagner", "ChainState", "Clean", "DDN",
    "DIFGSM", "DeepFool", "Diverse", "FAB", "FGSM", "FMN", "Intersection", "L0Ball", "L1Ball", "L2Ball", "LikelyTarget",
    "LinfBall", "MALT", "MIFGSM", "MinimalNorm", "NIFGSM", "Nesterov", "PDPGD", "PGD", "Patch", "PerCoordinate",
    "PredictedLabel", "Problem", "RFGSM", "RandomSign", "Region", "SLIDE", "Seen", "SigmaZero", "Smallest", "Square",
    "Start", "TIFGSM", "Target", "Targeting", "Through", "TrueLabel", "Uniform", "Universal", "Unrejected", "View",
    "WorstOf", "advance", "adversarial", "aim", "annealed", "ascent", "attempt", "autoattack", "ball_of", "begin", "bounds",
    "candidate_classes", "channels_first", "clean_fields", "fgm", "fgsm", "finish", "for_examples", "initial_fields", "is_adversarial",
    "keep_nearest", "length", "limits", "maximized", "momentum", "perturb", "project", "quick", "select", "share_done",
    "shortest", "shown", "slide", "smooth", "start_point", "succeeded", "toward", "transformation", "views",
]  # fmt: skip
