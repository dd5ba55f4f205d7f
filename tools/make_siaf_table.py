"""Write ``src/bkgmatch/data/siaf.json``, the geometry of the detectors that ``bkgmatch.simulate`` knows.

Run ``python tools/make_siaf_table.py`` where pysiaf is installed. The file's header names the PRD version.

The forward polynomials (``Sci2Idl``) and all reference values are those of the SIAF. Its inverse polynomials
(``Idl2Sci``) are off by up to 0.15 pixel (MIRIM_FULL), too much for a simulator; they are fitted again here,
with degree 7, to the forward ones over the detector and a margin of 16 pixels. The largest error is printed.
"""

import json
from pathlib import Path

import numpy as np
import pysiaf

DEGREE = 5
INVERSE_DEGREE = 7
MARGIN = 16
OUTPUT = Path(__file__).parents[1] / "src" / "bkgmatch" / "data" / "siaf.json"
APERTURES = {
    "NRCALONG": "NRCA5_FULL",
    "NRCBLONG": "NRCB5_FULL",
    **{f"NRC{module}{chip}": f"NRC{module}{chip}_FULL" for module in "AB" for chip in range(1, 5)},
    "MIRIMAGE": "MIRIM_FULL",
}
VALUES = ["XSciSize", "YSciSize", "XSciRef", "YSciRef", "V2Ref", "V3Ref", "V3IdlYAngle", "VIdlParity"]
NOTE = (
    "Polynomials are sums of c * u**(a-b) * v**b in the SIAF's order, (a, b) = (0, 0), (1, 0), (1, 1), "
    "(2, 0) and so on. Sci2Idl is the SIAF's, Idl2Sci is fitted to it by tools/make_siaf_table.py."
)


def terms(u, v, degree):
    """Return the monomials of ``u`` and ``v`` in the SIAF's order, along the last axis."""
    return np.stack([u ** (a - b) * v**b for a in range(degree + 1) for b in range(a + 1)], axis=-1)


def fit(u, v, target):
    """Fit polynomial coefficients to ``target`` by least squares, scaled for a good condition."""
    scale = max(np.abs(u).max(), np.abs(v).max())
    solution = np.linalg.lstsq(terms(u / scale, v / scale, INVERSE_DEGREE), target, rcond=None)[0]
    return solution / terms(scale, scale, INVERSE_DEGREE)


def rounded(values):
    """Keep 12 significant digits."""
    return [float(f"{value:.12g}") for value in values]


def entry(aperture):
    """Return the table entry of one aperture and the largest error of its inverse in pixels."""
    coefficients = aperture.get_polynomial_coefficients()
    # MIRI's polynomials have degree 4: zeros make all entries alike.
    forward = {
        name: np.pad(np.asarray(c, dtype=float), (0, 21 - len(c)))
        for name, c in coefficients.items()
        if name.startswith("Sci2Idl")
    }
    x, y = np.meshgrid(*(np.linspace(1 - MARGIN, n + MARGIN, 65) for n in (aperture.XSciSize, aperture.YSciSize)))
    dx, dy = x.ravel() - aperture.XSciRef, y.ravel() - aperture.YSciRef
    xidl, yidl = (terms(dx, dy, DEGREE) @ forward[f"Sci2Idl{axis}"] for axis in "XY")
    inverse = {f"Idl2Sci{axis}": fit(xidl, yidl, d) for axis, d in zip("XY", (dx, dy), strict=True)}
    error = max(
        np.abs(terms(xidl, yidl, INVERSE_DEGREE) @ inverse[f"Idl2Sci{axis}"] - d).max()
        for axis, d in zip("XY", (dx, dy), strict=True)
    )
    values = {name: getattr(aperture, name) for name in VALUES}
    polynomials = {name: rounded(c) for name, c in {**forward, **inverse}.items()}
    return {"aperture": aperture.AperName, **values, **polynomials}, error


def main():
    """Write the table."""
    siaf = {"NRC": pysiaf.Siaf("NIRCam"), "MIR": pysiaf.Siaf("MIRI")}
    table = {}
    for detector, name in APERTURES.items():
        table[detector], error = entry(siaf[detector[:3]][name])
        print(f"{detector:9s} {name:11s} largest error of the inverse {error:.5f} pixel")
    header = {"prd": pysiaf.JWST_PRD_VERSION, "pysiaf": pysiaf.__version__, "note": NOTE}
    OUTPUT.write_text(json.dumps({**header, "detectors": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
