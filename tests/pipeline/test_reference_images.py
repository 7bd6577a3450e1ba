"""What is said of the references of a science exposure."""

from types import SimpleNamespace

import numpy as np

from gpucoron.pipeline.reference_images import report_ranking
from gpucoron.steps.reference_ranking import RANKING_DTYPE


def test_one_warning_names_every_reference_with_a_source_once(caplog):
    product = SimpleNamespace(
        result=SimpleNamespace(references={}),
        inputs=SimpleNamespace(chosen=SimpleNamespace(rolls={"roll": ()})),
        suspected=set(),
    )
    ranking = np.zeros(4, RANKING_DTYPE)
    ranking["exposure"] = "a", "b", "roll", "clean"
    ranking["source"], ranking["x"], ranking["y"] = (30, 25, 40, 0), (12, 34, 5, 6), (56, 78, 7, 8)
    for root in ("one", "two"):
        report_ranking(product, SimpleNamespace(root=root), ranking)
    (record,) = caplog.records
    assert record.getMessage() == (
        "one: what only one of the references has will be negative in the result "
        "(--exclude-reference leaves an exposure out): "
        "a, a source at x, y = 12, 56 of the aligned image, 30 times the scatter there; "
        "b, a source at x, y = 34, 78 of the aligned image, 25 times the scatter there"
    )
    assert set(product.result.references) == {"one", "two"}
