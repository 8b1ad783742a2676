"""A report as text for a terminal of 80 columns, as HTML in a notebook, and as one self-contained page."""

import contextlib
import html
import io
import re
import textwrap
from typing import Any, NamedTuple

import numpy as np

from fulmen.inspect.plots import grid
from fulmen.inspect.text import faint, html_page, html_table, text_table
from fulmen.robust.report.confidence import interval_text
from fulmen.robust.report.pictures import panels

WIDTH = 79
MARKS = {"wrong": "WRONG", "suspicious": "SUSPICIOUS", "not checked": "not checked", "ok": "ok"}  # the worst first
ATTACKS = "Attacks, each on the examples that survived the attacks before it"
OPTIMALITY = "Optimality of each attack, and its forward and backward passes for an example"
CURVE = "Accuracy by radius, under attack and under noise"


def headline(report: Any) -> str:
    """The results in a sentence or two."""
    certified = "" if report.certified is None else f", certified accuracy {_with_interval(report, report.certified)}"
    clean, robust = _with_interval(report, report.correct), _with_interval(report, report.robust)
    return f"accuracy {clean}, robust accuracy {robust}{certified}: {counts(report)}"


def _with_interval(report: Any, right: Any) -> str:
    """An accuracy with its 95 % confidence interval."""
    return f"{right.mean():.3f} ({interval_text(int(right.sum()), len(report))})"


def counts(report: Any) -> str:
    """The numbers of examples in a sentence or two."""
    n, broken = len(report), int((report.correct & ~report.robust).sum())
    interrupted = _interrupted(report) if report.partial else ""
    right = f"{report.correct.sum()} of {n} examples are classified correctly"
    return f"{right}, and the attacks break {broken} of these.{interrupted}"


def _interrupted(report: Any) -> str:
    n, run = len(report), len(report.attacks)
    asked = report.settings.get("attacks", run)
    parts = [f"{n} of {report.total} examples"] * (n < report.total) + [f"{run} of {asked} attacks"] * (run < asked)
    return f" Interrupted: {' and '.join(parts) or 'the curve or the warning signs are incomplete'}."


def verdicts(report: Any) -> str:
    """The number of findings of each verdict."""
    if not report.findings:
        return "none were checked"
    counts = {kind: sum(finding.verdict == kind for finding in report.findings) for kind in MARKS}
    return ", ".join(f"{n} {kind}" for kind, n in counts.items() if n)


def worst_first(report: Any) -> list[Any]:
    """The findings, ordered from wrong to ok."""
    return sorted(report.findings, key=lambda finding: [*MARKS].index(finding.verdict))


class Table(NamedTuple):
    """A table of a report, with headings as `html_table` takes them, and a sentence below it."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    below: str = ""

    def text(self) -> str:
        """The table for a terminal, with the first cell of a row shortened to what is left of the width."""
        names = [name.rstrip(">") for name in self.columns]
        widths = [max(map(len, column)) for column in zip(names, *self.rows, strict=True)]
        longest = WIDTH - 4 - sum(width + 2 for width in widths[1:])
        rows = [(textwrap.shorten(first, longest, placeholder="…"), *others) for first, *others in self.rows]
        return "\n".join([text_table(self.columns, rows), *[self.below] * bool(self.below)])

    def html(self) -> str:
        return f"{html_table(self.columns, escaped(self.rows))}{f'<p>{self.below}</p>' if self.below else ''}"


def tables(report: Any) -> dict[str, Table]:
    """The tables of a report by their titles: the attacks, their comparison if all ran on all examples, and the curve."""
    n, rows = len(report), []
    for each in report.attacks:
        results = f"{each['accuracy']:.3f}", interval_text(round(each["accuracy"] * n), n), f"{each['seconds']:.1f} s"
        rows.append((each["name"], str(each["given"]), str(each["broken"]), *results))
    found = {ATTACKS: Table(("attack", "given>", "broken>", "accuracy>", "95 %>", "time>"), rows)}
    with contextlib.suppress(ValueError):  # not all have run on all examples, or none has broken any
        rows = [
            (name, f"{each['optimality']:.3f}", f"{each['area']:.4g}", f"{each['passes']:.0f}")
            for name, each in report.optimality().items()
        ]
        found[OPTIMALITY] = Table(("attack", "optimality>", "area>", "passes>"), rows)
    if report.curve:
        points = zip(*(report.curve[name] for name in ("eps", "robust", "noise")), strict=True)
        rows = [
            (f"{eps:.4g}", f"{robust:.3f}", interval_text(round(float(robust) * n), n), f"{noise:.3f}")
            for eps, robust, noise in [(0.0, report.accuracy, report.accuracy), *points]
        ]
        area = f"The area under the curve up to ε = {report.curve['eps'][-1]:.4g} is {report.area:.4g}."
        found[CURVE] = Table(("ε>", "attacked>", "95 %>", "noise>"), rows, area)
    return found


def report_text(report: Any) -> str:
    """The report as text."""
    parts = [_wrapped(f"Robustness: {headline(report)}"), _wrapped(f"region: {report.settings['region']}")]
    parts += [_titled(title, table.text()) for title, table in tables(report).items()]
    if report.findings:
        text = "\n".join(_finding(finding) for finding in worst_first(report))
        parts.append(_titled(f"Warning signs: {verdicts(report)}", text))
    return "\n\n".join(parts)


def _finding(finding: Any) -> str:
    if finding.verdict == "ok":
        return _wrapped(f"ok  {finding.sign}", 2)
    return (
        f"{_wrapped(f'{MARKS[finding.verdict]}  {finding.sign}', 2)}\n{textwrap.indent(_wrapped(finding.text, 6), '    ')}"
    )


def _wrapped(text: str, margin: int = 0) -> str:
    return textwrap.fill(text, WIDTH - margin, subsequent_indent="" if margin > 2 else "    ", break_on_hyphens=False)


def _titled(title: str, text: str) -> str:
    return f"{title}\n{textwrap.indent(text, '  ')}"


# Each has a contrast of at least 3.4 on white and on near-black.
VERDICT_COLOURS = {"ok": "#3a8f4d", "suspicious": "#b97a00", "wrong": "#e0403a", "not checked": "#808080"}


def escaped(rows: list[tuple[str, ...]]) -> list[list[str]]:
    return [[html.escape(cell) for cell in row] for row in rows]


def findings_list(findings: list[Any]) -> str:
    """Findings, each with a coloured verdict."""
    items = []
    for finding in findings:
        badge = f'<b style="color:{VERDICT_COLOURS[finding.verdict]}">{MARKS[finding.verdict]}</b>'
        text = re.sub("`([^`]+)`", r"<code>\1</code>", faint(finding.text))
        items.append(f"<div style='margin:0.4em 0'>{badge} {html.escape(finding.sign)}<br>{text}</div>")
    return "".join(items)


def report_html(report: Any) -> str:
    """The report for a notebook: results, attacks, radii and warnings."""
    parts = [f"<div>{html.escape(headline(report))}</div>", *(table.html() for table in tables(report).values())]
    parts.append(f"<div>Warning signs: {html.escape(verdicts(report))}</div>{findings_list(report.warnings)}")
    return html_page("Robustness", "".join(parts))


ROWS = 2000  # examples in the table

STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.1em; margin-top: 2em }
table { font: 13px/1.5 ui-monospace, monospace; display: block; overflow-x: auto }
svg { max-width: 100%; height: auto }
.metrics { display: flex; flex-wrap: wrap; gap: 1em 2.5em; margin: 1em 0 } .metrics b { display: block; font-size: 1.9em; line-height: 1.2 }
.pictures { display: flex; flex-wrap: wrap; gap: 1em 2em }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px }
details { max-height: 40em; overflow: auto }
"""


def report_page(report: Any) -> str:
    """The page; without matplotlib it has no pictures."""
    title = f"Robustness: {report.robust_accuracy:.3f} of {report.accuracy:.3f}"
    n, warnings = len(report), len(report.warnings)
    metrics = {
        "accuracy": f"{report.accuracy:.3f}",
        "robust accuracy": f"{report.robust_accuracy:.3f}",
        f"of {report.total} examples" if n < report.total else "examples": str(n),
        "warning" if warnings == 1 else "warnings": str(warnings),
    }
    boxes = "".join(f"<div><b>{value}</b>{name}</div>" for name, value in metrics.items())
    sections = {
        f"Warning signs: {verdicts(report)}": findings_list(worst_first(report)),
        **{title: table.html() for title, table in tables(report).items()},
        "Pictures": _pictures(report),
        "Examples": _examples(report),
        "Settings": _settings(report),
    }
    region = faint(f"Region: {report.settings['region']}")
    body = "".join(f"<h2>{html.escape(name)}</h2>\n{text}\n" for name, text in sections.items() if text)
    head = (
        '<meta charset="utf-8"><meta name="color-scheme" content="light dark"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    )
    above = f'<h1>Robustness</h1><div class="metrics">{boxes}</div><p>{html.escape(counts(report))}<br>{region}</p>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{above}\n{body}</body></html>\n'


def _pictures(report: Any) -> str:
    try:
        drawn = [_svg(draw, report, name) for name, draw in panels(report).items()]
    except ImportError:
        return ""
    return f'<div class="pictures">{"".join(drawn)}</div>'


def _svg(draw: Any, report: Any, name: str) -> str:
    """One panel as SVG, without metadata, and with ids that are unique on the page."""
    import matplotlib
    import matplotlib.pyplot as plt

    with matplotlib.rc_context({"svg.hashsalt": f"fulmen {name}"}):
        figure, (axes,) = grid(1, 1, (9.2, 4.0) if name == "examples" else (4.5, 3.0))
        draw(axes, report)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        plt.close(figure)
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    names = set(re.findall(r'\bid="([^"]+)"', text))
    return re.sub(r'(\bid="|"#|url\(#)([^")]+)', lambda m: m[1] + (f"{name}-{m[2]}" if m[2] in names else m[2]), text)


def _examples(report: Any) -> str:
    rows = []
    for i in range(min(len(report), ROWS)):
        classes = map(str, (i, report.labels[i], report.predicted[i], report.attacked[i]))
        by = report.attacks[report.by[i]]["name"] if report.by[i] >= 0 else "" if report.correct[i] else "clean input wrong"
        step = str(report.first[i]) if report.correct[i] and not report.robust[i] else ""
        distances = (f"{report.distance[name][i]:.4g}" for name in ("linf", "l2", "l1"))
        size = report.gradient["l2"][i]
        rows.append((*classes, by, step, *distances, f"{size:.3g}" if np.isfinite(size) else "not finite"))
    columns = ("example>", "label>", "clean>", "attacked>", "broken by", "step>", "L∞>", "L2>", "L1>", "gradient>")
    more = f"<p>{faint(f'and {len(report) - ROWS} more, in the JSON file')}</p>" if len(report) > ROWS else ""
    return f"<details><summary>{len(report)} examples</summary>{html_table(columns, escaped(rows))}{more}</details>"


def _settings(report: Any) -> str:
    radii = ", ".join(f"{radius:.6g}" for radius in report.settings["radii"])
    facts = {**report.settings, "radii": radii, "seconds": f"{report.seconds:.1f}", **report.versions}
    return f"<pre>{html.escape(chr(10).join(f'{name}: {value}' for name, value in facts.items()))}</pre>"
