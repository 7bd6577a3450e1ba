#!/usr/bin/env bash
# The first look at a real GPU, in one call of less than 3 minutes (LIMIT, 170 s): does everything
# compile, compute and survive? The proof and the times are on_gpu.sh's, which has the options.
#
#   bench/smoke_on_gpu.sh [OUT] [PART...]
set -uo pipefail
out=${1:-$(dirname "$0")/results}
shift || true
parts=("$@")
[ ${#parts[@]} = 0 ] && parts=('libraries&' compile 'tiny&' cases 'memcheck&' tests)
export LIMIT=${LIMIT:-170} GPUCORON_SCRIPT=smoke_on_gpu.sh
exec "$(dirname "$0")/on_gpu.sh" "$out" "${parts[@]}"
