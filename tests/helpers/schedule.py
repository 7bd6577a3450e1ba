"""Which tests share a process, and which begin first, where several processes run the suite.

With the Makefile's options, `--dist loadfile --no-loadscope-reorder`, the tests of a file run in
one process, one after another: what the file's fixtures make is made once, and what its functions
compile is compiled once. The files that take longest begin first, so that no process is left with
one of them at the end.
"""

#: CPU seconds of the files that take longest, in an empty checkout; the others take less than 15.
SECONDS = {
    "kernels/test_kernels_sanitized": 70,  # first, and beside what compiles all loops for the CPU
    "pipeline/test_kill": 100,
    "bench/test_bench_gpu": 90,
    "cluster/test_cluster": 100,
    "pipeline/test_offline": 90,
    "pipeline/test_resume": 90,
    "backend/test_compiling": 48,
    "ops/test_outliers": 50,
    "pipeline/test_pipeline_gpu": 50,
    "pipeline/test_plan": 45,
    "pipeline/test_stop": 40,
    "test_packages": 45,
    "kernels/test_kernels_compile": 35,
    "analysis/test_contrast": 36,
    "cli/test_bad_input": 16,
    "cli/test_odd_input": 20,
    "fuzz/test_keywords": 26,
    "cli/test_cli_compile": 28,
    "backend/test_opening": 28,
    "report/test_report": 27,
    "bench/test_proof": 21,
    "optics/test_star": 20,
    "parity/test_parity": 200,
    "pipeline/test_modes": 31,
    "pipeline/test_pipeline": 45,
    "pipeline/test_run_record": 24,
    "pipeline/test_stars": 24,
    "steps/test_outlier_detection": 20,
}


def arrange(items):
    """Put long files first."""
    items.sort(key=lambda item: -SECONDS.get(_file(item), 0))  # stable: files stay together


def _file(item):
    return item.nodeid.partition("::")[0].removeprefix("tests/").removesuffix(".py")
