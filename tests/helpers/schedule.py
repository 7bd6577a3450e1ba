"""Which tests share a process, and which begin first, where several processes run the suite.

With the Makefile's options, `--dist loadfile --no-loadscope-reorder`, the tests of a file run in
one process, one after another: what the file's fixtures make is made once, and what its functions
compile is compiled once. The files that take longest begin first, so that no process is left with
one of them at the end.
"""

#: Seconds of the files that take longest, in a suite of two processes; the others: less than 20.
SECONDS = {
    "parity/test_parity": 200,
    "cluster/test_cluster": 150,
    "pipeline/test_pipeline_gpu": 150,
    "pipeline/test_kill": 120,
    "bench/test_bench_gpu": 120,
    "report/test_report": 100,
    "kernels/test_kernels_sanitized": 100,
    "pipeline/test_offline": 90,
    "pipeline/test_resume": 90,
    "backend/test_compiling": 87,
    "test_packages": 60,
    "pipeline/test_plan": 58,
    "analysis/test_extended": 55,
    "ops/test_outliers": 50,
    "pipeline/test_pipeline": 45,
    "pipeline/test_stop": 45,
    "analysis/test_forward": 42,
    "analysis/test_contrast": 36,
    "kernels/test_kernels_compile": 35,
    "pipeline/test_modes": 31,
    "cli/test_cli_compile": 28,
    "backend/test_opening": 28,
    "fuzz/test_keywords": 26,
    "steps/test_visit_outliers": 26,
    "pipeline/test_run_record": 24,
    "bench/test_closure": 22,
    "optics/test_star": 20,
    "docs/test_recipes": 20,
    "cli/test_odd_input": 20,
    "report/test_notebook": 20,
    "steps/test_outlier_detection": 20,
}


def arrange(items):
    """Put long files first."""
    items.sort(key=lambda item: -SECONDS.get(_file(item), 0))  # stable: files stay together


def _file(item):
    return item.nodeid.partition("::")[0].removeprefix("tests/").removesuffix(".py")
