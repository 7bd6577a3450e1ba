// Outliers of one exposure: the median of its integrations, the threshold, and what neighbours and
// other integrations predict.
//
//   m[p]          = median over k of data[k, p], where (dq & bits) == wanted and data is not NaN
//   suspect       : |data - m| > snr err, usable; without neighbours an outlier (NaN in err is 0).
//                   Of one or two integrations suspects come from array functions (mark_suspects)
//   outlier       : a suspect, or a pixel beside one, that is not predicted (see SuspectTest::score)
//   data, err, variances out: NaN where any of them is, or where dq says DO_NOT_USE, which is set
//
// detect<T, N, WARPS>: WARPS = 0 is a thread a pixel and n <= N, else tiles of a sector of pixels
// shared by WARPS warps; see median.cu. Having the median, the same threads go through their
// elements again: data and dq come from the L2 cache, as what all blocks in flight hold fits into
// it. Each array is read from memory once and written once: with three variances and float32 that
// is 48 bytes an element and 4 a pixel, with 1 more written for the test of the neighbours.
//
// list_suspects: 9 bytes of a byte plane an element; the list is in any order.
//
// test_suspects<T>: a warp a suspect, over the list. `state` tells of each pixel whether it is
// an outlier, in one bit for even and one for odd rounds. A round reads one and writes the other, so
// that nothing depends on who comes first. Once a round at the last threshold has changed nothing
// those after it return at once; no host looks at that. The rows of the fit lie where kriging
// later factors its matrix. Most of the time goes into the factoring (kriging.cuh).
//
// flag_listed<T>: outliers become NaN. A thread a suspect, 6 writes of a sector each.
//
// Considered: the threshold as a kernel of its own (12 bytes an element more); the rounds in one
// kernel (needs a barrier over the grid); Jacobi-like updates in place (then the order would tell).
//
// Measured on an NVIDIA H200, 320 x 320, float, three variances, ms for n = 4, 10, 60 and 300:
// detect 0.015, 0.026, 0.25 and 1.14, which is 33, 45, 28 and 31 % of a copy's rate; flag_listed 0.006,
// 0.007, 0.007 and 0.014. list_suspects and test_suspects were not measured.
#include "outlier_test.cuh"
#include "outlier_threshold.cuh"

constexpr int threads_for(int warps) { return warps ? 32 * warps : 128; }
constexpr int blocks_for(int warps) {
  return 384 / threads_for(warps);
}  // at least, on a processor

// `counts`: good pixels were met (0 or 1), candidates listed. A launch with `rest` does something
// only where none were met: then every pixel enters the median.
template <class T, int N, int WARPS>
__global__ void __launch_bounds__(threads_for(WARPS), blocks_for(WARPS)) detect(
    const T *__restrict__ data, const T *__restrict__ err, const unsigned *__restrict__ dq,
    const T *__restrict__ variance0, const T *__restrict__ variance1,
    const T *__restrict__ variance2, int n_variances, int n, long long n_pixels, unsigned bits,
    unsigned wanted, int rest, T snr, int neighbours, T *__restrict__ median,
    T *__restrict__ data_out, T *__restrict__ err_out, unsigned *__restrict__ dq_out,
    T *__restrict__ variance0_out, T *__restrict__ variance1_out, T *__restrict__ variance2_out,
    unsigned char *__restrict__ state, unsigned *__restrict__ counts, int *__restrict__ flagged) {
  if (rest && counts[0]) return;
  const Exposure<T> exposure = {data, dq, !rest, bits, wanted, !neighbours};
  const Flagger<T> flagger = {err,
                              {variance0, variance1, variance2},
                              data_out,
                              err_out,
                              {variance0_out, variance1_out, variance2_out},
                              dq_out,
                              n_variances,
                              snr,
                              neighbours != 0,
                              state,
                              flagged};
  bool met;
  if constexpr (WARPS == 0) {
    const long long p = flat_index();
    if (p >= n_pixels) return;
    const T middle = middle_of_column<N, T>(n, n_pixels, p, exposure);
    median[p] = middle;
    met = flag_pixel(exposure, flagger, 0, 1, n, n_pixels, p, middle);
  } else {
    __shared__ TileScratch<T, WARPS> scratch;
    const Tile<T, WARPS> tile(n, n_pixels);
    const T middle = middle_of_tile<N>(tile, exposure, scratch);
    if (tile.row == 0 && tile.n > 0) median[tile.pixel] = middle;
    met = flag_pixel(exposure, flagger, tile.row, tile.ROWS, tile.n, n_pixels, tile.pixel, middle);
  }
  if (met && !counts[0]) counts[0] = 1;  // all write the same
}

// The same for suspects that were found elsewhere.
__global__ void __launch_bounds__(256) mark_suspects(const bool *__restrict__ usable,
                                                     const bool *__restrict__ suspects,
                                                     long long size,
                                                     unsigned char *__restrict__ state) {
  const long long i = flat_index();
  if (i < size) state[i] = state_of(usable[i], suspects[i]);
}

// Append to the list all usable pixels that are suspects or, of several integrations, touch GROWS.
__global__ void __launch_bounds__(256) list_suspects(const unsigned char *__restrict__ state,
                                                     long long size, int n, int ny, int nx,
                                                     unsigned *__restrict__ list,
                                                     unsigned *__restrict__ counts) {
  const long long i = flat_index();
  if (i >= size || !(state[i] & USABLE)) return;
  const int x = static_cast<int>(i % nx), y = static_cast<int>(i / nx % ny);
  int near = state[i] & SUSPECT ? GROWS : 0;
  for (int v = max(y - 1, 0); n > 1 && v < min(y + 2, ny); ++v)
    for (int u = max(x - 1, 0); u < min(x + 2, nx); ++u)
      near += (state[i + static_cast<long long>(v - y) * nx + (u - x)] & SUSPECT) != 0;
  if (near >= GROWS) list[atomicAdd(counts + 1, 1u)] = static_cast<unsigned>(i);
}

// Which suspects exceed `limit`? `changed[round]` becomes 1 where one becomes an outlier or
// is none any more; a round with `wait` does nothing if that changed none.
template <class T>
__global__ void __launch_bounds__(128) test_suspects(
    const T *__restrict__ data, const T *__restrict__ err, const double *__restrict__ table, int n,
    int ny, int nx, double limit, double last, int round, int wait,
    const unsigned *__restrict__ list, const unsigned *__restrict__ counts, unsigned char *state,
    int *changed) {
  __shared__ KrigingScratch<NEAR> scratch[4];
  __shared__ double noises[4][KrigingScratch<NEAR>::MOST];
  __shared__ int chosen[4][WINDOW];
  if (wait && !changed[round - 1]) return;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, now = round & 1;
  const long long n_pixels = static_cast<long long>(ny) * nx;
  for (unsigned c = blockIdx.x * 4 + warp; c < counts[1]; c += gridDim.x * 4) {
    const unsigned i = list[c];
    const int k = static_cast<int>(i / n_pixels), p = static_cast<int>(i % n_pixels);
    SuspectTest<T> test = {data,         err,         table,  state,  n,        ny, nx,
                           now,          k,           p / nx, p % nx, n_pixels, 0,  scratch[warp],
                           noises[warp], chosen[warp]};
    const unsigned char w = state[i];
    const bool before = w >> now & 1;
    const bool outlier = test.score(round == 0) > (before ? last : limit);
    if (lane > 0) continue;
    state[i] = (w & (USABLE | SUSPECT)) | before << now | outlier << (1 - now);
    if (outlier != before) changed[round] = 1;
  }
}

// Set the outliers of a list in `out`, which else stays as it is. `last`: the round that would come.
__global__ void __launch_bounds__(256) write_outliers(const unsigned *__restrict__ list,
                                                      const unsigned *__restrict__ counts,
                                                      const unsigned char *__restrict__ state,
                                                      int last, bool *__restrict__ out) {
  for (unsigned c = flat_index(); c < counts[1]; c += gridDim.x * blockDim.x)
    out[list[c]] = state[list[c]] >> (last & 1) & 1;
}

// Flag the outliers of a list, and let them be NaN in all arrays.
template <class T>
__global__ void __launch_bounds__(256) flag_listed(
    const unsigned *__restrict__ list, const unsigned *__restrict__ counts,
    const unsigned char *__restrict__ state, int last, long long n_pixels, int n_variances,
    T *__restrict__ data, T *__restrict__ err, unsigned *__restrict__ dq, T *__restrict__ variance0,
    T *__restrict__ variance1, T *__restrict__ variance2, int *__restrict__ flagged) {
  for (unsigned c = flat_index(); c < counts[1]; c += gridDim.x * blockDim.x) {
    const unsigned i = list[c];
    if (!(state[i] >> (last & 1) & 1)) continue;
    data[i] = err[i] = nan_of<T>();
    if (n_variances > 0) variance0[i] = nan_of<T>();
    if (n_variances > 1) variance1[i] = nan_of<T>();
    if (n_variances > 2) variance2[i] = nan_of<T>();
    dq[i] |= DO_NOT_USE | OUTLIER;
    atomicAdd(flagged + i / n_pixels, 1);
  }
}

// instantiate: detect<float, 4, 0>
// instantiate: detect<float, 8, 0>
// instantiate: detect<float, 16, 0>
// instantiate: detect<float, 32, 0>
// instantiate: detect<float, 64, 0>
// instantiate: detect<float, 32, 1>
// instantiate: detect<float, 64, 1>
// instantiate: detect<float, 64, 2>
// instantiate: detect<float, 64, 4>
// instantiate: detect<float, 64, 8>
// instantiate: detect<float, 0, 8>
// instantiate: detect<double, 4, 0>
// instantiate: detect<double, 8, 0>
// instantiate: detect<double, 16, 0>
// instantiate: detect<double, 32, 0>
// instantiate: detect<double, 16, 1>
// instantiate: detect<double, 32, 1>
// instantiate: detect<double, 32, 2>
// instantiate: detect<double, 32, 4>
// instantiate: detect<double, 32, 8>
// instantiate: detect<double, 0, 8>
// instantiate: mark_suspects
// instantiate: list_suspects
// instantiate: test_suspects<float>
// instantiate: test_suspects<double>
// instantiate: flag_listed<float>
// instantiate: flag_listed<double>
// instantiate: write_outliers
