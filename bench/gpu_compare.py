"""All products of a set computed on the GPU, beside the CPU's.

float64 arrays must agree within 1e-8 of their rms, those stored as float32 within one rounding
(6e-8), shifts within 1e-9 px. Flags must be equal but where |data - median| is within 1e-5 of the
threshold: there the last digit decides.
"""

import numpy as np
from gpu_kernels import relative

import gpucoron

LIMITS = {8: 1e-8, 4: 6e-8}  # by bytes of an element
PIXELS = 1e-9  # of shifts
BAND = 1e-5  # of the threshold
STACK = ("data", "err", "var_poisson", "var_rnoise", "var_flat")


class Table:
    """One row a product and array, with the worst of all exposures."""

    def __init__(self):
        self.rows = {}

    def add(self, product, name, got, right, limit=None):
        """Compare two arrays; None on both sides is nothing."""
        if got is None and right is None:
            return
        got, right = np.asarray(got), np.asarray(right)
        rms, worst = relative(got, right), largest(got, right)
        self._worse(product, name, rms, worst, limit or LIMITS[right.dtype.itemsize], rms)

    def shifts(self, product, got, right):
        """Compare tables of fits."""
        for name in ("x", "y"):
            worst = largest(got[name], right[name])
            self._worse(product, name, relative(got[name], right[name]), worst, PIXELS, worst)
        for name in ("beta", "x_err", "y_err", "residual"):
            self.add(product, name, got[name], right[name], 1e-6)
        self.flags(product, "status", got["status"], right["status"])

    def flags(self, product, name, got, right, near=None):
        """Compare integers; differing pixels that are `near` the threshold are let pass."""
        differ = np.asarray(got) != np.asarray(right)
        outside = differ if near is None else differ & ~near
        row = self.rows.setdefault((product, name), {"differ": 0, "outside": 0})
        row["differ"] += int(differ.sum())
        row["outside"] += int(outside.sum())
        row["ok"] = row["outside"] == 0

    def _worse(self, product, name, rms, worst, limit, counts):
        row = self.rows.setdefault(
            (product, name), {"rms": 0.0, "worst": 0.0, "limit": limit, "ok": True}
        )
        row["rms"], row["worst"] = max(row["rms"], rms), max(row["worst"], worst)
        row["ok"] = row["ok"] and bool(counts <= limit)

    def listed(self):
        return [{"product": p, "array": n, **row} for (p, n), row in self.rows.items()]


def largest(got, right):
    """Largest absolute difference of what is finite on both sides."""
    both = np.isfinite(got) & np.isfinite(right)
    return float(np.abs(np.subtract(got[both], right[both], dtype=np.float64)).max(initial=0.0))


def compare(asn, mask, device=0):
    """Run the set on both; rows of the table, and whether all is well."""
    from gpucoron.api import PRODUCTS

    runs = [gpucoron.run(asn, device=d, psfmask=mask, keep=PRODUCTS) for d in (device, "cpu")]
    table = Table()
    ours, cpu = (run.product for run in runs)
    for root, right in cpu.crfints.items():
        got = ours.crfints[root]
        stacks(table, "crfints", got, right, lambda root=root: near(asn, root, cpu, runs[1]))
        table.add("median", "data", ours.median[root], cpu.median[root])
    stacks(table, "psfstack", ours.psfstack, cpu.psfstack, None)
    for root, right in cpu.psfalign.items():
        for name in ("data", "err"):
            table.add(
                "psfalign, float64", name, getattr(ours.psfalign[root], name), getattr(right, name)
            )
        table.shifts("fits", ours.fits[root], cpu.fits[root])
        klip64(table, right.data, cpu.crfints[root].data)
    for root, right in cpu.psfsub.items():
        stacks(table, "psfsub", ours.psfsub[root], right, None)
    for name in ("data", "err", "wht", *STACK[2:]):
        table.add("i2d", name, getattr(ours.i2d, name, None), getattr(cpu.i2d, name, None))
    table.flags("i2d", "con", ours.i2d.con, cpu.i2d.con)
    rows = table.listed()
    return {
        "rows": rows,
        "ok": all(row["ok"] for row in rows),
        "band": BAND,
        "seconds": {str(run.device): run.timings for run in runs},
    }


def stacks(table, product, got, right, band):
    """Compare two stacks; `band` tells which pixels are near the threshold, if it is asked."""
    same = got.dq == right.dq
    every = same.all()
    for name in STACK:
        pair = getattr(got, name), getattr(right, name)
        if not every and pair[1] is not None:
            pair = [np.where(same, a, 0) for a in pair]  # other flags, other NaNs: counted below
        table.add(product, name, *pair)
    table.flags(product, "dq", got.dq, right.dq, band() if band and not every else None)


def near(asn, root, product, run):
    """Which pixels of an exposure lie within BAND of the threshold."""
    from gpucoron.io.exposures import read_exposure

    path = next(asn.parent.glob(f"{root}_cal*.fits"))
    stack = read_exposure(path, "science").stack
    limit = run.parameters.outlier_detection.threshold * np.nan_to_num(stack.err)
    distance = np.abs(np.abs(stack.data - product.median[root]) - limit)
    return distance <= BAND * limit


def klip64(table, references, targets):
    """klip in float64 on the same input: what is written of it is float32."""
    from gpucoron.backend import cuda
    from gpucoron.ops.eigen import klip_many

    if references.ndim == 3:
        references = np.broadcast_to(references, (len(targets), *references.shape))
    cp, kept = cuda.cupy(), sorted({1, 10, references.shape[1] // 2})
    got = klip_many(cp.asarray(references), cp.asarray(targets), kept)
    right = klip_many(references, targets, kept)
    for name, a, b in zip(("residual", "scatter"), got, right, strict=True):
        for one, other in zip(a, b, strict=True):
            table.add("klip, float64", name, one.get(), other)
