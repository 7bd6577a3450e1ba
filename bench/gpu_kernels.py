"""Times every case of gpu_cases.py, beside the bytes that it must move."""

import numpy as np
from gpu_cases import REAL, all_cases
from gpu_rates import per
from gpu_timing import measure, synchronize

from gpucoron.backend import cuda


def kernels(rates, shapes=REAL, say=None):
    """Rows of all cases; one that fails has an "error" instead of times."""
    rows = []
    for make in all_cases(shapes):
        rows.extend(group(make, rates, say))
        cuda.cupy().get_default_memory_pool().free_all_blocks()
    return rows


def group(make, rates, say):
    """Yield the rows of what one function of gpu_cases.py makes."""
    cases, name = make(), "?"
    try:
        for case in cases:
            name = case.name
            try:
                found = row(case, rates)
            except Exception as problem:  # the next ones may work
                found = {"case": name, "error": one_line(problem)}
            if say:
                say(found)
            yield found
    except Exception as problem:  # in making the next case: its group ends here
        yield {"case": f"what follows {name}", "error": one_line(problem)}


def one_line(problem):
    return f"{type(problem).__name__}: {problem}".partition("\n")[0][:500]


def row(case, rates):
    """Time one case and compare it with what it could take at best."""
    out = {"case": case.name}
    if case.check:
        out["difference"] = difference(case)
    out.update(measure(case.call, case.sets))
    ours = {k: v["ms"] for k, v in out["kernels"].items() if k.startswith(case.main)}
    ms = sum(ours.values()) if case.main else out["ms"]
    out["main"], out["main_ms"] = case.main or "the whole call", ms
    if case.nbytes:
        out["bytes"], out["GB_s"] = case.nbytes, per(case.nbytes, ms)
        out["of_copy"] = share(out["GB_s"], rates.get("copy_GB_s"))
    if case.flop:
        out["TFLOP_s"] = per(case.flop, ms) / 1e3
        out["of_product"] = share(out["TFLOP_s"], rates.get("float64_product_TFLOP_s"))
    return out


def share(got, best):
    return got / best if best else None


def difference(case):
    """Largest rms(device - host) / rms(host) of the results for the first set of inputs."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        right = case.call(*(a.get() for a in case.sets[0]))
    got = case.call(*case.sets[0])
    synchronize()
    return max(relative(a, b) for a, b in zip(flat(got), flat(right), strict=True))


def flat(values):
    """All arrays in tuples and lists, on the host."""
    if isinstance(values, (tuple, list)):
        return [array for value in values for array in flat(value)]
    return [values.get() if hasattr(values, "get") else np.asarray(values)]


def relative(got, right):
    """The rms of the difference over the rms; infinite where others are NaN."""
    if not np.array_equal(np.isnan(got), np.isnan(right)):
        return float("inf")
    good = np.isfinite(right)
    if not good.any():
        return 0.0
    right, got = right[good], got[good]
    size, gap = rms(right), rms(np.subtract(got, right, dtype=np.result_type(right, np.float64)))
    return gap / size if size else (float("inf") if gap else 0.0)


def rms(values):
    return float(np.sqrt(np.mean(np.square(np.abs(values), dtype=np.float64))))
