"""Links, anchors and images of README.md and docs/ lead somewhere; needs no generator."""

import ast
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]
ROOMS_WITH_API = ("vqgan/models", "vqgan/quantizers", "vqgan/losses", "parti/losses", "parti/models", "parti/sampling")


def prose(text: str) -> str:
    """The text without code, where brackets mean something else."""
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^ *(```|~~~).*?^ *\1$", "", text, flags=re.MULTILINE | re.DOTALL))


def targets(text: str) -> Iterator[str]:
    """Where the links and images of a page lead: inline, by reference and in HTML."""
    text = prose(text)
    yield from re.findall(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)", text)
    yield from re.findall(r"^\[[^\]^]+\]:\s*<?([^\s>]+)", text, re.MULTILINE)
    yield from re.findall(r"<(?:a|img)\b[^>]*?(?:href|src)=[\"']([^\"']+)", text)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings, and those that it sets itself."""
    text = re.sub(r"^ *(```|~~~).*?^ *\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    found, seen = set(re.findall(r"<a\s+(?:id|name)=[\"']([^\"']+)", text)), Counter[str]()
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", text, re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).strip().replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def broken(page: Path) -> list[str]:
    """The relative links of a page that lead nowhere, each with the reason."""
    text, faults = page.read_text(encoding="utf-8"), []
    for target in targets(text):
        if re.match(r"[a-z][a-z+.-]*:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            faults.append(f"{target}: no such file")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text(encoding="utf-8")):
            faults.append(f"{target}: no such heading")
        elif page.is_relative_to(DOCS) and not file.is_relative_to(DOCS):
            faults.append(f"{target}: outside docs/, so not on the site")
    return faults


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_anchors_and_images_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_every_kind_of_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# One heading\n\n## Twice\n\n## Twice\n\n```\n# no heading\n```\n")
    (tmp_path / "page.md").write_text(
        "# A `b.c`, and d\n[ok](other.md#one-heading) [ok](other.md#twice-1) [ok](#a-bc-and-d) [ok](https://x.org/y)\n"
        "`[code](nowhere.md)` [a](gone.md) [b](other.md#gone) ![c](gone.png) [d](#gone) [e](other.md#no-heading)\n"
        '[f][ref] <img src="gone.svg">\n\n[ref]: gone.txt\n'
    )
    assert [fault.partition(":")[0] for fault in broken(tmp_path / "page.md")] == [
        *("gone.md", "other.md#gone", "gone.png", "#gone", "other.md#no-heading", "gone.txt", "gone.svg"),
    ]


def pages_of(nav: list[Any]) -> Iterator[str]:
    for entry in nav:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else pages_of(value)


def test_the_navigation_of_the_site_names_every_page_once() -> None:
    settings = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))
    assert sorted(pages_of(settings["project"]["nav"])) == sorted(
        page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")
    )


def documented() -> list[str]:
    text = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    return re.findall(r"^::: (\S+)$", text, re.MULTILINE)


@pytest.mark.parametrize("name", documented())
def test_api_pages_name_what_exists(name: str) -> None:
    path = ROOT / name.replace(".", "/")
    if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
        return
    init = path.parent / "__init__.py"
    module = init if init.is_file() else path.parent.with_suffix(".py")
    tree = ast.parse(module.read_text(encoding="utf-8"))
    assert path.name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}, name


def test_api_pages_have_every_module_of_the_rooms_that_users_change() -> None:
    modules = {
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for room in ROOMS_WITH_API
        for path in (ROOT / room).glob("*.py")
        if path.name != "__init__.py"
    }
    assert modules <= set(documented()), sorted(modules - set(documented()))
