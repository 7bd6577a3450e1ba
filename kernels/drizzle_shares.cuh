// Which output pixels the drop of one input pixel reaches, and the share of its weight that each
// receives. The arithmetic is that of gpucoron/ops/cpu/drizzle.py and drizzle_separable.py,
// operation by operation: whether a sliver of an overlap is 0 or 1e-17 decides a bit of the
// context, so no product here may be fused with a sum.
#pragma once
#include "common.cuh"

constexpr int SQUARE = 0, POINT = 1, TURBO = 2, GAUSSIAN = 3, LANCZOS = 4;

__device__ __forceinline__ double product(double a, double b) { return __dmul_rn(a, b); }

// Nearest integer, halves away from zero.
__device__ __forceinline__ double nearest(double value) {
  return copysign(floor(fabs(value) + 0.5), value);
}

// Rounded to single precision and back. A cast would make 0 of what is subnormal there (CuPy
// compiles with -ftz=true), and with it clear a bit of the context.
__device__ __forceinline__ double to_single(double value) {
  constexpr double least = 0x1p-126, shift = 0x1.8p-97;  // 2^52 times the spacing below `least`
  if (fabs(value) < least) return __dsub_rn(__dadd_rn(value, shift), shift);
  return static_cast<float>(value);
}

// A range of output pixels along an axis; empty where the first is beyond the last.
struct Range {
  int first, last;
};

__device__ __forceinline__ Range inside(double low, double high, int size) {
  low = max(low, 0.0), high = min(high, size - 1.0);
  Range none = {0, -1};
  if (!(low <= high)) return none;
  Range some = {static_cast<int>(low), static_cast<int>(high)};
  return some;
}

// ------------------------------------------------------------------------------------- square
struct Quad {
  double x[4], y[4];
};

// The map at a corner of a pixel, bilinear between centres and beyond them at the map's edge.
__device__ __forceinline__ double2 map_at(const double *map, int ny, int nx, double x, double y) {
  const int i = min(max(static_cast<int>(x), 0), nx - 2);
  const int j = min(max(static_cast<int>(y), 0), ny - 2);
  const double u = x - i, v = y - j, u1 = 1.0 - u, v1 = 1.0 - v;
  const double *low = map + 2 * (static_cast<size_t>(j) * nx + i), *high = low + 2 * nx;
  double at[2];
#pragma unroll
  for (int axis = 0; axis < 2; ++axis)
    at[axis] = product(product(low[axis], u1), v1) + product(product(low[axis + 2], u), v1) +
               product(product(high[axis], u1), v) + product(product(high[axis + 2], u), v);
  return make_double2(at[0], at[1]);
}

// The corners of pixel (j, i) shrunk to `half` its half-width; false where the map has an end.
__device__ __forceinline__ bool corners(const double *map, int ny, int nx, int j, int i,
                                        double half, Quad &quad) {
  if (0 < i && i < nx - 2 && 0 < j && j < ny - 2) {
    const double centre = product(1 - half, 1 - half), side = product(1 - half, half);
    const double corner = product(half, half);
    const double *at = map + 2 * (static_cast<size_t>(j) * nx + i);
    const long long row = 2LL * nx;
#pragma unroll
    for (int axis = 0; axis < 2; ++axis) {
      const double *c = at + axis;
      const double c00 = product(c[-row - 2], corner), c01 = product(c[-row], side);
      const double c02 = product(c[-row + 2], corner), c10 = product(c[-2], side);
      const double c11 = product(c[0], centre), c12 = product(c[2], side);
      const double c20 = product(c[row - 2], corner), c21 = product(c[row], side);
      const double c22 = product(c[row + 2], corner);
      double *out = axis == 0 ? quad.x : quad.y;
      out[0] = c10 + c11 + c20 + c21;
      out[1] = c11 + c12 + c21 + c22;
      out[2] = c01 + c02 + c11 + c12;
      out[3] = c00 + c01 + c10 + c11;
    }
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const double x = k == 0 || k == 3 ? i - half : i + half;
      const double2 at = map_at(map, ny, nx, x, k < 2 ? j + half : j - half);
      quad.x[k] = at.x, quad.y[k] = at.y;
    }
  }
  bool finite = true;
#pragma unroll
  for (int k = 0; k < 4; ++k) finite = finite && isfinite(quad.x[k]) && isfinite(quad.y[k]);
  return finite;
}

__device__ __forceinline__ Range touched(const double (&at)[4], int size) {
  return inside(nearest(min(min(at[0], at[1]), min(at[2], at[3]))),
                nearest(max(max(at[0], at[1]), max(at[2], at[3]))), size);
}

// Signed area between a segment and the x axis, inside the unit square.
__device__ __forceinline__ double area_below(double x1, double y1, double x2, double y2) {
  const double dx = x2 - x1, dy = y2 - y1;
  if (dx == 0.0) return 0.0;
  const double sign = dx < 0.0 ? -1.0 : 1.0;
  double left = dx < 0.0 ? x2 : x1, right = dx < 0.0 ? x1 : x2;
  if (left >= 1.0 || right <= 0.0) return 0.0;
  left = max(left, 0.0), right = min(right, 1.0);
  const double slope = dy / dx;
  double at_left = y1 + product(slope, left - x1), at_right = y1 + product(slope, right - x1);
  if (at_left <= 0.0 && at_right <= 0.0) return 0.0;
  if (at_left >= 1.0 && at_right >= 1.0) return product(sign, right - left);
  const double det = product(x1, y2) - product(y1, x2);
  if (at_left < 0.0) at_left = 0.0, left = det / dy;
  if (at_right < 0.0) at_right = 0.0, right = det / dy;
  if (at_left <= 1.0 && at_right <= 1.0)
    return product(product(product(sign, 0.5), right - left), at_right + at_left);
  const double top = (dx + det) / dy;
  if (at_left <= 1.0)
    return product(sign, product(product(0.5, top - left), 1.0 + at_left) + right - top);
  return product(sign, product(product(0.5, right - top), 1.0 + at_right) + top - left);
}

// Signed area that a quadrilateral shares with output pixel (x, y).
__device__ __forceinline__ double overlap(int x, int y, const Quad &quad) {
  const double x0 = x - 0.5, y0 = y - 0.5;
  double total = 0.0;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const int m = (k + 1) & 3;
    total += area_below(quad.x[k] - x0, quad.y[k] - y0, quad.x[m] - x0, quad.y[m] - y0);
  }
  return total;
}

// ------------------------------------------------------- profiles in x times the same in y
// As in gpucoron/ops/drizzle_profiles.py, whose Profile this is.
struct Profile {
  double radius, norm, factor;
  const double *table;
  int table_size;
};

template <int DROP>
__device__ __forceinline__ Range reached(const Profile &drop, double centre, int size) {
  if constexpr (DROP == LANCZOS)
    return inside(floor(centre - drop.radius) + 1.0, floor(centre + drop.radius), size);
  return inside(nearest(centre - drop.radius), nearest(centre + drop.radius), size);
}

template <int DROP>
__device__ __forceinline__ double profile(const Profile &drop, double centre, int at) {
  const double distance = centre - at;
  if constexpr (DROP == TURBO) {
    const double high = min(centre + drop.radius, at + 0.5);
    return max(high - max(centre - drop.radius, at - 0.5), 0.0);
  } else if constexpr (DROP == GAUSSIAN) {
    return exp(product(product(-distance, distance), drop.factor));
  } else {
    const double step = nearest(fabs(product(distance, drop.factor)));
    return step < drop.table_size ? drop.table[static_cast<int>(step)] : 0.0;
  }
}
