// What the test for outliers knows of a pixel.
#pragma once
#include "common.cuh"

// A byte for each pixel: is it an outlier, in even and in odd rounds, does it take part, and is it
// a suspect?
constexpr unsigned char USABLE = 4, SUSPECT = 8;
__device__ __forceinline__ unsigned char state_of(bool usable, bool suspect) {
  return (usable ? USABLE : 0) | (suspect ? SUSPECT | 1 : 0);  // in round 0 all are outliers
}
