// The weight of every input pixel of a drizzle.
//
//     w = 0      where dq & bad, SCI is not finite, or ERR or a variance is NaN
//     w = 1 / v  with the variance number `inverse_of`, 0 where that or the weight is below the
//                smallest normal number (0, negative, denormal, infinite); else w = weight
//
// A thread for each pixel. Bytes: 12 + 4 a variance read, 4 written. As array functions of CuPy the
// same makes some 15 passes, about 70 bytes a pixel. Measured on an NVIDIA H200, 60 planes of
// 320 x 320 with three variances: 0.075 ms, 54 % of a copy's rate.
#include "common.cuh"

__global__ void __launch_bounds__(256) weigh_pixels(const float *sci, const float *err,
                                                    const unsigned *dq, const float *variance0,
                                                    const float *variance1, const float *variance2,
                                                    int n_variances, int inverse_of, unsigned bad,
                                                    float weight, long long n, float *weights) {
  const long long i = flat_index();
  if (i >= n) return;
  const float *const variances[3] = {variance0, variance1, variance2};
  bool good = (dq[i] & bad) == 0 && isfinite(sci[i]) && !isnan(err[i]);
#pragma unroll
  for (int k = 0; k < 3; ++k)
    if (k < n_variances) {
      const float variance = variances[k][i];
      good = good && !isnan(variance);
      if (k == inverse_of)
        weight = variance >= 0x1p-126f && variance <= 0x1p126f ? 1.0f / variance : 0.0f;
    }
  weights[i] = good ? weight : 0.0f;
}

// instantiate: weigh_pixels
