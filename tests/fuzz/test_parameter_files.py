"""Malicious and damaged parameter files in TOML and in jwst's ``.cfg``; in ASDF: test_asdf.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpucoron.core.parameters import Parameters
from tests.fuzz.bounds import TOKENS, fuzz, in_file, refused, refused_or

TOML = b"""preset = "jwst"
align = "first"
[klip]
truncate = 10
skip = false
[resample]
pixel_scale = 0.05
crpix = [1.0, 2]
kernel = "square"
[outlier_detection]
snr = "5.0 4.0"
"""
TOML_VALUES = [
    b"[" * 20_000,
    b"9" * 10_000,
    *(
        b'{a.b.c = 1}|nan|inf|-1|1e400|[]|"x"|1979-05-27|true|[[]]|\'\'\'|\xff|[1,2,3]|""|[nan]|'
        b'99999999999999999999999|0x7f|{}|"\\ud800"|[true, 1]'
    ).split(b"|"),
]


places = st.tuples(st.integers(0, 40), st.sampled_from(TOML_VALUES) | st.binary(max_size=6))


@given(at=st.lists(places, min_size=1, max_size=3))
@fuzz(100)
def test_parameter_files_in_toml(at, tmp_path_factory):
    content = TOML
    for number, value in at:
        words = list(TOKENS.finditer(content))
        word = words[number % len(words)]
        content = content[: word.start()] + value + content[word.end() :]
    path = in_file(tmp_path_factory.getbasetemp(), content, "p.toml")
    refused_or(Parameters.from_sources, [path])


CFG = b"""name = "coron3"
class = jwst.pipeline.Coron3Pipeline
[steps]
  [[klip]]
    truncate = 10  # modes
  [[resample]]
    crpix = 1.0, 2
    kernel = 'square'
"""
cfg_places = st.tuples(
    st.integers(0, len(CFG)),
    st.binary(max_size=4)
    | st.sampled_from([b"[", b"[[a]]\n", b"'", b",", b"#", b"\n=", b"config_file = p.cfg\n"]),
)


@given(at=st.lists(cfg_places, min_size=1, max_size=3))
@fuzz(100)
def test_parameter_files_in_cfg(at, tmp_path_factory):
    content = CFG
    for number, value in at:
        content = content[:number] + value + content[number:]
    path = in_file(tmp_path_factory.getbasetemp(), content, "p.cfg")
    refused_or(Parameters.from_sources, [path])


HOSTILE_CFG = [
    *(b"a = " + b"'" * 500_001, b"[" * 500_000, b"[a]" * 500_000, b"a = " + b" " * 500_000 + b'"'),
    *(b"[[a]]", b"[a]\n[[b]]\n[[[c]]]", b"[steps]\n[[klip]]\nconfig_file = p.cfg", b"\xff"),
]


@pytest.mark.parametrize("content", HOSTILE_CFG)
def test_hostile_cfg(content, tmp_path):
    head = b"class = jwst.pipeline.Coron3Pipeline\n"
    refused(Parameters.from_sources, [in_file(tmp_path, head + content, "p.cfg")])


HOSTILE_TOML = [
    *(b"a = " + b"[" * 100_000, b"a = " + b"9" * 100_000, b".".join([b"a"] * 3000) + b" = 1"),
    *(b"\xef\xbb\xbfa = 1", b"\x00", b"a = 1\na = 2"),
]


@pytest.mark.parametrize("content", HOSTILE_TOML)
def test_hostile_toml(content, tmp_path):
    refused(Parameters.from_sources, [in_file(tmp_path, content, "p.toml")])
