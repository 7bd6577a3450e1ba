// Registration: Chebyshev coefficients of correlations, and the shift where each fit is best.
//
// contract: for a pair of half spectra G and F, the coefficients at [j, m] of
//
//     sum over ky, kx of  Re[ conj(G) F phase_y(ky) phase_x(kx) ]
//
// with phase = sum over j of (-i)^(j odd) table[|k|][j] T_j (gpucoron/ops/chebyshev.py). Rows +k
// and -k share their table but for the sign of its odd terms, so that even terms are contracted
// with the sum of the two rows, odd ones with their difference, in real arithmetic.
//
// Mapping: one block a pair, one column a thread. The 4 N sums of a column (real and imaginary,
// even and odd) stay in registers while the rows pass by; the table's rows lie in shared memory and
// are read by all lanes at once. Then every warp multiplies the sums of its 32 columns by the
// columns' table, a lane for each of N (or half of N) x 1 coefficients, and the warps' results are
// added in the order of the warps. More columns than threads: the block goes on with the next ones.
// Nothing but the coefficients is written; nothing depends on the order of threads, nor on how many
// pairs are in the launch.
//
// Work for 320 x 320 (N = 15): 2.0 million float64 operations (FMA counted once) a pair on 84% of
// the lanes, and 1.65 MB of spectra read, nearly all from L2 where the pairs of one reference
// follow each other: the frames stay there, and a reference comes from memory once for 40 frames.
// Measured on an NVIDIA H200: 3.25 ms for 7,200 pairs, which is 3.7 TB/s from L2 (86 % of the rate
// of a copy in memory) and 8.9 TFLOP/s; 11.9 ms in a run of 21,600 pairs. The same run spends 3.9
// ms in contract<21, 6, 1>, for the norms.
//
// Considered, not built: all coefficients of a frame as one matrix product with the references
// (50 times the arithmetic: the axes are not separated); sums by cuBLAS, one product for each
// column (4 times the arithmetic: no folding of +k and -k; 1.7 GB of sums through memory); sums
// written out and only the columns by cuBLAS (3.3 GB more traffic, and results that depend on the
// size of the batch); FP64 tensor cores; two pairs in a block (L1 would serve the shared spectrum:
// three quarters of the L2 traffic).
//
// fit_pairs: see registration_fit.cuh.
#include "common.cuh"
#include "registration_fit.cuh"

// Sum and difference of the rows +k and -k of conj(g) f; a row that is both counts once.
struct Folded {
  double er, ei, dr, di;
};

__device__ __forceinline__ Folded fold(double2 g, double2 f, double2 g_down, double2 f_down,
                                       bool own_negative) {
  const double pr = g.x * f.x + g.y * f.y, pi = g.x * f.y - g.y * f.x;
  if (own_negative) return {pr, pi, 0.0, 0.0};
  const double qr = g_down.x * f_down.x + g_down.y * f_down.y;
  const double qi = g_down.x * f_down.y - g_down.y * f_down.x;
  return {pr + qr, pi + qi, pr - qr, pi - qi};
}

// Width of a staged column: even for 16-byte alignment, and not a multiple of the banks.
template <int N> constexpr int STAGED = (N + 1) / 2 * 2 + 2;

// [j, m]: sum over the warp's columns of sums[j] factors[m]; left in the warp's own `staged`.
template <int N>
__device__ __forceinline__ void multiply_columns(const double (&sums)[N], double *staged,
                                                 const double *__restrict__ factors, int columns,
                                                 int lane) {
  constexpr int HALVES = N <= 16 ? 2 : 1, EACH = (N + HALVES - 1) / HALVES;
  const int m = lane % (32 / HALVES), first = lane / (32 / HALVES) * EACH;
#pragma unroll
  for (int j = 0; j < N; ++j) staged[lane * STAGED<N> + j] = sums[j];
  __syncwarp();
  double part[EACH] = {};
  if (m < N) {
    for (int x = 0; x < columns; ++x) {
      const double factor = factors[x * 2 * N + m];
#pragma unroll
      for (int i = 0; i < EACH; ++i)
        if (first + i < N) part[i] += staged[x * STAGED<N> + first + i] * factor;
    }
  }
  __syncwarp();
  if (m < N) {
#pragma unroll
    for (int i = 0; i < EACH; ++i)
      if (first + i < N) staged[(first + i) * N + m] = part[i];
  }
}

// Grid (pairs), block (32 WARPS). spectra: (., ny, columns), of which pair p uses which[p]; frames:
// (., ny, columns) and of_frame[p]; y_table: (ny / 2 + 1, 2 N), even terms then odd ones; x_table:
// (columns, 2 N); out: (pairs, 2 N, 2 N). RESIDENT: blocks that must fit on a multiprocessor.
template <int N, int WARPS, int RESIDENT>
__global__ void __launch_bounds__(32 * WARPS, RESIDENT) contract(
    const double2 *__restrict__ spectra, const int *__restrict__ which,
    const double2 *__restrict__ frames, const int *__restrict__ of_frame,
    const double *__restrict__ y_table, const double *__restrict__ x_table, int ny, int columns,
    double scale, double *__restrict__ out) {
  constexpr int ROWS = 16, THREADS = 32 * WARPS, OWN = 32 * STAGED<N>;
  static_assert(OWN >= N * N, "a warp's coefficients take the place of its columns");
  alignas(16) __shared__ double table[ROWS * 2 * N];
  __shared__ double staged[WARPS * OWN];
  const int tid = threadIdx.x, rows = ny / 2 + 1;
  const long long plane = static_cast<long long>(ny) * columns;
  const double2 *g = spectra + which[blockIdx.x] * plane;
  const double2 *f = frames + of_frame[blockIdx.x] * plane;
  double *series = out + static_cast<long long>(blockIdx.x) * (4 * N * N);

  for (int begin = 0; begin < columns; begin += THREADS) {
    const int x = begin + tid;
    double er[N] = {}, ei[N] = {}, odd_r[N] = {}, odd_i[N] = {};
    for (int top = 0; top < rows; top += ROWS) {
      const int count = min(ROWS, rows - top);
      __syncthreads();
      for (int i = tid; i < count * 2 * N; i += THREADS) table[i] = y_table[top * 2 * N + i];
      __syncthreads();
      if (x >= columns) continue;
      for (int r = 0; r < count; ++r) {
        const int up = top + r, down = up > 0 ? ny - up : 0;
        const int at = up * columns + x, below = down * columns + x;
        const Folded v = fold(g[at], f[at], g[below], f[below], up == down);
        const double *c = table + r * 2 * N;
#pragma unroll
        for (int j = 0; j < N; ++j) {
          er[j] += c[j] * v.er;
          ei[j] += c[j] * v.ei;
          odd_r[j] += c[N + j] * v.dr;
          odd_i[j] += c[N + j] * v.di;
        }
      }
    }
    const int left = begin + tid / 32 * 32, busy = min(32, columns - left);
    const int warps = min(WARPS, (columns - begin + 31) / 32);
    auto add = [&](const double (&sums)[N], int odd_y, int odd_x, double sign) {
      if (busy > 0)
        multiply_columns<N>(sums, staged + tid / 32 * OWN, x_table + left * 2 * N + odd_x * N, busy,
                            tid % 32);
      __syncthreads();
      for (int i = tid; i < N * N; i += THREADS) {
        double sum = 0.0;
        for (int w = 0; w < warps; ++w) sum += staged[w * OWN + i];
        double *to = series + (2 * (i / N) + odd_y) * 2 * N + 2 * (i % N) + odd_x;
        *to = begin > 0 ? *to + sign * sum : sign * sum;
      }
      __syncthreads();
    };
    add(er, 0, 0, scale);
    add(ei, 0, 1, scale);
    add(odd_i, 1, 0, scale);
    add(odd_r, 1, 1, -scale);
  }
}

// instantiate: contract<15, 6, 2>
// instantiate: contract<21, 6, 1>
// instantiate: fit_pairs<30, 42>
