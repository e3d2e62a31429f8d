// The emulator's runtime: fibers, barriers, and a shadow of every buffer that knows who wrote and read what.
//
// One fiber per CUDA thread, one block at a time. A kernel compiled with -fsanitize=thread calls __tsan_read4 and its
// kin at every memory access; linked against this file instead of the sanitizer's own runtime, those calls come here.
// From them follow, with block, thread and code address: accesses out of bounds, reads of what nobody wrote, and races
// (two threads, at least one writing, no barrier between them; or two blocks). A kernel compiled without them runs fast
// and unwatched.
//
// Fibers start by ucontext once and then switch by _setjmp/_longjmp, which make no system call.
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <random>
#include <vector>

#ifdef __x86_64__
#include <xmmintrin.h>
#endif

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
enum Kind { OK, OUT_OF_BOUNDS, UNINITIALISED, RACE_BLOCKS, RACE_THREADS, DIVERGENT, TIMEOUT, STATIC_BOUNDS, MISALIGNED,
            PARTIAL_WARP };
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
    int64_t max_steps;  // watchdog: accesses and barriers a thread may make; basic blocks too where the kernel counts them
    int32_t flush;      // whether denormal numbers are zeros while the kernel runs
    int32_t watch;      // whether the kernel's own accesses are reported
    Report* report;
};

extern "C" {
struct {
    uint3 thread, block, block_size, grid_size;
} emulator_indices;
}

namespace {

// While it lives and is on: denormal arguments and results of this thread's operations are zeros of their sign, as -ftz
// of CUDA has it for float. The processor does it for double too, so it is on for kernels that add no doubles only.
class Flushing {
#if defined(__x86_64__)
    static constexpr uint64_t FLUSH = 0x8040;  // FTZ, results; DAZ, arguments
    static uint64_t mode() { return _mm_getcsr(); }
    static void set_mode(uint64_t mode) { _mm_setcsr((unsigned int)mode); }
#elif defined(__aarch64__)
    static constexpr uint64_t FLUSH = 1 << 24;  // FZ, both
    static uint64_t mode() {
        uint64_t mode;
        asm volatile("mrs %0, fpcr" : "=r"(mode));
        return mode;
    }
    static void set_mode(uint64_t mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
#else
#error "how does this processor flush denormal numbers to zero? emulator.cpp knows x86-64 and aarch64"
#endif
    const uint64_t before = mode();

   public:
    explicit Flushing(bool on) {
        if (on) set_mode(before | FLUSH);
    }
    ~Flushing() { set_mode(before); }
};

constexpr int CHUNK = 16;  // bytes of an asynchronous copy, and of a row of load_matrices
struct AsyncCopy {
    char* to;
    const char* from;
    int bytes;  // of the chunk that are read; the rest becomes zeros
};

// What a lane shows the other lanes of its warp where they meet.
struct Words {
    uint32_t at[6];
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
    Words shown;
    int64_t steps = 0;
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
std::vector<std::array<Words, 32>> warps;  // what the lanes of each warp showed when they met last
jmp_buf scheduler, abort_launch;
Launch* launch;
int current, block_number;
int64_t epoch, steps;  // steps of the fiber that runs
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
    f.steps = steps;
    if (!_setjmp(f.state)) _longjmp(scheduler, 1);
}

void resume(int i) {
    current = i;
    Fiber& f = fibers[i];
    emulator_indices.thread = f.index;
    f.status = READY;
    steps = f.steps;
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
        for (int i = first; i < last; ++i) {
            warps[first / 32][i - first] = fibers[i].shown;
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
        f.steps = 0;
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

void access(const void* pointer, int bytes, bool write, const void* code, int alignment = 1) {
    step(code);
    char* p = (char*)pointer;
    char* stack = fibers[current].stack;
    if (p >= stack && p < stack + STACK) return;
    if (p >= (char*)&emulator_indices && p < (char*)(&emulator_indices + 1)) return;
    if (!write && p >= launch->constant_start && p < launch->constant_stop) return;
    Report& r = *launch->report;
    r.write = write;
    r.bytes = bytes;
    Shadow* near = nullptr;  // the buffer that was missed, if it was not by far
    int64_t nearest = 4096;
    for (Shadow& s : shadows) {
        if (p >= s.start && p + bytes <= s.start + s.bytes) {
            r.buffer = s.buffer;
            r.offset = p - s.start;
            if ((uintptr_t)p % alignment) stop(MISALIGNED, code);
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
        const int64_t away = std::max(s.start - p, p + bytes - (s.start + s.bytes));
        if (away < nearest) {
            near = &s;
            nearest = away;
        }
    }
    r.buffer = near ? near->buffer : -2;
    r.offset = near ? p - near->start : 0;
    stop(OUT_OF_BOUNDS, code);
}

// Wait for the other lanes of the warp, and see what each of them shows.
const std::array<Words, 32>& meet(const Words& mine, int line) {
    fibers[current].shown = mine;
    wait(AT_WARP, line);
    return warps[current / 32];
}

// For instructions that need 32 lanes; a shuffle in a block that ends within a warp does not.
void need_whole_warp(int line) {
    if (current / 32 * 32 + 32 <= (int)fibers.size()) return;
    launch->report->line = line;
    stop(PARTIAL_WARP, nullptr);
}

// What each lane of the warp finds in shared memory, at its own address: 16 bytes.
const std::array<Words, 32>& loaded_rows(const void* row, int line, const void* code) {
    need_whole_warp(line);
    launch->report->line = line;  // of a report from here: the return address lies in mma.cuh
    if (launch->watch) access(row, CHUNK, false, code, CHUNK);
    const char* p = (const char*)row;
    if (p < launch->shared_start || p + CHUNK > launch->shared_stop) {
        launch->report->buffer = -2;
        stop(OUT_OF_BOUNDS, code);
    }
    launch->report->line = 0;
    Words mine;
    memcpy(mine.at, row, CHUNK);
    return meet(mine, line);
}

// The i-th 16 bits of some words.
uint32_t half_of(const Words& words, int i) { return words.at[i / 2] >> (i % 2 * 16) & 0xffffu; }

// The value of a float16 or bfloat16. By integers: as a float a denormal one might be taken for zero here.
double from_half(uint32_t bits, bool bfloat) {
    const int width = bfloat ? 7 : 10, largest = bfloat ? 255 : 31, bias = bfloat ? 127 : 15;
    const int exponent = (int)(bits >> width) & largest, rest = (int)bits & ((1 << width) - 1);
    double size = ldexp(exponent ? rest + (1 << width) : rest, (exponent ? exponent : 1) - bias - width);
    if (exponent == largest) size = rest ? NAN : INFINITY;
    return bits & 0x8000u ? -size : size;
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
    warps.resize((count + 31) / 32);
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
    epoch = 0;
    running = true;
    Flushing flushing(l->flush);
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
    const int first = current / 32 * 32, source = first + source_lane < (int)fibers.size() ? source_lane : current - first;
    const Words& theirs = meet({{(uint32_t)value, (uint32_t)(value >> 32)}}, line)[source];
    return theirs.at[0] | (uint64_t)theirs.at[1] << 32;
}

// ldmatrix: each lane reads a row of 16 bytes in shared memory, and gets a word of four rows.
void emulator_load_matrices(float* to, const void* row, int line) {
    const auto& rows = loaded_rows(row, line, __builtin_return_address(0));
    const int lane = current & 31;
    for (int tile = 0; tile < 4; ++tile) memcpy(&to[tile], &rows[tile * 8 + lane / 4].at[lane % 4], 4);
}

// ldmatrix with .trans: each lane gets the 16 bits of column lane / 4 of two rows, of each tile of eight.
void emulator_load_turned(uint32_t* to, const void* row, int line) {
    const auto& rows = loaded_rows(row, line, __builtin_return_address(0));
    const int lane = current & 31, column = lane / 4;
    for (int tile = 0; tile < 4; ++tile) {
        const Words* two = &rows[tile * 8 + lane % 4 * 2];
        to[tile] = half_of(two[0], column) | half_of(two[1], column) << 16;
    }
}

// mma.m16n8k8 of TF32: the products are added to the sum in double, k = 0 ... 7, and rounded to float once.
void emulator_multiply_tiles(float* sum, const float* a, const float* b, int line) {
    step(__builtin_return_address(0));
    need_whole_warp(line);
    Words mine;
    memcpy(mine.at, a, 16);
    memcpy(mine.at + 4, b, 8);
    for (uint32_t& word : mine.at) word &= ~0x1fffu;  // what TF32 lacks is not looked at
    const auto& lanes = meet(mine, line);
    const auto value = [&](int lane, int word) {
        float value;
        memcpy(&value, &lanes[lane].at[word], 4);
        return (double)value;
    };
    const int lane = current & 31;
    for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        double total = sum[i];
        for (int k = 0; k < 8; ++k)
            total += value(row % 8 * 4 + k % 4, row / 8 + k / 4 * 2) * value(column * 4 + k % 4, 4 + k / 4);
        sum[i] = (float)total;
    }
}

// mma.m16n8k16 of float16 or bfloat16: likewise, k = 0 ... 15.
void emulator_multiply_halves(float* sum, const uint32_t* a, const uint32_t* b, int bfloat, int line) {
    step(__builtin_return_address(0));
    need_whole_warp(line);
    Words mine;
    memcpy(mine.at, a, 16);
    memcpy(mine.at + 4, b, 8);
    const auto& lanes = meet(mine, line);
    const int lane = current & 31;
    for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        double total = sum[i];
        for (int k = 0; k < 16; ++k) {
            const Words &of_a = lanes[row % 8 * 4 + k % 8 / 2], &of_b = lanes[column * 4 + k % 8 / 2];
            total += from_half(half_of(of_a, (row / 8 + k / 8 * 2) * 2 + k % 2), bfloat) *
                     from_half(half_of(of_b, (4 + k / 8) * 2 + k % 2), bfloat);
        }
        sum[i] = (float)total;
    }
}

// An asynchronous copy lands when its thread waits for its group; until then its target counts as not written.
// Of the 16 bytes the first `bytes` are read, the others become zeros.
void emulator_async_copy(void* shared, const void* global, int bytes, int line) {
    const void* code = __builtin_return_address(0);
    if (bytes) access(global, bytes, false, code, bytes);
    access(shared, CHUNK, true, code, CHUNK);
    for (Shadow& s : shadows)
        if (s.buffer == -1)
            for (int at = 0; at < CHUNK; at += 4) s.touches[((char*)shared - s.start + at) / 4].written = false;
    memset(shared, 0xFF, CHUNK);
    fibers[current].copies.back().push_back({(char*)shared, (const char*)global, bytes});
}

void emulator_async_commit() { fibers[current].copies.push_back({}); }

void emulator_async_wait(int newest) {
    auto& copies = fibers[current].copies;
    while ((int)copies.size() - 1 > newest) {
        for (AsyncCopy& c : copies.front()) {
            memcpy(c.to, c.from, c.bytes);
            memset(c.to + c.bytes, 0, CHUNK - c.bytes);
            access(c.to, CHUNK, true, __builtin_return_address(0));
        }
        copies.erase(copies.begin());
    }
}

#define WATCH(n)                                                                                          \
    void __tsan_read##n(void* p) { access(p, n, false, __builtin_return_address(0), n); }                 \
    void __tsan_write##n(void* p) { access(p, n, true, __builtin_return_address(0), n); }                 \
    void __tsan_unaligned_read##n(void* p) { access(p, n, false, __builtin_return_address(0)); }          \
    void __tsan_unaligned_write##n(void* p) { access(p, n, true, __builtin_return_address(0)); }          \
    void __tsan_read_write##n(void* p) { access(p, n, false, __builtin_return_address(0)); access(p, n, true, __builtin_return_address(0)); }
WATCH(1)
WATCH(2)
WATCH(4)
WATCH(8)
WATCH(16)
// A struct: our only ones in memory are for wide accesses, and aligned to their size or to 16 bytes.
int boundary(unsigned long n) { return n % 16 ? n % 8 ? 4 : 8 : 16; }
void __tsan_read_range(void* p, unsigned long n) { access(p, (int)n, false, __builtin_return_address(0), boundary(n)); }
void __tsan_write_range(void* p, unsigned long n) { access(p, (int)n, true, __builtin_return_address(0), boundary(n)); }
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
