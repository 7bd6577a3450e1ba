#!/usr/bin/env python
"""Write gpucoron/io/keywords.json: what the public JWST schemas say about each header keyword.

One row per keyword of an integration cube: the attribute below ``meta``, the keyword, the HDU that
holds it ("" for PRIMARY), its type (s, n, i, b: string, number, integer, boolean), the rule that
makes one value of several exposures' ("" for the first exposure's), and whether HDRTAB has a column
for it. Rows follow the schemas' order, which is the order of keywords in a header and of
columns in HDRTAB. Run it again when stdatamodels changes: ``python tests/io/keyword_facts.py``.
"""

import json
from pathlib import Path

TARGET = Path(__file__).parents[2] / "gpucoron" / "io" / "keywords.json"


def rows():
    """Return [attribute, keyword, hdu, type, rule, in HDRTAB] for every keyword, in order."""
    from stdatamodels.jwst.datamodels import CubeModel
    from stdatamodels.schema import walk_schema

    found = {}

    def visit(schema, path, _combiner, _context, _recurse):
        if len(path) < 2 or path[0] != "meta" or "items" in path or schema.get("properties"):
            return
        for combiner in ("anyOf", "oneOf"):
            if combiner in path:
                path = path[: path.index(combiner)]
        keyword = schema.get("fits_keyword")
        if keyword is None or schema.get("type") == "array":
            return
        hdu = schema.get("fits_hdu") or ""
        rule = schema.get("blend_rule") or ""
        found[".".join(path[1:])] = [
            keyword,
            "" if hdu == "PRIMARY" else hdu,
            schema.get("type", "string")[0],
            "" if rule == "first" else rule,
            int(bool(schema.get("blend_table"))),
        ]

    walk_schema(CubeModel().schema, visit)
    return [[attribute, *facts] for attribute, facts in found.items()]


def text():
    """Return the JSON document, one keyword a line."""
    return "[\n" + ",\n".join(json.dumps(row) for row in rows()) + "\n]\n"


if __name__ == "__main__":
    TARGET.write_text(text())
