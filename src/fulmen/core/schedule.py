"""`Schedule`: a learning rate as a function of the run's plan."""

from typing import Any

from fulmen.core.mode import Plan
from fulmen.core.tree import Tree


class Schedule(Tree):
    """A function from the plan to a function of the step. Its numbers are data, its lengths follow from the plan.

    **Extending.** Subclass it with fields and `__call__(self, plan)`, and with `span(self, plan)` if it does not end with the
    run.
    """

    def __call__(self, plan: Plan) -> Any:
        raise NotImplementedError

    def span(self, plan: Plan) -> int | None:
        """The number of steps after which its value no longer changes; None if it has no end."""
        return plan.total_steps
