"""Pages find each other, and what the code cites of them is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md"), *ROOT.glob("deploy/*.md")]
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
CITED = re.compile(r"Source: (docs/[\w/-]+\.md)(?:, ([^.]+))?\.")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def test_every_link_between_pages_leads_somewhere() -> None:
    dead = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in sorted(PAGES)
        for link in LINK.findall(FENCE.sub("", page.read_text("utf-8")))
        if "://" not in link and not (page.parent / link).exists()
    ]

    assert dead == []


def test_every_page_and_section_that_a_docstring_cites_is_there() -> None:
    cited = {
        found
        for file in ROOT.glob("packages/*/src/**/*.py")
        for found in CITED.findall(" ".join(file.read_text("utf-8").split()))
    }
    missing: list[str] = []
    for page, section in sorted(cited):
        text = (ROOT / page).read_text("utf-8") if (ROOT / page).exists() else ""
        headings = [heading.lower() for heading in HEADING.findall(FENCE.sub("", text))]
        if not headings or (section and section.lower() not in headings):
            missing.append(f"{page}, {section}")

    assert cited
    assert missing == []
