// Eigen-decomposition of a batch of symmetric matrices, float64: A = E^T L E, E E^T = 1.
//
// Formula    H_{n-2} ... H_0 A H_0 ... H_{n-2} = T, tridiagonal, with H_k = 1 - tau_k v_k v_k^T;
//            implicit QR steps with Wilkinson's shift, T = S L S^T; E = S^T (H_0 ... H_{n-2})^T.
//            The reduction runs from the top, which leaves small values at the bottom of T, where
//            QR steps find the eigenvalues one by one (Golub & Van Loan, Matrix Computations,
//            sections 8.3.1-8.3.5). The matrix is scaled by a power of two first.
// Threads    one block for a matrix: (columns, groups). Reduction: a thread has a column and every
//            groups-th row; a step's rank-two update and the next product A v are one pass. H: a
//            warp owns rows of E. QR: the first lane chases the bulge of one sweep through (d, e)
//            in shared memory while all other warps apply the sweep before it to E, a thread to a
//            column, reading and writing each element once in a rotation.
// Order      every sum is added in an order fixed by the block's shape: results repeat.
// Bytes      of L1 or L2, times n^3: 5 in the reduction, 13 for H, 14 to 18 in 0.8 to 1.1 n^2
//            rotations; of device memory 8 n^2 read, 16 n^2 written. What decides is latency: 5
//            barriers in each of n reduction steps, and one chain of about 15 dependent operations
//            for each rotation. Estimated for n = 180 on an H100: 5 to 10 ms for a matrix, and as
//            much for 132 of them, one on each multiprocessor. Not yet timed on a device.
// Variants   on paper only. cuSOLVER's syevd takes one matrix after another, some milliseconds
//            each: half a second for 120. Its syevjBatched is for n <= 32, and wrong results were
//            reported. A Jacobi iteration of our own needs some 10 n rounds, each of which reads
//            and writes A and E: 320 n^3 bytes where this needs 35.

#include "common.cuh"

constexpr double EPSILON = 1.1102230246251565e-16;  // half a unit in the last place of 1
constexpr int SWEEPS = 30;                          // per eigenvalue, before it counts as failed
constexpr int CONVERGED = 0, NOT_FINITE = 1, NO_CONVERGENCE = 2;

// Sum of a[i] b[i], first <= i < n; by a whole warp, which all gets it.
__device__ __forceinline__ double dot(const double *a, const double *b, int first, int n) {
  double sum = 0.0;
  for (int i = first + (thread_rank() & 31); i < n; i += 32) sum += a[i] * b[i];
  return warp_sum(sum);
}

// The largest |element|; not finite where any is not. The whole block gets it.
__device__ double largest(const double *matrix, int n, double *scratch) {
  double found[1] = {0.0}, wrong = 0.0;
  for (int i = thread_rank(); i < n * n; i += block_threads()) {
    const double size = fabs(matrix[i]);
    if (isfinite(size)) found[0] = fmax(found[0], size);
    else wrong = inf_of<double>();
  }
  block_fold(found, scratch, Larger());
  return found[0] + block_sum(wrong, scratch);
}

// Bring column c up to date below row k; returns its share of A v, from the rows of one group.
__device__ __forceinline__ double update_column(double *matrix, int n, int k, int c,
                                                const double *v, const double *old_v,
                                                const double *old_w) {
  constexpr int FLIGHT = 4;  // loads that do not wait for each other
  const double vc = old_v[c], wc = old_w[c];
  const int step = blockDim.y;
  double sum = 0.0;
  for (int first = k + 1 + threadIdx.y; first < n; first += FLIGHT * step) {
    double a[FLIGHT];
#pragma unroll
    for (int m = 0; m < FLIGHT; ++m)
      if (first + m * step < n) a[m] = matrix[(first + m * step) * n + c];
#pragma unroll
    for (int m = 0; m < FLIGHT; ++m) {
      const int i = first + m * step;
      if (i < n) {
        a[m] -= old_v[i] * wc + old_w[i] * vc;
        matrix[i * n + c] = a[m];
        sum += a[m] * v[i];
      }
    }
  }
  return sum;
}

// Make the matrix tridiagonal. v_k stays in row k from its element k + 1 on, where it is 1, and
// tau_k before it. v, old_v, w, row: n elements each; sums: one for each thread.
__device__ void tridiagonalise(double *matrix, int n, double *d, double *e, double *v,
                               double *old_v, double *w, double *row, double *sums) {
  const int c = threadIdx.x, width = blockDim.x;
  const bool leads = threadIdx.y == 0 && c < n;
  if (leads) old_v[c] = w[c] = 0.0;
  __syncthreads();
  for (int k = 0; k < n; ++k) {
    const bool inside = c > k && c < n;
    if (leads && c >= k) row[c] = matrix[k * n + c] - old_v[k] * w[c] - w[k] * old_v[c];
    __syncthreads();
    if (k == n - 1) break;
    const double top = row[k + 1], rest = dot(row, row, k + 2, n);
    const double beta = rest > 0.0 ? -copysign(sqrt(top * top + rest), top) : top;
    const double tau = rest > 0.0 ? (beta - top) / beta : 0.0;
    const double scale = rest > 0.0 ? 1.0 / (top - beta) : 0.0;
    if (leads && inside) matrix[k * n + c] = v[c] = c == k + 1 ? 1.0 : row[c] * scale;
    if (leads && c == k) d[k] = row[k], e[k] = beta, matrix[k * n + k] = tau;
    __syncthreads();
    if (inside) sums[threadIdx.y * width + c] = update_column(matrix, n, k, c, v, old_v, w);
    __syncthreads();
    if (leads && inside) {
      double sum = 0.0;
      for (int g = 0; g < static_cast<int>(blockDim.y); ++g) sum += sums[g * width + c];
      row[c] = tau * sum;
    }
    __syncthreads();
    const double half = 0.5 * tau * dot(row, v, k + 1, n);
    if (leads && inside) w[c] = row[c] - half * v[c];
    double *spare = old_v;
    old_v = v, v = spare;
    __syncthreads();
  }
  if (leads && c == n - 1) d[c] = row[c];
}

// rows = (H_0 ... H_{n-2})^T, a warp to a row.
__device__ void accumulate(const double *reflectors, int n, double *rows) {
  const int lane = thread_rank() & 31;
  for (int i = thread_rank() >> 5; i < n; i += block_threads() >> 5) {
    double *row = rows + i * n;
    for (int c = lane; c < n; c += 32) row[c] = c == i ? 1.0 : 0.0;
    for (int k = min(i - 1, n - 2); k >= 0; --k) {
      const double *v = reflectors + k * n;
      const double tau = v[k];
      if (tau == 0.0) continue;
      const int from = ((k + 1) & ~31) + lane;
      double sum = 0.0;
      for (int c = from; c < n; c += 32)
        if (c > k) sum += row[c] * v[c];
      sum = tau * warp_sum(sum);
      for (int c = from; c < n; c += 32)
        if (c > k) row[c] -= sum * v[c];
    }
  }
}

// An off-diagonal element between diagonal ones a and b of a matrix whose norm is about 1.
__device__ __forceinline__ bool negligible(double e, double a, double b) {
  constexpr double SQUARE = EPSILON * EPSILON;
  return e * e <= SQUARE * fabs(a) * fabs(b) + SQUARE * SQUARE;
}

struct Sweep {
  int first, last;  // diagonal elements between which it rotates; last < 0: there are no more
};

// Find the lowest block that is not diagonal yet, above `last`; by a whole warp.
__device__ Sweep unreduced(const double *d, double *e, int last) {
  const int lane = thread_rank() & 31;
  while (last > 0 && negligible(e[last - 1], d[last - 1], d[last])) --last;
  if (last == 0) return Sweep{0, -1};
  for (int top = last; top > 0; top -= 32) {
    const int i = top - 1 - lane;
    const bool cut = i < 0 || negligible(e[i], d[i], d[i + 1]);
    const unsigned cuts = __ballot_sync(0xffffffffu, cut);
    if (cuts == 0) continue;
    const int first = top + 1 - __ffs(static_cast<int>(cuts));
    if (lane == 0 && first > 0) e[first - 1] = 0.0;
    return Sweep{first, last};
  }
  return Sweep{0, last};
}

// One implicit QR step on d[first..last], e[first..last-1]; its rotations go to cosines and sines.
__device__ void chase(double *d, double *e, Sweep sweep, double *cosines, double *sines) {
  const int first = sweep.first, last = sweep.last;
  const double t = (d[last - 1] - d[last]) / (2.0 * e[last - 1]);
  double here = d[first], beside = e[first];
  double g = here - d[last] + e[last - 1] / (t + copysign(sqrt(t * t + 1.0), t));
  double c = 1.0, s = 1.0, p = 0.0;
  for (int i = first; i < last; ++i) {
    const double next = d[i + 1], after = i + 1 < last ? e[i + 1] : 0.0;
    const double f = s * beside, b = c * beside, square = f * f + g * g;
    double length = g;
    c = 1.0, s = 0.0;
    if (square > 1e-280) {  // less is nothing beside a norm of 1
      const double inverse = rsqrt(square);
      c = g * inverse, s = f * inverse, length = square * inverse;
    }
    if (i > first) e[i - 1] = length;
    g = here - p;
    const double q = (next - g) * s + 2.0 * c * b;
    p = s * q;
    d[i] = g + p;
    g = c * q - b;
    cosines[i] = c, sines[i] = s;
    here = next, beside = after;
  }
  d[last] = here - p;
  e[last - 1] = g;
}

// Apply a sweep's rotations to the rows, for the columns of one thread.
__device__ void rotate(double *rows, int n, Sweep sweep, const double *cosines,
                       const double *sines, int column, int stride) {
  constexpr int FLIGHT = 4;
  for (; column < n; column += stride) {
    double *place = rows + sweep.first * n + column;
    double x = *place;
    for (int i = sweep.first; i < sweep.last; i += FLIGHT) {
      double below[FLIGHT];
#pragma unroll
      for (int m = 0; m < FLIGHT; ++m)
        if (i + m < sweep.last) below[m] = place[(m + 1) * n];
#pragma unroll
      for (int m = 0; m < FLIGHT; ++m)
        if (i + m < sweep.last) {
          const double c = cosines[i + m], s = sines[i + m];
          place[m * n] = c * x + s * below[m];
          x = c * below[m] - s * x;
        }
      place += FLIGHT * n;
    }
    rows[sweep.last * n + column] = x;
  }
}

// Diagonalise (d, e), and rotate the rows along: the first warp is one sweep ahead of the others.
// turns: 4 n elements. False: it did not converge.
__device__ bool diagonalise(double *d, double *e, int n, double *rows, double *turns) {
  __shared__ Sweep sweeps[2];
  __shared__ int failed;
  const int rank = thread_rank();
  int left = SWEEPS * n, last = n - 1;
  if (rank == 0) failed = 0;
  for (int count = 0, now = 0;; ++count, now ^= 1) {
    double *cosines = turns + now * 2 * n;
    if (rank < 32) {
      Sweep sweep = unreduced(d, e, last);
      last = sweep.last;
      if (last >= 0 && --left < 0) sweep.last = -1;
      if (rank == 0) {
        if (left < 0) failed = 1;
        sweeps[now] = sweep;
        if (sweep.last >= 0) chase(d, e, sweep, cosines, cosines + n);
      }
    } else if (count > 0) {
      const double *before = turns + (now ^ 1) * 2 * n;
      rotate(rows, n, sweeps[now ^ 1], before, before + n, rank - 32, block_threads() - 32);
    }
    __syncthreads();
    if (sweeps[now].last < 0) break;
  }
  return !failed;
}

// Write eigenvalues and vectors by descending eigenvalue.
__device__ void sort(const double *d, const double *rows, int n, double scale, double *values,
                     double *vectors) {
  const int lane = thread_rank() & 31;
  for (int i = thread_rank() >> 5; i < n; i += block_threads() >> 5) {
    int above = 0;
    for (int j = lane; j < n; j += 32) above += d[j] > d[i] || (d[j] == d[i] && j < i);
    above = warp_sum(above);
    if (lane == 0) values[above] = d[i] * scale;
    for (int c = lane; c < n; c += 32) vectors[above * n + c] = rows[i * n + c];
  }
}

// matrices, vectors, work: (batch, n, n); values: (batch, n); status: (batch,). Block: (n or more,
// a multiple of 32; groups), 64 threads or more. Dynamic shared memory: 6 n doubles and one for
// each thread. A matrix that is not finite gets NaN values and vectors.
__global__ void __launch_bounds__(1024)
symmetric_eigen(const double *matrices, int n, double *values, double *vectors, double *work,
                int *status) {
  DYN_SHARED(double, shared);
  __shared__ double scratch[32];
  const long long start = static_cast<long long>(blockIdx.x) * n * n;
  const double *matrix = matrices + start;
  vectors += start, work += start, values += static_cast<long long>(blockIdx.x) * n;
  const double size = largest(matrix, n, scratch);
  if (!isfinite(size)) {
    for (int i = thread_rank(); i < n * n; i += block_threads()) vectors[i] = nan_of<double>();
    for (int i = thread_rank(); i < n; i += block_threads()) values[i] = nan_of<double>();
    if (thread_rank() == 0) status[blockIdx.x] = NOT_FINITE;
    return;
  }
  const int exponent = size > 0.0 ? max(-1000, min(1000, ilogb(size))) : 0;
  const double down = scalbn(1.0, -exponent);
  for (int i = thread_rank(); i < n * n; i += block_threads()) vectors[i] = matrix[i] * down;
  double *d = shared, *e = d + n, *rest = e + n;
  tridiagonalise(vectors, n, d, e, rest, rest + n, rest + 2 * n, rest + 3 * n, rest + 4 * n);
  accumulate(vectors, n, work);
  __syncthreads();
  const bool converged = diagonalise(d, e, n, work, rest);
  sort(d, work, n, scalbn(1.0, exponent), values, vectors);
  if (thread_rank() == 0) status[blockIdx.x] = converged ? CONVERGED : NO_CONVERGENCE;
}

// instantiate: symmetric_eigen
