"""The rows that the pipeline gives, to files."""

import csv
from collections.abc import Sequence
from pathlib import Path


def write_csv(rows: Sequence[dict], path: str | Path) -> None:
    """
    One line for each row of the pipeline; `box` becomes `x0`, `y0`, `x1`, `y1`, empty where there is none, and the flags
    0 or 1.
    """
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = None
        for row in rows:
            flat = {}
            for name, value in row.items():
                if name == "box":
                    corners = [round(corner, 2) for corner in value] if value else [""] * 4
                    flat.update(zip(("x0", "y0", "x1", "y1"), corners, strict=True))
                elif isinstance(value, bool):
                    flat[name] = int(value)
                else:
                    flat[name] = round(value, 6) if isinstance(value, float) else value
            if writer is None:
                writer = csv.DictWriter(file, list(flat))
                writer.writeheader()
            writer.writerow(flat)
