// KLIP on batches: every frame f has its own references R (n, pixels), float64; all sums in it too.
//
// Formula    m_j = mean of R_j; C = (R - m)(R - m)^T = E^T L E (cuSOLVER; E has a vector in a row);
//            residual   t - sum_j factor_j (R_j - m_j), factor = E_k^T L_k^-1 E_k (R - m) t;
//            scatter    sqrt(P / n - (S / n)^2) with modes M = E (R - m), and P the sum of M_i^2, S
//            that of M_i (sum_j E_ij), over the discarded vectors i >= k; or, where fewer are kept,
//            the same over those, subtracted from the sums over all references.
//            A reference that is not finite throughout has a mean of NaN and counts as 0.
// Passes     over the references, 8 bytes a pixel each: means with <R, t> of each frame's target;
//            C; and one for residuals and scatters of all truncations. Nothing of their size is
//            written: means are subtracted on loading, modes live in registers and shared memory.
// Threads    means: a block to an image. C and the last pass: 4 warps multiply 64 x 64 tiles, 32 by
//            32 to a warp, by the float64 tensor cores (sm_80 and later; elsewhere the lanes of a
//            warp exchange the same fragments), 16 deep, the next 16 on their way in registers, two
//            buffers of shared memory and one barrier for each 16. C: a block to a tile of the
//            lower triangle and 4096 pixels, partial sums added in order afterwards; quarters of a
//            tile that lie above the diagonal or beyond n are left out.
//            Last: a block to 64 pixels; a row of a tile is a factor or a mode; 64 threads then
//            add the modes' squares in order of the modes, and write at every truncation.
// Work       n = 180, 320 x 320 pixels, 50 kept, one frame: 147 MB a pass. C 4.4 GFLOP (21 quarters
//            of the 36), last pass 2.5 GFLOP. The tiles of C ask for each reference 3 times and the
//            last pass for 73 kB of rows a block: 440 MB and 265 MB through L2.
//            By ptxas for sm_90: 186 and 214 registers, 40 and 44 KiB, 2 blocks on an SM.
// Measured   NVIDIA H200, 120 frames of these: means 4.0 ms, C 14.4 ms, last pass 12.8 ms. For
//            scale: cuBLAS multiplies float64 there at 59 TFLOP/s, and a copy runs at 4.26 TB/s,
//            4.2 ms for a pass.
// Variants   measured at that size, C and last pass: m16n8k8, as it is, 14.4 and 12.8 ms; m16n8k16
//            15.0 and 13.2; m8n8k4 23.0 and 17.0; 3 blocks on an SM 17.0 and 12.0; with FMA, 256
//            threads of 4 x 4, 48.4 and 32.0.
//            Not built: C by cuBLAS: a batched product through cupy.matmul copies transposed
//            operands (twice the memory), one frame's product alone is small (180 x 180), both
//            halves of the triangle are computed, and the references must be centred in memory
//            first, two passes more: R R^T - pixels m m^T loses digits where the background is
//            bright (a mean of 90 standard deviations: residuals off by 7e-8).
//            Scatter by a product and a reduction: as many operations, and the modes (41 MB a
//            frame) written and read.
//            Fragments by 16-byte loads: half the loads, but mma wants two rows beside each other,
//            and the moves cost more (some 150 in 435 instructions for each 16, by the SASS).

#include "common.cuh"
#include "klip_products.cuh"

// Means of the references, NaN where one is not finite, and their products with TARGETS targets at
// a time. references: (frames, n, pixels); targets: (frames, n_targets, pixels), without mean, NaN
// counts as 0; means: (frames, n); products: (frames, n_targets, n). Grid: (n, groups of targets,
// frames). Sums run over differences from the middle one of three pixels, which takes a bright
// background out.
template <int TARGETS>
__global__ void __launch_bounds__(256) reference_sums(const double *references,
                                                      const double *targets, int n, int n_targets,
                                                      int pixels, double *means, double *products) {
  __shared__ double scratch[32];
  const int group = blockIdx.y * TARGETS;
  const long long frame = blockIdx.z, row = frame * n + blockIdx.x;
  const double *image = references + row * pixels;
  const double a = image[0], b = image[pixels / 3], c = image[pixels - 1];
  const double base = fmax(fmin(a, b), fmin(fmax(a, b), c));
  double sums[TARGETS + 1] = {};
#pragma unroll 4
  for (int p = threadIdx.x; p < pixels; p += 256) {
    const double value = image[p] - base;
    sums[TARGETS] += value;
#pragma unroll
    for (int k = 0; k < TARGETS; ++k)
      if (group + k < n_targets) {
        const double t = targets[(frame * n_targets + group + k) * pixels + p];
        if (isfinite(t)) sums[k] += t * value;
      }
  }
#pragma unroll
  for (int k = 0; k <= TARGETS; ++k) sums[k] = block_sum(sums[k], scratch);
  if (threadIdx.x != 0) return;
  const double mean = base + sums[TARGETS] / pixels;
  const bool usable = isfinite(mean);
  if (group == 0) means[row] = usable ? mean : nan_of<double>();
#pragma unroll
  for (int k = 0; k < TARGETS; ++k)
    if (group + k < n_targets)
      products[(frame * n_targets + group + k) * n + blockIdx.x] = usable ? sums[k] : 0.0;
}

// Products of one tile of references with another over SEGMENT pixels. parts: (frames, segments,
// tiles, 64, 64), tiles of the lower triangle row by row; what lies above the diagonal in quarters
// of their own, or beyond n, is not written. Grid: (tiles, segments, frames), block (128,).
__global__ void __launch_bounds__(THREADS, 2) covariance_parts(const double *references,
                                                               const double *means, int n,
                                                               int pixels, double *parts) {
  __shared__ double2 aligned[2 * TILE * ROW];  // two panels, twice
  double *buffers = reinterpret_cast<double *>(aligned);
  const int tile = blockIdx.x, tiles = gridDim.x;
  int across = 0;  // of the tile
  while ((across + 1) * (across + 2) / 2 <= tile) ++across;
  const int down = tile - across * (across + 1) / 2;
  const long long frame = blockIdx.z;
  const int begin = blockIdx.y * SEGMENT, stop = min(begin + SEGMENT, pixels);
  const bool pairs = in_pairs(references, pixels), same = across == down;
  references += frame * n * pixels, means += frame * n;
  const Panel rows(references, means, across * TILE, n, pixels);
  const Panel columns(references, means, down * TILE, n, pixels);
  const Quarter quarter(blockIdx.x + blockIdx.y);
  const bool needed = across * TILE + quarter.row < n  // the same in a warp
                      && (!same || quarter.column <= quarter.row);
  double sum[2][4][4] = {};
  if (pairs)
    multiply_panels<true>(rows, columns, same, needed, quarter, begin, stop, pixels, buffers, sum);
  else
    multiply_panels<false>(rows, columns, same, needed, quarter, begin, stop, pixels, buffers, sum);
  parts += ((frame * gridDim.y + blockIdx.y) * tiles + tile) * TILE * TILE;
  if (needed) quarter.store(sum, parts, TILE);
}

// Add the parts, in order; fill both triangles. One thread to an element of the lower one. Grid:
// (blocks of 256 threads for n * n, frames). products: (frames, n, n).
__global__ void __launch_bounds__(256) sum_parts(const double *parts, int n, int segments,
                                                 double *products) {
  const long long place = flat_index(), frame = blockIdx.y;
  const int row = static_cast<int>(place / n), column = static_cast<int>(place % n);
  if (row >= n || column > row) return;
  const int across = row / TILE, panels = (n + TILE - 1) / TILE, tiles = panels * (panels + 1) / 2;
  const int tile = across * (across + 1) / 2 + column / TILE;
  parts += (frame * segments * tiles + tile) * TILE * TILE + row % TILE * TILE + column % TILE;
  double sum = 0.0;
  for (int k = 0; k < segments; ++k) sum += parts[static_cast<long long>(k) * tiles * TILE * TILE];
  products += frame * n * n;
  products[static_cast<long long>(row) * n + column] = sum;
  products[static_cast<long long>(column) * n + row] = sum;
}

// Which truncations a frame has, and which of its vectors they need.
struct Truncations {
  const int *kept;   // ascending, none above rank
  int n, rank, few;  // the first `few` are taken from the vectors kept, the others from the rest
  int low, high;     // modes 0 .. low - 1 and high .. rank - 1 are needed

  __device__ __forceinline__ Truncations(const int *kept_, int n_, int rank_)
      : kept(kept_), n(n_), rank(rank_), few(0), low(0), high(rank_) {
    while (few < n && kept[few] < rank - kept[few]) ++few;
    if (few > 0) low = kept[few - 1];
    if (few < n) high = kept[few];
  }
  __device__ __forceinline__ int modes() const { return low + rank - high; }
  // The first modes come ascending, then the last ones descending.
  __device__ __forceinline__ int mode(int q) const { return q < low ? q : rank - 1 - (q - low); }
};

// Sums over the modes for one pixel, written wherever a truncation is reached.
struct Spread {
  double all_power, all_mean, power, mean;  // of the references, of the modes so far
  int next, last;                           // truncations to come

  // Write the truncations that `done` modes satisfy.
  __device__ void reach(const Truncations &t, int done, double count, double *out,
                        long long plane) {
    if (done <= t.low)
      for (; next < t.few && t.kept[next] == done; ++next)
        out[next * plane] = deviation(all_power - power, all_mean - mean, count);
    if (done == t.low) power = mean = 0.0;
    if (done >= t.low)
      for (; last >= t.few && t.kept[last] == t.rank - (done - t.low); --last)
        out[last * plane] = deviation(power, mean, count);
  }
  // How many modes there are in all when the next truncation is reached, after `done` of them.
  __device__ __forceinline__ int until(const Truncations &t, int done) const {
    if (done < t.low) return next < t.few ? t.kept[next] : t.low;
    return last >= t.few ? t.low + t.rank - t.kept[last] : t.modes();
  }
  static __device__ __forceinline__ double deviation(double power, double sum, double count) {
    const double mean = sum / count;  // its square rounded: one reference has no scatter at all
    return sqrt(fmax(power / count - __dmul_rn(mean, mean), 0.0));
  }
};

// What one thread loads of 16 references for 64 pixels: a pair of each of rank / 32 + 4 i.
struct Lines {
  const double *image, *means;
  int n, pixels, count;  // how many pixels there are of the pair

  template <bool PAIRS>
  __device__ __forceinline__ void load(int k, double2 (&value)[4], double (&mean)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int j = k + (thread_rank() >> 5) + 4 * i;
      mean[i] = nan_of<double>(), value[i] = make_double2(0.0, 0.0);
      if (j >= n) continue;
      mean[i] = means[j];
      read_pair<PAIRS>(image + static_cast<long long>(j) * pixels, count, value[i]);
    }
  }
  static __device__ __forceinline__ void store(double *lines, double2 (&value)[4],
                                               const double (&mean)[4]) {
    lines += (thread_rank() >> 5) * LINE + 2 * (thread_rank() & 31);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      value[i].x = isfinite(mean[i]) ? value[i].x - mean[i] : 0.0;
      value[i].y = isfinite(mean[i]) ? value[i].y - mean[i] : 0.0;
      *reinterpret_cast<double2 *>(lines + 4 * i * LINE) = value[i];
    }
  }
};

// A panel of factors, then of vectors as the truncations need them.
struct Rows {
  const double *start;
  int offset[4], n;  // -1: no row

  __device__ __forceinline__ Rows(const double *rows, int first, int models,
                                  const Truncations &truncations, int n_)
      : start(rows), n(n_) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int q = first + (thread_rank() >> 3) + 16 * i, mode = truncations.mode(q - models);
      offset[i] = q < models ? q * n : q - models < truncations.modes() ? (models + mode) * n : -1;
    }
  }
  template <bool PAIRS> __device__ __forceinline__ void load(int k, double2 (&value)[4]) const {
    const int j = k + 2 * (thread_rank() & 7);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      value[i] = make_double2(0.0, 0.0);
      if (offset[i] >= 0) read_pair<PAIRS>(start + offset[i] + j, n - j, value[i]);
    }
  }
};

// A pixel's sums over all references, of the squares and of the values, for the pair of a thread.
struct Totals {
  double2 power, mean;
};

// One tile of rows times 64 pixels of all references.
template <bool ROW_PAIRS, bool PIXEL_PAIRS>
__device__ __forceinline__ void multiply_all(const Rows &rows, const Lines &lines, bool needed,
                                             const Quarter &quarter, double *buffers,
                                             double (&sum)[2][4][4], Totals &all) {
  double2 next_row[4], next_line[4];
  double next_mean[4];
  rows.load<ROW_PAIRS>(0, next_row);
  lines.load<PIXEL_PAIRS>(0, next_line, next_mean);
  for (int k = 0; k < lines.n; k += DEPTH) {
    double *left = buffers + (k & DEPTH) / DEPTH * (TILE * ROW + DEPTH * LINE);  // by turns
    double *right = left + TILE * ROW;
#pragma unroll
    for (int i = 0; i < 4; ++i) store_pair(left, i, next_row[i].x, next_row[i].y);
    Lines::store(right, next_line, next_mean);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const double2 value = next_line[i];
      all.power.x += value.x * value.x, all.mean.x += value.x;
      all.power.y += value.y * value.y, all.mean.y += value.y;
    }
    __syncthreads();
    rows.load<ROW_PAIRS>(k + DEPTH, next_row);
    lines.load<PIXEL_PAIRS>(k + DEPTH, next_line, next_mean);
    if (needed) quarter.multiply<true>(left, right, sum);
  }
}

// Residuals and scatters, one block for 64 pixels. references: (frames, n, pixels); means:
// (frames, n); rows: (frames, models + n, n), models = truncations * n_targets factors and then
// the vectors, eigenvalues descending; weights: (frames, n), the sums of each vector; targets:
// (frames, n_targets, pixels), without mean; counts: (frames, 2 + n_kept): usable references,
// rank, and the n_kept truncations for scatter, ascending. residuals: (truncations, frames,
// n_targets, pixels); scatter: (n_kept, frames, pixels). Grid: (blocks of 64 pixels, frames),
// block (128,).
__global__ void __launch_bounds__(THREADS, 2) residuals_and_scatter(
    const double *references, const double *means, const double *rows, const double *weights,
    const double *targets, const int *counts, int n, int pixels, int n_targets, int models,
    int n_kept, double *residuals, double *scatter) {
  __shared__ double2 aligned[TILE * ROW + DEPTH * LINE];  // two factors, twice; their product
  __shared__ double2 powers[4][TILE / 2], sums[4][TILE / 2];
  __shared__ double row_weights[TILE];
  __shared__ Spread spreads[TILE];
  static_assert(sizeof aligned >= TILE * MODEL * sizeof(double), "the product takes their place");
  double *shared = reinterpret_cast<double *>(aligned);
  const int x = thread_rank() % TILE, y = thread_rank() / TILE, lane = thread_rank() & 31;
  const int pixel = blockIdx.x * TILE + x;
  const bool inside = pixel < pixels;
  const long long frame = blockIdx.y, frames = gridDim.y, plane = frames * pixels;
  const bool row_pairs = in_pairs(rows, n), pixel_pairs = in_pairs(references, pixels);
  const int first_pixel = blockIdx.x * TILE + 2 * lane;
  const Lines lines{references + frame * n * pixels + first_pixel, means + frame * n, n, pixels,
                    pixels - first_pixel};
  const Truncations truncations(counts + frame * (2 + n_kept) + 2, n_kept,
                                counts[frame * (2 + n_kept) + 1]);
  const double count = counts[frame * (2 + n_kept)];
  const int n_rows = models + truncations.modes();
  const Quarter quarter(blockIdx.x);
  for (int first = 0; first == 0 || first < n_rows; first += TILE) {
    double sum[2][4][4] = {};
    Totals all = {};
    const Rows panel(rows + frame * (models + n) * n, first, models, truncations, n);
    const bool needed = first + quarter.row < n_rows;  // the same in a warp
    if (row_pairs && pixel_pairs)
      multiply_all<true, true>(panel, lines, needed, quarter, shared, sum, all);
    else if (pixel_pairs)
      multiply_all<false, true>(panel, lines, needed, quarter, shared, sum, all);
    else multiply_all<false, false>(panel, lines, needed, quarter, shared, sum, all);
    __syncthreads();
    quarter.store(sum, shared, MODEL);
    powers[thread_rank() >> 5][lane] = all.power, sums[thread_rank() >> 5][lane] = all.mean;
    if (y == 0 && first + x >= models && first + x < n_rows)
      row_weights[x] = weights[frame * n + truncations.mode(first + x - models)];
    __syncthreads();
    for (int q = first + y; inside && q < min(first + TILE, models); q += THREADS / TILE) {
      const long long at = (frame * n_targets + q % n_targets) * pixels + pixel;
      const double model = shared[(q - first) * MODEL + x];
      residuals[q / n_targets * n_targets * plane + at] = targets[at] - model;
    }
    if (y == 0 && inside && n_kept > 0) {
      Spread spread = spreads[x];
      double *out = scatter + frame * pixels + pixel;
      if (first == 0) {
        const double *p = reinterpret_cast<const double *>(powers) + x;
        const double *m = reinterpret_cast<const double *>(sums) + x;
        spread = Spread{p[0] + p[TILE] + p[2 * TILE] + p[3 * TILE],
                        m[0] + m[TILE] + m[2 * TILE] + m[3 * TILE],
                        0.0,
                        0.0,
                        0,
                        n_kept - 1};
        spread.reach(truncations, 0, count, out, plane);
      }
      for (int q = max(first, models), end = min(first + TILE, n_rows); q < end;) {
        const int stop = min(end, models + spread.until(truncations, q - models));
#pragma unroll 4
        for (; q < stop; ++q) {
          const double value = shared[(q - first) * MODEL + x];
          spread.power += value * value;
          spread.mean += value * row_weights[q - first];
        }
        spread.reach(truncations, q - models, count, out, plane);
      }
      spreads[x] = spread;
    }
    __syncthreads();
  }
}

// instantiate: reference_sums<0>
// instantiate: reference_sums<1>
// instantiate: reference_sums<4>
// instantiate: covariance_parts
// instantiate: sum_parts
// instantiate: residuals_and_scatter
