// The elements of one pixel: read once, compared with the median, and written once.
#pragma once
#include "columns.cuh"
#include "outlier_state.cuh"

constexpr unsigned DO_NOT_USE = 1u, OUTLIER = 16u;

// As numpy.nan_to_num.
template <class T> __device__ __forceinline__ T finite_or_zero(T x) {
  if (isfinite(x)) return x;
  if (x != x) return T(0);
  const T most = value_of(key_of(inf_of<T>()) - 1);
  return x > T(0) ? most : -most;
}

template <class T> struct Exposure {
  const T *images;
  const unsigned *mask;
  bool masked;
  unsigned bits, wanted;
  bool keep_infinities;

  __device__ __forceinline__ T value(T x) const {
    return keep_infinities || isfinite(x) ? x : nan_of<T>();
  }
  __device__ __forceinline__ bool good(unsigned dq) const { return (dq & bits) == wanted; }
};

// What an element is read from, beside image and mask, and written to.
template <class T> struct Flagger {
  const T *err, *variance[3];
  T *data_out, *err_out, *variance_out[3];
  unsigned *dq_out;
  int n_variances;
  T snr;
  bool neighbours;
  unsigned char *state;
  int *flagged;

  struct Element {
    T data, err, variance[3];
    unsigned dq;
  };

  __device__ __forceinline__ Element read(const Exposure<T> &exposure, long long i) const {
    Element e;
    e.data = exposure.value(exposure.images[i]);
    e.dq = exposure.mask[i];
    e.err = err[i];
#pragma unroll
    for (int m = 0; m < 3; ++m) e.variance[m] = m < n_variances ? variance[m][i] : T(0);
    return e;
  }

  __device__ __forceinline__ void write(const Element &e, int k, long long i, T middle) const {
    const T difference = e.data - middle;
    unsigned dq = e.dq;
    bool outlier = fabs(difference) > snr * finite_or_zero(e.err);
    if (neighbours) {
      const bool usable = !(dq & DO_NOT_USE) && isfinite(e.data) && isfinite(e.err) && e.err > T(0);
      state[i] = state_of(usable, usable && outlier);
      outlier = false;
    }
    if (outlier) {
      dq |= DO_NOT_USE | OUTLIER;
      atomicAdd(flagged + k, 1);
    }
    bool invalid = (dq & DO_NOT_USE) || e.data != e.data || e.err != e.err;
#pragma unroll
    for (int m = 0; m < 3; ++m) invalid = invalid || e.variance[m] != e.variance[m];
    const T nan = nan_of<T>();
    dq_out[i] = invalid ? dq | DO_NOT_USE : dq;
    data_out[i] = invalid ? nan : e.data;
    err_out[i] = invalid ? nan : e.err;
#pragma unroll
    for (int m = 0; m < 3; ++m)
      if (m < n_variances) variance_out[m][i] = invalid ? nan : e.variance[m];
  }
};

// One thread's elements of pixel p: every `step`-th integration from `first` on, two of them read
// before the first is written. Tells whether any was good.
template <class T>
__device__ __forceinline__ bool flag_pixel(const Exposure<T> &exposure, const Flagger<T> &flagger,
                                           int first, int step, int n, long long n_pixels,
                                           long long p, T middle) {
  bool met = false;
  for (int k = first; k < n; k += 2 * step) {
    const bool two = k + step < n;
    const long long i = k * n_pixels + p, i2 = two ? i + step * n_pixels : i;
    const typename Flagger<T>::Element one = flagger.read(exposure, i);
    const typename Flagger<T>::Element other = flagger.read(exposure, i2);
    met |= exposure.good(one.dq) | exposure.good(other.dq);
    flagger.write(one, k, i, middle);
    if (two) flagger.write(other, k + step, i2, middle);
  }
  return met;
}
