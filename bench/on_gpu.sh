#!/usr/bin/env bash
# Everything that needs a real GPU, in one call of less than 8 minutes.
#
#   bench/on_gpu.sh [OUT] [PART...]
#
# OUT is a folder (default bench/results); DATE-gpu-DEVICE.json there takes each part's results as
# soon as they are known. Parts, in this order, or those that are named:
#   compile    all kernels, in several processes: seconds, registers, local memory
#   tests      pytest -m gpu
#   sanitize   compute-sanitizer (memcheck, racecheck, synccheck, initcheck) on small calls
#   compare    all products of the canonical set, GPU against CPU
#   rates      what the device gives: copying, float64 products, transfers
#   kernels    every kernel at real shapes: time, bytes, share of the copy's rate
#   canonical  whole runs of the canonical set, on the GPU and on this machine's CPU
#   large      the same with 21,600 pairs
# A part that fails or takes too long does not stop the next ones. Exit: 0 all is well, 1 something
# is wrong, 3 no GPU here. After LIMIT seconds (470) nothing more is begun.
#
# Needs Python 3.11+ with CuPy, numpy, scipy, numba, pytest (PYTHON=... names it). What else is
# missing is taken from the folder .wheels (WHEELS=... names another), which is filled where there
# is a network with
#   bench/gpu_wheels.sh .wheels
# The sets are simulated in WORK (default: a folder that is removed in the end). Where git's folder
# is not copied along, GPUCORON_COMMIT tells the commit.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root/bench/results}
shift || true
python=${PYTHON:-python3}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$root"

own=$(mktemp -d)
sets=
trap '[ -z "$sets" ] || kill -- "-$sets" 2>/dev/null; rm -rf "$own"' EXIT
work=${WORK:-$own/work}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

# A GPU first: without one nothing else matters.
file=$("$python" bench/bench_gpu.py name --work "$own" 2>"$own/problem")
if [ -z "$file" ]; then
  echo "on_gpu.sh: $(tail -n 1 "$own/problem")" >&2
  exit 3
fi

wheels=${WHEELS:-$root/.wheels}
modules='import numpy, scipy, numba, astropy, asdf, asdf_astropy, yaml, gwcs, stdatamodels, rich, threadpoolctl'
if ! "$python" -c "$modules" 2>"$own/problem"; then
  if ! compgen -G "$wheels/*.whl" >/dev/null; then
    echo "on_gpu.sh: $(tail -n 1 "$own/problem"); fill a folder with bench/gpu_wheels.sh" >&2
    exit 1
  fi
  "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile \
    --target "$own/site" "$wheels"/*.whl || exit 1
  export PYTHONPATH=$PYTHONPATH:$own/site
  "$python" -c "$modules" || exit 1
fi

failed=0
part() {  # NAME SECONDS [OPTION...]: the limit is for what hangs
  local name=$1 limit=$2 left=$((${LIMIT:-470} - SECONDS))
  shift 2
  if [ $left -lt 10 ]; then
    echo "== $name: no time left for it"
    failed=1
    return
  fi
  [ $limit -lt $left ] || limit=$left
  timeout -k 5 "$limit" "$python" bench/bench_gpu.py "$name" --out "$out/$file" --work "$work" "$@"
  local code=$?
  [ $code = 124 ] && echo "== $name: stopped after $limit s"
  [ $code = 0 ] || failed=1
}

parts=("$@")
[ ${#parts[@]} = 0 ] && parts=(compile tests sanitize compare rates kernels canonical large)
case " ${parts[*]} " in *" compare "* | *" canonical "* | *" large "*)
  setsid "$python" bench/bench_gpu.py simulate --work "$work" &
  sets=$! ;;
esac
for name in "${parts[@]}"; do
  case $name in
    compile) part compile 60 --workers 12 ;;
    tests) part tests 170 --limit 160 --workers 8 ;;
    sanitize) part sanitize 95 --limit 85 --workers 12 ;;
    compare) part compare 90 ;;
    rates) part rates 30 ;;
    kernels) part kernels 120 ;;
    canonical) part canonical 60 ;;
    large) part large 150 ;;
    *) echo "on_gpu.sh: there is no part $name" >&2; failed=1 ;;
  esac
done
"$python" bench/bench_gpu.py table --out "$out/$file"
exit $failed
