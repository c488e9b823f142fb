"""`python -m tests.hub.table`: the table of faults and outcomes, as Markdown, from the cases that the tests run.

`python -m tests.hub.table --write` puts it into docs/guarantees.md, between its marks.
"""

import sys
from pathlib import Path

from tests.hub.cases import BEFORE, CASES, NOTHING, SAME, Case

PAGE = Path(__file__).parents[2] / "docs" / "guarantees.md"
BEGIN, END = "<!-- table of faults: make it with `python -m tests.hub.table --write` -->", "<!-- end of the table -->"


def afterwards(case: Case) -> str:
    """What is in the repository afterwards, in words."""
    if case.after in (NOTHING, BEFORE):
        return case.after
    commits = "no new commit" if case.before == SAME else "one commit"
    where = "" if case.branch == "main" else f" on `{case.branch}`"
    return f"{case.after}, {commits}{where}"


def row(case: Case) -> str:
    named = [words for words in case.says if words not in ("/me/x", "/team/x")]
    says = ", ".join(named) or "the address of the repository"
    if case.status == 130:
        says = "the interruption"
    cells = (case.name, ", ".join(case.over), str(case.status), says, afterwards(case))
    return "| " + " | ".join(cells) + " |"


def table() -> str:
    """The table, one line per case."""
    head = ("fault", "over", "exit status", "the sentence names", "the repository holds afterwards")
    return "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *(row(case) for case in CASES)])


def written(page: str) -> str:
    """The page with the table of today between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")
    else:
        print(table())
