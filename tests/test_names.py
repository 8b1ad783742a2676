"""The public names, and the contracts of the public verbs."""

import pytest

import fulmen as fm
from fulmen.core import verbs as contracts
from fulmen.dispatching.registry import Verb

DECLARED = {name: getattr(contracts, name) for name in contracts.__all__}


def namespaces():
    return [fm, *(value for name in fm.__all__ if hasattr(value := getattr(fm, name), "__path__"))]


def test_public_verbs_have_their_contract_in_one_file():
    public = {name: getattr(space, name) for space in namespaces() for name in getattr(space, "__all__", [])}
    found = {name: value for name, value in public.items() if isinstance(value, Verb)}
    assert {name for name, value in found.items() if value is not DECLARED.get(name)} == set()


@pytest.mark.parametrize("name", DECLARED)
def test_contracts_say_how_to_extend(name):
    assert isinstance(DECLARED[name], Verb)
    assert "**Extending.**" in DECLARED[name].__doc__
