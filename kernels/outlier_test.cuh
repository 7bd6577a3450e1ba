// Compare a suspect with what its neighbours predict, by one warp.
//
// The difference from integrations of middling value is predicted by the neighbours' differences:
// their mean where they hold nothing but noise, otherwise kriging, each neighbour with its noise.
// The BESIDE nearest neighbours come last. Those that stand out are taken out of the prediction by
// the trailing block L of the factored matrix alone: an unknown value is one with an unknown
// excess, and the normal equations of the excesses are (L L^T)^-1. They lie where the columns of
// the others were. Sums go over fixed pairs of lanes; which lane collects which neighbour follows
// from the neighbours alone.
#pragma once
#include "kriging.cuh"
#include "outlier_state.cuh"

// As in gpucoron/ops/cpu/outliers.py.
constexpr int GROWS = 4;  // as in gpucoron/ops/outlier_suspects.py
constexpr int WINDOW = 16, MIDDLE = 4, BESIDE = 12, BESIDE_SQUARE = 4;
constexpr double STANDS_OUT = 2.5, MODEL_ERROR = 0.05, ALONE_ERROR = 0.1;
constexpr double CHANGING = 1.15, DARK = 0.6, PREDICTED = 3.0;

// One warp's view of an exposure, and of the suspect that it tests.
template <class T> struct SuspectTest {
  using Scratch = KrigingScratch<NEAR>;
  static constexpr int MOST = Scratch::MOST;
  const T *data, *err;
  const double *table;
  const unsigned char *state;
  int n, ny, nx, now, i, y, x;
  long long n_pixels;
  int middle;
  Scratch &s;
  double *noises;  // of the neighbours' values, variances
  int *chosen;

  struct Residual {
    double left, variance;
    bool quiet;
  };

  __device__ __forceinline__ bool good(int j, long long q) const {
    const unsigned char w = state[j * n_pixels + q];
    return (w & USABLE) && !(w >> now & 1);
  }

  // Which integrations to compare with: up to MIDDLE of middling value.
  __device__ __forceinline__ void choose() {
    __syncwarp();  // untested: all lanes have read what was chosen before
    const int lane = threadIdx.x % 32;
    const long long p = static_cast<long long>(y) * nx + x;
    const int start = max(0, min(i - WINDOW / 2, n - WINDOW)), j = start + lane;
    const bool usable = lane < WINDOW && j < n && (state[j * n_pixels + p] & USABLE);
    const bool in = lane < WINDOW && j < n && (j == i || (n == 2 ? usable : good(j, p)));
    const T value = in ? data[j * n_pixels + p] : T(0);
    const unsigned all = __ballot_sync(0xffffffffu, in);
    int rank = 0;
    for (int k = 0; k < WINDOW; ++k) {
      const T other = __shfl_sync(0xffffffffu, value, k);
      rank += (all >> k & 1u) && (other < value || (other == value && k < lane));
    }
    const int count = __popc(all), keep = count <= 3 ? count : min(MIDDLE, count - 2);
    int low = (count - keep) / 2;
    if (keep == 1 && __shfl_sync(0xffffffffu, rank, i - start) == low) ++low;
    const bool central = in && j != i && rank >= low && rank < low + keep;
    const unsigned centrals = __ballot_sync(0xffffffffu, central);
    middle = __popc(centrals);
    if (central) chosen[__popc(centrals & ((1u << lane) - 1u))] = j;
    __syncwarp();  // untested: all lanes know what is chosen; barriers follow before most reads
  }

  // Difference of integration `of` from the mean of the middling ones, and its noise variance.
  __device__ __forceinline__ double read(int of, long long q, double &noise) const {
    double mean = 0.0, base = 0.0;
    for (int k = 0; k < middle; ++k) {
      const long long e = chosen[k] * n_pixels + q;
      mean += static_cast<double>(data[e]);
      base += static_cast<double>(err[e]) * static_cast<double>(err[e]);
    }
    if (middle) {
      mean /= middle;
      base /= middle * middle;
    }
    const double e = static_cast<double>(err[of * n_pixels + q]);
    noise = e * e + base;
    return static_cast<double>(data[of * n_pixels + q]) - mean;
  }

  __device__ __forceinline__ bool is_neighbour(int of, int v, int u) const {
    const long long q = static_cast<long long>(v) * nx + u;
    if (!good(of, q)) return false;
    for (int k = 0; k < middle; ++k)
      if (!good(chosen[k], q)) return false;
    return true;
  }

  // Collect the neighbours, the nearest last; returns how many. `beside`: how many of the nearest.
  __device__ __forceinline__ int collect(int of, int &beside) const {
    constexpr int SPAN = 2 * NEAR + 1;
    const int lane = threadIdx.x % 32;
    int count = 0;
    __syncwarp();  // untested: all lanes are done with the scratch memory
    for (int nearest = 0; nearest < 2; ++nearest) {
      const int before = count;
      for (int first = 0; first < SPAN * SPAN; first += 32) {
        const int cell = first + lane, dy = cell / SPAN - NEAR, dx = cell % SPAN - NEAR;
        const int v = y + dy, u = x + dx, square = dy * dy + dx * dx;
        const bool found = cell < SPAN * SPAN && square > 0 && square <= NEAR * NEAR &&
                           (square <= BESIDE_SQUARE) == (nearest != 0) && v >= 0 && v < ny &&
                           u >= 0 && u < nx && is_neighbour(of, v, u);
        const unsigned all = __ballot_sync(0xffffffffu, found);
        if (found) {
          const int slot = count + __popc(all & ((1u << lane) - 1u));
          s.value[slot] = read(of, static_cast<long long>(v) * nx + u, noises[slot]);
          s.dy[slot] = dy;
          s.dx[slot] = dx;
        }
        count += __popc(all);
      }
      beside = count - before;
    }
    if (lane == 0) s.dy[count] = s.dx[count] = 0;
    __syncwarp();  // untested: a ballot without neighbours, and sums, come before what is read
    return count;
  }

  // The excesses' equations: column c of L^-T L^-1, of L^-T y, then of L^-T z, one for each lane.
  __device__ __forceinline__ void excess_equations(int count, int beside, double *excess) const {
    const int c = threadIdx.x % 32, first = count - beside;
    double column[BESIDE];
    const auto element = [&](int a, int k) {  // of the factored matrix, a >= k, in the block
      const int j = first + k;
      return s.column[j * (count + 2) - j * (j - 1) / 2 + first + a - j];
    };
#pragma unroll  // with fixed bounds, so that the column stays in registers
    for (int a = 0; a < BESIDE; ++a) {
      if (c >= beside + 2 || a >= beside) continue;
      if (c >= beside) {
        const int j = first + a;
        column[a] = s.column[j * (count + 2) - j * (j - 1) / 2 + count - j + c - beside];
        continue;
      }
      column[a] = a == c ? 1.0 : 0.0;
#pragma unroll
      for (int k = 0; k < a; ++k) column[a] -= element(a, k) * column[k];
      column[a] /= element(a, a);
    }
#pragma unroll
    for (int a = BESIDE - 1; a >= 0; --a) {
      if (c >= beside + 2 || a >= beside) continue;
#pragma unroll
      for (int k = a + 1; k < BESIDE; ++k)
        if (k < beside) column[a] -= element(k, a) * column[k];
      column[a] /= element(a, a);
    }
    __syncwarp();  // untested: all lanes have read the columns that become the equations
#pragma unroll
    for (int a = 0; a < BESIDE; ++a)
      if (c < beside + 2 && a < beside) excess[a * (BESIDE + 2) + c] = column[a];
    __syncwarp();
  }

  // Take the neighbours that stand out, of squares above `limit`, out of a prediction and of the sum
  // of squares; returns how many.
  __device__ __forceinline__ int leave_out(int count, int beside, double limit, double &value,
                                           double &unknown, double &squares) const {
    constexpr int WIDTH = BESIDE + 2, SIZE = BESIDE * WIDTH;
    constexpr int ROOM = sizeof(s.column) / sizeof(double);
    const int c = threadIdx.x % 32;
    // before the block, or behind the matrix where it is small
    double *excess = count * (count + 5) / 2 + SIZE <= ROOM ? s.column + ROOM - SIZE : s.column;
    excess_equations(count, beside, excess);
    int step = 0;
    for (; step < beside; ++step) {
      double most = limit;
      int p = -1;
      for (int a = 0; a < beside; ++a) {
        const double own = excess[a * WIDTH + a], z = excess[a * WIDTH + beside + 1];
        if (own > 0.0 && z * z > most * own) {
          most = z * z / own;
          p = a;
        }
      }
      if (p < 0) break;
      const double *row = excess + p * WIDTH;
      const double pivot = row[p], with_pixel = row[beside];
      value -= with_pixel * row[beside + 1] / pivot;
      unknown += with_pixel * with_pixel / pivot;
      squares -= most;
      double shares[BESIDE];
#pragma unroll
      for (int a = 0; a < BESIDE; ++a)
        shares[a] = a < beside && a != p && excess[a * WIDTH + a] > 0.0
                        ? excess[a * WIDTH + p] / pivot
                        : 0.0;
      __syncwarp();  // untested: all lanes have read what changes
      if (c < beside + 2) {
        const double of_row = row[c];
#pragma unroll
        for (int a = 0; a < BESIDE; ++a)
          if (a < beside && a != p) excess[a * WIDTH + c] -= shares[a] * of_row;
        if (c == p) excess[p * WIDTH + p] = 0.0;
      }
      __syncwarp();
    }
    return step;
  }

  // What the neighbours' prediction leaves of integration `of`, at the suspect's place.
  __device__ __forceinline__ Residual predict(int of, bool if_quiet) const {
    const int lane = threadIdx.x % 32;
    int beside;
    const int count = collect(of, beside);
    double variance, sum = 0.0, noise = 0.0, power = 0.0;
    const double whole = read(of, static_cast<long long>(y) * nx + x, variance);
    if (count < FEWEST) return {middle ? whole : 0.0, variance, true};
    for (int a = lane; a < count; a += 32) {
      sum += s.value[a];
      noise += noises[a];
    }
    const double mean = warp_sum(sum) / count;
    noise = warp_sum(noise) / count;
    for (int a = lane; a < count; a += 32) power += (s.value[a] - mean) * (s.value[a] - mean);
    const double signal = warp_sum(power) / count - noise, left = whole - mean;
    if (signal <= MOSTLY_NOISE * noise)
      return {left, variance + (signal > 0.0 ? signal : 0.0), true};
    if (if_quiet) return {left, variance, false};
    const auto nugget = [&](int a) {
      const double ratio = noises[a] / signal;
      return ratio > NOISE_FLOOR ? ratio : NOISE_FLOOR;
    };
    double value = 0.0, unknown = 1.0, misfit = 1.0;
    if (factor(count, mean, nugget, table, s)) {
      const Explained sums = explained_by(count, s);
      value = sums.value;
      unknown -= sums.pixel;
      misfit = sums.values / (count * signal);
      const double worse = n == 1 && misfit > 1.0 ? misfit : 1.0;
      const double limit = STANDS_OUT * STANDS_OUT * signal * worse;
      double squares = sums.values;
      const int left_out = leave_out(count, beside, limit, value, unknown, squares);
      misfit = squares / (max(count - left_out, 1) * signal);
    }
    // the share not where it only decides which of two integrations is hit; of one integration how
    // well the model fits the neighbours tells how good it is
    const double wrong = (n == 1 ? ALONE_ERROR : middle ? MODEL_ERROR : 0.0) * value;
    if (n == 1 && misfit > 1.0) unknown *= misfit;
    variance += wrong * wrong;
    return {left - value, variance + (unknown > 0.0 ? signal * unknown : 0.0), false};
  }

  // How far the suspect deviates from its prediction, in standard deviations; 0: another
  // integration is the outlier, or nothing is known.
  __device__ __forceinline__ double score(bool quick) {
    double worst = 0.0;
    int hit = i;
    for (int stage = 0; stage < 3; ++stage) {
      if (stage == 0) {
        choose();
        if (n > 1 && !middle) {  // nobody to compare with: it stays what it is
          const long long q = i * n_pixels + static_cast<long long>(y) * nx + x;
          return !quick && (state[q] >> now & 1) ? inf_of<double>() : 0.0;
        }
      } else {
        if (n != 2) break;
        if (stage == 1) hit = worst > 0.0 ? i : 1 - i;
        middle = 0;
      }
      const Residual v = predict(stage == 0 ? i : stage == 1 ? hit : 1 - hit, quick && stage == 0);
      const double sigma = sqrt(v.variance);
      if (stage == 0) {
        if (quick && !v.quiet) return 0.0;
        worst = v.left / sigma;
        if (n > 1 && !v.quiet) worst *= CHANGING;
        if (n > 2 && !v.quiet && worst < 0.0) worst *= DARK;  // hits are bright
      } else if (stage == 1) {
        if (!(fabs(v.left) <= PREDICTED * sigma)) break;
      } else if (v.left < -2.0 * PREDICTED * sigma) {
        hit = 1 - hit;
      }
    }
    return hit == i && (n > 1 || worst > 0.0) ? fabs(worst) : 0.0;
  }
};
