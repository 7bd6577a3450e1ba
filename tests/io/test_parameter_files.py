"""Parameter files: TOML and what the jwst package writes."""

import logging

import asdf
import pytest

from gpucoron.core.parameters import Klip, Parameters
from gpucoron.errors import InputError, ParameterError
from gpucoron.io.parameter_files import read_parameters


def asdf_file(path, **tree):
    asdf.AsdfFile(tree).write_to(path)
    return path


def test_toml(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text('align = "first"\n[klip]\ntruncate = 10\n')
    assert read_parameters(path) == [("align", "first"), ("klip.truncate", 10)]


@pytest.mark.parametrize("content", [b"[klip\n", b"klip.truncate: 10\n", b"\xff\xfe\x00"])
def test_what_is_neither_toml_nor_asdf(tmp_path, content):
    path = tmp_path / "p.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"p\.toml: not a parameter file \(TOML, or ASDF pars"):
        read_parameters(path)


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        (None, InputError, "no such file, expected a parameter file"),
        ("[klip]\ntruncat = 10\n", ParameterError, "klip has no parameter 'truncat'; did you"),
        ('preset = "hst"\n', ParameterError, "preset is 'hst'; expected 'jwst'"),
    ],
)
def test_errors_name_the_file(tmp_path, content, error, match):
    path = tmp_path / "p.toml"
    if content:
        path.write_text(content)
    with pytest.raises(error, match=rf"p\.toml: {match}"):
        Parameters.from_sources([path])


def test_files_that_jwst_exports(tmp_path, caplog):
    pytest.importorskip("jwst", reason="the jwst package is not installed")
    from jwst.coron import KlipStep
    from jwst.pipeline import Coron3Pipeline

    caplog.set_level(logging.INFO, logger="gpucoron")
    whole, single = tmp_path / "pars-coron3pipeline.asdf", tmp_path / "pars-klipstep.asdf"
    pipeline = Coron3Pipeline()
    pipeline.export_config(whole, include_metadata=True)
    assert Parameters.from_sources([whole]) == Parameters()
    assert not [r for r in caplog.records if r.name == "gpucoron"]

    pipeline.align_refs.median_box_length = 5
    pipeline.outlier_detection.snr = "4.0 3.0"
    pipeline.resample.output_shape = [30, 40]
    pipeline.resample.propagate_dq = True
    pipeline.export_config(whole)
    KlipStep(truncate=5).export_config(single)
    found = Parameters.from_sources([whole, single])
    assert found.klip == Klip(truncate=5)
    assert found.align_refs.median_box_length == 5
    assert found.outlier_detection.threshold == 4.0
    assert found.resample.output_shape == (30, 40)
    assert "resample.propagate_dq = True is not supported here" in caplog.text


def test_what_a_jwst_file_may_hold_besides(tmp_path, caplog):
    step = {"class": "jwst.coron.align_refs_step.AlignRefsStep"}
    more = {"override_psfmask": "mask.fits", "pre_hooks": [], "suffix": "x", "bad_bits": "HOT"}
    path = asdf_file(tmp_path / "a.asdf", name="x", **step, parameters=more)
    assert read_parameters(path) == [("align_refs.bad_bits", "HOT")]
    assert "'mask.fits' is not supported here and changes nothing; use --psfmask" in caplog.text
    path = asdf_file(tmp_path / "b.asdf", **step, parameters={"bad_bit": 1})
    with pytest.raises(ParameterError, match=r"b\.asdf: align_refs has no .* 'align_refs.bad_bits"):
        Parameters.from_sources([path])


@pytest.mark.parametrize(
    "tree, found",
    [
        ({"class": "jwst.pipeline.calwebb_image3.Image3Pipeline"}, "Image3Pipeline"),
        ({"a": 1}, "nothing"),
    ],
)
def test_asdf_of_something_else(tmp_path, tree, found):
    path = asdf_file(tmp_path / "c.asdf", **tree)
    with pytest.raises(InputError, match=f"holds parameters of {found}; expected Coron3Pipeline"):
        read_parameters(path)


def test_broken_asdf(tmp_path):
    path = tmp_path / "d.asdf"
    path.write_bytes(b"#ASDF 1.0.0\n%YAML 1.1\n--- {a: [\n...\n")
    with pytest.raises(InputError, match=r"d\.asdf: not a readable ASDF parameter file"):
        read_parameters(path)
