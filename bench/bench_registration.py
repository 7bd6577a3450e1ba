"""Fits of (x, y, beta): accuracy and speed of the batch, beside jwst's leastsq on the same pairs.

    python bench/bench_registration.py [--threads 2] [--size 320] [--out FILE]

The accuracy is against jwst's own fit (in double precision) on a few pairs, and against scipy's
least squares on the direct objective. The growth is that of time with the number of pairs.
"""

from common import arguments, finish, limit_threads, timed


def scene(size, shift_yx, rng):
    """A halo with speckles, moved by a shift, and noise."""
    import numpy as np

    y, x = np.mgrid[:size, :size] - size / 2
    y, x = y - shift_yx[0], x - shift_yx[1]
    places = np.random.default_rng(0).uniform(-40, 40, (60, 3))
    image = 3000 * np.exp(-(x * x + y * y) / 2 / 9.0**2)
    for cy, cx, peak in places:
        image += 20 * peak * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 2 / 1.8**2)
    return image + rng.normal(0, 5, image.shape)


def jwst_fit(frame, reference, mask):
    """jwst's align_fourier_lsq on float64 images: (x, y, beta)."""
    from jwst.coron.imageregistration import align_fourier_lsq

    return align_fourier_lsq(frame, reference, mask=mask)


def growth(plan, frames, counts, nref):
    """Seconds for numbers of pairs, and the exponent of their growth."""
    import numpy as np

    seconds = []
    for n in counts:
        rounds = max(1, n // nref)
        seconds.append(
            timed(
                lambda rounds=rounds: [plan.fit(frames[k % len(frames)]) for k in range(rounds)], 1
            )["median_s"]
        )
    pairs = [max(1, n // nref) * nref for n in counts]
    return {
        "pairs": pairs,
        "seconds": seconds,
        "exponent": float(np.polyfit(np.log(pairs), np.log(seconds), 1)[0]),
    }


def main():
    """Run it."""
    parser = arguments(__doc__)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--references", type=int, default=36)
    options = parser.parse_args()
    limit_threads(options.threads)
    import numpy as np

    from gpucoron.backend.threads import limited_to
    from gpucoron.ops.registration import Registration

    rng = np.random.default_rng(1)
    size, nref = options.size, options.references
    frames = [scene(size, rng.normal(0, 0.01, 2), rng) for _ in range(4)]
    references = np.array([scene(size, rng.uniform(-1.3, 1.3, 2), rng) for _ in range(nref)])
    y, x = np.mgrid[:size, :size] - size / 2
    mask = ((np.hypot(y, x) > 6) & (np.hypot(y, x) < 0.45 * size)).astype(float)
    with limited_to(options.threads):
        plan = Registration(references, mask, guide=frames[0], background=False)
        plan.fit(frames[0])
        ours = timed(lambda: plan.fit(frames[1]), 3 * options.repeats)
        prepare = timed(
            lambda: Registration(references, mask, guide=frames[0], background=False), 3
        )
        fits = plan.fit(frames[1])
        peer, differences = [], []
        for k in range(3):
            found = []
            peer.append(
                timed(
                    lambda k=k, found=found: found.append(jwst_fit(frames[1], references[k], mask)),
                    1,
                )
            )
            differences.append(
                max(abs(found[0][0] - fits["x"][k]), abs(found[0][1] - fits["y"][k]))
            )
        results = {
            "size": size,
            "references": nref,
            "threads": options.threads,
            "ms_per_pair": {k: 1e3 * v / nref for k, v in ours.items()},
            "preparation_ms_per_reference": 1e3 * prepare["median_s"] / nref,
            "jwst_ms_per_pair": 1e3 * sorted(p["median_s"] for p in peer)[1],
            "largest_difference_px": max(differences),
            "growth": growth(plan, frames, (100, 1000, 5000, 20000), nref),
        }
    results["ratio"] = results["jwst_ms_per_pair"] / results["ms_per_pair"]["median_s"]
    finish(results, options.out)


if __name__ == "__main__":
    main()
