"""`Sign`: a check of an evaluation, and `Finding`, its result."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from fulmen.core import Component

OK, SUSPICIOUS, WRONG, UNCHECKED = "ok", "suspicious", "wrong", "not checked"


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of a warning sign.

    Args:
        verdict: `"ok"`, `"suspicious"`, `"wrong"` or `"not checked"`.
        text: a sentence with the numbers, and what to do.
        sign: the sign's title.
    """

    verdict: Literal["ok", "suspicious", "wrong", "not checked"]
    text: str
    sign: str = ""


class Sign(Component):
    """A sign that the results of an evaluation are wrong.

    **Extending.** Subclass it, write `examine(sign: Mine, evaluation, report)`, and pass it as
    `fm.robustness(…, signs=(*fm.robust.report.SIGNS, Mine()))`. The first line of its docstring is its title in
    reports: what should be the case.
    """

    @property
    def title(self) -> str:
        return (type(self).__doc__ or type(self).__name__).partition("\n")[0].rstrip(".")


def graded(share: float, low: float, high: float, text: str, advice: str) -> Finding:
    """The finding about a share that should be 0: ok up to `low`, suspicious up to `high`, otherwise wrong.

    Args:
        share: in [0, 1].
        low: the largest share that is ok.
        high: the largest share that is suspicious.
        text: a sentence with the numbers.
        advice: what to do, unless it is ok.
    """
    verdict: Any = OK if share <= low else SUSPICIOUS if share <= high else WRONG
    return Finding(verdict, text if verdict == OK else f"{text} {advice}")
