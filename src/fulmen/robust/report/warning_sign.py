"""What a sign is that an evaluation is wrong, and what it finds."""

from __future__ import annotations

import dataclasses
from typing import Literal

from fulmen.core.component import Component

__all__ = ["Finding", "Sign"]

OK, SUSPICIOUS, WRONG, UNCHECKED = "ok", "suspicious", "wrong", "not checked"


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a sign has found.

    Args:
        verdict: `"ok"`, `"suspicious"`, `"wrong"` or `"not checked"`.
        text: a sentence with the figures, and what to do.
        sign: what was looked for.
    """

    verdict: Literal["ok", "suspicious", "wrong", "not checked"]
    text: str
    sign: str = ""


class Sign(Component):
    """A sign that the figures of an evaluation are wrong.

    **Extending.** Subclass it, write `examine(sign: Mine, evaluation, report)`, and give it to
    `fm.robustness(…, signs=(*fm.robust.report.SIGNS, Mine()))`. The first line of its docstring is its title in reports.
    """

    @property
    def title(self) -> str:
        return (type(self).__doc__ or type(self).__name__).partition("\n")[0].rstrip(".")
