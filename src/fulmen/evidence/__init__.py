"""Evidence: `robustness`, its report, and the signs that an evaluation is wrong."""

from fulmen.evidence.binarization import *
from fulmen.evidence.choice import *
from fulmen.evidence.evaluation import *
from fulmen.evidence.model_signs import *
from fulmen.evidence.noise import *
from fulmen.evidence.pictures import *
from fulmen.evidence.report import *
from fulmen.evidence.robustness import *
from fulmen.evidence.sign import *
from fulmen.evidence.signs import *
