"""Parameter files: TOML and what the jwst package writes."""

import logging

import asdf
import pytest

from gpucoron.core.parameters import Klip, Parameters
from gpucoron.errors import InputError, ParameterError
from gpucoron.io.cfg_files import parse_cfg
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
    with pytest.raises(InputError, match=r"p\.toml: not a parameter file \(TOML, or pars-"):
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
    assert Parameters.from_sources([whole]) == Parameters(klip=Klip(truncate=50))
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


# files of earlier versions of jwst; names and defaults are those of jwst 1.8.5

OLD = {
    "outlier_detection": {
        **{"weight_type": "ivm", "pixfrac": 1.0, "kernel": "square", "fillval": "INDEF", "nlow": 0},
        **{
            "nhigh": 0,
            "maskpt": 0.7,
            "grow": 1,
            "snr": "6.0 4.0",
            "scale": "1.2 0.7",
            "backg": 0.0,
        },
        **{"save_intermediate_results": False, "resample_data": True, "good_bits": "~DO_NOT_USE"},
        **{"scale_detection": False, "search_output_file": False, "allowed_memory": None},
        **{"in_memory": False, "skip": False},
    },
    "stack_refs": {"skip": False, "suffix": None},
    "align_refs": {"median_box_length": 4, "bad_bits": "DO_NOT_USE", "override_psfmask": None},
    "klip": {"truncate": 7, "pre_hooks": [], "output_ext": ".fits"},
    "resample": {
        **{"pixfrac": 1.0, "kernel": "square", "fillval": "INDEF", "weight_type": None},
        **{"output_shape": [30, 40], "crpix": None, "crval": None, "rotation": None},
        **{"pixel_scale_ratio": 1.0, "pixel_scale": None, "single": False, "blendheaders": True},
        **{"allowed_memory": None, "in_memory": True, "override_drizpars": None},
    },
}
CLASSES = {
    "outlier_detection": "jwst.outlier_detection.outlier_detection_step.OutlierDetectionStep",
    "stack_refs": "jwst.coron.stack_refs_step.StackRefsStep",
    "align_refs": "jwst.coron.align_refs_step.AlignRefsStep",
    "klip": "jwst.coron.klip_step.KlipStep",
    "resample": "jwst.resample.resample_step.ResampleStep",
}
WHOLE = "jwst.pipeline.calwebb_coron3.Coron3Pipeline"
OBSOLETE = ", ".join(
    [f"outlier_detection.{n}" for n in "allowed_memory grow nhigh nlow scale_detection".split()]
)


def asdf_of_1_8(folder, steps):
    entries = [{"class": CLASSES[s], "name": s, "parameters": p} for s, p in steps.items()]
    tree = {"class": WHOLE, "name": "Coron3Pipeline", "parameters": {"suffix": "i2d"}}
    return asdf_file(folder / "p.asdf", **tree, steps=entries)


def asdf_of_0_15(folder, steps):
    """Write what jwst calls a legacy file."""
    entries = {s: {"class": CLASSES[s]} | p for s, p in steps.items()}
    parameters = {"class": WHOLE, "name": "Coron3Pipeline", "suffix": "i2d", "steps": entries}
    return asdf_file(folder / "p.asdf", parameters=parameters)


def cfg_lines(parameters):
    for name, value in parameters.items():
        if isinstance(value, list):
            yield f"{name} = {', '.join(map(str, value))},  # a list"
        else:
            yield (
                f"{name} = {value!r}"
                if isinstance(value, str)
                else f"  {name}={value} # that's all"
            )


def cfg(folder, steps):
    lines = ['name = "Coron3Pipeline"', f'class = "{WHOLE}"', "", "# steps", "[steps]"]
    for step, parameters in steps.items():
        lines += [f"  [[{step}]]", *cfg_lines(parameters)]
    (folder / "p.cfg").write_text("\n".join(lines))
    return folder / "p.cfg"


def cfg_of_several_files(folder, steps):
    """Write a file that names those of its steps, and a parameter over one of these."""
    for step, parameters in steps.items():
        lines = [f"name = {step.replace('_', '')}", f"class = {CLASSES[step]}"]
        lines += cfg_lines(parameters | ({"truncate": 50} if step == "klip" else {}))
        (folder / f"{step}.cfg").write_text("\n".join(lines))
    return cfg(folder, {s: {"config_file": f"{s}.cfg"} for s in steps} | {
        "klip": {"config_file": "klip.cfg", "truncate": 7}
    })  # fmt: skip


@pytest.mark.parametrize("write", [asdf_of_1_8, asdf_of_0_15, cfg, cfg_of_several_files])
def test_files_of_earlier_versions_of_jwst(tmp_path, write, caplog):
    caplog.set_level(logging.INFO, logger="gpucoron")
    path = write(tmp_path, OLD)
    found = Parameters.from_sources([path])
    assert found.outlier_detection.snr == "6.0 4.0" and found.align_refs.median_box_length == 4
    assert (found.klip, found.resample.output_shape) == (Klip(truncate=7), (30, 40))
    assert (found.resample.weight_type, found.resample.fillval) == ("ivm", "INDEF")
    names = f"{OBSOLETE}, resample.allowed_memory"
    assert caplog.messages == [f"{path}: passing over {names}, which jwst no longer has"]
    with pytest.raises(
        ParameterError, match=r"p\.\w+: klip has no parameter 'truncat'; did you mean"
    ):
        Parameters.from_sources([write(tmp_path, OLD | {"klip": {"truncat": 7}})])


def test_cfg_as_jwst_reads_it(tmp_path):
    configobj = pytest.importorskip("configobj", reason="configobj comes with the jwst package")
    cfg(tmp_path, OLD)
    for name, path in {
        "p": tmp_path / "p.cfg",
        "several": cfg_of_several_files(tmp_path, OLD),
    }.items():
        read = configobj.ConfigObj(str(path), raise_errors=True)
        ours = parse_cfg(path.read_text())
        assert list(ours["steps"]) == list(read["steps"]), name
        for step, parameters in read["steps"].items():
            for key, value in parameters.items():
                mine = ours["steps"][step][key]
                expected = list(map(str, mine)) if isinstance(mine, list) else str(mine)
                assert expected == value


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            "class = jwst.coron.KlipStep\ntruncate: 3",
            "line 2 is 'truncate: 3', expected NAME = VALUE",
        ),
        ("class = jwst.coron.KlipStep\ntruncate = 1\ntruncate = 3", "line 3 is 'truncate = 3', "),
        ("class = jwst.coron.KlipStep\nsuffix = 'a", 'line 2 is "suffix = \'a", expected'),
        ("class = jwst.coron.KlipStep\n[[klip]]", r"line 2 is '\[\[klip\]\]', expected"),
        (
            "class = jwst.coron.KlipStep\n[a]\n[[b]]\n[[[c]]]",
            r"line 4 is '\[\[\[c\]\]\]', expected",
        ),
        ("class = jwst.pipeline.Image3Pipeline", "holds parameters of Image3Pipeline; expected"),
        ("class = jwst.pipeline.Coron3Pipeline\nsteps = 3", "steps are no mapping of names"),
        (
            f"class = {WHOLE}\n[steps]\n[[klip]]\nconfig_file = no.cfg",
            "no.cfg: no such file, expected",
        ),
    ],
)
def test_bad_cfg(tmp_path, text, match):
    (tmp_path / "p.cfg").write_text(text)
    with pytest.raises(InputError, match=match):
        read_parameters(tmp_path / "p.cfg")


def test_toml_may_be_called_cfg(tmp_path):
    (tmp_path / "p.cfg").write_text("[klip]\ntruncate = 3\n")
    assert read_parameters(tmp_path / "p.cfg") == [("klip.truncate", 3)]
