// Fibers: functions that stop in the middle and go on later, each on a stack of its own.
#pragma once
#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

namespace cuda_on_host {

constexpr size_t STACK_BYTES = 256 * 1024, GUARD_BYTES = 4096;

#if defined(__x86_64__)
struct Context {
  void *stack_pointer;
};
// Push what the ABI asks a callee to keep, exchange stacks, pop the same of the other fiber.
extern "C" void cuda_on_host_switch(void **from, void *to) __attribute__((visibility("hidden")));
asm(R"(
.text
.hidden cuda_on_host_switch
.type cuda_on_host_switch, @function
cuda_on_host_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
static void switch_to(Context &from, Context &to) {
  cuda_on_host_switch(&from.stack_pointer, to.stack_pointer);
}
static void prepare(Context &context, char *stack, void (*entry)()) {
  auto top = reinterpret_cast<uintptr_t>(stack + STACK_BYTES) & ~uintptr_t(15);
  void **slot = reinterpret_cast<void **>(top);
  *--slot = nullptr;  // keeps the stack 16-aligned at the call that never was
  *--slot = reinterpret_cast<void *>(entry);
  for (int saved = 0; saved < 6; ++saved) *--slot = nullptr;
  context.stack_pointer = slot;
}
#else
struct Context {
  ucontext_t context;
};
static void switch_to(Context &from, Context &to) { swapcontext(&from.context, &to.context); }
static void prepare(Context &made, char *stack, void (*entry)()) {
  getcontext(&made.context);
  made.context.uc_stack.ss_sp = stack;
  made.context.uc_stack.ss_size = STACK_BYTES;
  made.context.uc_link = nullptr;
  makecontext(&made.context, entry, 0);
}
#endif

struct Fiber {
  Context context;
  char *stack;
};

static std::vector<Fiber *> fibers, idle;

// A fiber that has nothing to do; a new one will start with `entry`.
static Fiber *idle_fiber(void (*entry)()) {
  if (idle.empty()) {
    Fiber *fiber = new Fiber;
    void *memory = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    fiber->stack = static_cast<char *>(memory);
    mprotect(fiber->stack, GUARD_BYTES, PROT_NONE);
    prepare(fiber->context, fiber->stack, entry);
    fibers.push_back(fiber);
    idle.push_back(fiber);
  }
  Fiber *fiber = idle.back();
  idle.pop_back();
  return fiber;
}

static void give_up_fibers() {
  for (Fiber *fiber : fibers) {
    munmap(fiber->stack, STACK_BYTES);
    delete fiber;
  }
  fibers.clear();
  idle.clear();
}

}  // namespace cuda_on_host
