// Outliers of one exposure: the median of its integrations, the threshold, and neighbours' word.
//
//   m[p]          = median over k of data[k, p], where (dq & bits) == wanted and data is not NaN
//   candidate     : |data - m| > snr * err, and err > 0 where the neighbours are asked; else NaN in
//                   err counts as 0
//   outlier       : a candidate that kriging from its neighbours does not explain (see sharp_round)
//   data, err, variances out: NaN where any of them is, or where dq says DO_NOT_USE, which is set
//
// detect<T, N, WARPS>: WARPS = 0 is a thread a pixel and n <= N, else tiles of a sector of pixels
// shared by WARPS warps; see median.cu. Having the median, the same threads go through their
// elements again: data and dq come from the L2 cache, as what all blocks in flight hold fits into
// it. Each array is read from memory once and written once: with three variances and float32 that
// is 48 bytes an element and 4 a pixel, with 1 more written for the test of the neighbours.
// Candidates are appended to a list, in any order, and left undecided.
//
// sharp_round<T>: a warp a candidate, over the list. `witness` tells of each pixel whether it is
// cleared, in one bit for even and one for odd rounds. A round reads one and writes the other, so
// that nothing depends on who comes first. Once a round has changed nothing those after it return
// at once; no host looks at that. 48 neighbours of 13 bytes (float) are read a candidate, from the
// caches mostly; the time goes into the factoring (kriging.cuh).
//
// strike<T>: the guilty become NaN. A thread a candidate, 6 writes of a sector each.
//
// Considered: the threshold as a kernel of its own (12 bytes an element more); the rounds in one
// kernel (needs a barrier over the grid); Jacobi-like updates in place (then the order would tell).
//
// Measured on an NVIDIA H200, 320 x 320, float, three variances, ms for n = 4, 10, 60 and 300:
// detect 0.015, 0.026, 0.25 and 1.14, which is 33, 45, 28 and 31 % of a copy's rate; all 8 rounds
// of sharp_round 0.08, 0.09, 0.14 and 0.30; strike 0.006, 0.007, 0.007 and 0.014.
#include "columns.cuh"
#include "kriging.cuh"

constexpr unsigned DO_NOT_USE = 1u, OUTLIER = 16u;
constexpr double WEAK = 1.5, LEFT = 0.6;  // as in gpucoron/ops/outliers.py

// As numpy.nan_to_num.
template <class T> __device__ __forceinline__ T finite_or_zero(T x) {
  if (isfinite(x)) return x;
  if (x != x) return T(0);
  const T most = value_of(key_of(inf_of<T>()) - 1);
  return x > T(0) ? most : -most;
}

// A byte for each pixel: is it cleared, in even and in odd rounds, and may it then be a witness?
constexpr unsigned char CLEARED = 3, USABLE = 4;
__device__ __forceinline__ unsigned char witness_of(bool usable, bool candidate) {
  return (usable ? USABLE : 0) | (candidate ? 0 : CLEARED);
}

template <class T> struct Exposure {
  const T *images;
  const unsigned *mask;
  bool masked;
  unsigned bits, wanted;
  bool keep_infinities;

  __device__ __forceinline__ T value(T x) const {
    return keep_infinities || isfinite(x) ? x : nan_of<T>();
  }
  __device__ __forceinline__ bool good(unsigned dq) const { return (dq & bits) == wanted; }
};

// What an element is read from, beside image and mask, and written to.
template <class T> struct Judge {
  const T *err, *variance[3];
  T *data_out, *err_out, *variance_out[3];
  unsigned *dq_out;
  int n_variances;
  T snr;
  bool neighbours;
  unsigned char *witness;
  unsigned *list, *n_listed;
  int *flagged;

  struct Element {
    T data, err, variance[3];
    unsigned dq;
  };

  __device__ __forceinline__ Element read(const Exposure<T> &exposure, long long i) const {
    Element e;
    e.data = exposure.value(exposure.images[i]);
    e.dq = exposure.mask[i];
    e.err = err[i];
#pragma unroll
    for (int m = 0; m < 3; ++m) e.variance[m] = m < n_variances ? variance[m][i] : T(0);
    return e;
  }

  __device__ __forceinline__ void write(const Element &e, int k, long long i, T middle) const {
    const T difference = e.data - middle;
    unsigned dq = e.dq;
    bool outlier = fabs(difference) > snr * finite_or_zero(e.err);
    if (neighbours) {
      outlier = outlier && e.err > T(0);
      const bool usable = !(dq & DO_NOT_USE) && isfinite(difference) && isfinite(e.err);
      witness[i] = witness_of(usable, outlier);
      if (outlier && usable) {
        list[atomicAdd(n_listed, 1u)] = static_cast<unsigned>(i);
        outlier = false;
      }
    }
    if (outlier) {
      dq |= DO_NOT_USE | OUTLIER;
      atomicAdd(flagged + k, 1);
    }
    bool invalid = (dq & DO_NOT_USE) || e.data != e.data || e.err != e.err;
#pragma unroll
    for (int m = 0; m < 3; ++m) invalid = invalid || e.variance[m] != e.variance[m];
    const T nan = nan_of<T>();
    dq_out[i] = invalid ? dq | DO_NOT_USE : dq;
    data_out[i] = invalid ? nan : e.data;
    err_out[i] = invalid ? nan : e.err;
#pragma unroll
    for (int m = 0; m < 3; ++m)
      if (m < n_variances) variance_out[m][i] = invalid ? nan : e.variance[m];
  }
};

// One thread's elements of pixel p: every `step`-th integration from `first` on, two of them read
// before the first is written. Tells whether any was good.
template <class T>
__device__ __forceinline__ bool judge_pixel(const Exposure<T> &exposure, const Judge<T> &judge,
                                            int first, int step, int n, long long n_pixels,
                                            long long p, T middle) {
  bool met = false;
  for (int k = first; k < n; k += 2 * step) {
    const bool two = k + step < n;
    const long long i = k * n_pixels + p, i2 = two ? i + step * n_pixels : i;
    const typename Judge<T>::Element one = judge.read(exposure, i);
    const typename Judge<T>::Element other = judge.read(exposure, i2);
    met |= exposure.good(one.dq) | exposure.good(other.dq);
    judge.write(one, k, i, middle);
    if (two) judge.write(other, k + step, i2, middle);
  }
  return met;
}

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
    unsigned char *__restrict__ witness, unsigned *__restrict__ list, unsigned *__restrict__ counts,
    int *__restrict__ flagged) {
  if (rest && counts[0]) return;
  const Exposure<T> exposure = {data, dq, !rest, bits, wanted, !neighbours};
  const Judge<T> judge = {err,
                          {variance0, variance1, variance2},
                          data_out,
                          err_out,
                          {variance0_out, variance1_out, variance2_out},
                          dq_out,
                          n_variances,
                          snr,
                          neighbours != 0,
                          witness,
                          list,
                          counts + 1,
                          flagged};
  bool met;
  if constexpr (WARPS == 0) {
    const long long p = flat_index();
    if (p >= n_pixels) return;
    const T middle = middle_of_column<N, T>(n, n_pixels, p, exposure);
    median[p] = middle;
    met = judge_pixel(exposure, judge, 0, 1, n, n_pixels, p, middle);
  } else {
    __shared__ TileScratch<T, WARPS> scratch;
    const Tile<T, WARPS> tile(n, n_pixels);
    const T middle = middle_of_tile<N>(tile, exposure, scratch);
    if (tile.row == 0 && tile.n > 0) median[tile.pixel] = middle;
    met = judge_pixel(exposure, judge, tile.row, tile.ROWS, tile.n, n_pixels, tile.pixel, middle);
  }
  if (met && !counts[0]) counts[0] = 1;  // all write the same
}

// The same for candidates that were found elsewhere; `out` starts as a copy of them.
template <class T>
__global__ void __launch_bounds__(256) list_candidates(
    const T *__restrict__ difference, const bool *__restrict__ candidates,
    const bool *__restrict__ usable, long long size, unsigned char *__restrict__ witness,
    unsigned *__restrict__ list, unsigned *__restrict__ counts) {
  const long long i = flat_index();
  if (i >= size) return;
  witness[i] = witness_of(usable[i] && isfinite(difference[i]), candidates[i]);
  if (candidates[i]) list[atomicAdd(counts + 1, 1u)] = static_cast<unsigned>(i);
}

// Is each candidate's difference, images - base, more than its neighbours lead one to expect?
//
//   explained: |d - expected| <= snr sqrt(err^2 + variance), and for |d| < WEAK snr err also
//              |d - expected| <= LEFT |d|
// `changed[round]` becomes 1 where a verdict is another than in the round before.
template <class T>
__global__ void __launch_bounds__(128) sharp_round(
    const T *__restrict__ images, const T *__restrict__ base, const T *__restrict__ err,
    const double *__restrict__ table, int ny, int nx, double snr, int round,
    const unsigned *__restrict__ list, const unsigned *__restrict__ counts, unsigned char *witness,
    int *changed) {
  __shared__ KrigingScratch<NEAR> scratch[4];
  if (round > 0 && !changed[round - 1]) return;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, now = round & 1;
  const long long n_pixels = static_cast<long long>(ny) * nx;
  for (unsigned c = blockIdx.x * 4 + warp; c < counts[1]; c += gridDim.x * 4) {
    const unsigned i = list[c];
    const long long p = i % n_pixels, plane = i - p;
    const auto near = [&](int v, int u, double &value, double &variance) {
      const long long q = static_cast<long long>(v) * nx + u;
      const unsigned char w = witness[plane + q];
      if (!(w & USABLE) || !(w >> now & 1)) return false;
      value = static_cast<double>(images[plane + q] - base[q]);
      const double e = static_cast<double>(err[plane + q]);
      variance = isfinite(e) ? e * e : 0.0;
      return true;
    };
    const int y = static_cast<int>(p / nx), x = static_cast<int>(p % nx);
    const Prediction expected = krige_pixel(y, x, ny, nx, table, near, scratch[warp]);
    if (lane > 0) continue;
    const T difference = images[i] - base[p];
    const double size = static_cast<double>(fabs(difference));
    const double e = static_cast<double>(fabs(finite_or_zero(err[i])));
    const double left = fabs(static_cast<double>(difference) - expected.value);
    const bool explained = left <= snr * sqrt(e * e + expected.variance);
    const bool weak = size < WEAK * snr * e;
    const double share = static_cast<double>(T(LEFT) * fabs(difference));
    const bool clear = explained && (!weak || left <= share);
    const unsigned char w = witness[i];
    const bool before = w >> now & 1;
    witness[i] = (w & USABLE) | before << now | clear << (1 - now);
    if (clear != before) changed[round] = 1;
  }
}

// Name the guilty of a list in `out`, which else stays as it is. `last`: the round that would come.
__global__ void __launch_bounds__(256) name_guilty(const unsigned *__restrict__ list,
                                                   const unsigned *__restrict__ counts,
                                                   const unsigned char *__restrict__ witness,
                                                   int last, bool *__restrict__ out) {
  for (unsigned c = flat_index(); c < counts[1]; c += gridDim.x * blockDim.x)
    out[list[c]] = !(witness[list[c]] >> (last & 1) & 1);
}

// Flag the guilty, and let them be NaN in all arrays.
template <class T>
__global__ void __launch_bounds__(256) strike(
    const unsigned *__restrict__ list, const unsigned *__restrict__ counts,
    const unsigned char *__restrict__ witness, int last, long long n_pixels, int n_variances,
    T *__restrict__ data, T *__restrict__ err, unsigned *__restrict__ dq, T *__restrict__ variance0,
    T *__restrict__ variance1, T *__restrict__ variance2, int *__restrict__ flagged) {
  for (unsigned c = flat_index(); c < counts[1]; c += gridDim.x * blockDim.x) {
    const unsigned i = list[c];
    if (witness[i] >> (last & 1) & 1) continue;
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
// instantiate: list_candidates<float>
// instantiate: list_candidates<double>
// instantiate: sharp_round<float>
// instantiate: sharp_round<double>
// instantiate: strike<float>
// instantiate: strike<double>
// instantiate: name_guilty
