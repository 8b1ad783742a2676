"""A verb's methods as a table in a notebook."""

import html
import inspect
from typing import Any

from fulmen.dispatching import hooks
from fulmen.dispatching.location import place
from fulmen.inspect.text import faint, first_line, html_page, html_table


def methods_table(verb: Any) -> str:
    """HTML with a verb's contract and the signature, location and first docstring line of each method.

    Args:
        verb: a `Verb`.
    """
    rows = []
    for method in verb.methods:
        where = faint(place(method.location, method.module))
        rows.append((html.escape(str(method)), where, html.escape(first_line(method.function))))
    title = f"{html.escape(verb.__name__)}{html.escape(str(inspect.signature(verb.contract)))}"
    contract = f'<div style="padding-bottom:0.5em">{html.escape(first_line(verb.contract))}</div>'
    table = html_table(("method", "defined in", "description"), rows) if rows else faint("no methods yet")
    return html_page(title, contract + table)


hooks.verb_html = methods_table
