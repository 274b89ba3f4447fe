"""The pages of docs/, taken apart: fenced blocks, commands, links."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
#: Also read for commands.
BESIDE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def blocks(text: str):
    """(language, content) of the fenced blocks, indented ones too."""
    for indent, language, content in re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.M | re.S):
        yield language, re.sub(rf"^{indent}", "", content, flags=re.M)


def commands(text: str):
    """The words of each line of a shell block, continued lines joined, cut at pipes and redirections."""
    shell = [content for language, content in blocks(text) if language in ("bash", "sh", "")]
    shell += re.findall(r"(?:^    (?:vipra|ros2|make) .*\n)+", text, re.M)
    for content in shell:
        for line in content.replace("\\\n", " ").splitlines():
            line = line.strip()
            if not re.match(r"(\S*bin/)?(vipra|make|ros2) ", line):
                continue
            words = shlex.split(line, comments=True)
            end = next((k for k, w in enumerate(words) if re.fullmatch(r"[|&;]+|\d?>+|<", w)), len(words))
            yield [words[0].rpartition("/")[2], *words[1:end]]


def links(text: str):
    """Targets of links and pictures outside code."""
    prose = re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.M | re.S)
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose))


def anchors(text: str) -> set[str]:
    """Those that Markdown makes of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", t).strip().lower()) for t in titles}
