// Median of each pixel over the integrations where it is good.
//
//   out[p] = middle of { images[k, p] : good[k, p], images[k, p] not NaN }; of an even number, the
//   mean of the two middle ones in the dtype of the images; NaN of none.
//
// Bytes a pixel: reads n (sizeof(T) + 1), without `good` n sizeof(T); writes sizeof(T).
//
// column_median<T, N>, n <= N: one thread a pixel, neighbouring threads on neighbouring pixels.
// All loads of the images are in flight together, then all of the mask. A sorting network in
// registers gives the middle: 191 comparisons for 32 values, of which the compiler drops those that
// lead elsewhere; on sm_90 about 900 instructions a pixel in all.
//
// tile_median<T, HELD, WARPS>: WARPS warps share the 8 (float) or 4 (double) pixels of one 32-byte
// sector, 4 or 8 lanes of each warp on the same pixel. Each thread keeps HELD values in registers,
// so n <= WARPS HELD sizeof(T), and the middle is found by bisection on the bits, about log2(n) + 3
// passes over the registers. A single warp needs no barrier, several one in each pass. HELD = 0
// reads the stack again in each pass, for any n.
//
// Considered: a network of 128 (twice the instructions of a bisection); the stack in shared memory
// (a pass over it there costs more than one over registers: four times the whole reading for 15);
// histograms of digits (the values of one pixel share their upper bits, so that all atomics would
// meet in one bin); 256 threads for every n > 64 (for n near 100 ten times the instructions, all of
// them in the exchange between warps). Counts of instructions are from the compiler.
//
// Measured on an NVIDIA H200, 320 x 320 with a mask, ms, and in brackets the share of a copy's
// rate. column_median, float: 0.0051 for n = 4 (11 %), 0.0098 for 10 (13 %), 0.058 for 60 (13 %);
// double: 0.013 for 10 (18 %). tile_median, float: 0.39 for n = 300 (9 %), 2.8 for 2000 (9 %);
// double: 0.080 for 60 (17 %), 0.46 for 300 (14 %).
#include "columns.cuh"

template <class T> struct MaskedStack {
  const T *images;
  const bool *mask;
  bool masked;

  __device__ __forceinline__ T value(T x) const { return x; }
  __device__ __forceinline__ bool good(bool m) const { return m; }
};

template <class T, int N>
__global__ void __launch_bounds__(128) column_median(const T *__restrict__ images,
                                                     const bool *__restrict__ good, int masked,
                                                     int n, long long n_pixels,
                                                     T *__restrict__ out) {
  const long long p = flat_index();
  if (p >= n_pixels) return;
  const MaskedStack<T> stack = {images, good, masked != 0};
  out[p] = middle_of_column<N, T>(n, n_pixels, p, stack);
}

template <class T, int HELD, int WARPS>
__global__ void __launch_bounds__(32 * WARPS, 16 / WARPS) tile_median(const T *__restrict__ images,
                                                                      const bool *__restrict__ good,
                                                                      int masked, int n,
                                                                      long long n_pixels,
                                                                      T *__restrict__ out) {
  __shared__ TileScratch<T, WARPS> scratch;
  const Tile<T, WARPS> tile(n, n_pixels);
  const MaskedStack<T> stack = {images, good, masked != 0};
  const T middle = middle_of_tile<HELD>(tile, stack, scratch);
  if (tile.row == 0 && tile.n > 0) out[tile.pixel] = middle;
}

// instantiate: column_median<float, 4>
// instantiate: column_median<float, 8>
// instantiate: column_median<float, 16>
// instantiate: column_median<float, 32>
// instantiate: column_median<float, 64>
// instantiate: tile_median<float, 32, 1>
// instantiate: tile_median<float, 64, 1>
// instantiate: tile_median<float, 64, 2>
// instantiate: tile_median<float, 64, 4>
// instantiate: tile_median<float, 64, 8>
// instantiate: tile_median<float, 0, 8>
// instantiate: column_median<double, 4>
// instantiate: column_median<double, 8>
// instantiate: column_median<double, 16>
// instantiate: column_median<double, 32>
// instantiate: tile_median<double, 16, 1>
// instantiate: tile_median<double, 32, 1>
// instantiate: tile_median<double, 32, 2>
// instantiate: tile_median<double, 32, 4>
// instantiate: tile_median<double, 32, 8>
// instantiate: tile_median<double, 0, 8>
