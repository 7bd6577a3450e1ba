// A kernel with one planted fault for each kind of mistake that the tests are there to find.
//
// finite_means<T, BUG>: out[r] = mean of the values in row r of x that are not NaN; a block a row.
#include "../../../kernels/common.cuh"

enum Bug { NONE, NO_BARRIER, FAR_WRITE, SHORT_SHARED, FAR_REGISTER, NAN_BRANCH, STRAY_DOUBLE };

template <class T, int BUG>
__global__ void __launch_bounds__(128) finite_means(const T *__restrict__ x, int n, T *out) {
  DYN_SHARED(T, row);
  __shared__ T scratch[BUG == SHORT_SHARED ? 33 : 2 * 32];
  const int rank = thread_rank(), step = block_threads();
  for (int i = rank; i < n; i += step) row[i] = x[static_cast<long long>(blockIdx.x) * n + i];
  if (BUG != NO_BARRIER) __syncthreads();
  T kept[2] = {};  // sum, count
  for (int i = rank; i < n; i += step) {
    const T value = row[n - 1 - i];
    if (BUG != NAN_BRANCH && isnan(value)) continue;
    kept[0] += value;
    if (BUG == STRAY_DOUBLE) kept[1] += 1.0;
    else kept[1 + (BUG == FAR_REGISTER ? n / 40 : 0)] += T(1);
  }
  block_fold(kept, scratch, Add());
  const T mean = kept[1] > T(0) ? kept[0] / kept[1] : nan_of<T>();
  if (rank == 0) out[blockIdx.x + (BUG == FAR_WRITE)] = mean;
}
