// fit_pairs: the maximum of ln(C^2 / B) in a box, for C and B given as Chebyshev series there.
//
// The best point of a coarse grid (whose values the host has made by matrix products), then
// Newton's method with exact derivatives, a step up the gradient where the function is not concave,
// steps halved until the function does not fall. The same steps and limits as ops/cpu/registration.py.
//
// Mapping: one warp a pair, several warps a block, no barriers but a warp's own. Lane m has the
// columns m and m + 32 of a series, sums them over the rows with T_j, T'_j, T''_j, and six warp
// sums give value, gradient and Hessian with the same bits in every lane, so that all lanes decide
// alike. Bytes a pair: 7 kB of C, from memory once and from L1 afterwards; B's 14 kB serve all
// references whose boxes coincide. 8,000 FMA an evaluation, five to ten evaluations a pair.
// Measured on an NVIDIA H200: 0.18 ms for 7,200 pairs of 320 x 320, 0.65 ms in a run of 21,600. One
// thread a pair would read C uncoalesced and need 20 kB of its own.
#pragma once
#include "common.cuh"

namespace newton {
constexpr double STEP_TOLERANCE = 1e-8;  // pixels
constexpr double SAME = 2e-12;           // share of C^2 / B that rounding may take off
constexpr int MAX_ITERATIONS = 40;
constexpr double LONGEST_STEP = 0.2;  // in units of the box
constexpr int WARPS = 4;              // of a block; ops/cuda/registration.py knows

struct Jet {  // value, gradient and Hessian in units of the box
  double v, y, x, yy, xy, xx;
};

// T_j and its derivatives, (3, TERMS) in `to`.
template <int TERMS> __device__ void chebyshev(double t, double *to) {
  double *p = to, *d = to + TERMS, *dd = to + 2 * TERMS;
  p[0] = 1.0, d[0] = 0.0, dd[0] = 0.0;
  p[1] = t, d[1] = 1.0, dd[1] = 0.0;
  for (int j = 2; j < TERMS; ++j) {
    p[j] = 2.0 * t * p[j - 1] - p[j - 2];
    d[j] = 2.0 * p[j - 1] + 2.0 * t * d[j - 1] - d[j - 2];
    dd[j] = 4.0 * d[j - 1] + 2.0 * t * dd[j - 1] - dd[j - 2];
  }
}

// A series (SIZE, SIZE) at the point whose polynomials stand in `of_y` and `of_x` (3, TERMS).
template <int SIZE, int TERMS>
__device__ Jet evaluate(const double *__restrict__ series, const double *of_y, const double *of_x,
                        int lane) {
  Jet out = {};
  for (int m = lane; m < SIZE; m += 32) {
    double s = 0.0, ds = 0.0, dds = 0.0;
    for (int j = 0; j < SIZE; ++j) {
      const double c = series[j * SIZE + m];
      s += of_y[j] * c;
      ds += of_y[TERMS + j] * c;
      dds += of_y[2 * TERMS + j] * c;
    }
    out.v += s * of_x[m];
    out.y += ds * of_x[m];
    out.x += s * of_x[TERMS + m];
    out.yy += dds * of_x[m];
    out.xy += ds * of_x[TERMS + m];
    out.xx += s * of_x[2 * TERMS + m];
  }
  return {warp_sum(out.v),  warp_sum(out.y),  warp_sum(out.x),
          warp_sum(out.yy), warp_sum(out.xy), warp_sum(out.xx)};
}

// C^2 / B, or 0 where the brightness would not be positive.
__device__ __forceinline__ double score(double c, double b) {
  return c > 0.0 && b > 0.0 ? c / b * c : 0.0;
}

// The first of the grid's points (in reading order) with the best score; -1 where none has a
// positive brightness.
__device__ __forceinline__ int best_point(const double *__restrict__ c,
                                          const double *__restrict__ b, int n, int lane) {
  double best = 0.0;
  int at = -1;
  for (int i = lane; i < n; i += 32) {
    const double value = score(c[i], b[i]);
    if (value > best) best = value, at = i;
  }
  for (int step = 16; step > 0; step >>= 1) {
    const double value = __shfl_xor_sync(0xffffffffu, best, step);
    const int index = __shfl_xor_sync(0xffffffffu, at, step);
    if (index >= 0 && (at < 0 || value > best || (value == best && index < at)))
      best = value, at = index;
  }
  return at;
}

struct Step {
  double y, x;
  bool concave;
};

// Newton's step for ln(C^2 / B), or one up the gradient where it is not concave.
__device__ __forceinline__ Step ascent_step(const Jet &c, const Jet &b) {
  const double cy = c.y / c.v, cx = c.x / c.v, by = b.y / b.v, bx = b.x / b.v;
  const double gy = 2.0 * cy - by, gx = 2.0 * cx - bx;
  const double hyy = 2.0 * (c.yy / c.v - cy * cy) - b.yy / b.v + by * by;
  const double hxy = 2.0 * (c.xy / c.v - cy * cx) - b.xy / b.v + by * bx;
  const double hxx = 2.0 * (c.xx / c.v - cx * cx) - b.xx / b.v + bx * bx;
  const double det = hyy * hxx - hxy * hxy;
  Step step = {-(hxx * gy - hxy * gx) / det, -(hyy * gx - hxy * gy) / det, true};
  if (!(hyy < 0.0 && det > 0.0)) {
    const double norm = sqrt(gy * gy + gx * gx) + 1e-300;
    step = {LONGEST_STEP * gy / norm, LONGEST_STEP * gx / norm, false};
  }
  const double length = sqrt(step.y * step.y + step.x * step.x);
  if (length > LONGEST_STEP) {
    step.y *= LONGEST_STEP / length;
    step.x *= LONGEST_STEP / length;
  }
  return step;
}

__device__ __forceinline__ double within_box(double t) { return min(1.0, max(-1.0, t)); }
}  // namespace newton

// Grid and block: (pairs / newton::WARPS, rounded up), (32 newton::WARPS). c_series: (n, TC, TC);
// b_series: (., TB, TB) of which pair p uses b_index[p]; c_grid, b_grid: their values on the points
// grid x grid (n_grid 0: start in the middle); power: (n,), sum m^2 p^2. out: (n, 9), rows of dy,
// dx (px), beta, their errors, residual, converged, iterations.
template <int TC, int TB>
__global__ void __launch_bounds__(32 * newton::WARPS) fit_pairs(
    const double *__restrict__ c_series, const double *__restrict__ b_series,
    const int *__restrict__ b_index, const double *__restrict__ c_grid,
    const double *__restrict__ b_grid, const double *__restrict__ grid, int n_grid,
    const double *__restrict__ power, double total, double dof, double half_width, int n,
    double *__restrict__ out) {
  using namespace newton;
  static_assert(TC <= TB, "the polynomials are made for the longer series");
  __shared__ double polynomials[WARPS][2][3 * TB];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int pair = blockIdx.x * WARPS + warp;
  if (pair >= n) return;
  const double *of_y = polynomials[warp][0], *of_x = polynomials[warp][1];
  const double *cs = c_series + static_cast<long long>(pair) * (TC * TC);
  const double *bs = b_series + static_cast<long long>(b_index[pair]) * (TB * TB);
  Jet c, b;
  auto evaluate_at = [&](double y, double x) {
    __syncwarp();  // untested: the sums before it hold the lanes together, but not their memory
    if (lane < 2) chebyshev<TB>(lane == 0 ? y : x, polynomials[warp][lane]);
    __syncwarp();
    c = evaluate<TC, TB>(cs, of_y, of_x, lane);
    b = evaluate<TB, TB>(bs, of_y, of_x, lane);
  };

  double ty = 0.0, tx = 0.0;
  if (n_grid > 0) {
    const int points = n_grid * n_grid;
    const double *of_c = c_grid + static_cast<long long>(pair) * points;
    const double *of_b = b_grid + static_cast<long long>(b_index[pair]) * points;
    const int at = best_point(of_c, of_b, points, lane);
    if (at >= 0) ty = grid[at / n_grid], tx = grid[at % n_grid];
  }
  evaluate_at(ty, tx);
  double value = score(c.v, b.v);
  bool converged = false;
  int iterations = 0;
  const bool bright = !(c.v <= 0.0 || b.v <= 0.0);
  while (bright && iterations < MAX_ITERATIONS) {
    ++iterations;
    const Step step = ascent_step(c, b);
    double fraction = 1.0, y, x, next;
    while (true) {
      y = within_box(ty + fraction * step.y), x = within_box(tx + fraction * step.x);
      evaluate_at(y, x);
      next = score(c.v, b.v);
      if (next >= (1.0 - SAME) * value || fraction < 1e-3) break;
      fraction *= 0.5;
    }
    const double moved = half_width * sqrt((y - ty) * (y - ty) + (x - tx) * (x - tx));
    ty = y, tx = x, value = next;
    if (moved < STEP_TOLERANCE) {
      converged = step.concave && fabs(ty) < 1.0 && fabs(tx) < 1.0 && fraction == 1.0;
      break;
    }
  }
  if (lane > 0) return;

  const double beta = b.v > 0.0 ? c.v / b.v : 0.0, left = max(0.0, power[pair] - c.v * beta);
  const double s1 = 1.0 / half_width, s2 = s1 * s1;
  const double yy = (beta * beta * b.yy - 2.0 * beta * c.yy) * s2;
  const double xy = (beta * beta * b.xy - 2.0 * beta * c.xy) * s2;
  const double xx = (beta * beta * b.xx - 2.0 * beta * c.xx) * s2;
  const double yb = 2.0 * (beta * b.y - c.y) * s1, xb = 2.0 * (beta * b.x - c.x) * s1;
  const double bb = 2.0 * b.v;
  const double det = yy * (xx * bb - xb * xb) - xy * (xy * bb - yb * xb) + yb * (xy * xb - xx * yb);
  const double diagonal[3] = {xx * bb - xb * xb, yy * bb - yb * yb, yy * xx - xy * xy};
  double *row = out + static_cast<long long>(pair) * 9;
  row[0] = ty * half_width, row[1] = tx * half_width, row[2] = beta;
#pragma unroll
  for (int k = 0; k < 3; ++k)
    row[3 + k] = det > 0.0 && diagonal[k] > 0.0 ? sqrt(2.0 * left / dof * (diagonal[k] / det))
                                                : nan_of<double>();
  row[6] = sqrt(left / total);
  row[7] = converged ? 1.0 : 0.0;
  row[8] = iterations;
}
