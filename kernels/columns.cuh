// Medians over the integrations of a stack, for kernels that go on with the pixel afterwards.
//
// `Stack` has the pointers `images` and `mask` to (n, n_pixels) elements, `masked` (whether the mask
// counts), `value(x)`, the image's element as it enters, NaN to stay out, and `good(m)` for the
// mask's.
#pragma once
#include "selection.cuh"

// One thread, one pixel, n <= N. All loads of the images, then all of the mask, are in flight
// together.
template <int N, class T, class Stack>
__device__ __forceinline__ T middle_of_column(int n, long long n_pixels, long long p,
                                              const Stack &stack) {
  T value[N];
  const T *image = stack.images + p;
#pragma unroll
  for (int k = 0; k < N; ++k, image += n_pixels)
    value[k] = k < n ? stack.value(*image) : nan_of<T>();
  if (stack.masked) {
    auto mask = stack.mask + p;
#pragma unroll
    for (int k = 0; k < N; ++k, mask += n_pixels)
      if (k < n && !stack.good(*mask)) value[k] = nan_of<T>();
  }
  return middle_in_registers<N>(value);
}

// Element i of the stack's (n, n_pixels), NaN where it must stay out.
template <class T, class Stack>
__device__ __forceinline__ T element(const Stack &stack, long long i) {
  const T x = stack.value(stack.images[i]);
  return !stack.masked || stack.good(stack.mask[i]) ? x : nan_of<T>();
}

// A run of 32 bytes of pixels, one sector of each integration, shared by WARPS warps: the part of
// one thread is a pixel, and every ROWS-th integration from `row` on.
template <class T, int WARPS> struct Tile {
  static constexpr int PIXELS = 32 / sizeof(T), ROWS = 32 * WARPS / PIXELS;
  long long pixel, n_pixels;
  int row, n;  // of n integrations; none where the pixel is outside

  __device__ __forceinline__ Tile(int n, long long n_pixels)
      : pixel(static_cast<long long>(blockIdx.x) * PIXELS + threadIdx.x % PIXELS),
        n_pixels(n_pixels),
        row(threadIdx.x / PIXELS),
        n(pixel < n_pixels ? n : 0) {}

  __device__ __forceinline__ long long index(int k) const { return k * n_pixels + pixel; }
};

template <class T, int WARPS> struct TileScratch {
  key_t<T> part[2][WARPS][Tile<T, WARPS>::PIXELS];
};

// Keys that stay in registers.
template <class T, int HELD> struct HeldKeys {
  key_t<T> key[HELD];

  template <class Tile, class Stack>
  __device__ __forceinline__ HeldKeys(const Tile &tile, const Stack &stack) {
    const long long step = Tile::ROWS * tile.n_pixels;
    const T *image = stack.images + tile.index(tile.row);
#pragma unroll
    for (int j = 0; j < HELD; ++j, image += step)
      key[j] =
          tile.row + j * Tile::ROWS < tile.n ? key_or_missing(stack.value(*image)) : missing<T>();
    if (!stack.masked) return;
    auto mask = stack.mask + tile.index(tile.row);
#pragma unroll
    for (int j = 0; j < HELD; ++j, mask += step)
      if (tile.row + j * Tile::ROWS < tile.n && !stack.good(*mask)) key[j] = missing<T>();
  }
  template <class F> __device__ __forceinline__ void each(F f) const {
#pragma unroll
    for (int j = 0; j < HELD; ++j) f(key[j]);
  }
};

// Keys that are read again each time.
template <class T, class Tile, class Stack> struct ReadKeys {
  const Tile &tile;
  const Stack &stack;

  template <class F> __device__ __forceinline__ void each(F f) const {
#pragma unroll 4
    for (int k = tile.row; k < tile.n; k += Tile::ROWS)
      f(key_or_missing(element<T>(stack, tile.index(k))));
  }
};

// All threads of the block must take part; each gets the median of its pixel. n <= HELD * ROWS,
// or any with HELD = 0.
template <int HELD, class T, int WARPS, class Stack>
__device__ __forceinline__ T middle_of_tile(const Tile<T, WARPS> &tile, const Stack &stack,
                                            TileScratch<T, WARPS> &scratch) {
  TileTeam<key_t<T>, WARPS, Tile<T, WARPS>::PIXELS> team = {scratch.part, 0};
  if constexpr (HELD > 0) return middle_of_team<T>(team, HeldKeys<T, HELD>(tile, stack));
  else return middle_of_team<T>(team, ReadKeys<T, Tile<T, WARPS>, Stack>{tile, stack});
}
