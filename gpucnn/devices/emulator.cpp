// The emulator's runtime: fibers, barriers, and a shadow of every buffer that knows who wrote and read what.
//
// One fiber per CUDA thread, one block at a time. A kernel compiled with -fsanitize=thread calls __tsan_read4 and its
// kin at every memory access; linked against this file instead of the sanitizer's own runtime, those calls come here.
// From them follow, with block, thread and code address: accesses out of bounds, reads of what nobody wrote, and races
// (two threads, at least one writing, no barrier between them; or two blocks). A kernel compiled without them runs fast
// and unwatched.
//
// Fibers start by ucontext once and then switch by _setjmp/_longjmp, which make no system call.
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <random>
#include <vector>

struct uint3 {
    unsigned int x, y, z;
};

// What Python passes and reads; mirrored by ctypes in emulator.py.
struct Buffer {
    char* start;
    int64_t bytes;
    int32_t element;      // bytes of an element: the grain of the shadow
    int32_t initialised;  // 0: nothing written yet, reading is an error until somebody does
};
enum Kind { OK, OUT_OF_BOUNDS, UNINITIALISED, RACE_BLOCKS, RACE_THREADS, DIVERGENT, TIMEOUT, STATIC_BOUNDS };
struct Report {
    int32_t kind, write, bytes, buffer;  // buffer: index, -1 shared memory, -2 neither
    int64_t offset;                      // bytes from the start of the buffer; line of the other barrier if DIVERGENT
    uint3 block, thread;
    int32_t other_block, other_thread;  // linear
    uintptr_t address;                  // in the kernel's code
    int32_t line;
};
struct Launch {
    void (*entry)(void**);
    void** arguments;
    uint3 grid, block;
    Buffer* buffers;
    int32_t buffer_count;
    char *shared_start, *shared_stop, *constant_start, *constant_stop;
    int32_t order;      // 0 forward, 1 reversed, else the seed of a shuffle
    int64_t max_steps;  // watchdog: accesses and barriers a launch may make; basic blocks too where the kernel counts them
    Report* report;
};

extern "C" {
struct {
    uint3 thread, block, block_size, grid_size;
} emulator_indices;
}

namespace {

struct AsyncCopy {
    char* to;
    const char* from;
    int bytes;
};

enum Status { FRESH, READY, AT_BARRIER, AT_WARP, DONE };
constexpr size_t STACK = 256 << 10;

struct Fiber {
    char* stack = nullptr;
    bool started = false;
    ucontext_t context;
    jmp_buf state;
    Status status = FRESH;
    int line = 0;
    uint3 index;
    uint64_t value = 0;
    int lane_wanted = 0;
    std::vector<std::vector<AsyncCopy>> copies;  // groups in flight, oldest first; the last one is still open
};

// Who touched an element last. Ids are linear and counted from 1 within a launch; -1 means several readers.
struct Touch {
    int32_t write_block = 0, write_thread = 0, read_block = 0, read_thread = 0;
    int64_t write_epoch = 0, read_epoch = 0;
    bool written = false;
};
struct Shadow {
    char* start;
    int64_t bytes;
    int element;
    int buffer;
    std::vector<Touch> touches;
};

std::vector<Fiber> fibers;
std::vector<Shadow> shadows;
jmp_buf scheduler, abort_launch;
Launch* launch;
int current, block_number;
int64_t epoch, steps;
bool running = false;

[[noreturn]] void stop(Kind kind, const void* code) {
    Report& r = *launch->report;
    r.kind = kind;
    r.block = emulator_indices.block;
    r.thread = fibers[current].index;
    r.address = (uintptr_t)code;
    _longjmp(abort_launch, 1);
}

void step(const void* code) {
    if (++steps > launch->max_steps) stop(TIMEOUT, code);
}

[[noreturn]] void fiber_main() {
    for (;;) {
        launch->entry(launch->arguments);
        fibers[current].status = DONE;
        if (!_setjmp(fibers[current].state)) _longjmp(scheduler, 1);
    }
}

void wait(Status status, int line) {
    Fiber& f = fibers[current];
    f.status = status;
    f.line = line;
    if (!_setjmp(f.state)) _longjmp(scheduler, 1);
}

void resume(int i) {
    current = i;
    Fiber& f = fibers[i];
    emulator_indices.thread = f.index;
    f.status = READY;
    if (_setjmp(scheduler)) return;
    if (f.started) _longjmp(f.state, 1);
    f.started = true;
    if (!f.stack) f.stack = (char*)mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack;
    f.context.uc_stack.ss_size = STACK;
    f.context.uc_link = nullptr;
    makecontext(&f.context, (void (*)())fiber_main, 0);
    setcontext(&f.context);
}

void diverged(int at_barrier, int elsewhere) {
    current = at_barrier;
    launch->report->line = fibers[at_barrier].line;
    launch->report->offset = fibers[elsewhere].status == DONE ? 0 : fibers[elsewhere].line;
    launch->report->other_thread = elsewhere;
    stop(DIVERGENT, nullptr);
}

// Let go of the warps, or else of the whole block, whose threads all wait at one place.
bool release(int count) {
    bool moved = false;
    for (int first = 0; first < count; first += 32) {
        int last = std::min(first + 32, count);
        bool all = true;
        for (int i = first; i < last; ++i) all &= fibers[i].status == AT_WARP && fibers[i].line == fibers[first].line;
        if (!all) continue;
        std::vector<uint64_t> values;
        for (int i = first; i < last; ++i) values.push_back(fibers[i].value);
        for (int i = first; i < last; ++i) {
            int lane = fibers[i].lane_wanted;
            fibers[i].value = values[lane < last - first ? lane : i - first];
            fibers[i].status = READY;
        }
        moved = true;
    }
    if (moved) return true;
    for (int i = 1; i < count; ++i)
        if (fibers[i].status != fibers[0].status || fibers[i].line != fibers[0].line) {
            int waits = fibers[i].status == DONE ? 0 : i;
            diverged(waits, waits ? 0 : i);
        }
    if (fibers[0].status == AT_WARP) diverged(0, 0);
    ++epoch;
    for (int i = 0; i < count; ++i) fibers[i].status = READY;
    return true;
}

void run_block(const std::vector<int>& order) {
    int count = (int)order.size();
    memset(launch->shared_start, 0xFF, launch->shared_stop - launch->shared_start);  // NaN, for kernels not watched
    for (auto& s : shadows)
        if (s.buffer == -1) std::fill(s.touches.begin(), s.touches.end(), Touch());
    for (Fiber& f : fibers) {
        f.status = READY;
        f.copies.assign(1, {});
    }
    ++epoch;
    for (;;) {
        int done = 0;
        for (int i : order) {
            if (fibers[i].status == READY) resume(i);
            done += fibers[i].status == DONE;
        }
        if (done == count) return;
        release(count);
    }
}

void access(const void* pointer, int bytes, bool write, const void* code) {
    step(code);
    char* p = (char*)pointer;
    char* stack = fibers[current].stack;
    if (p >= stack && p < stack + STACK) return;
    if (p >= (char*)&emulator_indices && p < (char*)(&emulator_indices + 1)) return;
    if (!write && p >= launch->constant_start && p < launch->constant_stop) return;
    Report& r = *launch->report;
    r.write = write;
    r.bytes = bytes;
    Shadow* near = nullptr;
    for (Shadow& s : shadows) {
        if (p >= s.start && p + bytes <= s.start + s.bytes) {
            r.buffer = s.buffer;
            int me = current + 1, block = block_number + 1;
            for (int64_t at = p - s.start; at < p - s.start + bytes; at += s.element) {
                Touch& t = s.touches[at / s.element];
                r.offset = at;
                r.other_block = t.write_block - 1;
                r.other_thread = t.write_thread - 1;
                if (!write && !t.written) stop(UNINITIALISED, code);
                if (t.write_block && t.write_block != block) stop(RACE_BLOCKS, code);
                if (t.write_block && t.write_thread != me && t.write_epoch == epoch) stop(RACE_THREADS, code);
                if (write) {
                    r.other_block = t.read_block - 1;
                    r.other_thread = t.read_thread - 1;
                    if (t.read_block && t.read_block != block) stop(RACE_BLOCKS, code);
                    if (t.read_block && t.read_thread != me && t.read_epoch == epoch) stop(RACE_THREADS, code);
                    t.write_block = block;
                    t.write_thread = me;
                    t.write_epoch = epoch;
                    t.written = true;
                } else {
                    bool others = t.read_block && (t.read_block != block || (t.read_thread != me && t.read_epoch == epoch));
                    t.read_thread = others ? -1 : me;
                    t.read_block = t.read_block && t.read_block != block ? -1 : block;
                    t.read_epoch = epoch;
                }
            }
            return;
        }
        if (p + bytes > s.start - 4096 && p < s.start + s.bytes + 4096) near = &s;
    }
    r.buffer = near ? near->buffer : -2;
    r.offset = near ? p - near->start : 0;
    stop(OUT_OF_BOUNDS, code);
}

}  // namespace

extern "C" {

// Runs the launch; report->kind is OK or says what went wrong first.
void emulator_launch(Launch* l) {
    launch = l;
    *l->report = Report();
    int count = (int)(l->block.x * l->block.y * l->block.z);
    if ((int)fibers.size() < count) {
        for (Fiber& f : fibers) f.started = false;  // a jmp_buf must not move; start anew
        fibers.resize(count);
    }
    while ((int)fibers.size() > count) {
        if (fibers.back().stack) munmap(fibers.back().stack, STACK);
        fibers.pop_back();
    }
    for (int i = 0; i < count; ++i)
        fibers[i].index = {i % l->block.x, i / l->block.x % l->block.y, i / (l->block.x * l->block.y)};
    shadows.clear();
    for (int i = 0; i < l->buffer_count; ++i) {
        Buffer& b = l->buffers[i];
        shadows.push_back({b.start, b.bytes, b.element, i, std::vector<Touch>(b.bytes / b.element)});
        if (b.initialised)
            for (Touch& t : shadows.back().touches) t.written = true;
    }
    int64_t shared = l->shared_stop - l->shared_start;
    if (shared) shadows.push_back({l->shared_start, shared, 4, -1, std::vector<Touch>(shared / 4 + 1)});
    emulator_indices.block_size = l->block;
    emulator_indices.grid_size = l->grid;
    std::vector<int> order(count);
    for (int i = 0; i < count; ++i) order[i] = l->order == 1 ? count - 1 - i : i;
    int blocks = (int)(l->grid.x * l->grid.y * l->grid.z);
    std::vector<int> block_order(blocks);
    for (int i = 0; i < blocks; ++i) block_order[i] = l->order == 1 ? blocks - 1 - i : i;
    if (l->order > 1) {
        std::mt19937 random(l->order);
        std::shuffle(order.begin(), order.end(), random);
        std::shuffle(block_order.begin(), block_order.end(), random);
    }
    epoch = steps = 0;
    running = true;
    if (_setjmp(abort_launch)) {
        running = false;
        for (Fiber& f : fibers) f.started = false;  // they stopped midway
        return;
    }
    for (int b : block_order) {
        block_number = b;
        emulator_indices.block = {b % l->grid.x, b / l->grid.x % l->grid.y, b / (l->grid.x * l->grid.y)};
        run_block(order);
    }
    running = false;
}

// Which elements of buffer i the last launch wrote, as bytes 0 and 1.
void emulator_written(int i, unsigned char* written) {
    for (Touch& t : shadows[i].touches) *written++ = t.written;
}

void emulator_barrier(int line) {
    step(__builtin_return_address(0));
    wait(AT_BARRIER, line);
}

int emulator_lane() { return current & 31; }

uint64_t emulator_warp_exchange(uint64_t value, int source_lane, int line) {
    step(__builtin_return_address(0));
    fibers[current].value = value;
    fibers[current].lane_wanted = source_lane;
    wait(AT_WARP, line);
    return fibers[current].value;
}

// An asynchronous copy lands when its thread waits for its group; until then its target counts as not written.
void emulator_async_copy(void* shared, const void* global, int bytes, int line) {
    const void* code = __builtin_return_address(0);
    access(global, bytes, false, code);
    access(shared, bytes, true, code);
    for (Shadow& s : shadows)
        if (s.buffer == -1)
            for (int at = 0; at < bytes; at += 4) s.touches[((char*)shared - s.start + at) / 4].written = false;
    memset(shared, 0xFF, bytes);
    fibers[current].copies.back().push_back({(char*)shared, (const char*)global, bytes});
}

void emulator_async_commit() { fibers[current].copies.push_back({}); }

void emulator_async_wait(int newest) {
    auto& copies = fibers[current].copies;
    while ((int)copies.size() - 1 > newest) {
        for (AsyncCopy& c : copies.front()) {
            memcpy(c.to, c.from, c.bytes);
            access(c.to, c.bytes, true, __builtin_return_address(0));
        }
        copies.erase(copies.begin());
    }
}

#define WATCH(n)                                                                                          \
    void __tsan_read##n(void* p) { access(p, n, false, __builtin_return_address(0)); }                    \
    void __tsan_write##n(void* p) { access(p, n, true, __builtin_return_address(0)); }                    \
    void __tsan_unaligned_read##n(void* p) { access(p, n, false, __builtin_return_address(0)); }          \
    void __tsan_unaligned_write##n(void* p) { access(p, n, true, __builtin_return_address(0)); }          \
    void __tsan_read_write##n(void* p) { access(p, n, false, __builtin_return_address(0)); access(p, n, true, __builtin_return_address(0)); }
WATCH(1)
WATCH(2)
WATCH(4)
WATCH(8)
WATCH(16)
void __tsan_read_range(void* p, unsigned long n) { access(p, (int)n, false, __builtin_return_address(0)); }
void __tsan_write_range(void* p, unsigned long n) { access(p, (int)n, true, __builtin_return_address(0)); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
void __sanitizer_cov_trace_pc() {
    if (running) step(__builtin_return_address(0));  // a library's own constructor is traced too
}
// -fsanitize=bounds: an index beyond a declared array. The first member of `data` is {file, line, column}.
void __ubsan_handle_out_of_bounds_abort(void* data, void* index) {
    struct Location {
        const char* file;
        uint32_t line, column;
    };
    launch->report->line = (int)((Location*)data)->line;
    launch->report->offset = (int64_t)index;
    stop(STATIC_BOUNDS, __builtin_return_address(0));
}
}
