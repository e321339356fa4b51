"""The long tables at the end of the report: cut to what can be read, and attached whole."""

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import replace

from reports.read import spaced
from reports.section import Section, Table
from reports.text import number

LISTED = 240
"""Rows of a table that are printed, about four pages; a longer one is attached as well."""


def listed(table: Table) -> tuple[Table, dict[str, bytes]]:
    """Cut a table to ``LISTED`` rows, evenly spaced.

    Returns
    -------
    Table
        With a note where rows are left out.
    dict
        Name of a CSV file -> all rows; empty where none are left out.
    """
    count = len(table.rows)
    if count <= LISTED:
        return table, {}
    name = re.sub(r"[^a-z0-9]+", "_", table.title.lower()).strip("_") + ".csv"
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([table.columns, *table.rows])
    note = (
        f"{LISTED} of {count} rows, evenly spaced; all of them are in {name}, attached to this PDF."
    )
    rows = [table.rows[index] for index in spaced(count, LISTED)]
    return replace(table, rows=rows, note=note), {name: stream.getvalue().encode()}


def all_layers(sections: Mapping[str, Section]) -> Table:
    """Join what the sections say of each layer into one table.

    The sections name their layers in execution order; the longest list leads.
    """
    listed = [[*column] for laid_out in sections.values() for column in laid_out.layers.values()]
    layers = list(
        dict.fromkeys(name for names in sorted(listed, key=len, reverse=True) for name in names)
    )
    merged: dict[str, dict[str, str]] = {}
    for laid_out in sections.values():
        for header, column in laid_out.layers.items():
            known = merged.setdefault(header, {})
            known |= {name: text for name, text in column.items() if text}
    heads = sorted(merged, key=lambda header: header != "Kind")
    rows = [
        (str(index), name, *(merged[header].get(name, number(float("nan"))) for header in heads))
        for index, name in enumerate(layers)
    ]
    align = ["number", "name", *("text" if header == "Kind" else "number" for header in heads)]
    return Table("All layers.", ("#", "Layer", *heads), align, rows)
