// Compare a suspect with what its neighbours and the other integrations predict, by one warp.
//
// The difference from integrations of middling value is predicted by the neighbours' differences:
// their mean where they hold nothing but noise; otherwise a fit by the image's slopes and other
// integrations, and kriging of what the fit leaves. The rows of the fit lie where kriging later
// factors its matrix. Sums go over fixed pairs of lanes; which lane collects which neighbour
// follows from the neighbours alone.
#pragma once
#include "kriging.cuh"
#include "outlier_state.cuh"

// As in gpucoron/ops/cpu/outliers.py.
constexpr int GROWS = 4;  // as in gpucoron/ops/outlier_suspects.py
constexpr int WINDOW = 16, MIDDLE = 4, TEMPLATES = 4, MOST_FITTED = 2 + TEMPLATES;
constexpr double RIDGE = 1e-6, MODEL_ERROR = 0.2, DARK = 0.6, PREDICTED = 3.0;

// One warp's view of an exposure, and of the suspect that it tests.
template <class T> struct SuspectTest {
  using Scratch = KrigingScratch<NEAR>;
  static constexpr int MOST = Scratch::MOST;
  const T *data, *err;
  const double *gradients, *table;
  const unsigned char *state;
  int n, ny, nx, now, i, y, x;
  long long n_pixels;
  int middle, templates, fitted;
  Scratch &s;
  int *chosen;

  struct Residual {
    double left, own, spread;
    bool quiet;
  };

  __device__ __forceinline__ bool good(int j, long long q) const {
    const unsigned char w = state[j * n_pixels + q];
    return (w & USABLE) && !(w >> now & 1);
  }

  // Which integrations to compare with: `most` of middling value, then `others` nearest in time.
  __device__ __forceinline__ void choose(int most, int others) {
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
    __syncwarp();  // untested: all lanes know what is chosen; barriers follow before most reads
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
    if (abs(v - y) <= gap && abs(u - x) <= gap && (state[of * n_pixels + q] & SUSPECT))
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

  // What kriging leaves of a change; it is wrong by a share of what it predicts, too.
  __device__ __forceinline__ Residual kriged(double change, double noise, const Prediction &more,
                                             double mean) const {
    // not where it only decides which of two integrations is hit; of one integration how well the
    // model fits the neighbours tells how good it is
    const double share = n == 1 ? 0.5 * MODEL_ERROR : middle ? MODEL_ERROR : 0.0;
    const double wrong = share * (more.value - mean);
    const double scale = n == 1 && more.misfit > 1.0 ? more.misfit : 1.0;
    return {change - more.value, noise + wrong * wrong, sqrt(scale * more.variance), false};
  }

  // What the neighbours' prediction leaves of integration `of`, at the suspect's place.
  __device__ __forceinline__ Residual predict(int of, int gap, bool if_quiet) const {
    constexpr int SPAN = 2 * NEAR + 1;
    const int lane = threadIdx.x % 32;
    double *here = s.column + MOST_FITTED * MOST;
    int n_values = 0;
    double noise = 0.0, own, base, sum = 0.0, power = 0.0;
    __syncwarp();  // untested: all lanes are done with the scratch memory
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
      return kriged(left, total, more, 0.0);
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
    return kriged(left - fit, all, more, rest);
  }

  __device__ __forceinline__ int suspects_beside() const {
    int count = 0;
    for (int v = max(y - 1, 0); v < min(y + 2, ny); ++v)
      for (int u = max(x - 1, 0); u < min(x + 2, nx); ++u)
        count += (v != y || u != x) &&
                 (state[i * n_pixels + static_cast<long long>(v) * nx + u] & SUSPECT);
    return count;
  }

  // How far the suspect deviates from its prediction, in standard deviations; 0: another
  // integration is the outlier, or nothing is known.
  __device__ __forceinline__ double score(bool quick) {
    double worst = 0.0;
    int hit = i;
    bool quiet = false;
    for (int stage = 0; stage < 5; ++stage) {
      if (stage == 0) {
        fitted = 0;
        choose(MIDDLE, 0);
        if (n > 1 && !middle) {  // nobody to compare with: it stays what it is
          const long long q = i * n_pixels + static_cast<long long>(y) * nx + x;
          return !quick && (state[q] >> now & 1) ? inf_of<double>() : 0.0;
        }
      } else if (stage == 1) {
        if (quiet) continue;
        fitted = n > 1 ? 2 : 0;
        choose(1, max(0, min(TEMPLATES, (n - 1) / 2)));
      } else if (stage == 2) {
        const int beside = quick ? 0 : suspects_beside();
        if (!beside || (n == 1 && beside >= GROWS)) continue;
      } else {
        if (n != 2) break;
        if (stage == 3) hit = worst > 0.0 ? i : 1 - i;
        middle = templates = fitted = 0;
      }
      const Residual v = predict(stage < 3    ? i
                                 : stage == 3 ? hit
                                              : 1 - hit,
                                 stage == 2, stage == 0);
      if (stage == 0) quiet = v.quiet;
      if (stage == 0 && !quiet) {
        if (quick) return 0.0;
        continue;
      }
      const double sigma = sqrt(v.own + v.spread * v.spread);
      if (stage == 3) {
        if (!(fabs(v.left) <= PREDICTED * sigma)) break;
      } else if (stage == 4) {
        if (v.left < -2.0 * PREDICTED * sigma) hit = 1 - hit;
      } else {
        double one = v.left / sigma;
        if (n > 2 && one < 0.0 && !v.quiet) one *= DARK;  // hits are bright
        if (stage < 2 || fabs(one) > fabs(worst)) worst = one;
      }
    }
    return hit == i && (n > 1 || worst > 0.0) ? fabs(worst) : 0.0;
  }
};
