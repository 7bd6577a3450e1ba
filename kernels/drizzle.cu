// Drizzle: planes on a distorted grid added to running sums on a regular one.
//
// A share a(o, i) is the part of the weight of input pixel i that output pixel o receives; the
// shares of a pixel map are listed once (list_shares, order_shares), then planes p are added
// (add_planes, in drizzle_planes.cuh) with weights w, images d, variances v_k:
//
//     W(o) += sum_i a(o, i) sum_p w_p(i)           D(o) += scale sum_i a(o, i) sum_p w_p(i) d_p(i)
//     V_k  = (scale sum_i a w_p sqrt(v_k,p) / sum_i a w_p)^2      of every plane by itself
//     U_k(o) += u        S_k(o) += u^2 V_k         u = 1 / V_j, or one number for each plane
//     context bit p where some a(o, i) > 0 has w_p(i) > 0
//
// Doubles throughout but for the planes, which are float32. W and D are linear in the planes, so
// these are summed at the input pixel, and shares are applied once a launch; only the variances
// need all shares in every plane.
//
// Threads of list_shares: one for each input pixel, which appends to the lists of the output
// pixels that it covers. Their order is that of the atomics; order_shares then sorts each list by
// input pixel, so results do not depend on the order of threads. It runs twice: to count, and to
// fill in. A list is spread over memory so that the 32 pixels of a warp read theirs together.
//
// Blocks of add_planes: 16 x 16 output pixels, a thread for each, and a list of the 270 to 330
// input pixels that they need, of which each thread looks after two. For two planes at a time all
// values are loaded (20 loads in flight a thread), added to the sums of the input pixel, and
// weight and roots left in shared memory, where the shares gather them: one root and one trip to
// memory for an input pixel, not one for each of its 4 to 5 shares. Two halves of shared memory
// make one barrier do. A tile that needs more than 512 input pixels (output pixels over 1.28
// times as large, with square drops) reads device memory directly, slower.
//
// Bytes: 4 (2 + K) an input pixel and plane, K variances; a launch reads 12 a share and reads and
// writes 16 (2 + 2 K) an output pixel. At 4.3 shares a pixel and K = 3: 20 a plane and about 190 a
// launch, 142 MB for 60 planes of 320 x 320, 40 MB for 10. Tiles overlap by a pixel or so, which
// the cache serves: 1.3 times the planes.
//
// Measured on an NVIDIA H200, 320 x 320 turned by 10 degrees onto 371 x 371, K = 3, ms, and in
// brackets the share of a copy's rate: square 0.048 (22 %) for 10 planes, 0.205 (17 %) for 60;
// point 0.032 (30 %), 0.135 (25 %); turbo 0.045 (23 %), 0.186 (19 %); gaussian 0.086 (15 %), 0.351
// (10 %); lanczos2 0.101 (14 %), 0.414 (9 %); lanczos3 0.201 (10 %), 0.953 (5 %). With K = 0 square
// takes 0.014 (32 %) and 0.044 (32 %). The share falls as drops get wider and variances are added.
// The lists, made once for a map: square 0.132, point
// 0.078, turbo 0.096, gaussian 0.149, lanczos2 0.169, lanczos3 0.350.
//
// The design was chosen by counting instructions of a warp (sm_90, K = 3) for its 32 pixels of one
// plane, 640 bytes; the others were not built.
//   this one: 1.3 x 63 to stage, 5.5 x 17 to gather (the longest list of 32), 80 for V, U and S:
//     255, counted in the compiled code.
//   gather of all five values from device memory for each share: 5.5 x 85, 80: 550; and 5.5 x 5
//     loads that span 1 (aligned grids) to 7 (turned by 10 degrees) lines of the cache.
//   no lists, each output pixel inverting the map: saves 52 bytes an output pixel and launch, costs
//     about 9 polygons of some 150 instructions, and cannot follow a map that folds or has holes.
//   scatter with atomics: 5 atomics of 8 bytes for each share and plane, 17 times the bytes above,
//     and V needs the sums of each plane apart. So point drops are gathered, too.
// Not tried: sums in float32 (without the conversions, 4 a share and plane), tiles of 32 x 8, four
// planes at a time.
#include "drizzle_planes.cuh"
#include "drizzle_shares.cuh"

constexpr int LIST_THREADS = 128;
constexpr int WORDS = 2048;  // of 32 input pixels: the largest box of a tile in shared memory
constexpr int NOWHERE = 0x7fffffff;

struct Lists {  // where the shares of output pixels are written, or counted with FILL false
  const long long *starts;
  int *counts, *sources;
  double *shares;
  int tiles_x;
};

template <bool FILL>
__device__ __forceinline__ void put(const Lists &lists, int y, int x, int source, double share) {
  const int tile = y / TILE * lists.tiles_x + x / TILE;
  const long long slot = 1LL * tile * THREADS + y % TILE * TILE + x % TILE;
  const int number = atomicAdd(lists.counts + slot, 1);
  if constexpr (FILL) {
    const long long at = lists.starts[slot >> 5] + 32LL * number + (slot & 31);
    lists.sources[at] = source;
    lists.shares[at] = share;
  }
}

template <int DROP, bool FILL>
__global__ void __launch_bounds__(LIST_THREADS, 5) list_shares(
    const double *map, const long long *limits, int in_ny, int in_nx, int out_ny, int out_nx,
    double radius, double norm, double factor, const double *table, int table_size,
    const long long *starts, int *counts, int *sources, double *shares) {
  const long long k = flat_index();
  if (k >= 1LL * in_ny * in_nx) return;
  const int j = k / in_nx, i = k % in_nx, source = k;
  if (i < limits[2 * j] || i > limits[2 * j + 1]) return;
  const Lists lists = {starts, counts, sources, shares, (out_nx + TILE - 1) / TILE};
  if constexpr (DROP == SQUARE) {
    Quad quad;
    if (!corners(map, in_ny, in_nx, j, i, radius, quad)) return;
    const double area = product(0.5, product(quad.x[1] - quad.x[3], quad.y[0] - quad.y[2]) -
                                         product(quad.x[0] - quad.x[2], quad.y[1] - quad.y[3]));
    if (area == 0.0) return;
    const Range xs = touched(quad.x, out_nx), ys = touched(quad.y, out_ny);
    for (int y = ys.first; y <= ys.last; ++y)
      for (int x = xs.first; x <= xs.last; ++x) {
        const double common = overlap(x, y, quad);
        if (common != 0.0) put<FILL>(lists, y, x, source, common / area);
      }
  } else if constexpr (DROP == POINT) {
    const double x = nearest(map[2 * k]), y = nearest(map[2 * k + 1]);
    if (0.0 <= x && x < out_nx && 0.0 <= y && y < out_ny)
      put<FILL>(lists, static_cast<int>(y), static_cast<int>(x), source, 1.0);
  } else {
    const double cx = map[2 * k], cy = map[2 * k + 1];
    if (!isfinite(cx) || !isfinite(cy)) return;
    const Profile drop = {radius, norm, factor, table, table_size};
    const Range xs = reached<DROP>(drop, cx, out_nx), ys = reached<DROP>(drop, cy, out_ny);
    for (int y = ys.first; y <= ys.last; ++y) {
      const double in_y = profile<DROP>(drop, cy, y);
      for (int x = xs.first; x <= xs.last; ++x) {
        double share = product(product(profile<DROP>(drop, cx, x), in_y), norm);
        if (DROP == GAUSSIAN) share = to_single(share);
        if (share != 0.0) put<FILL>(lists, y, x, source, share);
      }
    }
  }
}

// Number of set bits before bit k.
__device__ __forceinline__ int set_before(const unsigned *words, int k) {
  int n = __popc(words[k >> 5] & ((1u << (k & 31)) - 1));
  for (int w = 0; w < k >> 5; ++w) n += __popc(words[w]);
  return n;
}

// Sort n shares, 32 apart, by their sources: Shell's way, which for a few is plain insertion.
__device__ __forceinline__ void sort_shares(int *source, double *share, int n) {
  int gap = 1;
  while (gap < n / 3) gap = 3 * gap + 1;
  for (; gap > 0; gap /= 3)
    for (int a = gap; a < n; ++a) {
      const int moved = source[32LL * a];
      const double with = share[32LL * a];
      int b = a;
      for (; b >= gap && source[32LL * (b - gap)] > moved; b -= gap) {
        source[32LL * b] = source[32LL * (b - gap)];
        share[32LL * b] = share[32LL * (b - gap)];
      }
      source[32LL * b] = moved;
      share[32LL * b] = with;
    }
}

// Bring every output pixel's list into raster order of the input; list the input pixels that a
// tile needs, `needed` (their number, then they), and count sources along that list where it is
// no longer than ROOM.
__global__ void __launch_bounds__(THREADS, 4) order_shares(const long long *starts,
                                                           const int *counts, int in_nx,
                                                           int *sources, double *shares,
                                                           int *needed) {
  __shared__ unsigned bits[WORDS];
  const long long slot = flat_index(), list = starts[slot >> 5] + (slot & 31);
  const int rank = threadIdx.x, n = counts[slot];
  int *const source = sources + list;
  sort_shares(source, shares + list, n);
  int ends[4] = {NOWHERE, NOWHERE, NOWHERE, NOWHERE};  // least x, y, -x and -y
  for (int e = 0; e < n; ++e) {
    const int x = source[32LL * e] % in_nx, y = source[32LL * e] / in_nx;
    ends[0] = min(ends[0], x), ends[1] = min(ends[1], y);
    ends[2] = min(ends[2], -x), ends[3] = min(ends[3], -y);
  }
  block_fold(ends, reinterpret_cast<int *>(bits), Smaller());
  needed += (1LL + ROOM) * blockIdx.x;
  const int width = ends[0] == NOWHERE ? 0 : 1 - ends[2] - ends[0];
  const long long area = width * (1LL - ends[3] - ends[1]);
  if (area == 0 || area > 32 * WORDS) {
    if (rank == 0) needed[0] = area == 0 ? 0 : ROOM + 1;
    return;
  }
  const int words = (area + 31) / 32;
  for (int w = rank; w < words; w += THREADS) bits[w] = 0;
  __syncthreads();
  const auto in_box = [&](int k) { return (k / in_nx - ends[1]) * width + k % in_nx - ends[0]; };
  for (int e = 0; e < n; ++e) {
    const int k = in_box(source[32LL * e]);
    atomicOr(bits + (k >> 5), 1u << (k & 31));
  }
  __syncthreads();
  const int total = set_before(bits, 32 * words - 1) + (bits[words - 1] >> 31);
  if (rank == 0) needed[0] = total;
  if (total > ROOM) return;
  for (int k = rank; k < area; k += THREADS)
    if (bits[k >> 5] >> (k & 31) & 1)
      needed[1 + set_before(bits, k)] = (ends[1] + k / width) * in_nx + ends[0] + k % width;
  for (int e = 0; e < n; ++e) source[32LL * e] = set_before(bits, in_box(source[32LL * e]));
}

// instantiate: list_shares<SQUARE, false>
// instantiate: list_shares<SQUARE, true>
// instantiate: list_shares<POINT, false>
// instantiate: list_shares<POINT, true>
// instantiate: list_shares<TURBO, false>
// instantiate: list_shares<TURBO, true>
// instantiate: list_shares<GAUSSIAN, false>
// instantiate: list_shares<GAUSSIAN, true>
// instantiate: list_shares<LANCZOS, false>
// instantiate: list_shares<LANCZOS, true>
// instantiate: order_shares
// instantiate: add_planes<0>
// instantiate: add_planes<1>
// instantiate: add_planes<2>
// instantiate: add_planes<3>
// instantiate: sum_shares
