#!/usr/bin/env bash
# The proof on a real GPU, in one call of less than 8 minutes (LIMIT, 470 s).
#
#   bench/on_gpu.sh [OUT] [PART...]
#
# OUT is a folder (default bench/results); DATE-gpu-DEVICE.json there takes each part's results as
# soon as they are known. Parts, in this order, or those that are named:
#   libraries  versions, and what cannot be imported
#   compile    all kernels, in several processes: seconds, registers, local memory
#   start      seconds that a process waits for CuPy and CUDA, with kept kernels and without
#   rates      what the device gives: copying, float64 products, transfers
#   kernels    every kernel at real shapes: time, bytes, share of the copy's rate
#   compare    all products of the canonical set, GPU against CPU: the proof
#   large      whole runs with 21,600 pairs, on the GPU and on this machine's CPU
#   canonical  the same with the canonical set
#   tests      pytest of the files that hold GPU tests
#   sanitize   compute-sanitizer (memcheck, racecheck, synccheck, initcheck) on small calls
# and those of smoke_on_gpu.sh, which is to be run first:
#   cases      small calls of all kernels against what the emulated device gave
#   tiny       all products of a tiny set, GPU against CPU
#   memcheck   compute-sanitizer's memcheck alone, on four files of kernels
# "PART&" goes on beside those after it. A part that fails or takes too long does not stop the next
# ones. Exit: 0 all is well, 1 something is wrong, 3 no GPU here. After LIMIT seconds nothing more is
# begun. FILES="klip ..." names the files of kernels that sanitize looks at; PATIENCE=5 gives each
# part five times its limit, on a busy machine.
#
# In the end gpucoron/backend/gpu_proof.json is written, with which --device auto takes a GPU, if all is well
# (bench_gpu.py prove writes it from a result that comes from another machine).
#
# Needs Python 3.11+ with CuPy, numpy, scipy, numba, pytest (PYTHON=... names it). What else is
# missing is taken from the folder .wheels (WHEELS=...), which is filled where there is a network
# with bench/gpu_wheels.sh. The emulated device's results are in .expected (EXPECTED=...), made with
#   python bench/gpu_checks.py --emulated --keep .expected
# Compiled kernels come back as OUT/cupy-cache.tar.gz; put into .caches (CACHES=...) they save the
# next call their compilation. The sets are simulated in WORK (default: a folder that is removed in
# the end). Where git does not know the commit, GPUCORON_COMMIT tells it.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
me=${GPUCORON_SCRIPT:-on_gpu.sh}
out=${1:-$root/bench/results}
shift || true
python=${PYTHON:-python3}

# A GPU first, before anything is imported: without one nothing else matters.
if [ -z "${GPUCORON_EMULATED:-}" ] && ! compgen -G '/dev/nvidia[0-9]*' >/dev/null &&
  ! nvidia-smi -L >/dev/null 2>&1; then
  echo "$me: no GPU: there is no /dev/nvidia0, and nvidia-smi finds none" >&2
  exit 3
fi
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$root"

own=$(mktemp -d)
sets=
trap '[ -z "$sets" ] || kill -- "-$sets" 2>/dev/null; rm -rf "$own"' EXIT
work=${WORK:-$own/work}
mkdir -p "$work"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export CUPY_CACHE_DIR=${CUPY_CACHE_DIR:-$own/cupy}
mkdir -p "$CUPY_CACHE_DIR"
for archive in "${CACHES:-$root/.caches}"/*.tar.gz; do
  [ -f "$archive" ] && tar -xzf "$archive" -C "$CUPY_CACHE_DIR"
done

wheels=${WHEELS:-$root/.wheels}
modules='import numpy, scipy, astropy, asdf, asdf_astropy, yaml, gwcs, lazy_loader, stdatamodels, rich'
if ! "$python" -c "$modules" 2>"$own/problem"; then
  if ! compgen -G "$wheels/*.whl" >/dev/null; then
    echo "$me: $(tail -n 1 "$own/problem"); fill a folder with bench/gpu_wheels.sh" >&2
    exit 1
  fi
  "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile \
    --no-cache-dir --target "$own/site" "$wheels"/*.whl || exit 1
  export PYTHONPATH=$PYTHONPATH:$own/site
  "$python" -c "$modules" || exit 1
fi
file=$("$python" bench/bench_gpu.py name --work "$work" 2>"$own/problem")
if [ -z "$file" ]; then
  echo "$me: $(tail -n 1 "$own/problem")" >&2
  exit 3
fi
echo "== ready after $SECONDS s: $file"

failed=0
part() {  # NAME SECONDS [OPTION...]: the limit is for what hangs
  local name=$1 limit=$(($2 * ${PATIENCE:-1})) left=$((${LIMIT:-470} - SECONDS))
  shift 2
  if [ $left -lt 10 ]; then
    echo "== $name: no time left for it"
    failed=1
    return
  fi
  [ $limit -lt $left ] || limit=$left
  timeout -k 5 "$limit" "$python" bench/bench_gpu.py "$name" --out "$out/$file" --work "$work" \
    --limit $((limit > 15 ? limit - 8 : limit)) --expected "${EXPECTED:-$root/.expected}" "$@"
  local code=$?
  [ $code = 124 ] && echo "== $name: stopped after $limit s"
  [ $code = 0 ] || failed=1
}

parts=("$@")
[ ${#parts[@]} = 0 ] &&
  parts=(libraries compile start rates kernels compare large canonical tests sanitize)
needed=()
for name in "${parts[@]}"; do
  case ${name%&} in
    compare | canonical) needed+=(canonical) ;;
    large | tiny) needed+=("${name%&}") ;;
  esac
done
if [ ${#needed[@]} != 0 ]; then
  setsid "$python" bench/bench_gpu.py simulate --work "$work" --sets "${needed[@]}" &
  sets=$!
fi
do_part() {
  case $1 in
    libraries) part libraries 30 ;;
    compile) part compile 60 --workers 14 ;;
    cases) part cases 60 --workers 9 ;;
    tiny) part tiny 120 ;;
    tests) part tests 150 --workers 12 ;;
    memcheck) part memcheck 60 --workers 4 ;;
    start) part start 60 ;;
    rates) part rates 30 ;;
    kernels) part kernels 120 ;;
    compare) part compare 90 ;;
    large) part large 150 ;;
    canonical) part canonical 60 ;;
    sanitize) part sanitize 95 --workers 12 ${FILES:+--files $FILES} ;;
    *) echo "$me: there is no part $1" >&2; failed=1 ;;
  esac
}
beside=()
for name in "${parts[@]}"; do
  case $name in
    *\&) (do_part "${name%&}"; exit $failed) & beside+=($!) ;;
    *) do_part "$name" ;;
  esac
done
for child in "${beside[@]}"; do
  wait "$child" || failed=1
done
tar -czf "$own/cache.tar.gz" -C "$CUPY_CACHE_DIR" . 2>/dev/null &&
  [ "$(stat -c %s "$own/cache.tar.gz")" -lt 16000000 ] &&
  mv "$own/cache.tar.gz" "$out/cupy-cache.tar.gz"
rm -f "$out/.$file.part"
"$python" bench/bench_gpu.py table --out "$out/$file"
[ "$me" != on_gpu.sh ] || "$python" bench/bench_gpu.py prove --out "$out/$file"
echo "== done after $SECONDS s"
exit $failed
