"""Reports as files, and by the command line."""

import pytest

import gpucoron
from gpucoron.cli import main as cli
from gpucoron.errors import OutputError


def test_reports_are_written_whole_or_not_at_all(tiny, tmp_path, monkeypatch):
    options = {"psfmask": tiny.mask, "device": "cpu", "klip_truncate": 3}
    result = gpucoron.run(tiny.asn, keep=(), **options)
    path = result.report(tmp_path / "new" / "r.html")
    assert path == tmp_path / "new" / "r.html" and path.stat().st_size > 10_000
    assert result.report(tmp_path) == tmp_path / f"{result.product.name}_report.html"
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write .*r.html: "):
        result.report(tmp_path / "file" / "r.html")
    with pytest.raises(OutputError, match="r.html exists"):
        result.report(path, overwrite=False)
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(OutputError):
        result.report(tmp_path / "full" / "r.html")
    assert list((tmp_path / "full").iterdir()) == []


def test_command_line(tiny, tmp_path, capsys):
    out = ("--output-dir", tmp_path, "--save", "i2d", "--set", "klip.truncate=2")
    base = list(map(str, (tiny.asn, "--device", "cpu", "--psfmask", tiny.mask, *out)))
    assert cli.main(base) == 0
    assert not list(tmp_path.glob("*.html"))  # nobody is watching
    assert cli.main([*base, "--report", str(tmp_path)]) == 0
    (found,) = tmp_path.glob("*_report.html")
    assert str(found) in capsys.readouterr().out
    assert "_i2d.fits" in found.read_text()
    assert cli.main([*base, "--report", str(tmp_path), "--no-report"]) == 0
    for product in tmp_path.glob("*_i2d.fits"):
        product.unlink()
    before = found.read_bytes()
    assert cli.main([*base, "--report", str(tmp_path), "--no-overwrite"]) == 5
    assert "_report.html exists" in capsys.readouterr().err and found.read_bytes() == before


def test_a_terminal_gets_a_report(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    base = [str(tiny.asn), *f"--device cpu --output-dir {tmp_path} --save i2d".split()]
    assert cli.main([*base, "--no-report"]) == 0 and not list(tmp_path.glob("*.html"))
    assert cli.main(base) == 0 and len(list(tmp_path.glob("*.html"))) == 1


def test_a_defect_in_the_report_is_a_warning(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("gpucoron.report.page.make_report", lambda *a: 1 / 0)
    words = f"--device cpu --output-dir {tmp_path} --report {tmp_path}".split()
    assert cli.main([str(tiny.asn), *words]) == 0
    assert "no report: ZeroDivisionError" in capsys.readouterr().err
