"""The results of bench_gpu.py in short, for the end of a log."""

GOALS = {"goal_ms": 500.0, "of_copy": 0.6}
CORE = ("median", "outliers", "phases", "shift", "drizzle")


def table(stored):
    """All parts that the file holds, in about a hundred lines."""
    lines = [header(stored.get("where", {}))]
    for part, show in (
        ("libraries", libraries),
        ("compile", compiled),
        ("cases", cases),
        ("tiny", compared),
        ("start", started),
        ("rates", rates),
        ("kernels", kernels),
        ("compare", compared),
        ("canonical", whole),
        ("large", whole),
        ("tests", tests),
        ("memcheck", sanitized),
        ("sanitize", sanitized),
    ):
        if part not in stored:
            if part not in ("cases", "tiny", "memcheck"):  # the first look's
                lines.append(f"{part}: not done")
        elif "error" in stored[part] and "traceback" in stored[part]:
            lines.append(f"{part}: FAILED, {stored[part]['error']}")
        else:
            lines += show(stored[part])
    return "\n".join(line[:230] for line in lines)


def header(where):
    gpu = where.get("gpu") or {}
    return (
        f"{gpu.get('name')}, driver {gpu.get('driver, clocks, power')}, CUDA "
        f"{gpu.get('cuda_driver')}/{gpu.get('cuda_runtime')}, CuPy {gpu.get('cupy')}, "
        f"{where.get('device')}, commit {where.get('commit')}"
    )


def libraries(part):
    problems = "; ".join(f"{name}: {text}" for name, text in part["problems"].items())
    return [
        "libraries: " + ", ".join(f"{k} {v}" for k, v in part["versions"].items()),
        *([f"  {problems}"] if problems else []),
    ]


def compiled(part):
    spilling = part["with_local_memory"]
    failed = [
        f"  {row['kernel']}: {row['error'].partition(chr(10))[0]}"
        for row in part["kernels"]
        if "error" in row
    ]
    return [
        f"compile: {len(part['kernels'])} kernels, {len(failed)} failed, "
        f"{part['in_turn_s']:.0f} s in turn, {part['seconds']:.0f} s here; local memory: "
        f"{', '.join(spilling) or 'none'}",
        *failed[:10],
    ]


def started(part):
    return [
        f"start, {name}: " + ", ".join(f"{k} {v:.2f}" for k, v in part[name].items())
        for name in ("warm", "cold")
    ]


def cases(part):
    lines = [f"cases: {'all as on the emulated device' if part['ok'] else 'NOT ALL WELL'}"]
    for row in part["rows"]:
        worst = ", ".join(f"{k} {v:.1e}" for k, v in row.get("worst", {}).items())
        lines.append(
            f"  {row['file']}: exit {row['exit']}, {row.get('compared', 0)} compared, "
            f"worst {worst or 'not known'}{'' if row['ok'] else '  <-- NOT OK'}"
        )
        lines += [f"    {text}" for text in row.get("wrong", ())[:6]]
        lines += [f"    {text}" for text in row.get("end", "").strip().splitlines()[-3:]]
    return lines


def tests(part):
    counts = ", ".join(
        f"{part[k]} {k}" for k in ("passed", "failed", "error", "skipped") if k in part
    )
    failed = [
        line for line in part.get("end", "").splitlines() if line.startswith(("FAILED", "ERROR"))
    ]
    return [
        f"tests: {counts or 'none'}, exit {part['exit']}, {part['seconds']:.0f} s",
        *(failed or part["names"])[:25],
    ]


def sanitized(part):
    if "skipped" in part:
        return [f"sanitize: skipped, {part['skipped']}"]
    lines = [
        f"sanitize: {len(part['rows'])} runs, {part['unfinished']} unfinished, "
        f"{part['seconds']:.0f} s"
    ]
    for row in part["rows"]:
        if row["exit"] != 0 or row["errors"]:
            said = row.get("said", "").partition("\n")[0].lstrip("= ")
            lines.append(
                f"  {row['tool']} {row['file']}: exit {row['exit']}, {row['errors']} "
                f"errors, ours: {', '.join(row['ours']) or 'none'} {said}"
            )
    return lines[:15]


def compared(part):
    lines = [f"products, GPU and CPU: {'all within limits' if part['ok'] else 'NOT WITHIN LIMITS'}"]
    for row in part["rows"]:
        name = f"  {row['product']:<18}{row['array']:<12}"
        if "differ" in row:
            text = f"{row['differ']} differ, {row['outside']} of them outside the band"
        else:
            text = f"rms {row['rms']:.1e}, worst {row['worst']:.1e} (limit {row['limit']:.0e})"
        if not row["ok"] or row.get("rms", 0) > 0 or row["product"] in ("crfints", "i2d"):
            lines.append(name + text + ("" if row["ok"] else "  <-- NOT OK"))
    return lines


def rates(part):
    return [
        f"copy {part['copy_GB_s']:.0f} GB/s, float64 product "
        f"{part['float64_product_TFLOP_s']:.1f} TFLOP/s, up/down GB/s: pageable "
        f"{part['upload_pageable_GB_s']:.1f}/{part['download_pageable_GB_s']:.1f}, pinned "
        f"{part['upload_pinned_GB_s']:.1f}/{part['download_pinned_GB_s']:.1f}, "
        f"empty events {part['empty_events_us']:.1f} us"
    ]


def kernels(part):
    head = f"{'case':<46}{'call ms':>10}{'kernel ms':>11}{'GB/s':>7}{'copy':>6}{'TFLOP/s':>8}"
    return [head, *map(kernel_line, part["rows"])]


def kernel_line(row):
    """One case."""
    if "error" in row:
        return f"{row['case'][:45]:<46} FAILED, {row['error']}"
    line = f"{row['case'][:45]:<46}{row['ms']:>10.4f}{row['main_ms']:>11.4f}"
    line += f"{row['GB_s']:>7.0f}" if row.get("GB_s") else " " * 7
    line += f"{row['of_copy']:>6.0%}" if row.get("of_copy") else " " * 6
    line += f"{row['TFLOP_s']:>8.1f}" if row.get("TFLOP_s") else " " * 8
    low = row.get("of_copy") is not None and row["of_copy"] < GOALS["of_copy"]
    line += " *" if low and row["case"].startswith(CORE) else ""
    gap = row.get("difference", 0.0)
    return line + (f"  DIFFERS by {gap:.1e}" if gap > 1e-6 else "")


def whole(part):
    lines = [f"{part['set']}: seconds (process median; second run inside one process)"]
    for name in ("gpu", "cpu"):
        lines += runs_on(name, part.get(name) or {"error": "not done"})
    if part.get("jwst") and part["set"] == "canonical":
        lines.append(
            f"  jwst: {part['jwst']['median_s']:.1f} ({part['jwst']['from']}, "
            f"{part['jwst']['machine']}, {part['jwst']['what']})"
        )
    times = part.get("device", {})
    if "goal_ms" in times:
        parts = ", ".join(f"{k} {v['ms']:.0f}" for k, v in times["parts"].items())
        longest = ", ".join(f"{k} {v['ms']:.1f}" for k, v in list(times["kernels"].items())[:6])
        lines += [
            f"  between events, ms: {parts}",
            f"  our kernels, ms: {longest}",
            f"  registration + shift + klip: {times['goal_ms']:.0f} ms (goal for the large "
            f"set {GOALS['goal_ms']:.0f})",
        ]
    else:
        lines.append(f"  device times: {times.get('error', 'not done')}")
    busy = part.get("profiled", {})
    if "busy_ms" in busy:
        lines.append(
            f"  device busy {busy['busy_ms']:.0f} ms of the whole run, "
            f"{busy['events']} kernels and copies"
        )
    else:
        lines.append(f"  profile: {busy.get('skipped') or busy.get('error', 'not done')}")
    return lines


def runs_on(name, run):
    """One device's runs."""
    if "process" not in run:
        return [f"  {name}: {run['error']}"]
    if "first" not in run:
        return [f"  {name}: {run['process']['median_s']:.2f}"]
    busy = ", ".join(f"{k} {v:.2f}" for k, v in run["busy_s"].items())
    steps = run.get("steps_s", run["first"]["steps_s"])
    lines = [
        f"  {name}: {run['process']['median_s']:.2f}; {run.get('wall_s', 0):.2f} (first "
        f"{run['first']['wall_s']:.2f}); threads busy: {busy}",
        "       steps: " + ", ".join(f"{k} {v:.2f}" for k, v in steps.items()),
    ]
    return lines + ([f"       not watched: {run['error']}"] if "error" in run else [])
