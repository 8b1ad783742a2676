"""Evidence: `robustness`, its report, and the signs that an evaluation is wrong."""

from fulmen.robust.report.attack_choice import *
from fulmen.robust.report.attack_evaluation import *
from fulmen.robust.report.attack_signs import *
from fulmen.robust.report.binarization import *
from fulmen.robust.report.model_signs import *
from fulmen.robust.report.noise import *
from fulmen.robust.report.robustness import *
from fulmen.robust.report.robustness_report import *
from fulmen.robust.report.warning_sign import *
