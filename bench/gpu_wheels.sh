#!/usr/bin/env bash
# Fill a folder with the wheels that on_gpu.sh installs on a GPU machine without a network.
#
#   bench/gpu_wheels.sh FOLDER [PYTHON_VERSION]        about 20 MB; the version is 3.12 by default
#
# For Linux on x86-64. numpy, scipy, numba and CuPy are left out: that machine must have them, and
# pytest. Needs a pip that reaches a package index (PYTHON=... names the interpreter that has it).
set -euo pipefail
folder=${1:?usage: bench/gpu_wheels.sh FOLDER [PYTHON_VERSION]}
version=${2:-3.12}
root=$(cd "$(dirname "$0")/.." && pwd)

wanted=$("${PYTHON:-python3}" - "$root/pyproject.toml" <<'PYTHON'
import sys
import tomllib

with open(sys.argv[1], "rb") as file:
    needed = tomllib.load(file)["project"]["dependencies"]
print("\n".join(n for n in needed if not n.startswith(("numpy", "scipy", "numba"))))
PYTHON
)
platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do
  platforms+=(--platform "${tag}_x86_64")
done
mkdir -p "$folder"
rm -f "$folder"/*.whl  # two versions of one package would not install
mapfile -t wanted <<<"$wanted"
"${PYTHON:-python3}" -m pip download --quiet --disable-pip-version-check --only-binary=:all: \
  --python-version "$version" --implementation cp "${platforms[@]}" --dest "$folder" "${wanted[@]}"
rm -f "$folder"/{numpy,scipy,numba,llvmlite}-*.whl
du -sh "$folder"
