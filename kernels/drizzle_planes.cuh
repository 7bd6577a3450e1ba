// Planes added to the running sums of the output, tile by tile; drizzle.cu tells how.
#pragma once
#include "common.cuh"

constexpr int TILE = 16;  // output pixels, square
constexpr int THREADS = TILE * TILE;
constexpr int STAGED = 2;               // input pixels of a tile that a thread looks after
constexpr int ROOM = STAGED * THREADS;  // most input pixels of a tile in shared memory
constexpr int TOGETHER = 2;             // planes between two barriers

constexpr int some(int n) { return n > 0 ? n : 1; }

// float -> double. A cast compiled with -ftz=true comes with a multiplication that makes 0 of
// subnormal numbers.
__device__ __forceinline__ double widen(float value) {
#ifdef CUDA_ON_HOST
  return value;
#else
  double wide;
  asm("cvt.f64.f32 %0, %1;" : "=d"(wide) : "f"(value));
  return wide;
#endif
}

// sqrtf without a branch, NaN also of infinity: one step of Newton from the estimate of 1 / sqrt.
__device__ __forceinline__ float root(float value) {
  const float inverse = rsqrtf(fmaxf(value, 0x1p-126f)), guess = value * inverse;
  const float better = __fmaf_rn(__fmaf_rn(-guess, guess, value), 0.5f * inverse, guess);
  return value >= 0.0f ? better : nan_of<float>();
}

struct Shares {  // of one output pixel
  const int *sources;
  const double *shares;
  int n;
  __device__ __forceinline__ int source(int e) const { return sources[32u * e]; }
  __device__ __forceinline__ double share(int e) const { return shares[32u * e]; }
};

template <int N> struct Pixel {  // of one input plane
  float weight, image, variance[some(N)];
};

struct Planes {
  const float *images, *weights, *variances[3];
  unsigned pixels, weight_step;
  int n;

  template <int N> __device__ __forceinline__ Pixel<N> read(int plane, unsigned at) const {
    const unsigned i = plane * pixels + at;
    Pixel<N> pixel = {weights[plane * weight_step + at], images[i]};
#pragma unroll
    for (int k = 0; k < N; ++k) pixel.variance[k] = variances[k][i];
    return pixel;
  }
};

template <int N> struct Variances {  // of one output pixel: sums over planes
  double weight[some(N)] = {}, sum[some(N)] = {};

  // Add a plane of which the pixel got the weight `total`, and so much of weights times roots.
  __device__ __forceinline__ void add(double total, const double (&roots)[some(N)], double scale,
                                      bool weigh_by_first, double u) {
    if (total == 0.0) return;
    const double factor = scale * (1.0 / total);
    double value[some(N)];
#pragma unroll
    for (int k = 0; k < N; ++k) {
      value[k] = roots[k] * factor;
      value[k] *= value[k];
    }
    const double infinite = inf_of<double>();
    if (weigh_by_first) u = value[0] > 0.0 && value[0] < infinite ? 1.0 / value[0] : 0.0;
    if (!(u > 0.0)) return;
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (value[k] < infinite) {  // nor NaN
        weight[k] += u;
        sum[k] += value[k] * u * u;
      }
  }
};

struct Sums {  // of one pixel; the same whether planes or pixels are added first
  double weight = 0.0, image = 0.0;
};

template <int N> struct alignas(N == 3 ? 16 : N == 1 ? 8 : 4) Staged {
  float weight, root[some(N)];
};

struct Job {  // what a launch is about
  const double *plane_weight;
  double scale;
  int weigh_by_first, first, out_pixels;
  unsigned *context;  // of the output pixel
};

// A tile whose input pixels fit into shared memory, as one of its threads sees it.
template <int N> struct Tile {
  const Planes &in;
  const Job &job;
  const Shares &mine;
  double2 *room;
  int n_needed;
  unsigned at[STAGED], bits[STAGED];  // the input pixels looked after, and what takes part there
  Sums of[STAGED];

  __device__ __forceinline__ int place(int m) const { return threadIdx.x + m * THREADS; }

  // Write planes p to p + TOGETHER, of which those from `end` count nothing, and add them up.
  __device__ __forceinline__ void stage(int p, int end, int bit, Staged<N> *now) {
    Pixel<N> seen[STAGED][TOGETHER] = {};
#pragma unroll
    for (int m = 0; m < STAGED; ++m)  // all loads come before the first use
      if (place(m) < n_needed)
#pragma unroll
        for (int r = 0; r < TOGETHER; ++r) seen[m][r] = in.read<N>(min(p + r, end - 1), at[m]);
#pragma unroll
    for (int m = 0; m < STAGED; ++m) {
      if (place(m) >= n_needed) continue;
#pragma unroll
      for (int r = 0; r < TOGETHER; ++r) {
        Pixel<N> &from = seen[m][r];
        if (p + r >= end) from.weight = 0.0f;
        const bool taken = from.weight != 0.0f;
        of[m].weight += widen(from.weight);
        of[m].image += widen(from.weight) * widen(taken ? from.image : 0.0f);
        bits[m] |= from.weight > 0.0f ? 1u << (bit + r) : 0u;
        if constexpr (N > 0) {
          Staged<N> keep;
          keep.weight = from.weight;
#pragma unroll
          for (int k = 0; k < N; ++k) keep.root[k] = root(taken ? from.variance[k] : 0.0f);
          now[r * ROOM + place(m)] = keep;
        }
      }
    }
  }

  __device__ __forceinline__ void gather(int p, int end, const Staged<N> *now,
                                         Variances<N> &variances) const {
    double total[TOGETHER] = {}, roots[TOGETHER][some(N)] = {};
#pragma unroll 1
    for (int e = 0; e < mine.n; ++e) {
      const Staged<N> *const source = now + mine.source(e);
      const double share = mine.share(e);
#pragma unroll
      for (int r = 0; r < TOGETHER; ++r) {
        const Staged<N> from = source[r * ROOM];
        const double w = share * widen(from.weight);
        total[r] += w;
#pragma unroll
        for (int k = 0; k < N; ++k) roots[r][k] += w * widen(from.root[k]);
      }
    }
#pragma unroll
    for (int r = 0; r < TOGETHER; ++r)
      if (p + r < end)
        variances.add(total[r], roots[r], job.scale, job.weigh_by_first, job.plane_weight[p + r]);
  }

  // Which of up to 32 inputs take part in the output pixel; forgets them.
  __device__ __forceinline__ unsigned taking_part() {
    unsigned *const all = reinterpret_cast<unsigned *>(room), any = 0;
    __syncthreads();
#pragma unroll
    for (int m = 0; m < STAGED; ++m) all[place(m)] = bits[m], bits[m] = 0;
    __syncthreads();
#pragma unroll 1
    for (int e = 0; e < mine.n; ++e)
      if (mine.share(e) > 0.0) any |= all[mine.source(e)];
    return any;
  }

  __device__ __forceinline__ Sums sums() const {
    Sums result;
#pragma unroll
    for (int m = 0; m < STAGED; ++m) room[place(m)] = make_double2(of[m].weight, of[m].image);
    __syncthreads();
#pragma unroll 1
    for (int e = 0; e < mine.n; ++e) {
      const double2 from = room[mine.source(e)];
      result.weight += mine.share(e) * from.x;
      result.image += mine.share(e) * from.y;
    }
    return result;
  }
};

template <int N>
__device__ __forceinline__ Sums add_staged(const Planes &in, const Job &job, const int *needed,
                                           const Shares &mine, Variances<N> &variances) {
  __shared__ double2 room[2 * TOGETHER * ROOM * sizeof(Staged<N>) / sizeof(double2)];
  Tile<N> tile = {in, job, mine, room, needed[0], {}, {}, {}};
#pragma unroll
  for (int m = 0; m < STAGED; ++m) tile.at[m] = needed[1 + min(tile.place(m), needed[0] - 1)];
  for (int begin = 0, end; begin < in.n; begin = end) {  // planes of one layer of the context
    const int first_bit = (job.first + begin) & 31, layer = (job.first + begin) >> 5;
    end = min(in.n, begin + 32 - first_bit);
    for (int p = begin, half = 0; p < end; p += TOGETHER, half ^= 1) {
      Staged<N> *const now = reinterpret_cast<Staged<N> *>(room) + half * TOGETHER * ROOM;
      tile.stage(p, end, first_bit + p - begin, now);
      if constexpr (N > 0) {
        __syncthreads();  // one is enough: the half just read is written after the next one
        tile.gather(p, end, now, variances);
      }
    }
    const unsigned bits = tile.taking_part();
    if (bits) job.context[1LL * layer * job.out_pixels] |= bits;
    __syncthreads();  // all have read `room`
  }
  return tile.sums();
}

// Any other tile: every plane and share straight from device memory.
template <int N>
__device__ __forceinline__ Sums add_directly(const Planes &in, const Job &job, const Shares &mine,
                                             Variances<N> &variances) {
  Sums sums;
  for (int p = 0; p < in.n; ++p) {
    double total = 0.0, roots[some(N)] = {};
    bool takes_part = false;
#pragma unroll 1
    for (int e = 0; e < mine.n; ++e) {
      const Pixel<N> from = in.read<N>(p, mine.source(e));
      if (from.weight == 0.0f) continue;
      const double w = mine.share(e) * widen(from.weight);
      takes_part = takes_part || w > 0.0;
      total += w;
      sums.image += w * widen(from.image);
#pragma unroll
      for (int k = 0; k < N; ++k) roots[k] += w * widen(root(from.variance[k]));
    }
    const int input = job.first + p;
    if (takes_part) job.context[1LL * (input >> 5) * job.out_pixels] |= 1u << (input & 31);
    sums.weight += total;
    variances.add(total, roots, job.scale, job.weigh_by_first, job.plane_weight[p]);
  }
  return sums;
}

template <int N>
__global__ void __launch_bounds__(THREADS, 3) add_planes(
    const long long *starts, const int *counts, const int *sources, const double *shares,
    const int *needed, const float *images, const float *weights, const float *variance0,
    const float *variance1, const float *variance2, unsigned pixels, unsigned weight_step, int n,
    const double *plane_weight, double scale, int weigh_by_first, int first, int out_ny, int out_nx,
    int slot0, int slot1, int slot2, double *weight_sum, double *image_sum, double *var_weight,
    double *var_sum, unsigned *context) {
  needed += (1LL + ROOM) * blockIdx.x;
  if (needed[0] == 0) return;  // nothing falls on the tile
  const int tiles_x = (out_nx + TILE - 1) / TILE, rank = threadIdx.x;
  const int y = static_cast<int>(blockIdx.x) / tiles_x * TILE + rank / TILE;
  const int x = static_cast<int>(blockIdx.x) % tiles_x * TILE + rank % TILE;
  const long long slot = flat_index(), pixel = 1LL * y * out_nx + x, list = starts[slot >> 5];
  const Shares mine = {sources + list + (slot & 31), shares + list + (slot & 31), counts[slot]};
  const Planes in = {images, weights, {variance0, variance1, variance2}, pixels, weight_step, n};
  const int out_pixels = out_ny * out_nx;
  const Job job = {plane_weight, scale, weigh_by_first, first, out_pixels, context + pixel};
  Variances<N> variances;
  const Sums sums = needed[0] <= ROOM ? add_staged<N>(in, job, needed, mine, variances)
                                      : add_directly<N>(in, job, mine, variances);
  if (mine.n == 0) return;
  weight_sum[pixel] += sums.weight;
  image_sum[pixel] += sums.image * scale;
  const int slots[3] = {slot0, slot1, slot2};
#pragma unroll
  for (int k = 0; k < N; ++k) {
    var_weight[1LL * slots[k] * out_pixels + pixel] += variances.weight[k];
    var_sum[1LL * slots[k] * out_pixels + pixel] += variances.sum[k];
  }
}

// Planes (n, in_pixels) float64 summed over the shares of each output pixel, or over their squares,
// as variances are: out (n, out_ny, out_nx), which is 0 where nothing falls. A block to a tile, a
// thread to an output pixel; it reads its shares, in order, once for each plane.
__global__ void __launch_bounds__(THREADS) sum_shares(const long long *starts, const int *counts,
                                                      const int *sources, const double *shares,
                                                      const int *needed, const double *planes,
                                                      long long in_pixels, int n, int squared,
                                                      int out_ny, int out_nx, double *out) {
  needed += (1LL + ROOM) * blockIdx.x;
  if (needed[0] == 0) return;  // nothing falls on the tile
  const int tiles_x = (out_nx + TILE - 1) / TILE, rank = threadIdx.x;
  const int y = static_cast<int>(blockIdx.x) / tiles_x * TILE + rank / TILE;
  const int x = static_cast<int>(blockIdx.x) % tiles_x * TILE + rank % TILE;
  const long long slot = flat_index(), list = starts[slot >> 5];
  const Shares mine = {sources + list + (slot & 31), shares + list + (slot & 31), counts[slot]};
  if (mine.n == 0) return;
  for (int p = 0; p < n; ++p) {
    double total = 0.0;
    for (int e = 0; e < mine.n; ++e) {
      const int source = mine.source(e);
      const double share = mine.share(e);
      const int at = needed[0] <= ROOM ? needed[1 + source] : source;
      total += (squared ? share * share : share) * planes[p * in_pixels + at];
    }
    out[(1LL * p * out_ny + y) * out_nx + x] = total;
  }
}
