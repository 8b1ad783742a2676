"""A report in a notebook."""

import html
import re
from typing import Any

from fulmen.inspect.text import faint, html_page, html_table
from fulmen.robust.report.report_text import MARKS, attack_rows, curve_rows, headline, verdicts, worst_first

# Each has a contrast of at least 3.4 on white and on near-black.
VERDICT_COLOURS = {"ok": "#3a8f4d", "suspicious": "#b97a00", "wrong": "#e0403a", "not checked": "#808080"}


def escaped(rows: list[tuple[str, ...]]) -> list[list[str]]:
    return [[html.escape(cell) for cell in row] for row in rows]


def attacks_table(report: Any) -> str:
    return html_table(("attack", "given>", "broken>", "accuracy>", "time>"), escaped(attack_rows(report)))


def curve_table(report: Any) -> str:
    return html_table(("ε>", "attacked>", "noise>"), escaped(curve_rows(report)))


def findings_list(report: Any, only_warnings: bool = False) -> str:
    """The findings, ordered from wrong to ok, each with a coloured verdict."""
    found = report.warnings if only_warnings else worst_first(report)
    items = []
    for finding in found:
        badge = f'<b style="color:{VERDICT_COLOURS[finding.verdict]}">{MARKS[finding.verdict]}</b>'
        items.append(f"<div style='margin:0.4em 0'>{badge} {html.escape(finding.sign)}<br>{_with_code(finding.text)}</div>")
    return "".join(items)


def _with_code(text: str) -> str:
    return re.sub("`([^`]+)`", r"<code>\1</code>", faint(text))


def report_html(report: Any) -> str:
    """The report for a notebook: results, attacks, radii and warnings."""
    parts = [f"<div>{html.escape(headline(report))}</div>", attacks_table(report)]
    if report.curve:
        parts.append(curve_table(report))
    parts.append(f"<div>Warning signs: {html.escape(verdicts(report))}</div>{findings_list(report, only_warnings=True)}")
    return html_page("Robustness", "".join(parts))
