// Filling bad pixels: from the same pixel of the other integrations, and from the neighbourhood.
//
// krige_pixels<REACH>: a warp a pixel of a list, in one image; see kriging.cuh. 17 bytes a neighbour
// read, from the caches mostly.
//
// box_medians<T>: the median of the usable pixels in a box, cut at the array's edges, the box
// doubling until it holds one. A warp a pixel of a list; the box is read again for each step of a
// bisection on the values' bits, from the L1 cache. No pixel that is filled is ever read, so the
// order of the threads tells nothing. fill_from_median<T>: the same where a median over the
// integrations is not known.
//
// member_noise<T>: sqrt(sum of err^2) / n over a pixel's usable integrations, added in their order
// as numpy adds them. A first loop finds the power of two below the largest err, in units of which
// no square overflows or vanishes. A thread a pixel, n (sizeof(T) + 1) + 8 bytes.
//
// change_sums<T>, solve_changes: how integration k differs from its group's median m, by least
// squares with weights w = 1 / err,
//     images[k] - m ~ c0 dm/dy + c1 dm/dx + c2 m + c3
// as the 4 x 4 system of the sums of w^2 times products of two terms. Blocks of 256 threads along
// the pixels of an integration; each leaves 14 partial sums, which are added in fixed order. Bytes
// a pixel and integration: 2 sizeof(T) + 1 of its own, 25 + sizeof(T) of its group from the L2
// cache. One thread an integration solves, by Jacobi rotations, leaving out what the sums do not
// tell, as numpy.linalg.lstsq does, once powers of two have brought the terms to like sizes.
//
// hold_still<T>: images[k] less that change; 2 sizeof(T) bytes and 24 from the L2 cache.
//
// fill_pixels<T>: what an integration has at a bad pixel is what its exposure has there, changed,
// and what the good neighbours have beyond that, kriged. A warp a bad pixel.
//
// Considered: the change at every pixel as an array of its own (8 bytes written and read again,
// twice); threads instead of warps for the boxes (their sizes differ a thousandfold).
//
// Measured on an NVIDIA H200, one exposure of 60 integrations of 320 x 320 with 1 bad pixel in 100,
// ms: fill_pixels 0.40, krige_pixels<FAR> 0.24, krige_pixels<NEAR> 0.14, list_pixels 0.09,
// change_sums 0.08, box_medians 0.07, solve_changes 0.05, member_noise 0.04, hold_still 0.03,
// fill_from_median 0.02. The whole call takes 11 ms: the rest are CuPy's small kernels, and the host
// that launches them all.
#include "kriging.cuh"
#include "selection.cuh"

// A sum that takes no product in before that is rounded.
__device__ __forceinline__ float add_rounded(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ double add_rounded(double a, double b) { return __dadd_rn(a, b); }

// The power of two not above a value, by which one divides exactly; 1/2 for 0.
__device__ __forceinline__ double unit_of(double value) {
  int exponent;
  frexp(value, &exponent);
  return ldexp(1.0, exponent - 1);
}

__device__ __forceinline__ double noise_of(double err) { return isfinite(err) ? err * err : 0.0; }

// ---- single images

template <int REACH>
__global__ void __launch_bounds__(128, 4) krige_pixels(
    const double *__restrict__ image, const bool *__restrict__ usable,
    const double *__restrict__ err, const double *__restrict__ table, int ny, int nx, int reach,
    int n, const long long *__restrict__ y, const long long *__restrict__ x,
    double *__restrict__ values, double *__restrict__ variances) {
  static_assert(sizeof(KrigingScratch<NEAR>) == 10952 && sizeof(KrigingScratch<FAR>) == 54216,
                "gpucoron/ops/cuda/kriging.py asks for so much");
  DYN_SHARED(KrigingScratch<REACH>, scratch);
  const int warps = blockDim.x / 32, i = blockIdx.x * warps + threadIdx.x / 32;
  if (i >= n) return;
  const auto near = [&](int v, int u, double &value, double &variance) {
    const long long q = static_cast<long long>(v) * nx + u;
    if (!usable[q]) return false;
    value = image[q];
    variance = noise_of(err[q]);
    return true;
  };
  const Prediction p = krige_pixel(static_cast<int>(y[i]), static_cast<int>(x[i]), ny, nx, table,
                                   near, scratch[threadIdx.x / 32], reach);
  if (threadIdx.x % 32 > 0) return;
  values[i] = p.value;
  variances[i] = p.variance;
}

// The usable pixels of a box: every 32nd is a lane's.
template <class T> struct BoxKeys {
  const T *image;
  const bool *usable;
  int nx, y0, x0, width, area;

  template <class F> __device__ __forceinline__ void each(F f) const {
    for (int c = threadIdx.x % 32; c < area; c += 32) {
      const long long q = static_cast<long long>(y0 + c / width) * nx + x0 + c % width;
      f(usable[q] ? key_or_missing(image[q]) : missing<T>());
    }
  }
};

template <class T>
__device__ __forceinline__ T box_median(const T *image, const bool *usable, int ny, int nx,
                                        int half, int y, int x) {
  WarpTeam team;
  for (int reach = max(half, 1);; reach *= 2) {
    const int y0 = max(0, y - reach), y1 = min(ny, y + reach + 1);
    const int x0 = max(0, x - reach), x1 = min(nx, x + reach + 1);
    const BoxKeys<T> box = {image, usable, nx, y0, x0, x1 - x0, (y1 - y0) * (x1 - x0)};
    const T middle = middle_of_team<T>(team, box);
    if (middle == middle || reach > ny + nx) return middle;
  }
}

template <class T>
__global__ void __launch_bounds__(128, 8) box_medians(
    const T *__restrict__ image, const bool *__restrict__ usable, int ny, int nx, int half, int n,
    const long long *__restrict__ y, const long long *__restrict__ x, T *__restrict__ out) {
  const int i = blockIdx.x * 4 + threadIdx.x / 32;
  if (i >= n) return;
  const T middle =
      box_median(image, usable, ny, nx, half, static_cast<int>(y[i]), static_cast<int>(x[i]));
  if (threadIdx.x % 32 == 0) out[i] = middle;
}

// ---- lists of a group's pixels

// Append pixels of a group that are to be filled, as member * n_pixels + pixel, in any order.
__global__ void __launch_bounds__(256) list_pixels(const bool *__restrict__ todo,
                                                   const int *__restrict__ members,
                                                   long long n_pixels, unsigned *__restrict__ list,
                                                   unsigned *__restrict__ count) {
  const long long p = flat_index();
  if (p >= n_pixels || !todo[members[blockIdx.y] * n_pixels + p]) return;
  list[atomicAdd(count, 1u)] = static_cast<unsigned>(blockIdx.y * n_pixels + p);
}

template <class T>
__global__ void __launch_bounds__(128, 8) fill_from_median(
    const T *__restrict__ images, const bool *__restrict__ usable, const T *__restrict__ median,
    const int *__restrict__ members, int ny, int nx, int half, const unsigned *__restrict__ list,
    const unsigned *__restrict__ count, T *__restrict__ out) {
  const long long n_pixels = static_cast<long long>(ny) * nx;
  for (unsigned c = blockIdx.x * 4 + threadIdx.x / 32; c < *count; c += gridDim.x * 4) {
    const long long p = list[c] % n_pixels, plane = members[list[c] / n_pixels] * n_pixels;
    T value = median[p];
    if (value != value)
      value = box_median(images + plane, usable + plane, ny, nx, half, static_cast<int>(p / nx),
                         static_cast<int>(p % nx));
    if (threadIdx.x % 32 == 0) out[plane + p] = value;
  }
}

// ---- exposures

template <class T>
__global__ void __launch_bounds__(256) member_noise(const T *__restrict__ err,
                                                    const bool *__restrict__ usable,
                                                    const int *__restrict__ members, int n,
                                                    long long n_pixels, double *__restrict__ out) {
  const long long p = flat_index();
  if (p >= n_pixels) return;
  T largest = T(0), sum = T(0);
#pragma unroll 4
  for (int j = 0; j < n; ++j) {
    const long long i = members[j] * n_pixels + p;
    if (usable[i] && isfinite(err[i])) largest = max(largest, fabs(err[i]));
  }
  const T unit = static_cast<T>(unit_of(static_cast<double>(largest)));
  int count = 0;
#pragma unroll 4
  for (int j = 0; j < n; ++j) {
    const long long i = members[j] * n_pixels + p;
    const T e = usable[i] && isfinite(err[i]) ? err[i] / unit : T(0);
    sum = add_rounded(sum, e * e);
    count += usable[i];
  }
  out[p] = static_cast<double>(unit * sqrt(sum)) / max(count, 1);
}

constexpr int TERMS = 4, SUMS = TERMS * (TERMS + 1) / 2 + TERMS;

// `terms`: (3, n_pixels), the fourth is 1. Block (b, j) sums for integration members[j].
template <class T>
__global__ void __launch_bounds__(256) change_sums(
    const T *__restrict__ images, const T *__restrict__ err, const bool *__restrict__ usable,
    const T *__restrict__ middle, const double *__restrict__ terms, const int *__restrict__ members,
    long long n_pixels, double *__restrict__ partial) {
  __shared__ double of_warp[SUMS][8];
  const long long plane = members[blockIdx.y] * n_pixels;
  double sum[SUMS];
#pragma unroll
  for (int s = 0; s < SUMS; ++s) sum[s] = 0.0;
  for (long long p = flat_index(); p < n_pixels; p += gridDim.x * blockDim.x) {
    const T e = err[plane + p], m = middle[p];
    if (!(usable[plane + p] && e > T(0) && isfinite(e) && isfinite(m))) continue;
    const double w = 1.0 / static_cast<double>(e);
    const double right = w * static_cast<double>(images[plane + p] - m);
    const double t[TERMS] = {w * terms[p], w * terms[n_pixels + p], w * terms[2 * n_pixels + p], w};
#pragma unroll
    for (int a = 0, s = 0; a < TERMS; ++a) {
#pragma unroll
      for (int b = 0; b <= a; ++b) sum[s++] += t[a] * t[b];
      sum[SUMS - TERMS + a] += t[a] * right;
    }
  }
#pragma unroll
  for (int s = 0; s < SUMS; ++s) {
    sum[s] = warp_sum(sum[s]);
    if (threadIdx.x % 32 == 0) of_warp[s][threadIdx.x / 32] = sum[s];
  }
  __syncthreads();
  if (threadIdx.x >= SUMS) return;
  double total = 0.0;
#pragma unroll
  for (int w = 0; w < 8; ++w) total += of_warp[threadIdx.x][w];
  partial[(static_cast<long long>(blockIdx.y) * gridDim.x + blockIdx.x) * SUMS + threadIdx.x] =
      total;
}

// Turn rows and columns a and b of a symmetric matrix so that element (a, b) becomes 0.
template <int A, int B>
__device__ __forceinline__ void rotate(double (&m)[TERMS][TERMS], double (&v)[TERMS][TERMS]) {
  if (m[A][B] == 0.0) return;
  const double theta = (m[B][B] - m[A][A]) / (2.0 * m[A][B]);
  const double t = (theta < 0.0 ? -1.0 : 1.0) / (fabs(theta) + sqrt(theta * theta + 1.0));
  const double c = 1.0 / sqrt(t * t + 1.0), s = t * c;
#pragma unroll
  for (int k = 0; k < TERMS; ++k) {
    const double a = m[k][A], b = m[k][B];
    m[k][A] = c * a - s * b;
    m[k][B] = s * a + c * b;
  }
#pragma unroll
  for (int k = 0; k < TERMS; ++k) {
    const double a = m[A][k], b = m[B][k], va = v[k][A], vb = v[k][B];
    m[A][k] = c * a - s * b;
    m[B][k] = s * a + c * b;
    v[k][A] = c * va - s * vb;
    v[k][B] = s * va + c * vb;
  }
  m[A][B] = m[B][A] = 0.0;
}

__global__ void __launch_bounds__(128) solve_changes(const double *__restrict__ partial, int blocks,
                                                     int n, double *__restrict__ changes) {
  const int j = blockIdx.x * blockDim.x + threadIdx.x;
  if (j >= n) return;
  double sum[SUMS] = {}, unit[TERMS], m[TERMS][TERMS], v[TERMS][TERMS];
  for (int k = 0; k < blocks; ++k) {
#pragma unroll
    for (int s = 0; s < SUMS; ++s) sum[s] += partial[(j * blocks + k) * SUMS + s];
  }
#pragma unroll
  for (int a = 0, s = 0; a < TERMS; ++a) {
    unit[a] = unit_of(sqrt(sum[s + a]));
    sum[SUMS - TERMS + a] /= unit[a];
#pragma unroll
    for (int b = 0; b <= a; ++b, ++s) {
      m[a][b] = m[b][a] = sum[s] / (unit[a] * unit[b]);
      v[a][b] = v[b][a] = a == b;
    }
  }
  for (int sweep = 0; sweep < 20; ++sweep) {  // after 6 or 7 nothing is left to turn
    rotate<0, 1>(m, v);
    rotate<0, 2>(m, v);
    rotate<0, 3>(m, v);
    rotate<1, 2>(m, v);
    rotate<1, 3>(m, v);
    rotate<2, 3>(m, v);
  }
  double largest = 0.0, out[TERMS] = {};
#pragma unroll
  for (int a = 0; a < TERMS; ++a) largest = max(largest, m[a][a]);
#pragma unroll
  for (int a = 0; a < TERMS; ++a) {
    double along = 0.0;
#pragma unroll
    for (int k = 0; k < TERMS; ++k) along += v[k][a] * sum[SUMS - TERMS + k];
    if (!(m[a][a] > TERMS * 2.220446049250313e-16 * largest)) continue;
#pragma unroll
    for (int k = 0; k < TERMS; ++k) out[k] += v[k][a] * (along / m[a][a]);
  }
#pragma unroll
  for (int k = 0; k < TERMS; ++k) changes[j * TERMS + k] = out[k] / unit[k];
}

__device__ __forceinline__ double change_at(const double *change, const double *terms,
                                            long long n_pixels, long long p) {
  return change[0] * terms[p] + change[1] * terms[n_pixels + p] +
         change[2] * terms[2 * n_pixels + p] + change[3];
}

template <class T>
__global__ void __launch_bounds__(256) hold_still(const T *__restrict__ images,
                                                  const double *__restrict__ changes,
                                                  const double *__restrict__ terms,
                                                  const int *__restrict__ members,
                                                  long long n_pixels, T *__restrict__ out) {
  const long long p = flat_index();
  if (p >= n_pixels) return;
  const double change = change_at(changes + blockIdx.y * TERMS, terms, n_pixels, p);
  const double x = static_cast<double>(images[members[blockIdx.y] * n_pixels + p]);
  out[blockIdx.y * n_pixels + p] = static_cast<T>(x - change);
}

template <class T>
__global__ void __launch_bounds__(128) fill_pixels(
    const T *__restrict__ images, const T *__restrict__ err, const bool *__restrict__ usable,
    const double *__restrict__ exposure, const double *__restrict__ changes,
    const double *__restrict__ terms, const double *__restrict__ table,
    const int *__restrict__ members, int ny, int nx, const unsigned *__restrict__ list,
    const unsigned *__restrict__ count, T *__restrict__ out) {
  __shared__ KrigingScratch<NEAR> scratch[4];
  const int warp = threadIdx.x / 32;
  const long long n_pixels = static_cast<long long>(ny) * nx;
  for (unsigned c = blockIdx.x * 4 + warp; c < *count; c += gridDim.x * 4) {
    const long long p = list[c] % n_pixels, member = list[c] / n_pixels;
    const long long plane = members[member] * n_pixels;
    const double *change = changes + member * TERMS;
    const auto near = [&](int v, int u, double &value, double &variance) {
      const long long q = static_cast<long long>(v) * nx + u;
      if (!usable[plane + q]) return false;
      value = static_cast<double>(images[plane + q]) -
              (exposure[q] + change_at(change, terms, n_pixels, q));
      variance = noise_of(static_cast<double>(err[plane + q]));
      return true;
    };
    const int y = static_cast<int>(p / nx), x = static_cast<int>(p % nx);
    const Prediction beyond = krige_pixel(y, x, ny, nx, table, near, scratch[warp]);
    if (threadIdx.x % 32 > 0) continue;
    const double base = exposure[p] + change_at(change, terms, n_pixels, p);
    out[plane + p] = static_cast<T>(beyond.value == beyond.value ? base + beyond.value : base);
  }
}

// instantiate: krige_pixels<NEAR>
// instantiate: krige_pixels<FAR>
// instantiate: box_medians<float>
// instantiate: box_medians<double>
// instantiate: list_pixels
// instantiate: fill_from_median<float>
// instantiate: fill_from_median<double>
// instantiate: member_noise<float>
// instantiate: member_noise<double>
// instantiate: change_sums<float>
// instantiate: change_sums<double>
// instantiate: solve_changes
// instantiate: hold_still<float>
// instantiate: hold_still<double>
// instantiate: fill_pixels<float>
// instantiate: fill_pixels<double>
