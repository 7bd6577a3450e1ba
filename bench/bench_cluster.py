"""Associations on a Dask cluster of processes on this machine: speed-up, and what a task costs.

    python bench/bench_cluster.py [--workers 1,2] [--associations 4] [--repeats 3] [--out FILE]

Canonical sets (NIRCam, 320 x 320, 2 science exposures x 10 integrations, 9 references x 4) are
simulated; products but psfalign are written. Workers have one thread each and are warmed up. Every
run's psfsub is first compared with that of a run without a cluster, bit for bit.
"""

import json
import pickle
import statistics
import tempfile
import time
from pathlib import Path

from common import arguments, finish, limit_threads

SAVE = ("crfints", "psfstack", "psfsub", "i2d")
SMALL = {
    "shape": (36, 40),
    "n_science": 2,
    "n_integrations": 2,
    "n_references": 3,
    "n_reference_integrations": 1,
    "planets": (),
    "disk": False,
    "n_optical_states": 1,
}


def copies(asn, n):
    """Associations of the same exposures whose products have other names."""
    content, paths = json.loads(asn.read_text()), []
    for k in range(n):
        content["asn_id"] = f"c{2000 + k}"
        content["products"][0]["name"] = f"bench-{k}"
        paths.append(asn.with_name(f"bench{k}_asn.json"))
        paths[-1].write_text(json.dumps(content))
    return paths


def seconds(work, repeats, client=None):
    """Wall seconds, and processor seconds of this process or of all workers, of the median run."""

    def used():
        return (
            time.process_time() if client is None else sum(client.run(time.process_time).values())
        )

    times = []
    for _ in range(repeats):
        start, before = time.perf_counter(), used()
        work()
        times.append((time.perf_counter() - start, used() - before))
    wall, cpu = zip(*times, strict=True)
    return {
        "median_s": statistics.median(wall),
        "min_s": min(wall),
        "cpu_s": statistics.median(cpu),
    }


def same(folder, other):
    """Compare SCI of every psfsub, bit for bit."""
    from astropy.io import fits

    names = sorted(p.name for p in other.glob("*_psfsub.fits"))
    if not names:
        raise SystemExit("no psfsub to compare")
    for name in names:
        if (
            fits.getdata(folder / name, "SCI").tobytes()
            != fits.getdata(other / name, "SCI").tobytes()
        ):
            raise SystemExit(f"{name} differs")


def on_workers(n, orders, sets, repeats, check):
    """Time runs on a cluster of `n` workers; `sets` are many associations and a small one."""
    from distributed import Client, LocalCluster

    from gpucoron.cluster.client import run_many

    many, small = sets
    with (
        LocalCluster(
            n_workers=n, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):

        def run(paths):
            run_many(client, orders(paths, "there"))

        run(many)
        check()
        found = {
            "one association": seconds(lambda: run(many[:1]), repeats, client),
            "all associations": seconds(lambda: run(many), repeats, client),
        }
        if n == 1:
            found["a small association, two exposures"] = seconds(lambda: run([small]), 10, client)
            found["an empty task"] = seconds(lambda: client.submit(int, pure=False).result(), 200)
    return found


def main():
    parser = arguments(__doc__.split("\n")[0])
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--associations", type=int, default=4)
    options = parser.parse_args()
    limit_threads(1)
    import gpucoron
    from gpucoron.cluster.requests import make_request
    from gpucoron.cluster.tasks import run_request
    from gpucoron.core.parameters import Parameters
    from gpucoron.pipeline.run_options import RunOptions
    from gpucoron.simulate import simulate

    results = {"associations": options.associations}
    parameters = Parameters.from_sources(sets=["klip.truncate=10"])
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        asn = simulate(
            work / "set", n_science=2, n_integrations=10, n_references=9, n_reference_integrations=4
        ).asn
        small = simulate(work / "small", **SMALL).asn
        many = copies(asn, options.associations)

        def orders(paths, folder):
            return [
                make_request(RunOptions(p, parameters, "cpu", work / folder, save=frozenset(SAVE)))
                for p in paths
            ]

        def here(paths):
            for path in paths:
                gpucoron.run(path, "cpu", work / "here", save=SAVE, keep=(), klip_truncate=10)

        here([*many, small])
        results["no cluster"] = {
            "one association": seconds(lambda: here(many[:1]), options.repeats),
            "all associations": seconds(lambda: here(many), options.repeats),
            "a small association, two exposures": seconds(lambda: here([small]), 10),
        }
        (request,) = orders([asn], "message")
        (work / "message").mkdir()
        results["message to a worker, bytes"] = len(pickle.dumps(request))
        results["message from a worker, bytes"] = len(pickle.dumps(run_request(request)))
        for n in map(int, options.workers.split(",")):
            results[f"{n} worker{'s'[: n != 1]}"] = on_workers(
                n,
                orders,
                (many, small),
                options.repeats,
                lambda: same(work / "here", work / "there"),
            )
    finish(results, options.out)


if __name__ == "__main__":
    main()
