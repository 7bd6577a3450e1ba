// What every kernel shares. Compiled by NVRTC (through CuPy), by nvcc and, for tests, by g++.
//
// NVRTC knows no <cmath> and no INFINITY or NAN. Reductions add in an order that depends on the
// block's size alone, so that results repeat from run to run and from device to device.
#pragma once

// T *name, dynamic shared memory of the launch, aligned to 16 bytes. Once in a kernel: cut further
// arrays from it by hand, widest type first.
#ifdef CUDA_ON_HOST
#define DYN_SHARED(T, name) T *name = static_cast<T *>(cuda_on_host::dynamic_shared())
#else
#define DYN_SHARED(T, name)                                    \
  extern __shared__ __align__(16) unsigned char dyn_shared_[]; \
  T *name = reinterpret_cast<T *>(dyn_shared_)
#endif

template <class T> __device__ __forceinline__ T nan_of();
template <> __device__ __forceinline__ float nan_of<float>() { return __int_as_float(0x7fc00000); }
template <> __device__ __forceinline__ double nan_of<double>() {
  return __longlong_as_double(0x7ff8000000000000LL);
}

template <class T> __device__ __forceinline__ T inf_of();
template <> __device__ __forceinline__ float inf_of<float>() { return __int_as_float(0x7f800000); }
template <> __device__ __forceinline__ double inf_of<double>() {
  return __longlong_as_double(0x7ff0000000000000LL);
}

// The index of the thread in its block, and of the element in a flat launch.
__device__ __forceinline__ int thread_rank() {
  return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}
__device__ __forceinline__ int block_threads() { return blockDim.x * blockDim.y * blockDim.z; }
__device__ __forceinline__ long long flat_index() {
  return static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
}

struct Add {
  template <class T> __device__ __forceinline__ T operator()(T a, T b) const { return a + b; }
};
struct Larger {  // of two numbers; b where a is NaN
  template <class T> __device__ __forceinline__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};
struct Smaller {
  template <class T> __device__ __forceinline__ T operator()(T a, T b) const {
    return a < b ? a : b;
  }
};

// Fold over the 32 lanes of a warp; every lane gets the same bits, for a commutative `fold`.
// All 32 must take part.
template <class T, class Fold> __device__ __forceinline__ T warp_fold(T value, Fold fold) {
#pragma unroll
  for (int step = 16; step > 0; step >>= 1)
    value = fold(value, __shfl_xor_sync(0xffffffffu, value, step));
  return value;
}
template <class T> __device__ __forceinline__ T warp_sum(T value) {
  return warp_fold(value, Add());
}

// Fold N values of each thread over the block; every thread gets the results. The block must be
// whole warps, and all of it take part; scratch: N * 32 elements of shared memory, free again on
// return.
template <int N, class T, class Fold>
__device__ __forceinline__ void block_fold(T (&value)[N], T *scratch, Fold fold) {
  const int rank = thread_rank(), warp = rank >> 5, warps = block_threads() >> 5;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    value[k] = warp_fold(value[k], fold);
    if ((rank & 31) == 0) scratch[k * 32 + warp] = value[k];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < N; ++k) {
    value[k] = scratch[k * 32];
    for (int w = 1; w < warps; ++w) value[k] = fold(value[k], scratch[k * 32 + w]);
  }
  __syncthreads();
}
template <class T> __device__ __forceinline__ T block_sum(T value, T *scratch) {
  T one[1] = {value};
  block_fold(one, scratch, Add());
  return one[0];
}
