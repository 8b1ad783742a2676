"""A Sphinx extension: generated pages of the API, pages of the source code, and links from names in the text."""

import re
from pathlib import Path

import public_names as names
from api_pages import full, pages, restructured
from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxRole

_GENERATED = ("api", "verbs")


def _write_pages(app: Sphinx) -> None:
    """Write the generated pages into the source folder; unchanged ones are left alone, so that they are not read again."""
    names.all_modules()
    made = pages(lambda text, kind: str(GoogleDocstring(restructured(text), app.config, app, kind)))
    for folder in _GENERATED:
        for old in (Path(app.srcdir) / folder).glob("*.rst"):
            if f"{folder}/{old.stem}" not in made:
                old.unlink()
    for name, text in made.items():
        path = Path(app.srcdir, f"{name}.rst")
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def _docstring(app: Sphinx, what: str, name: str, value, options, lines: list[str]) -> None:
    lines[:] = restructured("\n".join(lines)).split("\n")


# Source code


class _SourceRole(SphinxRole):
    """`file:line`, relative to the repository, as a link to the page of the file."""

    def run(self):
        file, _, line = self.text.rpartition(":")
        short = file.removeprefix("src/")
        up = "../" * self.env.docname.count("/")
        link = nodes.reference("", f"{short}:{line}", refuri=f"{up}source/{short}.html#line-{line}", internal=False)
        link["classes"].append("source-link")
        return [link], []


def _source_pages(app: Sphinx):
    """A page for each file of the package that is newer than its page, with a target for each line."""
    formatter = HtmlFormatter(linenos="inline", lineanchors="line", anchorlinenos=True, cssclass="highlight source-code")
    for path in sorted((names.ROOT / "src").rglob("*.py")):
        short = path.relative_to(names.ROOT / "src").as_posix()
        made = Path(app.outdir, "source", f"{short}.html")
        if made.exists() and made.stat().st_mtime > path.stat().st_mtime:
            continue
        body = f"<h1>{short}</h1>" + highlight(path.read_text(), PythonLexer(), formatter)
        yield f"source/{short}", {"title": short, "body": body, "parents": [], "display_toc": False}, "page.html"


# Names in the text


_WORDS = {"data", "get", "log", "loss", "losses", "metrics", "on", "show", "split", "step", "steps", "update"}
"""Names that also mean an argument, a field or an entry of the logs."""


def _targets() -> dict[str, str]:
    """The documented names by the ways in which text may write them: `fm.models.Dense`; and `Dense` or `fit`, which are clear."""
    all_names = names.public_names()
    short = [each.name for each in all_names]
    found = {}
    for each in all_names:
        clear = each.name[0].isupper() or (each.path == f"fm.{each.name}" and each.name not in _WORDS)
        if clear and short.count(each.name) == 1:
            found[each.name] = full(each.path)
    return found | {path: full(each.path) for each in all_names for path in (each.path, *each.others)}


class _LinkNames(SphinxPostTransform):
    """Make a public name in code font a link to its documentation."""

    default_priority = 5  # before references are resolved

    def run(self, **options) -> None:
        targets = self.app.fulmen_targets = getattr(self.app, "fulmen_targets", None) or _targets()
        for literal in list(self.document.findall(nodes.literal)):
            found = _NAME.fullmatch(literal.astext())
            target = targets.get(found[1]) if found else None
            if target and not any(isinstance(node, _LINKED) or "methods" in node["classes"] for node in _above(literal)):
                options = dict(refdomain="py", reftype="obj", reftarget=target, refexplicit=True, refdoc=self.env.docname)
                link = addnodes.pending_xref("", **options)
                literal.replace_self(link)
                link += literal


_NAME = re.compile(r"([\w.]+)(\([^()]*(\([^()]*\)[^()]*)*\))?")  # a name, or one call of it
_LINKED = (nodes.reference, nodes.title, addnodes.pending_xref, addnodes.desc_signature)


def _above(node: nodes.Node):
    """The elements around a node, the innermost first."""
    while isinstance(node.parent, nodes.Element):
        node = node.parent
        yield node


def _definition(app: Sphinx, env, node, content):
    """Resolve a class by the place where it is defined, as in signatures; private ones and other libraries' stay text."""
    target = node.get("reftarget", "")
    for each in names.public_names():
        value = each.value
        if target == f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', None)}":
            return env.get_domain("py").resolve_xref(env, node["refdoc"], app.builder, "obj", full(each.path), node, content)
    public = target.startswith("fulmen.") and node.get("refexplicit")
    return None if public or node.get("refdomain") != "py" else content


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", _write_pages)
    app.connect("autodoc-process-docstring", _docstring, priority=400)  # before napoleon
    app.connect("html-collect-pages", _source_pages)
    app.connect("missing-reference", _definition)
    app.add_role("source", _SourceRole())
    app.add_post_transform(_LinkNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
