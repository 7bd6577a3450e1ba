"""The command line, with a stand-in for the pipeline; processes only where one is the point."""

import dataclasses
import logging
import re
import subprocess
import sys
import types
from importlib import import_module
from pathlib import Path

import pytest

import gpucoron
from gpucoron.backend.device import choose_device
from gpucoron.cli import main as cli
from gpucoron.cli.options import COMMANDS, run_parser
from gpucoron.core.parameters import Parameters
from gpucoron.core.products import PRODUCTS
from gpucoron.errors import AssociationError, DeviceError, OutputError
from gpucoron.pipeline.result import Result
from gpucoron.pipeline.run_options import RunOptions
from tests.helpers.processes import python, run

log = logging.getLogger("gpucoron")


@pytest.fixture
def pipeline(monkeypatch, tmp_path):
    """Put a stand-in where the pipeline is; `calls` holds the options that it was called with."""
    module = types.SimpleNamespace(calls=[], action=lambda: None)

    def run_association(options, progress):
        device = choose_device(options.device)
        module.calls.append(options)
        module.action()
        for done in range(1, 41):
            progress("align_refs", done, 40, "exposure 1")
        timings = {"outlier_detection": 0.25, "align_refs": 1.5}
        files = (tmp_path / "a_i2d.fits",)
        return Result((), files, timings, ("one thing",), options.parameters, device)

    monkeypatch.setattr("gpucoron.pipeline.association.run_association", run_association)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "asn.json").write_text("{}")
    return module


def failing(error):
    def action():
        raise error

    return action


DEFECT = "internal error: ZeroDivisionError"


def test_a_run_with_defaults(pipeline, capsys, tmp_path):
    before = (log.level, log.propagate, list(log.handlers))
    assert cli.main(["asn.json"]) == 0
    assert (log.level, log.propagate, list(log.handlers)) == before
    save = frozenset(PRODUCTS) - {"median"}
    assert pipeline.calls == [RunOptions(Path("asn.json"), output_dir=Path("."), save=save)]
    out, err = capsys.readouterr()
    assert out == f"{tmp_path}/a_i2d.fits\n"
    assert re.search(r"^\d\d:\d\d:\d\d  ", err, re.M)
    assert re.search(r"  outlier_detection +0\.25 ", err)
    assert re.search(r"  total +1\.75", err)
    assert "warning: one thing" in err and "1 warning, above" in err


def test_every_option_arrives(pipeline, capsys):
    Path("p.toml").write_text('[klip]\ntruncate = 3\n[outlier_detection]\nsnr = "7"\n')
    words = (
        "asn.json --device cpu --output-dir out --psfmask m.fits --preset jwst --set "
        "klip.truncate=9 --set resample.pixfrac=0.5 --params p.toml --save-params used.toml --save "
        "i2d,psfsub,median --no-save psfsub --no-overwrite --log-file run.log --threads 2 "
        "--memory 3GiB -q"
    )
    assert cli.main(words.split()) == 0
    call = pipeline.calls[0]
    parameters = call.parameters
    save, more = frozenset({"i2d", "median"}), {"threads": 2, "memory": "3GiB", "overwrite": False}
    expected = RunOptions(Path("asn.json"), parameters, "cpu", Path("out"), save=save, **more)
    others = {"psfmask": "m.fits", "protected": ("p.toml", "run.log")}
    assert call == dataclasses.replace(expected, **others)
    assert (parameters.preset, parameters.align_refs.align) == ("jwst", "first")
    assert parameters == Parameters.from_sources(["used.toml"])
    assert (parameters.klip.truncate, parameters.resample.pixfrac) == (9, 0.5)
    assert parameters.outlier_detection.threshold == 7
    out, err = capsys.readouterr()
    assert out.endswith("a_i2d.fits\n") and out.count("\n") == 1  # for a script to go on with
    assert err[8:] == "  warning: one thing\n"
    assert "align_refs" in Path("run.log").read_text()


@pytest.mark.parametrize(
    "options, align",
    [("--align first", "first"), ("--preset jwst --align each", "each")]
    + [("--set align_refs.align=first", "first")],
)
def test_align(pipeline, options, align):
    assert cli.main(["asn.json", *options.split()]) == 0
    assert pipeline.calls[0].parameters.align_refs.align == align


@pytest.mark.parametrize(
    "options, save",
    [
        ("--save=all", set(PRODUCTS)),
        ("--no-save=psfalign,crfints", {"psfstack", "psfsub", "i2d"}),
        ("--set=outlier_detection.save_intermediate_results=yes", set(PRODUCTS)),
        ("--save=", set()),
    ],
)
def test_which_products_are_written(pipeline, options, save):
    assert cli.main(["asn.json", options]) == 0
    assert pipeline.calls[0].save == save


@pytest.mark.parametrize(
    "words, message",
    [
        ("", "no association given (see gpucoron --help)"),
        ("--device cpu", "ASN (see gpucoron --help)"),
        ("asn.json --devce cpu", "unknown option --devce; did you mean --device?"),
        ("asn.json --outputdir=x", "unknown option --outputdir; did you mean --output-dir?"),
        ("asn.json --no-overwrit", "unknown option --no-overwrit; did you mean --no-overwrite?"),
        ("asn.json --steps.klip.truncate=5", "did you mean --set klip.truncate=5?"),
        ("asn.json --steps.klip.truncate 7", "did you mean --set klip.truncate=7?"),
        ("asn.json --klip.skip", "did you mean --set klip.skip=VALUE?"),
        ("asn.json --frobnicate", "unknown option --frobnicate; see gpucoron --help"),
        ("info asn.json b.json", "one argument too many: b.json; see gpucoron info --help"),
        ("asn.json --device", "--device: "),
        ("asn.json --align all", "--align: "),
        ("asn.json --save psfaling", "no product 'psfaling'; did you mean psfalign?"),
        ("asn.json --save xyz", "no product 'xyz'; expected crfints, psfstack,"),
        ("asn.json --device gpu", "device is 'gpu'; expected auto, cpu, or the number of"),
        ("asn.json --set klip.truncat=1", "did you mean 'klip.truncate'?"),
        ("inof", "there is no file inof; did you mean the command 'info'?"),
        ("info --frob", "unknown option --frob; see gpucoron info --help"),
        ("compile --processes 0", "--processes is 0, expected 1 or more"),
        ("compile --device many", "device is 'many'; expected auto, cpu"),
    ],
)
def test_usage_errors_are_one_line(pipeline, capsys, words, message):
    assert cli.main(words.split()) == 2
    out, err = capsys.readouterr()
    line = err.splitlines()[-1]
    assert line.startswith("gpucoron: error: ") and message in line
    assert out == "" and "Traceback" not in err and not pipeline.calls


@pytest.mark.parametrize(
    "error, code, message",
    [
        (AssociationError("asn.json: no psf members"), 3, "asn.json: no psf members"),
        (DeviceError("device lost"), 4, "device lost"),
        (OutputError("out: read-only"), 5, "out: read-only"),
        (PermissionError(13, "Permission denied", "x.fits"), 5, "x.fits: Permission denied"),
        (OSError(28, "No space left on device"), 5, "No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("a\nb"), 1, f"{DEFECT}: a b (run with -v for the traceback)"),
    ],
)
def test_errors_are_one_line_with_an_exit_code(pipeline, capsys, error, code, message):
    pipeline.action = failing(error)
    assert cli.main(["asn.json", "-q", "--log-file", "run.log"]) == code
    assert capsys.readouterr().err == f"gpucoron: error: {message}\n"
    text = Path("run.log").read_text()
    assert type(error).__name__ in text
    system = isinstance(error, OSError) and not isinstance(error, OutputError)
    assert ("Traceback" in text) == (code == 1 or system)
    assert cli.main(["asn.json", "-v"]) == code
    err = capsys.readouterr().err
    assert err.endswith(f"gpucoron: error: {message.partition(' (run with')[0]}\n")
    assert ("Traceback" in err) == (code == 1)


def test_files_that_cannot_be_read_or_written(pipeline, capsys, monkeypatch):
    monkeypatch.setattr("gpucoron.backend.device._may_have_gpu", lambda: False)
    for words, code, message in (
        ("--params none.toml", 3, "none.toml: no such file, expected a parameter file"),
        ("--save-params no/p.toml", 5, "cannot write no/p.toml: No such file"),
        ("--log-file no/run.log", 5, "no/run.log: cannot write the log: No such"),
        ("--device 0", 4, "device 0 cannot be used: there is no NVIDIA GPU here"),
    ):
        assert cli.main(["asn.json", *words.split()]) == code
        assert message in capsys.readouterr().err
    assert not pipeline.calls


def test_a_file_named_like_a_command(pipeline):
    Path("info").write_text("{}")
    assert cli.main(["./info"]) == 0
    assert pipeline.calls[0].asn == Path("info")


# ---- help
def test_help_names_everything(capsys):
    assert cli.main(["info", "--help"]) == 0
    assert "gpucoron info" in capsys.readouterr().out
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for word in (*COMMANDS, "--device", "--set", "klip.truncate = not set", "exit codes:", "130"):
        assert word in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_text_and_help_fits_80_columns(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    words = import_module(f"gpucoron.cli.{command}").make_parser()
    assert [a.dest for a in (*words._actions, *run_parser()._actions) if not a.help] == []
    assert cli.main([command, "--help"]) == cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    given = set(" ".join(a.help for a in words._actions).replace("%%", "%").split())
    assert given - set(" ".join(lines).split()) == set()  # no word is broken


@pytest.mark.parametrize(
    "words, expected",
    [
        ("d", {"demo", "data"}),
        ("asn.json --align ''", {"joint", "each", "first"}),
        ("demo --instrument mi", {"miri-4qpm", "miri-lyot"}),
        ("simulate --no-pl", {"--no-planets"}),
        ("verify as", {"asn.json"}),
        ("asn.json --output-dir d", {"data"}),
    ],
)
def test_bash_completes_commands_options_and_files(words, expected, tmp_path, capsys):
    pytest.importorskip("shtab", reason="shtab is not installed here")
    (tmp_path / "data").mkdir()
    (tmp_path / "asn.json").touch()
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out + (
        f"\nCOMP_WORDS=(gpucoron {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))"
        '\n_shtab_gpucoron; printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    (tmp_path / "c.bash").write_text(script)
    done = subprocess.run(["bash", "c.bash"], cwd=tmp_path, capture_output=True, text=True)
    assert set(done.stdout.split()) == expected, done


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_every_command(shell, capsys):
    pytest.importorskip("shtab", reason="shtab is not installed here")
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(command in script for command in COMMANDS) and "joint" in script
    assert ("_files\n}" if shell == "zsh" else " -F") in script  # the first word may be a file


# ---- info
def test_info_of_the_system(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    for word in ("numpy", "gwcs", "threads", "memory", "--device cpu", "--device auto takes cpu"):
        assert word in out


def test_a_closed_pipe_is_quiet():
    code = (
        "import sys\nfrom gpucoron.cli import info as cli_info, main as cli\n"
        "cli_info.system_lines = lambda: ('x' * 100 for _ in range(100000))\n"
        "sys.exit(cli.main(['info']))"
    )
    script = f'{sys.executable} -c "$CODE" | head -1; echo ${{PIPESTATUS[0]}}'
    done = run("bash", "-c", script, CODE=code)
    assert done.stderr == "" and done.stdout.splitlines()[-1] == "141"


def test_python_m_gpucoron_is_the_command_line():
    done = python("-m", "gpucoron", "--version")
    assert done.stdout.strip() == f"gpucoron {gpucoron.__version__}"
