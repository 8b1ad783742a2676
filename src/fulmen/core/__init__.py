"""What the other folders use of the core: the types of components, batches, modes and states. The verbs are in `core.verbs`."""

from fulmen.core.batch import (
    Attacked,
    Batch,
    Labeled,
    PartBatches,
    Unlabeled,
    index,
    inner,
    inputs,
    is_unlabeled,
    parts_of,
    with_inputs,
    with_labels,
)
from fulmen.core.batch_checks import as_arrays, check_array, check_weight, checked_batch, named_arrays
from fulmen.core.component import (
    Buffer,
    Component,
    Frozen,
    Game,
    Model,
    Parameter,
    System,
    Wrapper,
    first_field,
    fold_name,
    is_part,
    named_parts,
    part_name,
    parts,
    record,
    still,
    unwrapped,
)
from fulmen.core.component_methods import unbind
from fulmen.core.fields import STATIC, hyper, static
from fulmen.core.leaves import BUFFER, OTHER, PARAMETER, components, is_array, require_arrays, require_concrete
from fulmen.core.marks import keeps_rows, standard_step, sums_losses
from fulmen.core.mergeable import Last, Mean, Mergeable, Spread
from fulmen.core.mode import Eval, Mode, Plan, PlanRead, Schedule, Train, UnreadPlan, bound_mode, require_key
from fulmen.core.naming import briefly, concrete, number
from fulmen.core.paths import by_path, covers, join_path
from fulmen.core.prediction import (
    Prediction,
    at_least_float32,
    check_binary,
    check_classes,
    class_targets,
    number_targets,
    outputs_for,
)
from fulmen.core.stacking import each, is_own, join, split, take
from fulmen.core.state import State, weakly, without_plan
from fulmen.core.structure import RECENT, Structure, keep, pack, per_structure
from fulmen.core.tree import Tree, get, items, remake, short
