"""Whole processes on the canonical set: gpucoron in several ways, and the jwst package once.

    python bench/bench_canonical.py [--work DIR] [--threads 2] [--jwst] [--only NAME] [--out FILE]

The set: NIRCam, 320 x 320, 2 science exposures x 10 integrations, 9 references x 4, simulated here.
With --large 2 x 60 and 9 x 20, of four wavefronts with fresh noise: 21,600 pairs, psfalign 26.5 GB.
"""

import json
import sys
import tempfile
from pathlib import Path

from common import arguments, finish, limit_threads, process


def gpucoron(asn, mask, output, *options):
    """The command line of one run."""
    return [
        sys.executable,
        "-m",
        "gpucoron",
        str(asn),
        "--device",
        "cpu",
        "--psfmask",
        str(mask),
        "--output-dir",
        str(output),
        "-q",
        *options,
    ]


def jwst(asn, mask, output, science):
    """The command line of jwst on the same association, its FFTs in double precision."""
    output.mkdir(exist_ok=True)
    job = {
        "asn": str(asn),
        "psfmask": str(mask),
        "output_dir": str(output),
        "crds_dir": str(output / "crds"),
        "steps": {},
        "science": science,
        "double_fft": True,
    }
    (output / "job.json").write_text(json.dumps(job))
    return [
        sys.executable,
        "-m",
        "gpucoron.verify.run_jwst",
        str(output / "job.json"),
        str(output / "record.json"),
    ]


def main():
    """Run it."""
    parser = arguments(__doc__)
    parser.add_argument("--work", type=Path, help="where to keep the set and the products")
    parser.add_argument("--jwst", action="store_true", help="run jwst, too")
    parser.add_argument("--only", action="append", help="of the ways, the one of this name")
    parser.add_argument("--large", action="store_true", help="the large set instead")
    options = parser.parse_args()
    limit_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        found = sorted((work / "set").glob("*_asn.json"))
        if not found:
            # in a process of its own: a child's peak memory is never below its parent's
            large = (
                ["--integrations", "60", "--reference-integrations", "20", "--optical-states", "4"]
                if options.large
                else []
            )
            process([sys.executable, "-m", "gpucoron", "simulate", str(work / "set"), "-q", *large])
            found = sorted((work / "set").glob("*_asn.json"))
        asn, mask, out = found[0], work / "set" / "psfmask.fits", work / "out"
        science = [
            m["expname"].replace("_calints.fits", "")
            for m in json.loads(asn.read_text())["products"][0]["members"]
            if m["exptype"] == "science"
        ]
        less, given = ("--no-save", "psfalign"), ("--star", "150,174")
        ways = {
            "help": [sys.executable, "-m", "gpucoron", "--help"],
            "first": gpucoron(asn, mask, out, "--align", "first"),
            "first, star given": gpucoron(asn, mask, out, "--align", "first", *given),
            "joint, psfalign not written": gpucoron(asn, mask, out, *less),
            "joint, psfalign not written, star given": gpucoron(asn, mask, out, *less, *given),
            "joint, psfalign written": gpucoron(asn, mask, out),
            "each, psfalign not written": gpucoron(asn, mask, out, "--align", "each", *less),
        }
        if options.large:
            ways = {name: words for name, words in ways.items() if "not written" in name}
        if unknown := set(options.only or ()) - set(ways):
            parser.error(f"--only {', '.join(unknown)}: expected {', '.join(ways)}")
        ways = {name: ways[name] for name in options.only or ways}
        process(gpucoron(asn, mask, out, "--align", "first"))  # compile, fill caches
        results = {
            "threads": options.threads,
            **{name: process(c, options.repeats, output=out) for name, c in ways.items()},
        }
        if options.jwst:
            results["jwst, first"] = process(jwst(asn, mask, work / "jwst", science))
            for name in ways.keys() - {"help"}:
                ratio = results["jwst, first"]["median_s"] / results[name]["median_s"]
                results[f"ratio, {name}"] = ratio
        each, joint = (f"{align}, psfalign not written" for align in ("each", "joint"))
        if options.large and {each, joint} <= set(results):
            ratio = results[each]["median_s"] / results[joint]["median_s"]
            results["ratio of each to joint"] = ratio
        finish(results, options.out)


if __name__ == "__main__":
    main()
