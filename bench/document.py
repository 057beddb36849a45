"""The figures as a table in the documentation, between two marks."""

from pathlib import Path
from typing import Any

from figures import short, spread

BEGIN = "<!-- figures: written by bench/gateway.py -->"
END = "<!-- end of figures -->"


def write(file: Path, rows: dict[str, Any]) -> None:
    """Put the table of `rows`, as `Figures.keep` returns them, in the place of the one that is there."""
    before, _, rest = file.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    file.write_text(f"{before}{BEGIN}\n\n{_table(rows)}\n{_machines(rows)}\n\n{END}{after}")


def _table(rows: dict[str, Any]) -> str:
    lines = ["| | unit | Faregate | beside it | ratio | goal | reached |", "|---|---|---|---|---|---|---|"]
    for name, row in rows.items():
        beside = f"{spread(row['beside'])} {row['beside_name']}" if row["beside"] else ""
        ratio = row["ratio"]
        times = "" if ratio is None else f"{short(ratio['median'])}x ({short(ratio['least'])} - {short(ratio['most'])})"
        verdict = {None: "", True: "yes", False: "**no**"}[row["reached"]]
        cells = (name, row["unit"], spread(row["faregate"]), beside, times, row["goal"], verdict)
        lines.append(f"| {' | '.join(cells)} |")
    notes = [f"- {name}: {'; '.join(row['notes'])}" for name, row in rows.items() if row["notes"]]
    return "\n".join([*lines, "", *notes, ""])


def _machines(rows: dict[str, Any]) -> str:
    """The machines, and the versions, with what was measured on each."""
    measured: dict[str, list[str]] = {}
    for name, row in rows.items():
        machine = ", ".join(f"{what} {value}" for what, value in row["machine"].items())
        measured.setdefault(f"{row['at']}: {machine}", []).append(name)
    if len(measured) == 1:
        return f"Measured on {next(iter(measured))}."
    return "\n".join(f"- Measured on {machine}: {', '.join(names)}." for machine, names in measured.items())
