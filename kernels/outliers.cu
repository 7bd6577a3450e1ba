// Outliers of one exposure: the median of its integrations, the threshold, and what neighbours and
// other integrations predict.
//
//   m[p]          = median over k of data[k, p], where (dq & bits) == wanted and data is not NaN
//   suspect       : |data - m| > snr err, usable; without neighbours an outlier (NaN in err is 0).
//                   Of one or two integrations suspects come from array functions (mark_suspects)
//   outlier       : a suspect, or a pixel beside one, that is not predicted (see Trial::score)
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
// sharp_round<T>: a warp a suspect, over the list. `witness` tells of each pixel whether it is
// an outlier, in one bit for even and one for odd rounds. A round reads one and writes the other, so
// that nothing depends on who comes first. Once a round at the last threshold has changed nothing
// those after it return at once; no host looks at that. The rows of the fit lie where kriging
// later factors its matrix. Most of the time goes into the factoring (kriging.cuh).
//
// strike<T>: the guilty become NaN. A thread a suspect, 6 writes of a sector each.
//
// Considered: the threshold as a kernel of its own (12 bytes an element more); the rounds in one
// kernel (needs a barrier over the grid); Jacobi-like updates in place (then the order would tell).
//
// Measured on an NVIDIA H200, 320 x 320, float, three variances, ms for n = 4, 10, 60 and 300:
// detect 0.015, 0.026, 0.25 and 1.14, which is 33, 45, 28 and 31 % of a copy's rate; strike 0.006,
// 0.007, 0.007 and 0.014. list_suspects and sharp_round were not measured.
#include "columns.cuh"
#include "kriging.cuh"

constexpr unsigned DO_NOT_USE = 1u, OUTLIER = 16u;
constexpr int GROWS = 4;  // as in gpucoron/ops/outlier_suspects.py

// As numpy.nan_to_num.
template <class T> __device__ __forceinline__ T finite_or_zero(T x) {
  if (isfinite(x)) return x;
  if (x != x) return T(0);
  const T most = value_of(key_of(inf_of<T>()) - 1);
  return x > T(0) ? most : -most;
}

// A byte for each pixel: is it an outlier, in even and in odd rounds, does it take part, and is it
// a suspect?
constexpr unsigned char USABLE = 4, SUSPECT = 8;
__device__ __forceinline__ unsigned char witness_of(bool usable, bool suspect) {
  return (usable ? USABLE : 0) | (suspect ? SUSPECT | 1 : 0);  // in round 0 all are outliers
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
      const bool usable = !(dq & DO_NOT_USE) && isfinite(e.data) && isfinite(e.err) && e.err > T(0);
      witness[i] = witness_of(usable, usable && outlier);
      outlier = false;
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
    unsigned char *__restrict__ witness, unsigned *__restrict__ counts, int *__restrict__ flagged) {
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

// The same for suspects that were found elsewhere.
__global__ void __launch_bounds__(256) mark_suspects(const bool *__restrict__ usable,
                                                     const bool *__restrict__ suspects,
                                                     long long size,
                                                     unsigned char *__restrict__ witness) {
  const long long i = flat_index();
  if (i < size) witness[i] = witness_of(usable[i], suspects[i]);
}

// Append to the list all usable pixels that are suspects or, of several integrations, touch GROWS.
__global__ void __launch_bounds__(256) list_suspects(const unsigned char *__restrict__ witness,
                                                     long long size, int n, int ny, int nx,
                                                     unsigned *__restrict__ list,
                                                     unsigned *__restrict__ counts) {
  const long long i = flat_index();
  if (i >= size || !(witness[i] & USABLE)) return;
  const int x = static_cast<int>(i % nx), y = static_cast<int>(i / nx % ny);
  int near = witness[i] & SUSPECT ? GROWS : 0;
  for (int v = max(y - 1, 0); n > 1 && v < min(y + 2, ny); ++v)
    for (int u = max(x - 1, 0); u < min(x + 2, nx); ++u)
      near += (witness[i + static_cast<long long>(v - y) * nx + (u - x)] & SUSPECT) != 0;
  if (near >= GROWS) list[atomicAdd(counts + 1, 1u)] = static_cast<unsigned>(i);
}

// As in gpucoron/ops/cpu/outliers.py.
constexpr int WINDOW = 16, MIDDLE = 4, TEMPLATES = 4, MOST_FITTED = 2 + TEMPLATES;
constexpr double RIDGE = 1e-6, INNOCENT = 3.0, TRUST = 2.0;

// One warp's view of an exposure, and of the suspect that it tests.
template <class T> struct Trial {
  using Scratch = KrigingScratch<NEAR>;
  static constexpr int MOST = Scratch::MOST;
  const T *data, *err;
  const double *gradients, *table;
  const unsigned char *witness;
  int n, ny, nx, now, i, y, x;
  long long n_pixels;
  int middle, templates, fitted;
  Scratch &s;
  int *chosen;

  struct Verdict {
    double left, own, spread;
    bool quiet;
  };

  __device__ __forceinline__ bool good(int j, long long q) const {
    const unsigned char w = witness[j * n_pixels + q];
    return (w & USABLE) && !(w >> now & 1);
  }

  // Which integrations to compare with: `most` of middling value, then `others` nearest in time.
  __device__ __forceinline__ void choose(int most, int others) {
    const int lane = threadIdx.x % 32;
    const long long p = static_cast<long long>(y) * nx + x;
    const int start = max(0, min(i - WINDOW / 2, n - WINDOW)), j = start + lane;
    const bool usable = lane < WINDOW && j < n && (witness[j * n_pixels + p] & USABLE);
    const bool in = lane < WINDOW && j < n && (j == i || (n == 2 ? usable : good(j, p)));
    const T value = in ? data[j * n_pixels + p] : T(0);
    const unsigned all = __ballot_sync(0xffffffffu, in);
    int rank = 0;
    for (int k = 0; k < WINDOW; ++k) {
      const T other = __shfl_sync(0xffffffffu, value, k);
      rank += (all >> k & 1u) && (other < value || (other == value && k < lane));
    }
    const int count = __popc(all), keep = count <= 2 ? count : min(most, count - 2);
    int low = (count - keep) / 2;
    if (keep == 1 && __shfl_sync(0xffffffffu, rank, i - start) == low) ++low;
    const bool central = in && j != i && rank >= low && rank < low + keep;
    const unsigned centrals = __ballot_sync(0xffffffffu, central);
    middle = __popc(centrals);
    const bool other = in && j != i && !central;
    const unsigned rest = __ballot_sync(0xffffffffu, other);
    const int key = 2 * abs(j - i) + (j > i);
    int place = 0;
    for (int k = 0; k < WINDOW; ++k)
      place += (rest >> k & 1u) && __shfl_sync(0xffffffffu, key, k) < key;
    templates = min(others, __popc(rest));
    if (central) chosen[__popc(centrals & ((1u << lane) - 1u))] = j;
    if (other && place < others) chosen[middle + place] = j;
    __syncwarp();
  }

  // Difference of integration `of` from the mean of the middling ones; templates into `row`.
  __device__ __forceinline__ double read(int of, long long q, bool keep, double *row, int step,
                                         double &own, double &base) const {
    double mean = 0.0;
    base = 0.0;
    for (int k = 0; k < middle; ++k) {
      const long long e = chosen[k] * n_pixels + q;
      mean += static_cast<double>(data[e]);
      base += static_cast<double>(err[e]) * static_cast<double>(err[e]);
    }
    if (middle) {
      mean /= middle;
      base /= middle * middle;
    }
    for (int k = 0; keep && k < fitted; ++k) row[k * step] = gradients[k * n_pixels + q];
    for (int k = 0; keep && k < templates; ++k)
      row[(fitted + k) * step] =
          static_cast<double>(data[chosen[middle + k] * n_pixels + q]) - mean;
    const double e = static_cast<double>(err[of * n_pixels + q]);
    own = e * e;
    return static_cast<double>(data[of * n_pixels + q]) - mean;
  }

  __device__ __forceinline__ bool is_neighbour(int of, int v, int u, int gap) const {
    const long long q = static_cast<long long>(v) * nx + u;
    if (!good(of, q)) return false;
    if (abs(v - y) <= gap && abs(u - x) <= gap && (witness[of * n_pixels + q] & SUSPECT))
      return false;
    for (int k = 0; k < middle + templates; ++k)
      if (!good(chosen[k], q)) return false;
    return true;
  }

  // Fit the values by the templates, whose rows are in s.column, and take the fit out of them.
  __device__ __forceinline__ void detrend(int n_values, double *here, double &fit, double &leverage,
                                          double &share, double &extra) const {
    const int lane = threadIdx.x % 32, count = fitted + templates;
    double *normal = here + MOST_FITTED, *right = normal + MOST_FITTED * MOST_FITTED;
    double *lever = right + MOST_FITTED, *scales = lever + MOST_FITTED;
    for (int k = 0; k < count; ++k) {
      double *row = s.column + k * MOST, sum = 0.0, square = 0.0, product = 0.0;
      for (int a = lane; a < n_values; a += 32) sum += row[a];
      const double mean = warp_sum(sum) / n_values;
      for (int a = lane; a < n_values; a += 32) {
        row[a] -= mean;
        square += row[a] * row[a];
      }
      square = warp_sum(square);
      const double scale = square > 0.0 ? sqrt(square) : 1.0;
      for (int a = lane; a < n_values; a += 32) {
        row[a] /= scale;
        product += row[a] * s.value[a];
      }
      product = warp_sum(product);
      for (int m = 0; m <= k; ++m) {
        double dot = 0.0;
        for (int a = lane; a < n_values; a += 32) dot += row[a] * s.column[m * MOST + a];
        dot = warp_sum(dot);
        if (lane == 0) normal[k * MOST_FITTED + m] = dot + (m == k ? RIDGE : 0.0);
      }
      if (lane == 0) {
        here[k] = lever[k] = (here[k] - mean) / scale;
        right[k] = product;
        scales[k] = scale;
      }
    }
    if (lane == 0) solve(normal, right, lever, count);
    __syncwarp();
    fit = leverage = share = extra = 0.0;
    for (int k = 0; k < count; ++k) {
      fit += right[k] * here[k];
      leverage += lever[k] * here[k];
      for (int a = lane; a < n_values; a += 32) s.value[a] -= right[k] * s.column[k * MOST + a];
      if (k < fitted) continue;
      const long long q =
          chosen[middle + k - fitted] * n_pixels + static_cast<long long>(y) * nx + x;
      const double c = right[k] / scales[k], e = static_cast<double>(err[q]);
      share += c;
      extra += c * c * e * e;
    }
  }

  // Solve a small positive definite system for two right sides, in place.
  __device__ __forceinline__ static void solve(double *matrix, double *right, double *lever,
                                               int count) {
    for (int j = 0; j < count; ++j) {
      for (int k = j; k < count; ++k) {
        double sum = matrix[k * MOST_FITTED + j];
        for (int m = 0; m < j; ++m)
          sum -= matrix[k * MOST_FITTED + m] * matrix[j * MOST_FITTED + m];
        matrix[k * MOST_FITTED + j] = k == j ? sqrt(sum) : sum / matrix[j * MOST_FITTED + j];
      }
    }
    for (int j = 0; j < count; ++j) {
      for (int m = 0; m < j; ++m) {
        right[j] -= matrix[j * MOST_FITTED + m] * right[m];
        lever[j] -= matrix[j * MOST_FITTED + m] * lever[m];
      }
      right[j] /= matrix[j * MOST_FITTED + j];
      lever[j] /= matrix[j * MOST_FITTED + j];
    }
    for (int j = count - 1; j >= 0; --j) {
      for (int m = j + 1; m < count; ++m) {
        right[j] -= matrix[m * MOST_FITTED + j] * right[m];
        lever[j] -= matrix[m * MOST_FITTED + j] * lever[m];
      }
      right[j] /= matrix[j * MOST_FITTED + j];
      lever[j] /= matrix[j * MOST_FITTED + j];
    }
  }

  // What the neighbours' prediction leaves of integration `of`, at the suspect's place.
  __device__ __forceinline__ Verdict predict(int of, int gap, bool if_quiet) const {
    constexpr int SPAN = 2 * NEAR + 1;
    const int lane = threadIdx.x % 32;
    double *here = s.column + MOST_FITTED * MOST;
    int n_values = 0;
    double noise = 0.0, own, base, sum = 0.0, power = 0.0;
    for (int first = 0; first < SPAN * SPAN; first += 32) {
      const int cell = first + lane, dy = cell / SPAN - NEAR, dx = cell % SPAN - NEAR;
      const int v = y + dy, u = x + dx, square = dy * dy + dx * dx;
      const bool found = cell < SPAN * SPAN && square > 0 && square <= NEAR * NEAR && v >= 0 &&
                         v < ny && u >= 0 && u < nx && is_neighbour(of, v, u, gap);
      const unsigned all = __ballot_sync(0xffffffffu, found);
      if (found) {
        const int slot = n_values + __popc(all & ((1u << lane) - 1u));
        const long long q = static_cast<long long>(v) * nx + u;
        s.value[slot] = read(of, q, true, s.column + slot, MOST, own, base);
        s.dy[slot] = dy;
        s.dx[slot] = dx;
        noise += own + base;
      }
      n_values += __popc(all);
    }
    const long long p = static_cast<long long>(y) * nx + x;
    const int count = fitted + templates;
    const double whole = read(of, p, lane == 0, here, 1, own, base);
    if (lane == 0) s.dy[n_values] = s.dx[n_values] = 0;
    __syncwarp();
    const double total = own + base;
    if (n_values < FEWEST) return {gap || !middle ? 0.0 : whole, total, 0.0, true};
    for (int a = lane; a < n_values; a += 32) sum += s.value[a];
    const double mean = warp_sum(sum) / n_values;
    noise = warp_sum(noise) / n_values;
    for (int a = lane; a < n_values; a += 32) {
      s.value[a] -= mean;
      power += s.value[a] * s.value[a];
    }
    double signal = warp_sum(power) / n_values - noise;
    const double left = whole - mean;
    if (signal <= MOSTLY_NOISE * noise)
      return {left, total, sqrt(signal > 0.0 ? signal : 0.0), true};
    if (if_quiet) return {left, total, 0.0, false};
    if (!count || n_values < FEWEST * (count + 1)) {
      const Prediction more = krige_values(n_values, 0.0, noise, signal, table, s);
      return {left - more.value, total, sqrt(more.variance), false};
    }
    double fit, leverage, share, extra;
    detrend(n_values, here, fit, leverage, share, extra);
    double all = own + (1.0 - share) * (1.0 - share) * base + extra;
    noise *= all / total;
    sum = power = 0.0;
    for (int a = lane; a < n_values; a += 32) sum += s.value[a];
    const double rest = warp_sum(sum) / n_values;
    for (int a = lane; a < n_values; a += 32) power += (s.value[a] - rest) * (s.value[a] - rest);
    signal = warp_sum(power) / (n_values - count - 1) - noise;
    all += (leverage < 1.0 ? leverage : 1.0) * noise;
    if (signal <= MOSTLY_NOISE * noise)
      return {left - fit - rest, all, sqrt(signal > 0.0 ? signal : 0.0), false};
    const Prediction more = krige_values(n_values, rest, noise, signal, table, s);
    return {left - fit - more.value, all, sqrt(more.variance), false};
  }

  __device__ __forceinline__ bool touches() const {
    bool found = false;
    for (int v = max(y - 1, 0); v < min(y + 2, ny); ++v)
      for (int u = max(x - 1, 0); u < min(x + 2, nx); ++u)
        found = found || ((v != y || u != x) &&
                          (witness[i * n_pixels + static_cast<long long>(v) * nx + u] & SUSPECT));
    return found;
  }

  // How far the suspect is from what is expected, in standard deviations; 0: not to blame.
  __device__ __forceinline__ double score(bool quick) {
    double worst = 0.0;
    int accused = i;
    bool quiet = false;
    for (int stage = 0; stage < 5; ++stage) {
      if (stage == 0) {
        fitted = 0;
        choose(MIDDLE, 0);
        if (n > 1 && !middle) {  // nobody to compare with: the verdict stays
          const long long q = i * n_pixels + static_cast<long long>(y) * nx + x;
          return !quick && (witness[q] >> now & 1) ? inf_of<double>() : 0.0;
        }
      } else if (stage == 1) {
        if (quiet) continue;
        fitted = n > 1 ? 2 : 0;
        choose(1, max(0, min(TEMPLATES, (n - 2) / 2)));
      } else if (stage == 2) {
        if (quick || !touches()) continue;
      } else {
        if (n != 2) break;
        if (stage == 3) accused = worst > 0.0 ? i : 1 - i;
        middle = templates = fitted = 0;
      }
      const Verdict v = predict(stage < 3    ? i
                                : stage == 3 ? accused
                                             : 1 - accused,
                                stage == 2, stage == 0);
      if (stage == 0) quiet = v.quiet;
      if (stage == 0 && !quiet) {
        if (quick) return 0.0;
        continue;
      }
      const double sigma = sqrt(v.own + v.spread * v.spread);
      if (stage == 3) {
        if (!(fabs(v.left) <= INNOCENT * sigma)) break;
      } else if (stage == 4) {
        if (v.left < -2.0 * INNOCENT * sigma) accused = 1 - accused;
      } else {
        double one = v.left / sigma;
        if (n == 1 && !(v.spread <= TRUST * sqrt(v.own))) one = 0.0;
        if (stage < 2 || fabs(one) > fabs(worst)) worst = one;
      }
    }
    return accused == i && (n > 1 || worst > 0.0) ? fabs(worst) : 0.0;
  }
};

// Which suspects exceed `limit`? `changed[round]` becomes 1 where a verdict is another than in the
// round before; a round with `wait` does nothing if that changed none.
template <class T>
__global__ void __launch_bounds__(128) sharp_round(
    const T *__restrict__ data, const T *__restrict__ err, const double *__restrict__ gradients,
    const double *__restrict__ table, int n, int ny, int nx, double limit, double last, int round,
    int wait, const unsigned *__restrict__ list, const unsigned *__restrict__ counts,
    unsigned char *witness, int *changed) {
  __shared__ KrigingScratch<NEAR> scratch[4];
  __shared__ int chosen[4][WINDOW];
  if (wait && !changed[round - 1]) return;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, now = round & 1;
  const long long n_pixels = static_cast<long long>(ny) * nx;
  for (unsigned c = blockIdx.x * 4 + warp; c < counts[1]; c += gridDim.x * 4) {
    const unsigned i = list[c];
    const int k = static_cast<int>(i / n_pixels), p = static_cast<int>(i % n_pixels);
    Trial<T> trial = {data,     err, gradients, table, witness,       n,
                      ny,       nx,  now,       k,     p / nx,        p % nx,
                      n_pixels, 0,   0,         0,     scratch[warp], chosen[warp]};
    const unsigned char w = witness[i];
    const bool before = w >> now & 1;
    const bool guilty = trial.score(round == 0) > (before ? last : limit);
    if (lane > 0) continue;
    witness[i] = (w & (USABLE | SUSPECT)) | before << now | guilty << (1 - now);
    if (guilty != before) changed[round] = 1;
  }
}

// Name the guilty of a list in `out`, which else stays as it is. `last`: the round that would come.
__global__ void __launch_bounds__(256) name_guilty(const unsigned *__restrict__ list,
                                                   const unsigned *__restrict__ counts,
                                                   const unsigned char *__restrict__ witness,
                                                   int last, bool *__restrict__ out) {
  for (unsigned c = flat_index(); c < counts[1]; c += gridDim.x * blockDim.x)
    out[list[c]] = witness[list[c]] >> (last & 1) & 1;
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
    if (!(witness[i] >> (last & 1) & 1)) continue;
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
// instantiate: sharp_round<float>
// instantiate: sharp_round<double>
// instantiate: strike<float>
// instantiate: strike<double>
// instantiate: name_guilty
