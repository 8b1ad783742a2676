"""`Report`: the findings of `check`."""

import contextlib
import dataclasses
import html
import shutil
import textwrap
import traceback
from collections.abc import Iterator
from pathlib import PurePath

from fulmen.core.immutable import Immutable
from fulmen.dispatching.errors import AmbiguousMethodError, MissingMethodError
from fulmen.dispatching.location import place
from fulmen.inspect.text import Picture, html_page, html_table

OK, WARNING, ERROR = "ok", "warning", "error"


class Finding(Immutable):
    """One finding of a check.

    Attributes:
        level: `"ok"`, `"warning"` (the run works, but may not do what is intended) or `"error"` (the run would fail).
        what: what was checked, and the result.
        where: a path in the component, or a file and line.
        advice: what to do.
    """

    level: str
    what: str
    where: str = ""
    advice: str = ""


class Report(Picture):
    """The findings of `check`; prints as a list.

    Attributes:
        name: the name of the component's type.
        findings: a list of `Finding`s.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.findings: list[Finding] = []

    @property
    def ok(self) -> bool:
        """Whether there is no error; there may be warnings."""
        return not self.errors

    @property
    def errors(self) -> list[Finding]:
        """The findings that would end a run."""
        return [f for f in self.findings if f.level == ERROR]

    @property
    def warnings(self) -> list[Finding]:
        """The findings that would not end a run."""
        return [f for f in self.findings if f.level == WARNING]

    def add(self, level: str, what: str, where: str = "", advice: str = "") -> None:
        """Add a finding."""
        self.findings.append(Finding(level, what, where, advice))

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """A context whose errors are findings. An error that was found before is not added again."""
        try:
            yield
        except Exception as error:
            first, _, rest = str(error).strip().partition("\n")
            name = "" if isinstance(error, MissingMethodError | AmbiguousMethodError) else f"{type(error).__name__}: "
            text = f"{name}{first}"
            if not any(known.what.endswith(text) for known in self.errors):
                self.add(ERROR, f"{what}: {text}", _user_line(error), rest.strip("\n"))

    def _title(self) -> str:
        counts = [
            f"{len(some)} {level}{'s' * (len(some) > 1)}"
            for some, level in ((self.errors, ERROR), (self.warnings, WARNING))
            if some
        ]
        return f"{self.name}: {', '.join(counts) or 'no problems found'}"

    def _text(self) -> str:
        width = max(shutil.get_terminal_size((120, 24)).columns, 40) - 9
        lines = [self._title()]
        for f in self.findings:
            texts = "\n".join(filter(None, (f.what, f.where, f.advice))).splitlines()
            inside = [line for text in texts for line in textwrap.wrap(text, width) or [""]]
            lines += [f"{'' if i else f.level:7}  {line}" for i, line in enumerate(inside)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        def cell(text: str) -> str:
            return f'<span style="white-space:pre-wrap">{html.escape(text)}</span>'

        rows = [[cell(text) for text in dataclasses.astuple(finding)] for finding in self.findings]
        return html_page(html.escape(self._title()), html_table(("", "what", "where", "what to do"), rows))


def _user_line(error: BaseException) -> str:
    """The innermost line of user code in an error's traceback."""
    libraries = [PurePath(__file__).parent.parent, PurePath(contextlib.__file__).parent]  # Fulmen and Python
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = PurePath(frame.filename)
        packaged = {"site-packages", "dist-packages"} & {*file.parts} or str(file).startswith("<frozen")
        if not packaged and not any(folder in file.parents for folder in libraries):
            return place(f"{file}:{frame.lineno}", "__main__")
    return ""
