// Simple kriging of a pixel from its good neighbours, by one warp in float64.
//
//   value    = mean + k^T A^-1 (v - mean)          A = K + max(N / S, 1e-4) I
//   variance = S (1 - k^T A^-1 k)
//
// v: the values of the n good neighbours within REACH px; K, k: their correlations with each other
// and with the pixel, functions of the distance alone; N: the mean of their noise variances; S:
// their variance less N. Where S <= 0.3 N there is hardly more than noise: the mean, and max(S, 0).
//
// A is factored column by column (Cholesky), lanes sharing the rows. k and v - mean ride along as
// two more rows: these become y = L^-1 k and z = L^-1 (v - mean), so that
// k^T A^-1 (v - mean) = y.z and k^T A^-1 k = y.y, and nothing is substituted back.
// REACH 4: 48 neighbours, 20,000 products in 1,300 steps of a warp, 11 KB of shared memory a warp;
// REACH 6: 112 neighbours, 240,000 products, 54 KB.
//
// Sums go over fixed pairs of lanes: the result does not depend on the order of the threads.
#pragma once
#include "common.cuh"

// As in gpucoron/ops/kriging.py.
constexpr int NEAR = 4, FAR = 6;  // px
constexpr int FEWEST = 3;
constexpr double NOISE_FLOOR = 1e-4, MOSTLY_NOISE = 0.3;

__host__ __device__ constexpr int neighbours_within(int reach) {
  int n = 0;
  for (int y = -reach; y <= reach; ++y)
    for (int x = -reach; x <= reach; ++x) n += y * y + x * x <= reach * reach;
  return n - 1;
}

template <int REACH> struct KrigingScratch {  // one warp's
  static constexpr int MOST = neighbours_within(REACH);
  double column[MOST * (MOST + 5) / 2];  // column j: rows j to n + 1
  double value[MOST];
  int dy[MOST + 1], dx[MOST + 1];  // the last is the pixel itself
};

struct Prediction {
  double value, variance;
};

// Sums over the factored matrix: y.y, y.z and z.z.
struct Explained {
  double pixel, value, values;
};

template <int REACH>
__device__ __forceinline__ Explained explained_by(int n, const KrigingScratch<REACH> &s) {
  double pixel = 0.0, value = 0.0, values = 0.0;
  for (int j = threadIdx.x % 32; j < n; j += 32) {
    const double *c = s.column + j * (n + 2) - j * (j - 1) / 2 + n - j;
    pixel += c[0] * c[0];
    value += c[0] * c[1];
    values += c[1] * c[1];
  }
  return {warp_sum(pixel), warp_sum(value), warp_sum(values)};
}

// Collect the good neighbours within `reach`, and tell how many there are and what their noise
// variances add up to. `near(v, u, value, noise)` reads pixel (v, u) and tells whether it is good.
template <int REACH, class Near>
__device__ __forceinline__ int gather_neighbours(int y, int x, int ny, int nx, int reach,
                                                 const Near &near, KrigingScratch<REACH> &s,
                                                 double &noise) {
  constexpr int SPAN = 2 * REACH + 1;
  const int lane = threadIdx.x % 32;
  int n = 0;
  noise = 0.0;
  __syncwarp();  // untested: shuffles hold the lanes together, but not their memory
  for (int first = 0; first < SPAN * SPAN; first += 32) {
    const int cell = first + lane, dy = cell / SPAN - REACH, dx = cell % SPAN - REACH;
    const int v = y + dy, u = x + dx, square = dy * dy + dx * dx;
    bool good = cell < SPAN * SPAN && square > 0 && square <= reach * reach && v >= 0 && v < ny &&
                u >= 0 && u < nx;
    double value = 0.0, variance = 0.0;
    if (good) good = near(v, u, value, variance);
    const unsigned all = __ballot_sync(0xffffffffu, good);
    if (good) {
      const int slot = n + __popc(all & ((1u << lane) - 1u));
      s.value[slot] = value;
      s.dy[slot] = dy;
      s.dx[slot] = dx;
      noise += variance;
    }
    n += __popc(all);
  }
  if (lane == 0) s.dy[n] = s.dx[n] = 0;
  __syncwarp();
  return n;
}

// Element (i, j) of A before it is factored, with k as row n and v - mean as row n + 1.
// `nugget(i)`: noise of value i over the signal.
template <int REACH, class Nugget>
__device__ __forceinline__ double system_element(int i, int j, int n, double mean,
                                                 const Nugget &nugget, const double *table,
                                                 const KrigingScratch<REACH> &s) {
  if (i > n) return s.value[j] - mean;
  const int dy = s.dy[i] - s.dy[j], dx = s.dx[i] - s.dx[j];
  return table[dy * dy + dx * dx] + (i == j ? nugget(i) : 0.0);
}

// Factor; false where A is not positive definite.
template <int REACH, class Nugget>
__device__ __forceinline__ bool factor(int n, double mean, const Nugget &nugget,
                                       const double *table, KrigingScratch<REACH> &s) {
  constexpr int ROWS = (KrigingScratch<REACH>::MOST + 2 + 31) / 32;  // a lane
  const int lane = threadIdx.x % 32, last = n + 1;
  double *own = s.column;
  for (int j = 0; j < n; ++j) {
    int row[ROWS];
    double a[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      row[r] = min(j + lane + 32 * r, last);
      a[r] = j + 32 * r <= last ? system_element(row[r], j, n, mean, nugget, table, s) : 0.0;
    }
    const double *c = s.column;
    for (int k = 0; k < j; ++k) {
      const double pivot = c[j - k];
#pragma unroll
      for (int r = 0; r < ROWS; ++r)
        if (j + 32 * r <= last) a[r] -= c[row[r] - k] * pivot;
      c += n + 2 - k;
    }
    const double square = __shfl_sync(0xffffffffu, a[0], 0);
    if (!(square > 0.0)) return false;
    const double root = sqrt(square);
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
      if (j + lane + 32 * r <= last) own[lane + 32 * r] = lane + r == 0 ? root : a[r] / root;
    own += n + 2 - j;
    __syncwarp();
  }
  return true;
}

// The prediction from n gathered values of this mean, noise and signal.
template <int REACH>
__device__ __forceinline__ Prediction krige_values(int n, double mean, double noise, double signal,
                                                   const double *table, KrigingScratch<REACH> &s) {
  __syncwarp();  // untested: other lanes may have changed values and read s.column
  const double ratio = noise / signal;
  const double nugget = ratio > NOISE_FLOOR ? ratio : NOISE_FLOOR;
  const auto alike = [=](int) { return nugget; };
  if (!factor(n, mean, alike, table, s)) return {mean, signal};
  const Explained sums = explained_by(n, s);
  const double left = 1.0 - sums.pixel;
  return {mean + sums.value, signal * (left > 0.0 ? left : 0.0)};
}

// The prediction of pixel (y, x); NaN with fewer than FEWEST good neighbours. All 32 lanes must
// take part and get the same. `table`: correlation by squared distance, up to (2 reach)^2.
template <int REACH, class Near>
__device__ __forceinline__ Prediction krige_pixel(int y, int x, int ny, int nx, const double *table,
                                                  const Near &near, KrigingScratch<REACH> &s,
                                                  int reach = REACH) {
  const int lane = threadIdx.x % 32;
  double noise, sum = 0.0, power = 0.0;
  const int n = gather_neighbours(y, x, ny, nx, reach, near, s, noise);
  if (n < FEWEST) return {nan_of<double>(), nan_of<double>()};
  for (int a = lane; a < n; a += 32) sum += s.value[a];
  const double mean = warp_sum(sum) / n;
  for (int a = lane; a < n; a += 32) power += (s.value[a] - mean) * (s.value[a] - mean);
  noise = warp_sum(noise) / n;
  const double signal = warp_sum(power) / n - noise;
  if (signal <= MOSTLY_NOISE * noise) return {mean, signal > 0.0 ? signal : 0.0};
  return krige_values(n, mean, noise, signal, table, s);
}
