"""Write ``gpucoron/optics/apertures.json`` from the SIAF that pysiaf carries.

``python bench/siaf_apertures.py`` rewrites the file; with ``--check`` it compares only, and ends
with 1 where a number differs. Needs pysiaf (``pip install -e '.[siaf]'``), which the package itself
does not use. The bars have an aperture for each filter, as the star's place along a bar depends on
it: on NRCA4 and NRCA5 for both bars, for the primary and the secondary channel.
"""

from __future__ import annotations

import json
import re
import sys
from importlib import metadata
from pathlib import Path

PATH = Path(__file__).parents[1] / "gpucoron" / "optics" / "apertures.json"
NIRCAM = re.compile(
    r"NRCA[25]_MASK(210|335|430)R"
    r"|NRCA[45]_MASKSWB(_F\w+|_NARROW)?"
    r"|NRCA[45]_(400X256_)?MASKLWB(_F\w+|_NARROW)?"
)
MIRI = re.compile(r"MIRIM_MASK(1065|1140|1550|LYOT)")


def describe(aperture, full) -> dict:
    """Return the fields of `gpucoron.optics.instruments.Aperture` of one pysiaf aperture.

    `full` is the aperture of the full detector: in its science frame, which is that of the pixels
    in a file, the subarray begins at `corner`.
    """
    x, y = full.det_to_sci(aperture.XDetRef, aperture.YDetRef)
    corner = round(x - aperture.XSciRef + 1), round(y - aperture.YSciRef + 1)
    coefficients = aperture.get_polynomial_coefficients()
    return {
        "degree": aperture.Sci2IdlDeg,
        "vparity": int(aperture.VIdlParity),
        "shape": [int(aperture.YSciSize), int(aperture.XSciSize)],
        "reference_pixel": [aperture.XSciRef, aperture.YSciRef],
        "corner": list(corner),
        "scale": [aperture.XSciScale, aperture.YSciScale],
        "v2_ref": aperture.V2Ref,
        "v3_ref": aperture.V3Ref,
        "sci2idl": [[float(c) for c in coefficients[f"Sci2Idl{axis}"]] for axis in "XY"],
        "v3_idl_yangle_deg": aperture.V3IdlYAngle,
    }


def read_siaf() -> dict[str, dict]:
    """Return the described apertures of all coronagraphs by name, NIRCam's first."""
    import pysiaf

    found = {}
    for instrument, pattern in (("NIRCam", NIRCAM), ("MIRI", MIRI)):
        siaf = pysiaf.Siaf(instrument)
        for name, aperture in siaf.apertures.items():
            if pattern.fullmatch(name):
                found[name] = describe(aperture, siaf[f"{name.split('_')[0]}_FULL"])
    return found


def as_text(apertures: dict[str, dict]) -> str:
    """Format the file: a field in a line."""
    import pysiaf

    source = (
        f"SIAF {pysiaf.JWST_PRD_VERSION} (STScI), read from pysiaf {metadata.version('pysiaf')}; "
        "NIRCam and MIRI coronagraphic subarrays"
    )
    entries = []
    for name, fields in apertures.items():
        lines = [f"   {json.dumps(key)}: {json.dumps(value)}" for key, value in fields.items()]
        entries.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n  }")
    body = ",\n".join(entries)
    return f'{{\n "source": {json.dumps(source)},\n "apertures": {{\n{body}\n }}\n}}\n'


def main(arguments: list[str]) -> int:
    """Write the file, or with ``--check`` compare it."""
    text = as_text(read_siaf())
    if arguments != ["--check"]:
        PATH.write_text(text, encoding="utf-8")
        return 0
    ours, theirs = json.loads(PATH.read_text(encoding="utf-8")), json.loads(text)
    return int(ours["apertures"] != theirs["apertures"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
