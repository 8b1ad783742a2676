"""Draws the diagram of models, systems and games: `python docs/_pictures/kinds.py` writes `docs/_static/kinds.svg`."""

from pathlib import Path

TARGET = Path(__file__).parents[1] / "_static" / "kinds.svg"
INK, GREY, BLUE, RED, PAPER = "#22303c", "#6b7785", "#2471a3", "#c0392b", "#ffffff"
parts: list[str] = []


def box(x, y, width, text, colour, note=""):
    parts.append(
        f'<rect x="{x}" y="{y}" width="{width}" height="34" rx="7" fill="{PAPER}" stroke="{colour}" stroke-width="1.6"/>'
    )
    parts.append(f'<text x="{x + width / 2}" y="{y + 22}" text-anchor="middle" class="code">{text}</text>')
    if note:
        parts.append(f'<text x="{x + width / 2}" y="{y + 50}" text-anchor="middle" class="note">{note}</text>')


def text(x, y, words, kind="note"):
    parts.append(f'<text x="{x}" y="{y}" text-anchor="middle" class="{kind}">{words}</text>')


def arrow(x1, y1, x2, y2, colour, dashed=False):
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    marker = {BLUE: "blue", RED: "red", GREY: "grey"}[colour]
    parts.append(
        f'<path d="M{x1} {y1} L{x2} {y2}" fill="none" stroke="{colour}" stroke-width="1.8"{dash} marker-end="url(#{marker})"/>'
    )


def panel(x, width, title, line):
    parts.append(f'<rect x="{x}" y="8" width="{width}" height="284" rx="12" fill="#f7f9fb" stroke="#d5dce3"/>')
    text(x + width / 2, 36, title, "title")
    text(x + width / 2, 56, line)


panel(8, 236, "Model", "one loss")
box(66, 84, 120, "forward", INK)
box(66, 176, 120, "loss", INK)
arrow(108, 120, 108, 172, GREY)
arrow(144, 174, 144, 122, BLUE, dashed=True)
text(126, 246, "one gradient, for")
text(126, 263, "all its parameters")

panel(256, 300, "System", "losses of its parts; the loss is their sum")
for i, name in enumerate(("first", "second")):
    x = 276 + 138 * i
    box(x, 84, 122, name, INK)
    arrow(x + 43, 120, x + 43, 148, GREY)
    box(x, 152, 122, f"{name}’s loss", INK)
    arrow(x + 61 + 18 * (1 - 2 * i), 188, 406 - 22 * (1 - 2 * i), 214, GREY)
box(372, 216, 68, "loss", INK)
for side, x, end in ((372, 268, 276), (440, 544, 536)):
    parts.append(
        f'<path d="M{side} 233 H{x} V101 H{end}" fill="none" stroke="{BLUE}" stroke-width="1.8" stroke-dasharray="5 4" '
        f'marker-end="url(#blue)"/>'
    )
text(406, 276, "one gradient, for the parameters of all parts")

panel(568, 324, "Game", "a loss per player")
for i, (name, colour) in enumerate((("generator", BLUE), ("critic", RED))):
    x = 588 + 150 * i
    box(x, 84, 134, name, colour)
    box(x, 176, 134, f"{name}’s loss", colour)
    arrow(x + 40, 120, x + 40, 172, GREY)
    arrow(x + 94, 174, x + 94, 122, colour, dashed=True)
for start, end in ((660, 760), (770, 690)):
    parts.append(
        f'<path d="M{start} 120 L{end} 172" fill="none" stroke="{GREY}" stroke-width="1.4" marker-end="url(#grey)"/>'
    )
text(730, 238, "each loss may use all players,")
text(730, 255, "its gradient is for its own player alone;")
text(730, 272, "one optimizer each, one compiled step")

STYLE = (
    f"text{{font-family:system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:{INK}}}"
    ".title{font-size:17px;font-weight:700}.note{font-size:12.5px;fill:#4c5865}"
    ".code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:12.5px}"
)
MARKERS = "".join(
    f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
    f'<path d="M0 0L10 5L0 10z" fill="{colour}"/></marker>'
    for name, colour in (("grey", GREY), ("blue", BLUE), ("red", RED))
)
TARGET.write_text(
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 300" role="img"><style>{STYLE}</style><defs>{MARKERS}</defs>\n'
    + "\n".join(parts)
    + "\n</svg>\n"
)
