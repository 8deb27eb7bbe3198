"""Whether a change made something slower, by the ratios of two runs of one benchmark. Times are never compared.

python benchmarks/training.py loops --json before.json   # and, after the change, --json after.json
python benchmarks/check.py before.json after.json [--tolerance 0.2]

Exit codes: 0, no ratio is higher than before by more than the tolerance; 1, one is; 2, the files cannot be compared.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any


def load(file: Path) -> dict[str, Any]:
    """The table in a file. Raises ValueError where it is none, or has no ratios."""
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        rows = table["rows"]
        columns = set(rows[0])
        if any(set(row) != columns for row in rows):
            raise ValueError("rows of different columns")
        if not set(table.get("ratios", [])) <= columns:
            raise ValueError("ratios without a column")
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{file} is not what a benchmark writes with --json ({error!r}); run it again.") from error
    if not table.get("ratios"):
        raise ValueError(f"{file} has no ratios, and times of two runs cannot be compared; take a table that has some.")
    return table


def ratios(table: dict[str, Any], texts: list[str], file: Path) -> dict[tuple[str, str], float]:
    """Ratios by their row's text and their column; a cell without a number was not measured."""
    found = {}
    for row in table["rows"]:
        name = ", ".join(row[column] for column in texts)
        for column in table["ratios"]:
            value = row[column]
            if not isinstance(value, int | float):
                continue
            if (name, column) in found:
                raise ValueError(f"{file} has two rows {name!r}; text columns must tell rows apart.")
            if not 0 < value < math.inf:
                raise ValueError(
                    f"{file} has {value} as {column!r} of {name!r}; a ratio of two times is above 0; run it again."
                )
            found[name, column] = value
    return found


def check(files: tuple[Path, Path], tolerance: float) -> bool:
    """Prints what changed; True if no ratio is higher by more than the tolerance. Raises ValueError for different tables."""
    before, after = tables = [load(file) for file in files]
    columns = list(before["rows"][0])
    for name, old, new in (
        ("columns", columns, list(after["rows"][0])),
        ("ratios", before["ratios"], after["ratios"]),
    ):
        if set(old) != set(new):
            raise ValueError(
                f"The files are of different tables, {name} {old} and {new}; take two runs of one command."
            )
    rows = [row for table in tables for row in table["rows"]]
    texts = [c for c in columns if c not in before["ratios"] and all(isinstance(row[c], str) for row in rows)]
    old, new = (ratios(table, texts, file) for table, file in zip(tables, files, strict=True))
    both = [key for key in old if key in new]
    if not both:
        raise ValueError(f"The files have no measured row in common by {texts}; take two runs of one command.")

    for name in before:
        if name not in ("rows", "ratios") and before[name] != after.get(name):
            print(f"{name}: {before[name]}; now {after.get(name)}")
    for file, alone in ((files[0], old.keys() - new.keys()), (files[1], new.keys() - old.keys())):
        for name, column in sorted(alone):
            print(f"only in {file}: {name}, {column}")
    changes = {key: new[key] / old[key] - 1 for key in both}
    changes = {key: change for key, change in changes.items() if abs(change) > tolerance}
    print(f"{len(both)} ratios compared, {len(changes)} changed by more than {tolerance:.0%}")
    if changes:
        print("\n| row | ratio | before | after | change | |\n|---|---|---|---|---|---|")
    for (name, column), change in changes.items():
        verdict = "worse" if change > 0 else "better"
        print(f"| {name} | {column} | {old[name, column]} | {new[name, column]} | {change:+.0%} | {verdict} |")
    return not any(change > 0 for change in changes.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="what a benchmark wrote with --json")
    parser.add_argument("after", type=Path, help="what the same one wrote later")
    parser.add_argument(
        "--tolerance", type=float, default=0.2, help="change that is noise (default: 0.2, of the ratio)"
    )
    arguments = parser.parse_args()
    if not 0 <= arguments.tolerance < math.inf:
        parser.error(f"--tolerance is {arguments.tolerance}, and must be 0 or more.")
    try:
        good = check((arguments.before, arguments.after), arguments.tolerance)
    except ValueError as error:
        parser.error(str(error))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
