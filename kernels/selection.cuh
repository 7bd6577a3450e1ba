// Medians by order alone: values become unsigned keys that sort as the values do.
//
// A key is the value's bits with the sign bit turned, or all bits turned where it is negative:
// -inf < ... < -0 < +0 < ... < inf. Comparing keys keeps denormals (CuPy compiles with -ftz=true,
// which would make them equal), needs no NaN rules, and for float64 no float64 units. The keys 0
// and ~0 belong to NaNs, which are never good: they are free to mean "lowest" and "missing".
//
// Few values: a sorting network in registers, of which only the paths to the middle survive the
// compiler. Many: bisection on the keys by a team of threads, which keep their keys in registers.
#pragma once
#include "common.cuh"

template <class T> struct KeyOf;
template <> struct KeyOf<float> {
  typedef unsigned type;
};
template <> struct KeyOf<double> {
  typedef unsigned long long type;
};
template <class T> using key_t = typename KeyOf<T>::type;

__device__ __forceinline__ unsigned key_of(float x) {
  const int bits = __float_as_int(x);
  return static_cast<unsigned>(bits) ^ (static_cast<unsigned>(bits >> 31) | 0x80000000u);
}
__device__ __forceinline__ unsigned long long key_of(double x) {
  const long long bits = __double_as_longlong(x);
  return static_cast<unsigned long long>(bits) ^
         (static_cast<unsigned long long>(bits >> 63) | 0x8000000000000000ull);
}
__device__ __forceinline__ float value_of(unsigned key) {
  return __int_as_float(static_cast<int>(key ^ (((key >> 31) - 1u) | 0x80000000u)));
}
__device__ __forceinline__ double value_of(unsigned long long key) {
  return __longlong_as_double(
      static_cast<long long>(key ^ (((key >> 63) - 1ull) | 0x8000000000000000ull)));
}

// What a NaN, or a value that must not enter, is sorted as: beyond all others.
template <class T> __device__ __forceinline__ key_t<T> missing() {
  return ~static_cast<key_t<T>>(0);
}
template <class T> __device__ __forceinline__ key_t<T> key_or_missing(T x) {
  return x == x ? key_of(x) : missing<T>();
}

// ---- few values: Batcher's odd-even merge sort, for any N

// Is (i, i + K) compared while runs of P are merged?
template <int P, int K> __device__ __forceinline__ constexpr bool are_compared(int i) {
  return i >= K % P && (i - K % P) % (2 * K) < K && i / (2 * P) == (i + K) / (2 * P);
}

template <int N, int P = 1, int K = 1, class Key>
__device__ __forceinline__ void sort_in_registers(Key (&v)[N]) {
#pragma unroll
  for (int i = 0; i < N - K; ++i)
    if (are_compared<P, K>(i)) {
      const Key a = v[i], b = v[i + K];
      v[i] = a < b ? a : b;
      v[i + K] = a < b ? b : a;
    }
  if constexpr (K > 1) sort_in_registers<N, P, K / 2>(v);
  else if constexpr (2 * P < N) sort_in_registers<N, 2 * P, 2 * P>(v);
}

// The median of up to N values (N even), NaN standing for what does not enter; NaN for none.
//
// Missing values turn by turn go to the top and to the bottom: the middle then always is at
// N / 2 - 1 and N / 2, known when the network is compiled.
template <int N, class T> __device__ __forceinline__ T middle_in_registers(const T (&value)[N]) {
  key_t<T> v[N];
  int absent = 0;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    const bool here = value[k] == value[k];
    v[k] = here ? key_of(value[k]) : static_cast<key_t<T>>(absent & 1) - 1;
    absent += !here;
  }
  sort_in_registers(v);
  const T lower = value_of(v[N / 2 - 1]), upper = value_of(v[N / 2]);
  if (absent == N) return nan_of<T>();
  return (absent & 1) ? lower : (lower + upper) / T(2);
}

// ---- many values: bisection

// A whole warp; `fold` gives every lane the result.
struct WarpTeam {
  template <class V, class Fold> __device__ __forceinline__ V fold(V value, Fold f) {
    return warp_fold(value, f);
  }
  __device__ __forceinline__ bool any(bool mine) { return __any_sync(0xffffffffu, mine); }
};

// WARPS warps share a run of PIXELS pixels: thread t works for pixel t % PIXELS. Each warp has lanes
// of every pixel, so that all warps agree on `any` without asking each other.
template <class Key, int WARPS, int PIXELS> struct TileTeam {
  Key (*part)[WARPS][PIXELS];  // shared memory; two turns: one barrier a fold suffices
  int turn;

  template <class V, class Fold> __device__ __forceinline__ V fold(V value, Fold f) {
#pragma unroll
    for (int step = PIXELS; step < 32; step *= 2)
      value = f(value, __shfl_xor_sync(0xffffffffu, value, step));
    if constexpr (WARPS > 1) {
      const int lane = threadIdx.x % 32, pixel = threadIdx.x % PIXELS;
      turn ^= 1;
      if (lane < PIXELS) part[turn][threadIdx.x / 32][lane] = value;
      __syncthreads();
      value = static_cast<V>(part[turn][0][pixel]);
#pragma unroll
      for (int warp = 1; warp < WARPS; ++warp)
        value = f(value, static_cast<V>(part[turn][warp][pixel]));
    }
    return value;
  }
  __device__ __forceinline__ bool any(bool mine) { return __any_sync(0xffffffffu, mine); }
};

// The median of the keys that a team holds; every thread of the team gets it. `keys.each(f)` calls
// f with each of this thread's keys.
//
// The bracket [lo, hi] shrinks round the key of rank (count - 1) / 2 until it holds one value:
// after about log2(count) + 3 passes for values spread smoothly, 32 or 64 at the worst.
template <class T, class Team, class Keys>
__device__ __forceinline__ T middle_of_team(Team &team, const Keys &keys) {
  typedef key_t<T> Key;
  Key lo = missing<T>(), hi = 0;
  unsigned count = 0;
  keys.each([&](Key key) {
    if (key == missing<T>()) return;
    ++count;
    lo = key < lo ? key : lo;
    hi = key > hi ? key : hi;
  });
  count = team.fold(count, Add());
  lo = team.fold(lo, Smaller());
  hi = team.fold(hi, Larger());
  const unsigned rank = (count - 1) / 2;
  unsigned below = 0, upto = count;  // keys under lo; keys up to hi
  while (team.any(lo < hi && upto - below > 1)) {
    const Key mid = lo + (hi - lo) / 2;
    unsigned some = 0;
    keys.each([&](Key key) { some += key <= mid; });
    some = team.fold(some, Add());
    if (some > rank) {
      hi = mid;
      upto = some;
    } else {
      lo = mid + 1;
      below = some;
    }
  }
  Key first = missing<T>(), next = missing<T>();  // in the bracket, and above it
  keys.each([&](Key key) {
    if (key >= lo && key < first) first = key;
    if (key > hi && key < next) next = key;
  });
  first = team.fold(first, Smaller());
  next = team.fold(next, Smaller());
  if (count == 0) return nan_of<T>();
  const T lower = value_of(first);
  if (count & 1) return lower;
  return (lower + (upto > count / 2 ? lower : value_of(next))) / T(2);
}
