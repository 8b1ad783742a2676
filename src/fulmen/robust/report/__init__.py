"""The report of `fm.robustness`, and the warning signs that an evaluation is wrong."""

from fulmen.core.verbs import as_attack, examine, scaled
from fulmen.robust.report.attack_choice import UniformNoise
from fulmen.robust.report.attack_evaluation import Evaluation
from fulmen.robust.report.attack_signs import BlackBox, Convergence, Falling, Gradients, Inside, Iterations
from fulmen.robust.report.binarization import Binarization
from fulmen.robust.report.evaluation_warnings import attack_warnings
from fulmen.robust.report.model_signs import Batches, Jumps, Modes, Probabilities, Randomness
from fulmen.robust.report.robustness import SIGNS
from fulmen.robust.report.robustness_report import Finding, Report, Sign

__all__ = [
    "Batches", "Binarization", "BlackBox", "Convergence", "Evaluation", "Falling", "Finding", "Gradients", "Inside",
    "Iterations", "Jumps", "Modes", "Probabilities", "Randomness", "Report", "SIGNS", "Sign", "UniformNoise", "as_attack",
    "attack_warnings", "examine", "scaled",
]  # fmt: skip
