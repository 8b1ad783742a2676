"""Every public name has a docstring and an entry in the generated pages of the API."""

import functools
import importlib
import re
import sys
from pathlib import Path

import pytest

import fulmen as fm
from fulmen.dispatching.registry import Verb

DOCS = Path(__file__).parents[1] / "docs"
sys.path.insert(0, str(DOCS / "_extensions"))
public_names, api_pages = map(importlib.import_module, ("public_names", "api_pages"))
sys.path.pop(0)

names = functools.cache(public_names.public_names)


@functools.cache
def pages():
    return api_pages.pages(lambda text, kind: text)


def test_every_public_name_has_a_docstring():
    assert [each.path for each in names() if not each.doc] == []


def test_every_public_name_has_an_entry_on_one_page():
    entries = [
        name for text in pages().values() for name in re.findall(r"^\.\. (?:auto|py:)\w+:: ([\w.]+)", text, re.MULTILINE)
    ]
    assert sorted(entries) == sorted(api_pages.full(each.path) for each in names())


def test_the_page_of_a_verb_has_its_contract_and_its_methods():
    page = pages()["verbs/reduce_losses"]
    assert "fulmen.reduce_losses(system, losses, batch)" in page and "**Extending.**" in page
    for method in fm.reduce_losses.methods:
        if method.module.startswith("fulmen."):
            assert f"``{method}``" in page
    assert re.search(r":source:`src/fulmen/systems/weighted.py:\d+`", page)


def test_the_page_of_a_verb_links_to_the_line_of_its_contract():
    file, line = public_names.place(fm.fit.contract)
    assert (DOCS.parent / file).read_text().splitlines()[line - 1 : line + 1][-1].startswith("def fit(")


def test_every_verb_has_a_page():
    assert {api_pages.verb_page(each) for each in names() if isinstance(each.value, Verb)} <= pages().keys()


def test_every_public_name_is_on_the_page_all_of_fulmen():
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`[^`\n]+`", (DOCS / "all-of-fulmen.md").read_text()))))
    assert [each.path for each in names() if each.name not in words] == []


def test_code_and_bars_of_docstrings_are_restructured_text():
    text = "`a` and `Prediction`s of |w|, with **options, **Extending.**\n\n>>> print('`x`')"
    assert api_pages.restructured(text) == (
        "``a`` and ``Prediction``\\ s of \\|w\\|, with \\*\\*options, **Extending.**\n\n>>> print('`x`')"
    )


def test_a_name_without_a_docstring_is_found():
    class Silent:
        pass

    assert public_names.PublicName("fm.Silent", Silent).doc == ""
    with pytest.raises(LookupError, match="no page"):
        public_names.PublicName("fm.Silent", Silent).topic  # noqa: B018
