"""``gpucoron contrast``: what is printed is what the files have; errors are one line."""

import numpy as np
import pytest
from astropy.table import QTable

from gpucoron.cli import main as cli
from tests.helpers.tiny_sets import only_error

pytestmark = pytest.mark.slow


def test_a_curve_of_an_association_and_of_its_products(tiny, tmp_path, capsys):
    words = ["--psfmask", str(tiny.mask), "--output-dir", str(tmp_path / "limits")]
    assert cli.main(["contrast", str(tiny.asn), *words]) == 0
    out = capsys.readouterr().out.splitlines()
    curve, image = out[-2:]
    assert curve.endswith("_contrast.ecsv") and image.endswith("_contrast.fits")
    table, printed = QTable.read(curve), [line.split() for line in out[1:-2]]
    assert out[0].split()[0] == "separation" and printed
    for separation, limit, throughput, kl in printed:
        row = table[int(abs(table["separation"].value - float(separation[:-1])).argmin())]
        name = next(n for n in ("contrast", "flux", "peak") if n in table.colnames)
        assert f"{row[name].value if name != 'contrast' else row[name]:.2e}" == limit
        assert (f"{row['throughput']:.2f}", str(row["kl"])) == (throughput, kl)
    # the same by the products of a run, and quietly
    assert tiny.command("-q") == 0
    capsys.readouterr()
    assert cli.main(["contrast", str(tiny.out), "-q"]) == 0
    assert [line.rpartition("_")[2] for line in capsys.readouterr().out.splitlines()] == [
        "contrast.ecsv",
        "contrast.fits",
    ]


@pytest.mark.parametrize(
    "words, says",
    [
        (["--sigma", "0"], "--sigma is 0, expected a number above 0"),
        (["--sigma", "99"], "--sigma is 99, expected"),
    ],
)
def test_errors(words, says, tiny, capsys):
    assert cli.main(["contrast", str(tiny.asn), *words]) == 2
    assert says in only_error(capsys.readouterr().err)


def test_a_folder_without_a_run(tmp_path, capsys):
    assert cli.main(["contrast", str(tmp_path)]) == 3
    assert "expected the folder of a run, with one *_run.json" in only_error(
        capsys.readouterr().err
    )


@pytest.mark.parametrize("own", ["klip.annuli=2", "klip.mode=adi"])
def test_zones_and_rolls_are_calibrated(own, tiny, capsys):
    options = ["--set", own, "--set", "klip.truncate=2", "--output-dir", str(tiny.out)]
    assert cli.main(["contrast", str(tiny.asn), *options]) == 0
    out, err = capsys.readouterr()
    assert "forward model" not in err
    (curve,) = (line for line in out.splitlines() if line.endswith(".ecsv"))
    table = QTable.read(curve)
    assert {"peak", "flux"} <= set(table.colnames)
    assert np.isfinite(table["throughput"]).all() and (table["throughput"] < 1.1).all()
