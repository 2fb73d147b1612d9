"""Tables, once as data, then as Markdown or as HTML."""

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# What a figure is: seen by a clock here, counted in an emulator, worked out from others, or counted on paper.
KINDS = ("measured", "emulated", "estimated", "counted")


@dataclass(frozen=True)
class Table:
    """`kind`: one of KINDS, of every figure in it. marked: rows to set apart, such as our own."""

    title: str
    kind: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marked: frozenset[int] = frozenset()
    note: str = ""

    def markdown(self) -> str:
        """With its title in bold, the kind beside it."""
        lines = [f"**{self.title}** ({self.kind})", "", _line(self.head), _line(["---"] * len(self.head))]
        body = [tuple(f"**{cell}**" if cell and i in self.marked else cell for cell in row) for i, row in self._rows()]
        lines += [_line(row) for row in body]
        return "\n".join([*lines, *(["", self.note] if self.note else [])])

    def html(self) -> str:
        """Numbers to the right, the words on the left, long tables scroll."""
        head = "".join(f"<th>{inline(cell)}</th>" for cell in self.head)
        body = "".join(
            f"<tr{' class=ours' if i in self.marked else ''}>"
            + "".join(f"<td{'' if _is_words(cell) else ' class=n'}>{inline(cell)}</td>" for cell in row)
            + "</tr>"
            for i, row in self._rows()
        )
        note = f"<p class=note>{inline(self.note)}</p>" if self.note else ""
        title = f"<h3>{inline(self.title)} <span class='kind {self.kind}'>{self.kind}</span></h3>"
        return (
            f"{title}<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{note}"
        )

    def _rows(self) -> Iterable[tuple[int, tuple[str, ...]]]:
        return enumerate(self.rows)


def parse(markdown: str, kind: str, title: str) -> list[Table]:
    """Every table of a Markdown text, under its nearest bold line or heading, else under `title`."""
    found: list[Table] = []
    heading, rows = title, list[tuple[str, ...]]()
    for line in [*markdown.splitlines(), ""]:
        if line.startswith("|"):
            rows.append(tuple(cell.strip() for cell in line.strip().strip("|").split("|")))
            continue
        if len(rows) > 2:
            found.append(Table(heading, kind, rows[0], tuple(rows[2:])))
        rows = []
        if named := re.match(r"(?:#+ |\*\*)(.+?)(?:\*\*)?$", line.strip()):
            heading = named[1].replace("**", "")
    return found


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def inline(text: str) -> str:
    """HTML of Markdown's bold and code; all else as it stands."""
    said = html.escape(text)
    said = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", said)
    return re.sub(r"`(.+?)`", r"<code>\1</code>", said)


def _is_words(cell: str) -> bool:
    return not re.match(r"[*−-]*[\d.]", cell)
