// Products of 64 x 64 float64 tiles by a block of four warps, for klip.cu: panels of references on
// their way through shared memory, and the tensor cores' instruction.
#pragma once
#include "common.cuh"

constexpr int TILE = 64, DEPTH = 16;  // a block's product: 64 x 64, summed 16 at a time
constexpr int THREADS = 128;          // of a block: a warp to a quarter of the product
constexpr int SEGMENT = 4096;         // pixels summed in one go
// Elements from row to row in shared memory. The 16 lanes that read at a time, 4 rows by 4 columns
// of ROW and LINE, and the 8 that write pairs of MODEL, 2 rows by 4, find banks of their own.
constexpr int ROW = DEPTH + 4, LINE = TILE + 4, MODEL = TILE + 8;

// sum += a b, 16 x 8 with 8 between them, by all 32 lanes of a warp. With g = lane / 4 and
// t = lane % 4 a lane holds a[0] and a[1] of rows g and g + 8 and column t, a[2] and a[3] of the
// same and column t + 4; b[0] and b[1] of rows t and t + 4 and column g; sum[0] and sum[1] of row g
// and columns 2 t and 2 t + 1, sum[2] and sum[3] of row g + 8. (PTX ISA, mma.m16n8k8 and, a quarter
// at a time, mma.m8n8k4 of .f64.) Which of the 8 stands where is of no account, as long as it is
// the same for a and b.
__device__ __forceinline__ void mma(double (&sum)[4], const double (&a)[4], const double (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+d"(sum[0]), "+d"(sum[1]), "+d"(sum[2]), "+d"(sum[3])
      : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(b[0]), "d"(b[1]));
#else
#pragma unroll
  for (int v = 0; v < 2; ++v)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      double &x = sum[2 * half], &y = sum[2 * half + 1];
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
      asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
                   : "+d"(x), "+d"(y)
                   : "d"(a[2 * v + half]), "d"(b[v]));
#else  // no such instruction: the lanes fetch what they need of each other
      const int lane = thread_rank() & 31, g = lane >> 2, t = lane & 3;
#pragma unroll 1
      for (int k = 0; k < 4; ++k) {
        const double mine = __shfl_sync(0xffffffffu, a[2 * v + half], 4 * g + k);
        x += mine * __shfl_sync(0xffffffffu, b[v], 4 * (2 * t) + k);
        y += mine * __shfl_sync(0xffffffffu, b[v], 4 * (2 * t + 1) + k);
      }
#endif
    }
#endif
}

// A warp's quarter of the product and this lane's places in it: sum[i][j] is the mma of rows
// row + 16 i and columns column + 8 j.
struct Quarter {
  int row, column, g, t;

  // `turn` differs between blocks, so that idle quarters do not always fall to the same scheduler.
  __device__ __forceinline__ explicit Quarter(int turn) {
    const int lane = thread_rank() & 31, warp = ((thread_rank() >> 5) + turn) & 3;
    row = 32 * (warp >> 1), column = 32 * (warp & 1), g = lane >> 2, t = lane & 3;
  }
  // sum += left right^T, of two panels; or left right, right being 16 lines of pixels.
  template <bool LINES>
  __device__ __forceinline__ void multiply(const double *left, const double *right,
                                           double (&sum)[2][4][4]) const {
    constexpr int ACROSS = LINES ? 8 : 8 * ROW, DEEPER = LINES ? 4 * LINE : 4;
    left += (row + g) * ROW + t;
    right += LINES ? t * LINE + column + g : (column + g) * ROW + t;
#pragma unroll
    for (int k = 0; k < DEPTH / 4; k += 2) {
      double a[2][4], b[4][2];
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int v = 0; v < 4; ++v) a[i][v] = left[(16 * i + 8 * (v & 1)) * ROW + 4 * (k + v / 2)];
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int v = 0; v < 2; ++v) b[j][v] = right[j * ACROSS + (k + v) * DEEPER];
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) mma(sum[i][j], a[i], b[j]);
    }
  }
  // Write the quarter into rows of `pitch` elements.
  __device__ __forceinline__ void store(const double (&sum)[2][4][4], double *product,
                                        int pitch) const {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const double (&c)[4] = sum[i][j];
        double *place = product + (row + 16 * i + g) * pitch + column + 8 * j + 2 * t;
        *reinterpret_cast<double2 *>(place) = make_double2(c[0], c[1]);
        *reinterpret_cast<double2 *>(place + 8 * pitch) = make_double2(c[2], c[3]);
      }
  }
};

// Two neighbours, of which `count` exist; the others keep their values. PAIRS: both do or neither,
// and they are aligned.
template <bool PAIRS>
__device__ __forceinline__ void read_pair(const double *place, int count, double2 &pair) {
  if (PAIRS) {
    if (count > 0) pair = *reinterpret_cast<const double2 *>(place);
  } else {
    if (count > 0) pair.x = place[0];
    if (count > 1) pair.y = place[1];
  }
}
__device__ __forceinline__ bool in_pairs(const double *array, int row) {
  return row % 2 == 0 && reinterpret_cast<unsigned long long>(array) % 16 == 0;
}

// What one thread loads of a panel of 64 rows, 16 deep: a pair of each row rank / 8 + 16 i.
__device__ __forceinline__ void store_pair(double *panel, int i, double x, double y) {
  double *place = panel + ((thread_rank() >> 3) + 16 * i) * ROW + 2 * (thread_rank() & 7);
  *reinterpret_cast<double2 *>(place) = make_double2(x, y);
}

// ---------------------------------------------------------------- inner products of references
// A panel of references, less their means; 0 where there is none, or none that is usable.
struct Panel {
  const double *start;
  double means[4];
  unsigned present;

  __device__ __forceinline__ Panel(const double *references, const double *row_means, int first,
                                   int n, int pixels)
      : present(0) {
    const int row = first + (thread_rank() >> 3);
    start = references + static_cast<long long>(row) * pixels + 2 * (thread_rank() & 7);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const double mean = row + 16 * i < n ? row_means[row + 16 * i] : nan_of<double>();
      means[i] = isfinite(mean) ? mean : 0.0;
      if (isfinite(mean)) present |= 1u << i;
    }
  }
  // Not less the means yet: that would wait for the values. Those of absent rows stay 0.
  template <bool PAIRS>
  __device__ __forceinline__ void load(int pixel, int stop, int pixels, double2 (&value)[4]) const {
    const double *place = start + pixel;
    if (pixel + DEPTH <= stop) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (present >> i & 1)
          read_pair<PAIRS>(place + static_cast<long long>(16 * i) * pixels, 2, value[i]);
    } else {
      const int count = stop - pixel - 2 * (thread_rank() & 7);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        value[i] = make_double2(means[i], means[i]);
        if (present >> i & 1)
          read_pair<PAIRS>(place + static_cast<long long>(16 * i) * pixels, count, value[i]);
      }
    }
  }
  __device__ __forceinline__ void store(double *panel, const double2 (&value)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) store_pair(panel, i, value[i].x - means[i], value[i].y - means[i]);
  }
};

template <bool PAIRS>
__device__ __forceinline__ void multiply_panels(const Panel &rows, const Panel &columns, bool same,
                                                bool needed, const Quarter &quarter, int begin,
                                                int stop, int pixels, double *buffers,
                                                double (&sum)[2][4][4]) {
  double2 next_row[4] = {}, next_column[4] = {};
  rows.load<PAIRS>(begin, stop, pixels, next_row);
  if (!same) columns.load<PAIRS>(begin, stop, pixels, next_column);
  for (int pixel = begin; pixel < stop; pixel += DEPTH) {
    // Two buffers by turns: who is here has seen all of the block leave the one before the last.
    double *left = buffers + ((pixel - begin) & DEPTH) / DEPTH * (2 * TILE * ROW);
    double *right = same ? left : left + TILE * ROW;
    rows.store(left, next_row);
    if (!same) columns.store(right, next_column);
    __syncthreads();
    rows.load<PAIRS>(pixel + DEPTH, stop, pixels, next_row);
    if (!same) columns.load<PAIRS>(pixel + DEPTH, stop, pixels, next_column);
    if (needed) quarter.multiply<false>(left, right, sum);
  }
}
