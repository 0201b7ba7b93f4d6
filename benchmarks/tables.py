"""Results as markdown. What a number means is told by the unit in its name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def of_records(records: Iterable[dict[str, Any]]) -> str:
    """All records, each machine described where it first comes up."""
    parts: list[str] = []
    described = None
    for record in records:
        if record["machine"] != described:
            described = record["machine"]
            parts.append(", ".join(f"{name} {value}" for name, value in described.items()) + ".")
        parts.append(of_record(record))
    return "\n\n".join(parts)


def of_record(record: dict[str, Any]) -> str:
    """One record: heading, settings, table."""
    settings = ", ".join(f"{name} {_text(name, v)}" for name, v in record["settings"].items())
    return f"### {record['benchmark']}\n\n{settings} ({record['when']})\n\n{_table(record['rows'])}"


def _table(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [
        [_heading(name) for name in columns],
        ["---" if isinstance(rows[0].get(name), str) else "---:" for name in columns],
        *([_text(name, row.get(name)) for name in columns] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _heading(name: str) -> str:
    words = name.split("_")
    units = {"seconds": "(s)", "bytes": "(GiB)", "ns": "(ns)", "ms": "(ms)"}
    unit = units.get(words[-1])
    return " ".join([*words[:-1], unit]) if unit and len(words) > 1 else " ".join(words)


def _text(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "**NO**"
    if isinstance(value, int | float) and name.endswith("bytes"):
        return f"{value / 2**30:.3f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value)
