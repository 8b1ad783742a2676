"""A report as text for a terminal of 80 columns."""

import textwrap
from typing import Any

from fulmen.inspect.text import align

WIDTH = 79
MARKS = {"ok": "ok", "suspicious": "SUSPICIOUS", "wrong": "WRONG", "not checked": "not checked"}
ATTACKS = "Attacks, each on the examples that survived the attacks before it"
CURVE = "Accuracy by radius, under attack and under noise"
WORST_FIRST = ("wrong", "suspicious", "not checked", "ok")


def headline(report: Any) -> str:
    """The results in a sentence or two."""
    return f"accuracy {report.accuracy:.3f}, robust accuracy {report.robust_accuracy:.3f}: {counts(report)}"


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
    return ", ".join(f"{counts[kind]} {kind}" for kind in WORST_FIRST if counts[kind])


def worst_first(report: Any) -> list[Any]:
    """The findings, ordered from wrong to ok."""
    return sorted(report.findings, key=lambda finding: WORST_FIRST.index(finding.verdict))


def attack_rows(report: Any) -> list[tuple[str, ...]]:
    """A row for each attack: the examples it was given and has broken, the accuracy after it, and its duration."""
    return [
        (each["name"], str(each["given"]), str(each["broken"]), f"{each['accuracy']:.3f}", f"{each['seconds']:.1f} s")
        for each in report.attacks
    ]


def curve_rows(report: Any) -> list[tuple[str, ...]]:
    """A row for each radius, from 0."""
    if not report.curve:
        return []
    rows = [("0", f"{report.accuracy:.3f}", f"{report.accuracy:.3f}")]
    columns = zip(report.curve["eps"], report.curve["robust"], report.curve["noise"], strict=True)
    return rows + [(f"{eps:.4g}", f"{robust:.3f}", f"{noise:.3f}") for eps, robust, noise in columns]


def report_text(report: Any) -> str:
    """The report as text."""
    parts = [_wrapped(f"Robustness: {headline(report)}"), _wrapped(f"region: {report.settings['region']}")]
    rows = [("attack", "given", "broken", "accuracy", "time"), *attack_rows(report)]
    parts.append(_titled(ATTACKS, _table(rows, (1, 2, 3, 4))))
    if report.curve:
        rows = [("ε", "attacked", "noise"), *curve_rows(report)]
        parts.append(_titled(CURVE, _table(rows, (0, 1, 2))))
    if report.findings:
        text = "\n".join(_finding(finding) for finding in worst_first(report))
        parts.append(_titled(f"Warning signs: {verdicts(report)}", text))
    return "\n\n".join(parts)


def _table(rows: list[tuple[str, ...]], right: tuple[int, ...]) -> str:
    longest = WIDTH - 4 - sum(max(len(row[i]) for row in rows) + 2 for i in range(1, len(rows[0])))
    return align([(textwrap.shorten(row[0], longest, placeholder="…"), *row[1:]) for row in rows], right)


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
