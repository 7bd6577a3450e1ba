// Fibers, barriers and the order of threads and blocks; see scheduler.h.
#include "scheduler.h"

#include <link.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "fibers.h"

namespace cuda_on_host {

Thread *current = nullptr;
uint3 block_index;
dim3 block_size, grid_size;

// ---------------------------------------------------------------- one launch
enum State { UNSTARTED, READY, AT_BARRIER, IN_MEETING, DONE };

struct Meeting {
  uint32_t mask, arrived;
  int readers;
  const char *what;
  uint64_t value[32];
};

struct Warp {
  uint32_t lanes, left;  // that exist; that have ended
  std::vector<Meeting *> open;
};

static std::vector<Thread> threads;
static std::vector<Warp> warps;
static std::vector<unsigned> order;  // ranks; the threads of a warp stand together
static size_t cursor;                // in `order`: the threads before it have been started
static unsigned alive, waiting, yes;
static int barrier_line;  // where the waiting threads wait; 0 for nobody waits
static bool moved;
static std::string error;

static const Kernel *kernel;
static void **arguments;
static unsigned char *shared;
static size_t shared_bytes;

static const char *left_out_file;  // the barrier that a test leaves out, to see who notices
static int left_out_line;
extern "C" {
__attribute__((visibility("default"))) long cuda_on_host_left_out = 0;  // how often it was
}

static Context scheduler;
static std::vector<Meeting *> spare;

static std::string name_of(const Thread &thread) {
  char text[128];
  std::snprintf(text, sizeof text, "thread (%u, %u, %u) of block (%u, %u, %u)", thread.index.x,
                thread.index.y, thread.index.z, block_index.x, block_index.y, block_index.z);
  return text;
}

// The warp that runs: its threads in `order`, the place of the one to look at next, and whether
// any has moved since the first of them was looked at.
static size_t warp_first, warp_last, warp_next;
static bool warp_moved;
static void fiber_entry();

// Make the next thread of the warp that can go on the current one; null when none can.
static Thread *next_thread() {
  while (error.empty()) {
    if (warp_next == warp_last) {
      if (!warp_moved) return nullptr;
      warp_moved = false;
      warp_next = warp_first;
    }
    size_t place = warp_next++;
    Thread &thread = threads[order[place]];
    if (thread.state == UNSTARTED) {
      thread.fiber = idle_fiber(&fiber_entry);
      cursor = std::max(cursor, place + 1);
    } else if (thread.state != READY) {
      continue;
    }
    moved = warp_moved = true;
    return current = &thread;
  }
  return nullptr;
}

// Straight to the next thread: by way of the scheduler it would be two switches.
static void wait_for_others() {
  Fiber *mine = current->fiber;
  Thread *next = next_thread();
  if (!next) {
    switch_to(mine->context, scheduler);
  } else if (next->fiber != mine) {
    switch_to(mine->context, next->fiber->context);
  }
}

static void stop(const std::string &problem) {
  if (error.empty()) error = problem + " in " + name_of(*current);
}

void fail(const char *what, const char *problem) {
  stop(std::string(what) + ": " + problem);
  for (;;) wait_for_others();  // its fiber is given up with the launch
}

// ---------------------------------------------------------------- waiting
static void open_barrier() {
  for (Thread &thread : threads) {
    if (thread.state == AT_BARRIER) thread.state = READY;
    thread.votes = yes;
  }
  waiting = yes = 0;
  barrier_line = 0;
}

static bool is_left_out(const char *file, int line) {
  if (line != left_out_line || std::strcmp(file, left_out_file) != 0) return false;
  ++cuda_on_host_left_out;
  return true;
}

int block_barrier(const char *file, int line, bool vote) {
  if (is_left_out(file, line)) return vote;
  if (barrier_line && barrier_line != line) {
    char text[96];
    std::snprintf(text, sizeof text, "line %d met by one at line %d", barrier_line, line);
    fail("__syncthreads", text);
  }
  if (alive != threads.size()) fail("__syncthreads", "a thread of the block has left the kernel");
  barrier_line = line;
  yes += vote;
  if (++waiting == alive) {
    open_barrier();  // the last to come goes on at once
  } else {
    current->state = AT_BARRIER;
    current->what = "__syncthreads";
    current->line = line;
    wait_for_others();
  }
  return current->votes;
}

static Meeting *join(Warp &warp, uint32_t mask, const char *what) {
  for (Meeting *meeting : warp.open) {
    if (meeting->mask == mask && meeting->what == what) return meeting;
    if (meeting->mask & mask) fail(what, "lanes came with another mask or another intrinsic");
  }
  if (spare.empty()) spare.push_back(new Meeting);
  Meeting *meeting = spare.back();
  spare.pop_back();
  *meeting = {mask, 0, 0, what, {}};
  warp.open.push_back(meeting);
  return meeting;
}

static bool close_if_complete(Warp &warp, unsigned first_rank, Meeting *meeting) {
  if (meeting->arrived != (meeting->mask & warp.lanes & ~warp.left)) return false;
  warp.open.erase(std::find(warp.open.begin(), warp.open.end(), meeting));
  meeting->readers = __builtin_popcount(meeting->arrived);
  for (unsigned lane = 0; lane < 32; ++lane)
    if (meeting->arrived >> lane & 1) threads[first_rank + lane].state = READY;
  return true;
}

const uint64_t *warp_exchange(uint32_t mask, const char *what, uint64_t value) {
  unsigned lane = current->rank % 32;
  Warp &warp = warps[current->rank / 32];
  if (!(mask >> lane & 1)) fail(what, "the caller's own lane is not in the mask");
  Meeting *meeting = join(warp, mask, what);
  meeting->value[lane] = value;
  meeting->arrived |= 1u << lane;
  if (!close_if_complete(warp, current->rank - lane, meeting)) {
    current->state = IN_MEETING;
    current->what = what;
    wait_for_others();
  }
  if (--meeting->readers == 0) spare.push_back(meeting);
  return meeting->value;  // which stays as it is until the next meeting begins
}

void warp_barrier(const char *file, int line, uint32_t mask) {
  if (!is_left_out(file, line)) warp_exchange(mask, "__syncwarp", 0);
}

uint32_t warp_lanes() { return warps[current->rank / 32].lanes; }

void *dynamic_shared() { return shared; }

static void leave() {
  Warp &warp = warps[current->rank / 32];
  unsigned lane = current->rank % 32;
  current->state = DONE;
  --alive;
  moved = true;
  warp.left |= 1u << lane;
  if (waiting) stop("a thread left the kernel while others wait at __syncthreads");
  for (size_t k = warp.open.size(); k-- > 0;)
    close_if_complete(warp, current->rank - lane, warp.open[k]);
}

// ---------------------------------------------------------------- running
static void run_thread(Fiber *fiber, Thread &thread) {
  current = &thread;
  thread.fiber = fiber;
  thread.state = READY;
  kernel->call(kernel->function, arguments);
  leave();
}

static void fiber_entry() {
  for (;;) {
    Fiber *fiber = current->fiber;
    run_thread(fiber, *current);
    while (error.empty() && cursor < order.size()) {  // who never waits costs no switch
      Thread &next = threads[order[cursor++]];
      if (next.state == UNSTARTED) run_thread(fiber, next);
    }
    idle.push_back(fiber);
    Thread *next = next_thread();
    if (!next) {
      switch_to(fiber->context, scheduler);
    } else if (next->fiber != fiber) {
      switch_to(fiber->context, next->fiber->context);
    }
  }
}

// A warp runs as far as it can before the next one starts: hard on missing barriers.
static void run_warp(size_t first, size_t last) {
  warp_first = warp_next = first;
  warp_last = last;
  warp_moved = false;
  while (Thread *next = next_thread()) switch_to(scheduler, next->fiber->context);
}

static void report_deadlock() {
  error = "deadlock:";
  for (const Thread &thread : threads) {
    if (thread.state == DONE) continue;
    char line[32] = "";
    if (thread.state == AT_BARRIER) std::snprintf(line, sizeof line, ", line %d", thread.line);
    error += " " + name_of(thread) + " waits at " + thread.what + line + ";";
    if (error.size() > 400) break;
  }
}

static void run_block() {
  unsigned count = block_size.x * block_size.y * block_size.z;
  threads.assign(count, Thread{});
  warps.assign((count + 31) / 32, Warp{});
  for (unsigned rank = 0; rank < count; ++rank) {
    unsigned x = rank % block_size.x, y = rank / block_size.x % block_size.y;
    threads[rank].rank = rank;
    threads[rank].index = {x, y, rank / (block_size.x * block_size.y)};
    warps[rank / 32].lanes |= 1u << rank % 32;
  }
  alive = count;
  waiting = yes = 0;
  barrier_line = 0;
  cursor = 0;
  while (alive && error.empty()) {
    moved = false;
    for (size_t first = 0, last; first < count && error.empty(); first = last) {
      last = first + 1;
      while (last < count && order[last] / 32 == order[first] / 32) ++last;
      run_warp(first, last);
    }
    if (!moved && error.empty()) report_deadlock();
  }
}

// ---------------------------------------------------------------- order and poison
static void shuffle(unsigned count, std::mt19937 &random) {
  std::vector<unsigned> warp_order((count + 31) / 32);
  std::iota(warp_order.begin(), warp_order.end(), 0u);
  std::shuffle(warp_order.begin(), warp_order.end(), random);
  order.clear();
  for (unsigned warp : warp_order) {
    size_t first = order.size();
    for (unsigned rank = warp * 32; rank < std::min(warp * 32 + 32, count); ++rank)
      order.push_back(rank);
    std::shuffle(order.begin() + first, order.end(), random);
  }
}

// Static __shared__ variables are this library's thread-local memory; find it.
static thread_local volatile char touch;  // thread-local memory exists from its first use on
struct Range {
  void *start;
  size_t bytes;
};
static int find_locals(dl_phdr_info *info, size_t, void *result) {
  auto self = reinterpret_cast<uintptr_t>(&error);
  bool ours = false;
  size_t bytes = 0;
  for (int k = 0; k < info->dlpi_phnum; ++k) {
    const auto &part = info->dlpi_phdr[k];
    uintptr_t start = info->dlpi_addr + part.p_vaddr;
    if (part.p_type == PT_LOAD) ours |= self >= start && self < start + part.p_memsz;
    if (part.p_type == PT_TLS) bytes = part.p_memsz;
  }
  if (ours && info->dlpi_tls_data) *static_cast<Range *>(result) = {info->dlpi_tls_data, bytes};
  return ours;
}

extern "C" __attribute__((visibility("default"))) const char *cuda_on_host_launch(
    const Kernel *launched, const unsigned *grid, const unsigned *block, size_t dynamic_bytes,
    void **values, int direction, unsigned seed, const char *without_file, int without_line) {
  kernel = launched;
  left_out_file = without_file;
  left_out_line = without_line;
  arguments = values;
  grid_size = dim3(grid[0], grid[1], grid[2]);
  block_size = dim3(block[0], block[1], block[2]);
  error.clear();
  size_t blocks = size_t(grid[0]) * grid[1] * grid[2];
  unsigned count = block[0] * block[1] * block[2];
  std::mt19937 random(seed);
  std::vector<size_t> block_order(blocks);
  std::iota(block_order.begin(), block_order.end(), size_t(0));
  order.resize(count);
  std::iota(order.begin(), order.end(), 0u);
  if (direction == 1) {
    std::reverse(block_order.begin(), block_order.end());
    std::reverse(order.begin(), order.end());
  } else if (direction == 2) {
    std::shuffle(block_order.begin(), block_order.end(), random);
  }
  void *memory = nullptr;  // of the exact size, so that the sanitizer sees an overrun
  if (dynamic_bytes && posix_memalign(&memory, 128, dynamic_bytes)) std::abort();
  shared = static_cast<unsigned char *>(memory);
  shared_bytes = dynamic_bytes;
  touch = 1;
  Range locals = {nullptr, 0};
  dl_iterate_phdr(find_locals, &locals);
  for (size_t k = 0; k < blocks && error.empty(); ++k) {
    if (direction == 2) shuffle(count, random);
    size_t index = block_order[k];
    block_index = {unsigned(index % grid[0]), unsigned(index / grid[0] % grid[1]),
                   unsigned(index / (size_t(grid[0]) * grid[1]))};
    if (shared) std::memset(shared, 0xff, shared_bytes);  // NaN: shared memory starts as garbage
    if (locals.start) std::memset(locals.start, 0xff, locals.bytes);
    run_block();
  }
  std::free(memory);
  if (error.empty()) return nullptr;
  give_up_fibers();
  return error.c_str();
}

}  // namespace cuda_on_host
