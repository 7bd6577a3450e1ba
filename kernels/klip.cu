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
// Threads    means: a block to an image. C and the last pass: 256 threads multiply 64 x 64 tiles,
//            4 x 4 to a thread, 16 deep, the next 16 on their way in registers. C: a block to a
//            tile of the lower triangle and 4096 pixels, partial sums added in order afterwards.
//            Last: a block to 64 pixels; a row of a tile is a factor or a mode; 64 threads then
//            add the modes' squares in order of the modes, and write at every truncation.
// Work       n = 180, 320 x 320 pixels, 50 kept, one frame: 147 MB a pass. C 5.0 GFLOP (6 tiles of
//            the 9), last pass 2.2 GFLOP. For 120 frames 870 GFLOP: 40 ms at two thirds of an
//            H100's 34 TFLOP/s of float64, above the 18 ms of three passes. Estimates: not yet
//            timed on a device.
// Variants   on paper only. C by cuBLAS: a batched product through cupy.matmul copies transposed
//            operands (twice the memory), one frame's product alone is small (180 x 180), both
//            halves of the triangle are computed, and the references must be centred in memory
//            first, two passes more: R R^T - pixels m m^T loses digits where the background is
//            bright (a mean of 90 standard deviations: residuals off by 7e-8). It has tensor cores
//            (twice the rate) on A100 and H100 only.
//            Scatter by a product and a reduction: as many operations, and the modes (41 MB a
//            frame) written and read.

#include "common.cuh"

constexpr int TILE = 64, DEPTH = 16, STRIDE = TILE + 2;  // even: pairs are aligned
constexpr int SEGMENT = 4096;                            // pixels summed in one go

// Means of the references, NaN where one is not finite, and their products with TARGETS targets at
// a time. references: (frames, n, pixels); targets: (frames, n_targets, pixels), without mean, NaN
// counts as 0; means: (frames, n); products: (frames, n_targets, n). Grid: (n, groups of targets,
// frames). Sums run over differences from the middle one of three pixels, which takes a bright
// background out.
template <int TARGETS>
__global__ void __launch_bounds__(256)
reference_sums(const double *references, const double *targets, int n, int n_targets, int pixels,
               double *means, double *products) {
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

// sum[i][j] += sum_k left[k][row_i] right[k][column_j] for the rows and columns of this thread.
__device__ __forceinline__ int tile_row(int i) { return 4 * threadIdx.y + i; }
__device__ __forceinline__ int tile_column(int j) {
  return 32 * (j >> 1) + 2 * threadIdx.x + (j & 1);
}

__device__ __forceinline__ void multiply(const double2 *left, const double2 *right,
                                         double (&sum)[4][4]) {
  left += 2 * threadIdx.y, right += threadIdx.x;
#pragma unroll 4  // more needs more registers than there are
  for (int k = 0; k < DEPTH; ++k) {
    const double2 a0 = left[0], a1 = left[1], b0 = right[0], b1 = right[16];
    const double a[4] = {a0.x, a0.y, a1.x, a1.y}, b[4] = {b0.x, b0.y, b1.x, b1.y};
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[i][j] += a[i] * b[j];
    left += STRIDE / 2, right += STRIDE / 2;
  }
}

// Four of a panel's 64 rows that one thread loads: row = rank / 16 + 16 i, element = rank % 16.
struct Panel {
  const double *start;  // of row 0
  double means[4];
  unsigned present;

  __device__ __forceinline__ Panel(const double *references, const double *row_means, int first,
                                   int n, int pixels) {
    const int row = first + (thread_rank() >> 4);
    start = references + static_cast<long long>(row) * pixels + (thread_rank() & 15);
    present = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      means[i] = row + 16 * i < n ? row_means[row + 16 * i] : nan_of<double>();
      if (isfinite(means[i])) present |= 1u << i;
    }
  }
  __device__ __forceinline__ void load(int pixel, int stop, int pixels, double (&value)[4]) const {
    const bool inside = pixel + (thread_rank() & 15) < stop;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      value[i] = inside && (present >> i & 1)
                     ? start[static_cast<long long>(16 * i) * pixels + pixel] - means[i] : 0.0;
  }
  static __device__ __forceinline__ void store(double2 *tile, const double (&value)[4]) {
    double *place = reinterpret_cast<double *>(tile) + (thread_rank() & 15) * STRIDE;
#pragma unroll
    for (int i = 0; i < 4; ++i) place[(thread_rank() >> 4) + 16 * i] = value[i];
  }
};

// Products of one tile of references with another over SEGMENT pixels. parts: (frames, segments,
// tiles, 64, 64), tiles of the lower triangle row by row. Grid: (tiles, segments, frames), block
// (16, 16).
__global__ void __launch_bounds__(256, 2)
covariance_parts(const double *references, const double *means, int n, int pixels, double *parts) {
  __shared__ double2 left[DEPTH * STRIDE / 2], right[DEPTH * STRIDE / 2];
  const int tile = blockIdx.x, tiles = gridDim.x;
  int across = 0;  // of the tile
  while ((across + 1) * (across + 2) / 2 <= tile) ++across;
  const int down = tile - across * (across + 1) / 2;
  const long long frame = blockIdx.z;
  const int begin = blockIdx.y * SEGMENT, stop = min(begin + SEGMENT, pixels);
  references += frame * n * pixels, means += frame * n;
  const Panel rows(references, means, across * TILE, n, pixels);
  const Panel columns(references, means, down * TILE, n, pixels);
  const bool needed = across * TILE + 8 * (thread_rank() >> 5) < n;  // the same in a warp
  double sum[4][4] = {}, next_row[4], next_column[4] = {};
  rows.load(begin, stop, pixels, next_row);
  if (across != down) columns.load(begin, stop, pixels, next_column);
  for (int pixel = begin; pixel < stop; pixel += DEPTH) {
    Panel::store(left, next_row);
    if (across != down) Panel::store(right, next_column);
    __syncthreads();
    rows.load(pixel + DEPTH, stop, pixels, next_row);
    if (across != down) columns.load(pixel + DEPTH, stop, pixels, next_column);
    if (needed) multiply(left, across != down ? right : left, sum);
    __syncthreads();
  }
  parts += ((frame * gridDim.y + blockIdx.y) * tiles + tile) * TILE * TILE;
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) parts[tile_row(i) * TILE + tile_column(j)] = sum[i][j];
}

// Add the parts, in order; fill both triangles. One thread to an element of the lower one. Grid:
// (blocks of 256 threads for n * n, frames). products: (frames, n, n).
__global__ void __launch_bounds__(256)
sum_parts(const double *parts, int n, int segments, double *products) {
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
  static __device__ __forceinline__ double deviation(double power, double sum, double count) {
    const double mean = sum / count;  // its square rounded: one reference has no scatter at all
    return sqrt(fmax(power / count - __dmul_rn(mean, mean), 0.0));
  }
};

// Four of 16 references that one thread loads for its pixel: rank / 64 + 4 i.
struct Column {
  const double *image, *means;
  int n, pixels;
  bool inside;

  __device__ __forceinline__ void load(int k, double (&value)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int j = k + thread_rank() / TILE + 4 * i;
      const double mean = inside && j < n ? means[j] : nan_of<double>();
      value[i] = isfinite(mean) ? image[static_cast<long long>(j) * pixels] - mean : 0.0;
    }
  }
  static __device__ __forceinline__ void store(double2 *tile, const double (&value)[4]) {
    double *place = reinterpret_cast<double *>(tile) + thread_rank() % TILE;
#pragma unroll
    for (int i = 0; i < 4; ++i) place[(thread_rank() / TILE + 4 * i) * STRIDE] = value[i];
  }
};

// Rows of factors, then of vectors as the truncations need them; four for a thread, as in a Panel.
struct Rows {
  const double *start;
  int offset[4], n;  // -1: no row

  __device__ __forceinline__ Rows(const double *rows, int first, int models,
                                  const Truncations &truncations, int n_) : start(rows), n(n_) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int q = first + (thread_rank() >> 4) + 16 * i, mode = truncations.mode(q - models);
      offset[i] = q < models ? q * n
                  : q - models < truncations.modes() ? (models + mode) * n : -1;
    }
  }
  __device__ __forceinline__ void load(int k, double (&value)[4]) const {
    const int j = k + (thread_rank() & 15);
#pragma unroll
    for (int i = 0; i < 4; ++i) value[i] = offset[i] >= 0 && j < n ? start[offset[i] + j] : 0.0;
  }
};

// One tile of rows times 64 pixels of all references. all: a pixel's sums of squares and of values.
__device__ __forceinline__ void multiply_all(const Rows &rows, const Column &column, bool needed,
                                             double2 *left, double2 *right, double (&sum)[4][4],
                                             double (&all)[2]) {
  double next_row[4], next_value[4];
  rows.load(0, next_row);
  column.load(0, next_value);
  for (int k = 0; k < column.n; k += DEPTH) {
    Panel::store(left, next_row);
    Column::store(right, next_value);
#pragma unroll
    for (int i = 0; i < 4; ++i) all[0] += next_value[i] * next_value[i], all[1] += next_value[i];
    __syncthreads();
    rows.load(k + DEPTH, next_row);
    column.load(k + DEPTH, next_value);
    if (needed) multiply(left, right, sum);
    __syncthreads();
  }
}

// Residuals and scatters, one block for 64 pixels. references: (frames, n, pixels); means:
// (frames, n); rows: (frames, models + n, n), models = truncations * n_targets factors and then
// the vectors, eigenvalues descending; weights: (frames, n), the sums of each vector; targets:
// (frames, n_targets, pixels), without mean; counts: (frames, 2 + n_kept): usable references,
// rank, and the n_kept truncations for scatter, ascending. residuals: (truncations, frames,
// n_targets, pixels); scatter: (n_kept, frames, pixels). Grid: (blocks of 64 pixels, frames),
// block (16, 16).
__global__ void __launch_bounds__(256, 2)
residuals_and_scatter(const double *references, const double *means, const double *rows,
                      const double *weights, const double *targets, const int *counts, int n,
                      int pixels, int n_targets, int models, int n_kept, double *residuals,
                      double *scatter) {
  __shared__ double2 shared[TILE * TILE / 2];  // both factors of a product, then the product
  __shared__ double totals[2][4][TILE];
  __shared__ Spread spreads[TILE];
  double *product = reinterpret_cast<double *>(shared);
  const int x = thread_rank() % TILE, y = thread_rank() / TILE;
  const int pixel = blockIdx.x * TILE + x;
  const bool inside = pixel < pixels;
  const long long frame = blockIdx.y, frames = gridDim.y, plane = frames * pixels;
  counts += frame * (2 + n_kept);
  const Column column{references + frame * n * pixels + pixel, means + frame * n, n, pixels,
                      inside};
  const Truncations truncations(counts + 2, n_kept, counts[1]);
  const int n_rows = models + truncations.modes();
  for (int first = 0; first == 0 || first < n_rows; first += TILE) {
    double sum[4][4] = {}, all[2] = {};
    const Rows factors(rows + frame * (models + n) * n, first, models, truncations, n);
    const bool needed = first + 8 * (thread_rank() >> 5) < n_rows;  // the same in a warp
    multiply_all(factors, column, needed, shared, shared + DEPTH * STRIDE / 2, sum, all);
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) product[tile_row(i) * TILE + tile_column(j)] = sum[i][j];
    totals[0][y][x] = all[0], totals[1][y][x] = all[1];
    __syncthreads();
    for (int q = first + y; inside && q < min(first + TILE, models); q += 4) {
      const long long at = (frame * n_targets + q % n_targets) * pixels + pixel;
      const double model = product[(q - first) * TILE + x];
      residuals[q / n_targets * n_targets * plane + at] = targets[at] - model;
    }
    if (y == 0 && inside && n_kept > 0) {
      Spread spread = spreads[x];
      double *out = scatter + frame * pixels + pixel;
      if (first == 0) {
        const double(&p)[4][TILE] = totals[0], (&m)[4][TILE] = totals[1];
        spread = Spread{p[0][x] + p[1][x] + p[2][x] + p[3][x],
                        m[0][x] + m[1][x] + m[2][x] + m[3][x], 0.0, 0.0, 0, n_kept - 1};
        spread.reach(truncations, 0, counts[0], out, plane);
      }
      for (int q = max(first, models); q < min(first + TILE, n_rows); ++q) {
        const double value = product[(q - first) * TILE + x];
        spread.power += value * value;
        spread.mean += value * weights[frame * n + truncations.mode(q - models)];
        spread.reach(truncations, q - models + 1, counts[0], out, plane);
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
