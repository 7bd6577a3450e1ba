// CUDA C++ for g++: what kernels may use of the language, on top of scheduler.h. Tests only.
#pragma once
#include <cmath>
#include <cstring>
#include <math.h>
#include <type_traits>
#include <utility>

#include "scheduler.h"

#define CUDA_ON_HOST 1
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#if defined(__SANITIZE_ADDRESS__)
#define __shared__ static  // with red zones round it
#else
#define __shared__ thread_local  // found and poisoned by the scheduler
#endif

#define threadIdx (::cuda_on_host::current->index)
#define blockIdx (::cuda_on_host::block_index)
#define blockDim (::cuda_on_host::block_size)
#define gridDim (::cuda_on_host::grid_size)
#define warpSize 32

// ---------------------------------------------------------------- vector types
#define CUDA_ON_HOST_VECTORS(T, S)                                           \
  struct alignas(2 * sizeof(S)) T##2 { S x, y; };                            \
  struct T##3 { S x, y, z; };                                                \
  struct alignas(sizeof(S) > 4 ? 16 : 4 * sizeof(S)) T##4 { S x, y, z, w; }; \
  inline T##2 make_##T##2(S x, S y) { return {x, y}; }                       \
  inline T##3 make_##T##3(S x, S y, S z) { return {x, y, z}; }               \
  inline T##4 make_##T##4(S x, S y, S z, S w) { return {x, y, z, w}; }
CUDA_ON_HOST_VECTORS(float, float)
CUDA_ON_HOST_VECTORS(double, double)
CUDA_ON_HOST_VECTORS(int, int)
CUDA_ON_HOST_VECTORS(uchar, unsigned char)
CUDA_ON_HOST_VECTORS(ushort, unsigned short)
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// ---------------------------------------------------------------- barriers and warps
#define __syncthreads() static_cast<void>(::cuda_on_host::block_barrier(__FILE__, __LINE__))
#define __syncthreads_count(p) ::cuda_on_host::block_barrier(__FILE__, __LINE__, p)
#define __syncthreads_or(p) (::cuda_on_host::block_barrier(__FILE__, __LINE__, p) > 0)
#define __syncthreads_and(p) (::cuda_on_host::block_barrier(__FILE__, __LINE__, !(p)) == 0)
#define __syncwarp(...) ::cuda_on_host::warp_barrier(__FILE__, __LINE__ __VA_OPT__(, ) __VA_ARGS__)
inline void __threadfence() {}
inline void __threadfence_block() {}
[[noreturn]] inline void __trap() { cuda_on_host::fail("__trap", "reached"); }

namespace cuda_on_host {
inline int lane() { return static_cast<int>(current->rank % 32); }

template <class T> T shuffle(unsigned mask, T value, const char *what, int source) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const uint64_t *all = warp_exchange(mask, what, bits);
  if (!((mask & warp_lanes()) >> source & 1)) fail(what, "reads a lane that takes no part");
  std::memcpy(&value, &all[source], sizeof(T));
  return value;
}
}  // namespace cuda_on_host

template <class T> T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
  int group = cuda_on_host::lane() & ~(width - 1);
  return cuda_on_host::shuffle(mask, value, "__shfl_sync", group | (from & (width - 1)));
}
template <class T> T __shfl_down_sync(unsigned mask, T value, int by, int width = 32) {
  int lane = cuda_on_host::lane(), inside = (lane & (width - 1)) + by < width;
  return cuda_on_host::shuffle(mask, value, "__shfl_down_sync", inside ? lane + by : lane);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, int by, int width = 32) {
  int lane = cuda_on_host::lane(), inside = (lane & (width - 1)) >= by;
  return cuda_on_host::shuffle(mask, value, "__shfl_up_sync", inside ? lane - by : lane);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int by, int width = 32) {
  int lane = cuda_on_host::lane(), other = lane ^ by;
  int inside = (other & ~(width - 1)) <= (lane & ~(width - 1));
  return cuda_on_host::shuffle(mask, value, "__shfl_xor_sync", inside ? other : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const uint64_t *all = cuda_on_host::warp_exchange(mask, "__ballot_sync", predicate != 0);
  unsigned result = 0, lanes = mask & cuda_on_host::warp_lanes();
  for (int lane = 0; lane < 32; ++lane)
    if (lanes >> lane & 1) result |= static_cast<unsigned>(all[lane]) << lane;
  return result;
}
inline int __any_sync(unsigned mask, int p) { return __ballot_sync(mask, p) != 0; }
inline int __all_sync(unsigned mask, int p) { return __ballot_sync(mask, !p) == 0; }
inline unsigned __activemask() { return cuda_on_host::warp_lanes(); }

// ---------------------------------------------------------------- atomics: nothing is concurrent
namespace cuda_on_host {
template <class T> T swap(T *place, T value) {
  T old = *place;
  *place = value;
  return old;
}
template <class T> using same = std::common_type_t<T>;  // keeps an argument from being deduced
}  // namespace cuda_on_host
#define CUDA_ON_HOST_ATOMIC(name, kind, value)                                         \
  template <class T> T atomic##name(T *p, cuda_on_host::same<T> v) {                   \
    static_assert(std::is_##kind##_v<T>, "CUDA has no atomic" #name " for this type"); \
    return cuda_on_host::swap<T>(p, value);                                            \
  }
CUDA_ON_HOST_ATOMIC(Add, arithmetic, *p + v)
CUDA_ON_HOST_ATOMIC(Sub, integral, *p - v)
CUDA_ON_HOST_ATOMIC(Max, integral, *p > v ? *p : v)
CUDA_ON_HOST_ATOMIC(Min, integral, *p < v ? *p : v)
CUDA_ON_HOST_ATOMIC(Or, integral, *p | v)
CUDA_ON_HOST_ATOMIC(And, integral, v &*p)
CUDA_ON_HOST_ATOMIC(Xor, integral, *p ^ v)
CUDA_ON_HOST_ATOMIC(Exch, arithmetic, v)
template <class T> T atomicCAS(T *p, cuda_on_host::same<T> expected, cuda_on_host::same<T> v) {
  return cuda_on_host::swap<T>(p, *p == expected ? v : *p);
}

// ---------------------------------------------------------------- loads, bits, conversions
template <class T> T __ldg(const T *p) { return *p; }
template <class T> T __ldcs(const T *p) { return *p; }
template <class T> T __ldcg(const T *p) { return *p; }
template <class T> void __stcs(T *p, cuda_on_host::same<T> v) { *p = v; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
namespace cuda_on_host {
template <class To, class From> To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
}  // namespace cuda_on_host
inline float __int_as_float(int x) { return cuda_on_host::bits<float>(x); }
inline float __uint_as_float(unsigned x) { return cuda_on_host::bits<float>(x); }
inline int __float_as_int(float x) { return cuda_on_host::bits<int>(x); }
inline unsigned __float_as_uint(float x) { return cuda_on_host::bits<unsigned>(x); }
inline double __longlong_as_double(long long x) { return cuda_on_host::bits<double>(x); }
inline long long __double_as_longlong(double x) { return cuda_on_host::bits<long long>(x); }

// ---------------------------------------------------------------- mathematics
using std::isfinite;
using std::isinf;
using std::isnan;
template <class A, class B> constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmin(static_cast<T>(a), static_cast<T>(b));
  else return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}
template <class A, class B> constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmax(static_cast<T>(a), static_cast<T>(b));
  else return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}
namespace cuda_on_host {
constexpr double PI = 3.14159265358979323846;
inline double half_turn(double x) { return x - 2.0 * std::rint(0.5 * x); }  // exact, in [-1, 1]
}  // namespace cuda_on_host
inline double sinpi(double x) { return std::sin(cuda_on_host::PI * cuda_on_host::half_turn(x)); }
inline double cospi(double x) { return std::cos(cuda_on_host::PI * cuda_on_host::half_turn(x)); }
inline float sinpif(float x) { return static_cast<float>(sinpi(static_cast<double>(x))); }
inline float cospif(float x) { return static_cast<float>(cospi(static_cast<double>(x))); }
inline float sinpi(float x) { return sinpif(x); }
inline float cospi(float x) { return cospif(x); }
inline void sincospi(double x, double *s, double *c) { *s = sinpi(x), *c = cospi(x); }
inline void sincospif(float x, float *s, float *c) { *s = sinpif(x), *c = cospif(x); }
inline void sincospi(float x, float *s, float *c) { sincospif(x, s, c); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float rsqrt(float x) { return rsqrtf(x); }
// Rounded once each: a call that is not inlined keeps its operands out of a contraction.
#define CUDA_ON_HOST_ROUNDED(T, prefix)                                \
  __noinline__ inline T __##prefix##add_rn(T a, T b) { return a + b; } \
  __noinline__ inline T __##prefix##sub_rn(T a, T b) { return a - b; } \
  __noinline__ inline T __##prefix##mul_rn(T a, T b) { return a * b; } \
  inline T __##prefix##div_rn(T a, T b) { return a / b; }              \
  inline T __##prefix##sqrt_rn(T a) { return std::sqrt(a); }
CUDA_ON_HOST_ROUNDED(float, f)
CUDA_ON_HOST_ROUNDED(double, d)
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
// A cast of what does not fit is undefined in C++; CUDA's saturate, and make 0 of NaN.
namespace cuda_on_host {
template <class To> To saturate(double x, double low, double high, To lowest, To highest) {
  return x != x ? To(0) : x <= low ? lowest : x >= high ? highest : static_cast<To>(x);
}
inline int to_int(double x) {
  return saturate<int>(x, -2147483648.0, 2147483647.0, -2147483647 - 1, 2147483647);
}
}  // namespace cuda_on_host
inline int __double2int_rn(double x) { return cuda_on_host::to_int(std::rint(x)); }
inline int __double2int_rz(double x) { return cuda_on_host::to_int(std::trunc(x)); }
inline int __double2int_rd(double x) { return cuda_on_host::to_int(std::floor(x)); }
inline int __double2int_ru(double x) { return cuda_on_host::to_int(std::ceil(x)); }
inline int __float2int_rn(float x) { return __double2int_rn(static_cast<double>(x)); }
inline int __float2int_rz(float x) { return __double2int_rz(static_cast<double>(x)); }
inline int __float2int_rd(float x) { return __double2int_rd(static_cast<double>(x)); }
inline int __float2int_ru(float x) { return __double2int_ru(static_cast<double>(x)); }

// ---------------------------------------------------------------- what Python needs to call one
namespace cuda_on_host {
template <class T> constexpr char letter() {  // as numpy's dtype.kind and size: see launcher.py
  using U = std::remove_cv_t<T>;
  if constexpr (std::is_pointer_v<U>) return std::is_const_v<std::remove_pointer_t<U>> ? 'p' : 'P';
  else if constexpr (std::is_same_v<U, float>) return 'f';
  else if constexpr (std::is_same_v<U, double>) return 'd';
  else if constexpr (std::is_same_v<U, bool>) return '?';
  else if constexpr (std::is_integral_v<U>)
    return (std::is_signed_v<U> ? "0bh0i000q" : "0BH0I000Q")[sizeof(U)];
  else return 'V';  // a structure; only pointers to them can be passed
}
template <class T> constexpr char pointed_to() {
  if constexpr (std::is_pointer_v<T>) return letter<std::remove_pointer_t<T>>();
  else return '-';
}
template <class... P, size_t... I>
void call(void (*function)(P...), void **values, std::index_sequence<I...>) {
  function(*static_cast<std::remove_cv_t<P> *>(values[I])...);
}
template <class... P> Kernel describe(void (*function)(P...)) {
  static const char parameters[] = {letter<P>()..., 0}, elements[] = {pointed_to<P>()..., 0};
  return {reinterpret_cast<void *>(function),
          [](void *f, void **values) {
            call(reinterpret_cast<void (*)(P...)>(f), values, std::index_sequence_for<P...>());
          },
          parameters, elements};
}
}  // namespace cuda_on_host
#define CUDA_ON_HOST_EXPORT(number, ...)                                             \
  extern "C" __attribute__((visibility("default"))) const cuda_on_host::Kernel *     \
  cuda_on_host_kernel_##number() {                                                   \
    static const cuda_on_host::Kernel kernel = cuda_on_host::describe(&__VA_ARGS__); \
    return &kernel;                                                                  \
  }
