"""``gpucoron companion``: what is wrong is said before any work; a whole fit."""

import json

import numpy as np
import pytest

import gpucoron
from gpucoron.cli import main as cli
from gpucoron.simulate import simulate

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--at", "1.7"], 2, "--at 1.7: expected SEP,PA, a separation in arcsec"),
        (["--at", "-1,20"], 2, "--at -1,20: expected SEP,PA"),
        (["--at", "1,nan"], 2, "--at 1,nan: expected SEP,PA"),
        ([], 2, "--at"),
        (["--at", "1,20", "--covariance", "gauss"], 2, "--covariance"),
        (["--at", "1,20"], 3, "no such file; expected the folder of a run, with one *_run.json"),
    ],
)
def test_wrong_arguments(words, code, said, tmp_path, capsys):
    assert cli.main(["companion", str(tmp_path), *words]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_run_that_is_not_complete(tmp_path, capsys):
    path = tmp_path / "a_run.json"
    path.write_text(json.dumps({"status": "failed"}))
    assert cli.main(["companion", str(tmp_path), "--at", "1,20"]) == 3
    assert "expected the record of a complete run" in capsys.readouterr().err


def test_a_companion_is_fitted(tmp_path, capsys):
    from astropy.table import QTable

    sizes = {"shape": (96, 96), "n_references": 4, "n_integrations": 2}
    planets = [(1.6, 140.0, 5e-5)]
    made = simulate(
        tmp_path / "set", seed=3, disk=False, planets=planets, n_reference_integrations=1, **sizes
    )
    out = tmp_path / "out"
    gpucoron.run(
        made.asn, output_dir=out, psfmask=made.psfmask, save=("i2d",), device="cpu", klip_truncate=3
    )
    words = f"companion {out} --at 1.6,140 --device cpu --steps 150 -q".split()
    assert cli.main(words) == 0
    table, picture = map(str.strip, capsys.readouterr().out.splitlines())
    row = QTable.read(table)[0]
    (truth,) = made.planets
    assert abs(row["separation"].value - 1.6) < 0.01 and abs(row["pa"].value - 140) < 0.4
    assert row["flux"].value == pytest.approx(truth.flux_jy, rel=0.06)
    assert row.meta["covariance"] == "matern" and np.isfinite(row["flux_err"])
    with open(picture, "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"
