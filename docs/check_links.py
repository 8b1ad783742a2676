"""Looks for links in the built site whose page or anchor does not exist: `python docs/check_links.py docs/_build/html`."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """The links of a page, and the anchors in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors = {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {value for value in (given.get("id"), given.get("name")) if value}
        self.links += [value for name in ("href", "src") if (value := given.get(name))]


def broken_links(site: Path) -> list[str]:
    """The broken links as lines of text: page and link.

    Args:
        site: the folder of the built site.

    Raises:
        ValueError: if the folder has no pages.
    """
    pages = {path.resolve(): _Page(path.read_text()) for path in site.rglob("*.html") if "_static" not in path.parts}
    if not pages:
        raise ValueError(f"{site} must be the folder of a built site, got one without pages; build it with sphinx-build.")
    found = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = pages[target].anchors if target in pages else {"", unquote(parts.fragment)}
            if not target.exists() or unquote(parts.fragment) not in anchors:
                found.append(f"{path.relative_to(site.resolve())}: {link}")
    return found


if __name__ == "__main__":
    broken = broken_links(Path(sys.argv[1]))
    print("\n".join(broken) or "no broken internal links")
    sys.exit(bool(broken))
