// What a kernel on the CPU needs of its scheduler: who it is, and where to wait.
//
// Every thread of a block is a fiber of one operating system thread, and runs until it waits for
// others or ends; blocks run one after another. Nothing is ever concurrent, so results depend on
// the order of the threads exactly where a barrier is missing.
#pragma once
#include <cstddef>
#include <cstdint>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

namespace cuda_on_host {

struct Meeting;  // lanes of a warp that exchange values
struct Fiber;

struct Thread {
  uint3 index;
  unsigned rank;  // in the block; rank % 32 is the lane
  int state;
  int line;          // of the barrier that it waits at
  int votes;         // result of the last __syncthreads_count and its kin
  const char *what;  // that it waits at
  Meeting *meeting;
  Fiber *fiber;
};

extern Thread *current;
extern uint3 block_index;
extern dim3 block_size, grid_size;

// Wait for every thread of the block; returns for how many of them `vote` was true.
int block_barrier(const char *file, int line, bool vote = false);

// Wait for the lanes in `mask`.
void warp_barrier(const char *file, int line, uint32_t mask = ~0u);

// Wait for the lanes in `mask`; returns what each of the 32 brought, valid until the next call.
const uint64_t *warp_exchange(uint32_t mask, const char *what, uint64_t value);

// The lanes of the caller's warp that exist (a block's last warp may be short).
uint32_t warp_lanes();

[[noreturn]] void fail(const char *what, const char *problem);

void *dynamic_shared();

// How Python sees a kernel: one letter for each parameter, another for what a pointer points to.
struct Kernel {
  void *function;
  void (*call)(void *function, void **arguments);
  const char *parameters;
  const char *elements;
};

}  // namespace cuda_on_host
