"""The pages for those who come from another library have a row for everything that the library has."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = json.loads((ROOT / "tests" / "foreign_names.json").read_text())  # read from the sources of the version that it names


def rows(page: str) -> dict[str, list[tuple[str, str]]]:
    """The cells of the tables, by the heading above them."""
    found: dict[str, list[tuple[str, str]]] = {}
    heading = ""
    for line in (ROOT / "docs" / "migration" / f"{page}.md").read_text().splitlines():
        heading = line.lstrip("# ") if line.startswith("#") else heading
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] if line.startswith("|") else []
        if len(cells) == 2 and not cells[0].startswith("---") and cells[1] != "Fulmen":
            found.setdefault(heading, []).append((cells[0], cells[1]))
    return found


def first_names(cells):
    return [re.findall(r"\w+", cell)[0] for cell, _ in cells]


def options(cells):
    return {name for cell, _ in cells for name in re.findall(r"(\w+)=", cell)}


def test_lightning_arguments():
    tables, arguments = rows("lightning"), dict(NAMES["lightning"]["arguments"])
    assert options(tables["Arguments of Trainer"]) == {*arguments.pop("Trainer")}
    given = {name for names in arguments.values() for name in names} - {"model", "dataloaders"}
    assert options(tables["Methods of Trainer"]) >= given


@pytest.mark.parametrize(
    ("heading", "kinds"),
    [
        ("LightningModule", ["module"]),
        ("Callbacks", ["callbacks"]),
        ("Loggers", ["loggers"]),
        ("Hooks", ["hooks", "callback"]),
    ],
)
def test_lightning_names(heading, kinds):
    found = first_names(rows("lightning")[heading])
    assert len(found) == len({*found})
    assert {*found} == {name for kind in kinds for name in NAMES["lightning"][kind]}


@pytest.mark.parametrize("method", NAMES["keras"]["arguments"])
def test_keras_arguments(method):
    found = options(rows("keras")[f"Arguments of {method}"])
    assert found == {*NAMES["keras"]["arguments"][method]}


@pytest.mark.parametrize(("heading", "kind"), [("Callbacks", "callbacks"), ("Methods of a callback", "hooks")])
def test_keras_names(heading, kind):
    assert {*first_names(rows("keras")[heading])} == {*NAMES["keras"][kind]}


@pytest.mark.parametrize("page", ["lightning", "keras", "flax", "equinox"])
def test_rows_have_code_on_both_sides_or_a_reason(page):
    reasons = ("not needed", "no built-in", "as `", "the line", "several", "a function", "a `with`")
    tables = rows(page)
    assert tables
    assert not [cells for table in tables.values() for cells in table if "`" not in cells[0]]
    assert not [
        cells for table in tables.values() for cells in table if "`" not in cells[1] and not cells[1].startswith(reasons)
    ]
