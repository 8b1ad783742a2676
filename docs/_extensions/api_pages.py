"""The text of the generated pages, in reStructuredText: one for each verb, one for each topic of the API, and their lists."""

import inspect
import re
from collections.abc import Callable

from public_names import TOPICS, PublicName, place, public_names

from fulmen.dispatching.methods import Method
from fulmen.dispatching.registry import Verb


def full(path: str) -> str:
    """The path from the package's name: `fulmen.models.Dense`."""
    return path.replace("fm", "fulmen", 1)


def pages(convert: Callable[[str, str], str]) -> dict[str, str]:
    """The pages by their names, without a suffix.

    Args:
        convert: `f(docstring, kind)` returns the docstring in reStructuredText.
    """
    names = public_names()
    found = {"verbs/index": _verb_list(names), "api/index": _topic_list(names)}
    for each in names:
        if isinstance(each.value, Verb):
            found[verb_page(each)] = _verb(each, convert)
    for topic in TOPICS:
        inside = [each for each in names if each.topic == topic and not isinstance(each.value, Verb)]
        if inside:
            found[topic_page(topic)] = _topic(topic, inside, [each for each in names if _verb_topic(each) == topic])
    return found


def verb_page(verb: PublicName) -> str:
    return f"verbs/{verb.path.removeprefix('fm.')}"


def topic_page(topic: str) -> str:
    return f"api/{topic}"


def _verb_topic(each: PublicName) -> str | None:
    """The topic of the namespace that a verb is in; verbs at the top level belong to none."""
    space = each.path.removeprefix("fm.").rpartition(".")[0]
    homes = {
        "attacks": "robust.attacks",
        "defences": "robust.defences",
        "callbacks": "train.callbacks",
        "loggers": "train.loggers",
    }
    return homes.get(space, space) if isinstance(each.value, Verb) and space else None


# Parts of pages


def restructured(text: str) -> str:
    """A docstring in reStructuredText: single backticks are code; `|` and `**options` are text."""
    return "\n\n".join(p if p.lstrip().startswith(">>>") else _restructured_paragraph(p) for p in text.split("\n\n"))


def _restructured_paragraph(text: str) -> str:
    parts = re.split(r"(`+[^`]+`+)", text)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"\*\*(?=\w+[:,\s])", r"\\*\\*", parts[i].replace("|", r"\|"))
        if i and re.match(r"\w", parts[i]):  # a letter that follows code
            parts[i] = "\\ " + parts[i]
    parts[1::2] = [f"``{code.strip('`')}``" for code in parts[1::2]]
    return "".join(parts)


def heading(text: str, line: str = "=") -> str:
    return f"{text}\n{line * len(text)}\n\n"


def indented(text: str, by: str = "   ") -> str:
    return "\n".join(by + line if line else "" for line in text.splitlines()) + "\n"


def table(rows: list[tuple[str, ...]], head: tuple[str, ...], widths: str = "auto", kind: str = "") -> str:
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {widths}"]
    lines += [f"   :class: {kind}"] * bool(kind) + [""]
    for row in [head, *rows]:
        lines += [f"   {'*' if i == 0 else ' '} - {cell}" for i, cell in enumerate(row)]
    return "\n".join([*lines, "", ""])


def first_sentence(text: str) -> str:
    """The first line of a docstring."""
    return restructured(text.split("\n", 1)[0])


# Verbs


def _verb_list(names: list[PublicName]) -> str:
    verbs = [each for each in names if isinstance(each.value, Verb)]
    text = heading("Verbs") + (
        "A verb is a function whose method is chosen by the types of its arguments. Each page has the verb's contract, what to\n"
        "write to extend it, and its methods. In a notebook, a verb shows the same table: ``fm.forward``.\n\n"
    )
    spaces = sorted({each.path.rpartition(".")[0] for each in verbs}, key=lambda space: (space != "fm", space))
    for space in spaces:
        inside = [each for each in verbs if each.path.rpartition(".")[0] == space]
        rows = [
            (f":doc:`{each.path} <{each.path.removeprefix('fm.')}>`", first_sentence(each.doc), str(len(each.value.methods)))
            for each in inside
        ]
        text += heading(f"In {space}" if space != "fm" else "At the top level", "-")
        text += table(rows, ("verb", "what it returns or does", "methods"), "25 65 10")
    pages_ = "\n".join(f"   {each.path} <{each.path.removeprefix('fm.')}>" for each in verbs)
    return f"{text}.. toctree::\n   :hidden:\n\n{pages_}\n"


def _verb(each: PublicName, convert: Callable[[str, str], str]) -> str:
    verb: Verb = each.value
    signature = str(inspect.signature(verb.contract))
    text = heading(each.path)
    text += f".. py:function:: {full(each.path)}{signature}\n\n{indented(convert(each.doc, 'function'))}\n"
    methods = sorted(verb.methods, key=lambda method: (method.hints[:1] == (object,), str(method)))
    text += heading("Methods", "-") + f"{_about_context(verb)}\n\n"
    rows = [(f"``{method}``", _source_link(method)) for method in methods]
    return text + (table(rows, ("method", "defined in"), "60 40", "methods") if rows else "It has no methods yet.\n")


def _about_context(verb: Verb) -> str:
    if verb.context is None:
        return ""
    name = verb.context.__name__
    return f"Methods and callers may leave the last argument, a ``{name}``, out."


def _source_link(method: Method) -> str:
    found = place(method.function)
    return f":source:`{found[0]}:{found[1]}`" if found else method.place


# Topics


def _topic_list(names: list[PublicName]) -> str:
    topics = [topic for topic in TOPICS if any(each.topic == topic and not isinstance(each.value, Verb) for each in names)]
    text = (
        heading("API by topic") + "Every public name, by topic. Verbs have :doc:`pages of their own <../verbs/index>`.\n\n"
    )
    for topic in topics:
        inside = [each for each in names if each.topic == topic and not isinstance(each.value, Verb)]
        links = ", ".join(f":py:obj:`{each.path} <{full(each.path)}>`" for each in inside)
        text += heading(TOPICS[topic], "-") + f":doc:`{TOPICS[topic]} <{topic}>`: {links}\n\n"
    pages_ = "\n".join(f"   {TOPICS[topic]} <{topic}>" for topic in topics)
    return f"{text}.. toctree::\n   :hidden:\n\n{pages_}\n"


def _topic(topic: str, names: list[PublicName], verbs: list[PublicName]) -> str:
    text = heading(TOPICS[topic])
    rows = [(f":py:obj:`{each.path} <{full(each.path)}>`", first_sentence(each.doc)) for each in names]
    text += table(rows, ("name", "what it is"), "30 70")
    if verbs:
        links = ", ".join(f":doc:`{each.path} </{verb_page(each)}>`" for each in verbs)
        text += f"Verbs: {links}.\n\n"
    return text + "\n".join(map(_entry, names))


def _entry(each: PublicName) -> str:
    kind = "class" if isinstance(each.value, type) else "function" if inspect.isfunction(each.value) else "data"
    lines = [f".. auto{kind}:: {full(each.path)}"]
    lines += ["   :members:", "   :member-order: bysource"] * (kind == "class")
    lines += ["   :no-value:"] * (kind == "data")
    also = f"   Also ``{'``, ``'.join(each.others)}``. " if each.others else "   "
    found = place(each.value) if kind != "data" else None
    lines += ["", also + (f":source:`{found[0]}:{found[1]}`" if found else ""), ""]
    return "\n".join(lines)
