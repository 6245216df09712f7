"""The documentation's file tree, links and paths against the files that exist, and the form of pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("configs", "docs", "hls_templates", "host", "hw", "sw_model", "tests")
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def tree(page: Path) -> dict[str, str]:
    """Paths of a page's trees, folders with a final slash, and the purpose of each; two spaces indent a level."""
    text = page.read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for block in re.findall(r"^```tree\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        folders: list[str] = []
        for line in block.splitlines():
            indent, name, purpose = re.fullmatch(r"((?:  )*)(\S+)\s*(.*)", line).groups()  # type: ignore[union-attr]
            del folders[len(indent) // 2 :]
            assert "".join(folders) + name not in found, f"{name} stands twice"
            found["".join(folders) + name] = purpose
            if name.endswith("/"):
                folders.append(name)
    return found


def files(room: str) -> set[str]:
    """Files of a room as the repository has them: no caches, no packages' empty markers."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / room).rglob("*")
        if path.is_file()
        and path.name != "__init__.py"
        and not any(part.startswith((".", "__pycache__")) for part in path.relative_to(ROOT).parts)
    }


def test_every_file_stands_in_the_tree_or_its_folder_stands_for_it() -> None:
    listed = tree(ROOT / "docs/files.md")
    whole = [
        path for path in listed if path.endswith("/") and not any(p != path and p.startswith(path) for p in listed)
    ]
    there = {path for room in ROOMS for path in files(room)}
    missing = {path for path in there - listed.keys() if not path.startswith(tuple(whole))}
    assert not missing, f"docs/files.md lacks {sorted(missing)}; add a line for each that says what it is for"
    gone = {path for path in listed if not path.endswith("/") and not (ROOT / path).is_file()}
    gone |= {path for path in whole if not any(each.startswith(path) for each in there)}
    assert not gone, f"docs/files.md names {sorted(gone)}, which do not exist; drop or rename their lines"
    assert all(listed.values()), f"no purpose: {[path for path, purpose in listed.items() if not purpose]}"


def test_readme_names_every_room_and_sub_room() -> None:
    listed = {path for path in tree(ROOT / "README.md") if path.endswith("/")}
    folders = {"/".join(Path(path).parts[:depth]) + "/" for room in ROOMS for path in files(room)
               for depth in (1, 2) if len(Path(path).parts) > depth}  # fmt: skip
    assert listed == {path for path in folders if not path.startswith("tests/") or path.count("/") == 1}


def test_a_word_has_one_entry_in_the_glossary() -> None:
    rows = re.findall(r"^\| (.*?) \|", (ROOT / "docs/glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    words = [word.strip("*` ") for row in rows if row != "term" for word in row.split(",")]
    assert sorted(words) == sorted(set(words))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for text, target in re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        goal = page.parent / name if name else page
        assert goal.exists(), f"[{text}]({target}) leads nowhere"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", goal.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{goal.name} has no heading for #{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_pages_name_exist_and_hold_the_names_behind_a_colon(page: Path) -> None:
    pattern = rf"`((?:{'|'.join(ROOMS)})/[\w./-]+)(?::([\w.]+))?"
    for name, symbol in re.findall(pattern, page.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), f"{page.name} names {name}, which does not exist"
        for part in symbol.split(".") if symbol else ():
            source = (ROOT / name).read_text(encoding="utf-8")
            assert re.search(rf"^ *(?:def |class )?{part}\b *[(:=]", source, re.MULTILINE), f"{name} has no {symbol}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paragraphs_are_wrapped(page: Path) -> None:
    code, long = False, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        code ^= line.lstrip().startswith("```")
        if len(line) > 150 and not code and not line.lstrip().startswith("|"):
            long.append(number)
    assert not long, f"{page.name}: lines {long} are longer than 150 characters"
