"""Tables of numbers in CSV files; what cannot be read is refused, naming file, line and value."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Table(NamedTuple):
    """Cells of a CSV."""

    file: str
    names: list[str]
    lines: list[int]  # line of each row in the file
    rows: list[list[str]]

    def numbers(self, columns: Iterable[int], low: float = -np.inf, *, blank: bool = False) -> Floats:
        """Values ``(rows, columns)``; blank cells are NaN if allowed.

        Raises:
            ValueError: names file, line, column and value.
        """
        columns = list(columns)
        values = np.empty((len(self.rows), len(columns)))
        for i, row in enumerate(self.rows):
            for j, column in enumerate(columns):
                cell = row[column].strip()
                try:
                    values[i, j] = np.nan if blank and cell.lower() in ("", "nan", "na", "null") else float(cell)
                    good = (blank and np.isnan(values[i, j])) or (np.isfinite(values[i, j]) and values[i, j] >= low)
                except ValueError:
                    good = False
                if not good:
                    allowed = "finite" if np.isinf(low) else f"finite and >= {low:g}"
                    raise ValueError(
                        f"{self.file}, line {self.lines[i]}: {self.names[column]} must be a number, {allowed}, "
                        f"got {cell!r}"
                    )
        return values


def read_table(path: Any, *, header: bool = True) -> Table:
    """Cells of a CSV file, blank lines left out.

    Args:
        path: a path or a packaged resource.
        header: whether the first line names the columns; otherwise they are numbered.

    Raises:
        ValueError: no such file, not UTF-8, no rows, or rows of different lengths; names file and line.
    """
    path = Path(path) if isinstance(path, str) else path
    if not path.is_file():
        raise ValueError(f"no data file {str(path)!r}")
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream)
        try:
            cells = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path.name}, after line {reader.line_num}: not a CSV file in UTF-8: {error}") from None
    if len(cells) < 1 + header:
        raise ValueError(f"{path.name}: no rows")
    names = [name.strip() for name in cells[0][1]] if header else [f"column {k}" for k in range(len(cells[0][1]))]
    cells = cells[1:] if header else cells
    for line, row in cells:
        if len(row) != len(names):
            raise ValueError(f"{path.name}, line {line}: {len(names)} values are needed, got {len(row)}")
    return Table(path.name, names, [line for line, _ in cells], [row for _, row in cells])
