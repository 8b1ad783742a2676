"""`robustness`: how robust a user's classifier is, as a table, as JSON and as a page."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import tyro

import fulmen as fm
from fulmen.commands import function_target as targets
from fulmen.commands.compilation_cache import caching_programs
from fulmen.commands.one_line_errors import CommandError, nearest
from fulmen.commands.train_command import require_writable
from fulmen.core import is_part, short
from fulmen.core.verbs import robustness as evaluate_robustness
from fulmen.inspect.text import drawable
from fulmen.robust.attacks import APGD, L1Ball, L2Ball, Square
from fulmen.robust.attacks.region import ball_of

BALLS = {"linf": fm.LinfBall, "l2": L2Ball, "l1": L1Ball}


def robustness(
    target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODULE:FUNCTION")],
    *,
    region: Annotated[str, tyro.conf.arg(metavar="NORM:RADIUS")],
    box: Annotated[str | None, tyro.conf.arg(metavar="LO:HI")] = None,
    attack: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None,
    compare: bool = False,
    resume: Path | None = None,
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("report.html"),
    seed: int = 0,
    batch_size: int | None = None,
    sample: int = 128,
    compilation_cache: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    progress: bool = True,
) -> None:
    """Attack the classifier that your function returns, and write a report.

    `robustness examples.py:run --region linf:0.1 --box 0:1` calls run(), which returns (state, data), and writes report.html
    and report.json.

    Args:
        target: your function.
        region: the perturbations that an attack may use: linf:0.1, linf:8/255, l2:0.5 or l1:12, in the inputs' units.
        box: the inputs' limits, such as 0:1.
        attack: autoattack unless it is fgsm, pgd (40 steps of a tenth of the radius), apgd or square.
        compare: whether each attack gets all examples, to compare the attacks, rather than those that survived the ones before.
        resume: a folder for intermediate results; a stopped evaluation continues from it.
        out: where to write the page; the JSON file has the same path with .json.
        seed: the seed of all randomness.
        batch_size: how many examples are attacked at once.
        sample: how many examples the warning signs are checked on.
        compilation_cache: a directory for compiled programs, which a later process reads instead of compiling them.
        progress: whether to show a progress bar.
    """
    where = _region(region, box)
    chosen = _attack(attack, where)
    if out.suffix not in (".html", ".json"):
        raise CommandError(f"--out must be a file such as report.html, got {out}.")
    files = [out.with_suffix(".json"), out.with_suffix(".html")]
    for path in files:
        require_writable(path)
    state, data = _state_and_data(target)
    options: dict[str, Any] = dict(seed=seed, batch_size=batch_size, sample=sample, compare=compare)
    options |= dict(resume=resume, progress=progress)
    with caching_programs(compilation_cache):
        report = evaluate_robustness(state, data, chosen, **options)
    print(drawable(f"\n{report}\n"))
    for path in files:
        report.save(path)
    print(f"wrote {files[1]} and {files[0]}")
    if report.partial:
        raise SystemExit(130)


def _region(region: str, box: str | None) -> Any:
    norm, _, radius = region.lower().partition(":")
    if norm not in BALLS:
        raise CommandError(
            f"--region {region}: there is no norm {norm!r}; {nearest(norm, BALLS)} Such as --region linf:0.1."
        )
    (eps,) = _numbers("--region", region, radius, 1, "linf:0.1")
    ball = BALLS[norm](eps)
    if box is None:
        return ball
    lo, hi = _numbers("--box", box, box, 2, "0:1")
    return ball & fm.Box(lo, hi)


def _numbers(flag: str, given: str, text: str, n: int, example: str) -> list[float]:
    try:
        found = [float(Fraction(part)) for part in text.split(":")]
    except (ValueError, ArithmeticError):
        found = []
    if len(found) != n:
        raise CommandError(f"{flag} must be numbers as in {flag} {example}, got {given}.")
    return found


def _attack(name: str | None, region: Any) -> Any:
    known = {
        "autoattack": lambda: region,  # `robustness` chooses the ensemble by the number of classes
        "fgsm": lambda: fm.FGSM(region),
        "pgd": lambda: fm.PGD(region, step_size=ball_of(region).eps / 10, steps=40),
        "apgd": lambda: APGD(region),
        "square": lambda: Square(region),
    }
    found = known.get((name or "autoattack").lower())
    if found is None:
        raise CommandError(f"--attack {name}: there is no such attack; {nearest(str(name), known)}")
    return found()


def _state_and_data(target: str) -> tuple[Any, Any]:
    returned = targets.returned_by(target)
    if not isinstance(returned, tuple) or len(returned) != 2:
        hint = " Does it end with `return …`?" if returned is None else ""
        hint = " Write `return state, (x, y)`." if isinstance(returned, tuple) and len(returned) > 2 else hint
        raise CommandError(f"{target} must return (state, data), got {short(returned)[:80]}.{hint}")
    state, data = returned
    if not isinstance(state, fm.State) and not is_part(state):
        raise CommandError(
            f"{target} must return (state, data), state first, as `state, history = fm.fit(…)` gives it; got {short(state)[:80]} first."
        )
    return state, data
