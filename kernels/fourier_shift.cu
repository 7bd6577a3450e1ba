// Half spectra of shifted images: S(k) exp(-2 pi i (ky sy / ny + kx sx / nx)), float64.
//
// On the row and column of the Nyquist frequency of an even size the factor is a cosine, and where
// both are Nyquist's it is cos(pi (sy + sx)): the real part that a Fourier shift takes. So the
// result is again the spectrum of a real image (Hermitian to rounding in the columns 0 and nx / 2),
// and it does not matter what a complex-to-real transform does with the rest.
//
// Mapping: a block has ROWS rows of one image. Its first threads compute the rows' factors once,
// every thread its column's, and the sines are spread over ROWS elements: two complex products
// each.
//
// Bytes: 16 read and 16 written per element of the half spectrum, 16 per pixel in all. The inverse
// transform behind it (cuFFT, complex-to-real in two passes) moves about 32 more. `scale` takes the
// transform's 1 / (ny nx), which would cost a pass over the images.
//
// ERR is a second launch with the same shifts: one launch for both would move the same bytes.
// Measured on an NVIDIA H200, 180 images of 320 x 320: 0.083 ms, 84 % of a copy's rate; with the
// transform behind it 0.36 ms.
//
// Considered: multiplying inside the transform (cuFFT callbacks need nvcc at run time), data and
// ERR as real and imaginary part of one complex transform (as many bytes: all of the spectrum
// instead of half).
#include "common.cuh"

constexpr int ROWS = 16;  // of a block; ops/cuda/fourier_shift.py knows

__device__ __forceinline__ double2 times(double2 a, double2 b) {
  return make_double2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x);
}

// Factor of the frequency k (negative ones in the upper half) of an axis of n samples.
__device__ __forceinline__ double2 phase(int k, int n, double shift) {
  double sine, cosine;
  sincospi(-2.0 * (2 * k > n ? k - n : k) * shift / n, &sine, &cosine);
  return make_double2(cosine, 2 * k == n ? 0.0 : sine);
}

// Grid (row blocks, images), block (columns at a time); spectra, out: (n, ny, nx / 2 + 1);
// shifts: (n, 2), y and x in pixels.
__global__ void __launch_bounds__(256) multiply_phases(const double2 *__restrict__ spectra,
                                                       const double *__restrict__ shifts, int ny,
                                                       int nx, double scale,
                                                       double2 *__restrict__ out) {
  __shared__ double2 of_row[ROWS];
  const int tid = threadIdx.x, threads = blockDim.x, columns = nx / 2 + 1;
  const int first = blockIdx.x * ROWS, count = min(ROWS, ny - first);
  const double sy = shifts[2 * blockIdx.y], sx = shifts[2 * blockIdx.y + 1];
  if (tid < count) of_row[tid] = phase(first + tid, ny, sy);
  __syncthreads();
  const long long start = (static_cast<long long>(blockIdx.y) * ny + first) * columns;
  for (int x = tid; x < columns; x += threads) {
    double2 of_column = phase(x, nx, sx);
    of_column.x *= scale;
    of_column.y *= scale;
    const double2 *from = spectra + start + x;
    double2 *to = out + start + x;
#pragma unroll 4
    for (int r = 0; r < count; ++r)
      to[static_cast<long long>(r) * columns] =
          times(from[static_cast<long long>(r) * columns], times(of_row[r], of_column));
    const int nyquist = ny / 2 - first;
    if (2 * x == nx && ny % 2 == 0 && nyquist >= 0 && nyquist < count) {
      double sine, cosine;
      sincospi(sy + sx, &sine, &cosine);
      const long long corner = static_cast<long long>(nyquist) * columns;
      to[corner] = make_double2(from[corner].x * cosine * scale, from[corner].y * cosine * scale);
    }
  }
}

// instantiate: multiply_phases
