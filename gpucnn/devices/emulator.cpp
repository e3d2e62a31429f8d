// The emulator's runtime: fibers, barriers, and a shadow of every buffer that knows who wrote and read what.
//
// One fiber per CUDA thread, one block at a time. A kernel compiled with -fsanitize=thread calls __tsan_read4 and its
// kin at every memory access; linked against this file instead of the sanitizer's own runtime, those calls come here.
// From them follow, with block, thread and code address: accesses out of bounds, reads of what nobody wrote, and races
// (two threads, at least one writing, no barrier between them; or two blocks). A kernel compiled without them runs fast
// and unwatched.
//
// Hopper's copies and products run beside the threads. They are done as late as they may be, when somebody waits for them,
// and what one warp knows of another it knows by mbarriers; so what is used too early, or given back, is reported.
//
// Fibers start by ucontext once and then switch by _setjmp/_longjmp, which make no system call.
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <map>
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
            PARTIAL_WARP, ASYNCHRONOUS };
struct Report {
    int32_t kind, write, bytes, buffer;  // buffer: index, -1 shared memory, -2 neither
    int64_t offset;                      // bytes from the start of the buffer; line of the other barrier if DIVERGENT
    uint3 block, thread;
    int32_t other_block, other_thread;  // linear
    uintptr_t address;                  // in the kernel's code
    int32_t line;
    const char* what;  // happened, if ASYNCHRONOUS
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

// sm_90: operands of wgmma and the copy engine's transactions, which run beside the threads. What one thread knows of
// another is counted by warps: `seen[w][v]` is how many of v's releases (arrivals at an mbarrier, block barriers) w has
// waited for, directly or by way of others; mbarriers have numbers behind the warps', since what they wait for are copies.
typedef std::vector<int64_t> Clocks;
constexpr int MOST_MBARRIERS = 64;  // of a block

struct Mbarrier {
    int number, count, arrivals;  // arrivals that are still to come in this phase
    int64_t bytes;                // the same of copies
    int phase;                    // how many phases are complete
    bool fenced;                  // the copy engine knows of it
    Clocks arriving, passed;      // what those who wait for the present phase will know, and for the last one did
};

// What Python packs: kernels/wgmma.cuh has what it means. The innermost axis comes first.
struct TensorMap {
    const char* start;
    int32_t element, rank, pixels;  // bytes of an element; pixels: walked by pixels, not by boxes
    int32_t sizes[4], box[4];       // elements; of a walk by pixels the box is [channels, pixels]
    int32_t lower[2], upper[2], stride[2];
};
struct TensorCopy {
    TensorMap map;
    Mbarrier* barrier;
    char* to;
    int bytes;
    int at[4], offsets[2];
};
struct Landed {
    int bytes, number;
    int64_t release;
};
// Shared memory that the tensor cores read for a warp: until its release number so and so; INT64_MAX: they do still.
struct TensorRead {
    char *start, *stop;
    int warp;
    int64_t release;
};
enum WgmmaType { FLOAT16, BFLOAT16, TF32 };
struct WarpgroupMultiply {
    float* sums;
    uint64_t a, b;
    int columns;
    bool across_a, across_b;
    WgmmaType type;
};

enum Status { FRESH, READY, AT_BARRIER, AT_WARP, AT_WARPGROUP, AT_MBARRIER, DONE };
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
    std::vector<std::vector<WarpgroupMultiply>> multiplies;  // likewise
    std::map<float*, std::vector<float>> sums;               // what they are added to, not shown to the kernel meanwhile
    bool fenced;                                             // wgmma may use the registers
    Mbarrier* waits_for;
    int parity;
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

std::map<const char*, Mbarrier> mbarriers;  // by their addresses; of this block, like all that follows
std::vector<Clocks> seen;
std::vector<TensorCopy> tensor_copies;   // on their way
std::map<const char*, Landed> landings;  // by where they went
std::vector<TensorRead> tensor_reads;

[[noreturn]] void stop(Kind kind, const void* code) {
    Report& r = *launch->report;
    r.kind = kind;
    r.block = emulator_indices.block;
    r.thread = fibers[current].index;
    r.address = (uintptr_t)code;
    _longjmp(abort_launch, 1);
}

[[noreturn]] void stop_asynchronous(int line, const char* format, long long a = 0, long long b = 0) {
    static char what[256];
    snprintf(what, sizeof what, format, a, b);
    launch->report->what = what;
    launch->report->line = line;
    stop(ASYNCHRONOUS, nullptr);
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

void join(Clocks& to, const Clocks& from) {
    for (size_t i = 0; i < to.size(); ++i) to[i] = std::max(to[i], from[i]);
}

void complete(Mbarrier& barrier) {
    if (barrier.arrivals || barrier.bytes) return;
    ++barrier.phase;
    barrier.arrivals = barrier.count;
    join(barrier.passed, barrier.arriving);
}

// The place of a byte that a row of 128 bytes has in shared memory swizzled by 128 bytes: bits 4 to 6 of its offset are
// xored with bits 7 to 9, so that the 16 bytes of eight neighbouring rows lie in different banks.
int64_t swizzled(int64_t offset) { return offset ^ ((offset >> 7 & 7) << 4); }

// The nearest TF32 number, of two the even one; infinities and NaN as they are.
uint32_t to_tf32(uint32_t bits) { return (~bits & 0x7f800000) ? (bits + 0xfff + (bits >> 13 & 1)) & ~0x1fffu : bits; }

// A copy comes in: rows of 128 bytes, what lies outside of the array as zeros; floats are rounded to TF32.
void land(const TensorCopy& copy) {
    const TensorMap& m = copy.map;
    const int64_t offset = copy.to - launch->shared_start;
    const int chunk = 16 / m.element, rows = copy.bytes / 128;
    int at[4] = {copy.at[0], copy.at[1], copy.at[2], copy.at[3]};
    for (int row = 0; row < rows; ++row) {
        int place[4] = {at[0], at[1], at[2], at[3]};
        if (m.pixels) {
            for (int i = 0; i < 2; ++i) place[1 + i] += copy.offsets[i];
        } else {
            for (int i = 1, left = row; i < m.rank; left /= m.box[i++]) place[i] += left % m.box[i];
        }
        bool inside = true;
        int64_t element = 0;
        for (int i = m.rank - 1; i >= 1; --i) {
            inside &= 0 <= place[i] && place[i] < m.sizes[i];
            element = element * m.sizes[i] + place[i];
        }
        for (int i = 0; i < m.box[0]; i += chunk) {  // sizes are multiples of a chunk
            char* to = launch->shared_start + swizzled(offset + row * 128 + i * m.element);
            const int first = place[0] + i;
            if (inside && 0 <= first && first < m.sizes[0])
                memcpy(to, m.start + (element * m.sizes[0] + first) * m.element, 16);
            else
                memset(to, 0, 16);
            if (m.element == 4)
                for (uint32_t* word = (uint32_t*)to; word < (uint32_t*)to + 4; ++word) *word = to_tf32(*word);
        }
        if (m.pixels) {  // to the next pixel: along the row, then the column, then the image
            for (int i = 0; i < 2; ++i) {
                at[1 + i] += m.stride[i];
                if (at[1 + i] <= m.sizes[1 + i] - 1 + m.upper[i]) break;
                at[1 + i] = m.lower[i];
                if (i == 1) ++at[3];
            }
        }
    }
    for (Shadow& s : shadows)
        if (s.buffer == -1)
            for (int64_t i = offset / 4; i < (offset + copy.bytes) / 4; ++i) {
                s.touches[i] = Touch();
                s.touches[i].written = true;
            }
    Mbarrier& barrier = *copy.barrier;
    const int64_t release = ++barrier.arriving[barrier.number];
    landings[copy.to] = {copy.bytes, barrier.number, release};
    barrier.bytes -= copy.bytes;
    if (!barrier.arrivals && barrier.bytes < 0)
        stop_asynchronous(fibers[current].line, "waits at an mbarrier to which %lld bytes more came than it expects", -barrier.bytes);
    complete(barrier);
}

bool is_passed(const Fiber& f) { return (f.waits_for->phase & 1) != f.parity; }

// Let go of those whose mbarrier is complete; if there are none, let copies land that somebody waits for.
bool release_mbarriers(int count) {
    bool moved = false;
    for (int i = 0; i < count; ++i) {
        Fiber& f = fibers[i];
        if (f.status == AT_MBARRIER && is_passed(f)) {
            f.status = READY;
            moved = true;
        }
    }
    for (int i = 0; i < count && !moved; ++i) {
        if (fibers[i].status != AT_MBARRIER) continue;
        current = i;  // of a report
        for (size_t c = 0; c < tensor_copies.size() && !is_passed(fibers[i]);) {
            if (tensor_copies[c].barrier != fibers[i].waits_for) {
                ++c;
                continue;
            }
            const TensorCopy copy = tensor_copies[c];
            tensor_copies.erase(tensor_copies.begin() + (long)c);
            land(copy);
            moved = true;
        }
    }
    return moved;
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
    for (int first = 0; first + 128 <= count; first += 128) {
        bool all = true;
        for (int i = first; i < first + 128; ++i)
            all &= fibers[i].status == AT_WARPGROUP && fibers[i].line == fibers[first].line;
        if (!all) continue;
        for (int i = first; i < first + 128; ++i) {
            current = i;
            if (memcmp(fibers[i].shown.at, fibers[first].shown.at, 16))
                stop_asynchronous(fibers[i].line, "hands wgmma other operands than the first of its warpgroup");
            fibers[i].status = READY;
        }
        moved = true;
    }
    if (moved || release_mbarriers(count)) return true;
    for (int i = 0; i < count; ++i)
        if (fibers[i].status == AT_MBARRIER) {
            current = i;
            const Mbarrier& barrier = *fibers[i].waits_for;
            stop_asynchronous(fibers[i].line, "waits at an mbarrier that never completes: %lld arrivals and %lld bytes are missing",
                              barrier.arrivals, barrier.bytes);
        }
    for (int i = 1; i < count; ++i)
        if (fibers[i].status != fibers[0].status || fibers[i].line != fibers[0].line) {
            int waits = fibers[i].status == DONE ? 0 : i;
            diverged(waits, waits ? 0 : i);
        }
    if (fibers[0].status == AT_WARP) diverged(0, 0);
    ++epoch;
    for (int i = 0; i < count; ++i) fibers[i].status = READY;
    Clocks all(seen.empty() ? 0 : seen[0].size());
    for (const Clocks& one : seen) join(all, one);
    for (size_t w = 0; w < seen.size(); ++w) {
        seen[w] = all;
        ++seen[w][w];
    }
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
        f.multiplies.assign(1, {});
        f.sums.clear();
        f.fenced = false;
    }
    mbarriers.clear();
    seen.clear();
    tensor_copies.clear();
    landings.clear();
    tensor_reads.clear();
    ++epoch;
    for (;;) {
        int done = 0;
        for (int i : order) {
            if (fibers[i].status == READY) resume(i);
            done += fibers[i].status == DONE;
        }
        if (done == count) {
            if (!tensor_copies.empty()) stop_asynchronous(0, "ends while a copy to shared memory is on its way");
            return;
        }
        release(count);
    }
}

// Of shared memory that is about to be read or written: the copies to it that have landed were waited for.
void need_landed(const char* start, const char* stop, int line) {
    auto next = landings.upper_bound(start);
    if (next != landings.begin()) --next;
    for (; next != landings.end() && next->first < stop; ++next) {
        const auto& [to, landed] = *next;
        if (to + landed.bytes > start && seen[current / 32][landed.number] < landed.release)
            stop_asynchronous(line, "uses shared memory at byte %lld, to which a copy came: nobody waited for its mbarrier",
                              std::max(to, start) - launch->shared_start);
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
            if (s.buffer == -1 && !landings.empty()) need_landed(p, p + bytes, launch->report->line);
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

// -- sm_90: mbarriers, the copy engine, wgmma ----------------------------------------------------------

Mbarrier& known_mbarrier(const void* at, int line) {
    const auto found = mbarriers.find((const char*)at);
    if (found == mbarriers.end()) stop_asynchronous(line, "uses an mbarrier that nothing has initialised");
    launch->report->line = line;
    access(at, 8, false, nullptr);  // a race with who initialised it
    launch->report->line = 0;
    return found->second;
}

// Shared memory that is written next: no copy is on its way there, and the tensor cores are known to be done with it.
void need_free(const char* start, const char* stop, int line) {
    for (const TensorCopy& copy : tensor_copies)
        if (copy.to < stop && start < copy.to + copy.bytes)
            stop_asynchronous(line, "copies to byte %lld of shared memory while another copy is on its way there",
                              start - launch->shared_start);
    for (const TensorRead& read : tensor_reads)
        if (read.start < stop && start < read.stop && seen[current / 32][read.warp] < read.release)
            stop_asynchronous(line, "copies to byte %lld of shared memory, which the tensor cores may still read for warp %lld",
                              start - launch->shared_start, read.warp);
}

// The values of all float16 or bfloat16 numbers by their bits.
const double* halves(bool bfloat) {
    static std::array<std::vector<double>, 2> tables;
    std::vector<double>& table = tables[bfloat];
    if (table.empty())
        for (uint32_t bits = 0; bits < 1 << 16; ++bits) table.push_back(from_half(bits, bfloat));
    return table.data();
}

// A matrix of wgmma in shared memory, as its descriptor says: rows (of a, or columns of b) of 16 k; of TF32, floats whose
// 13 lowest bits are not looked at, of 8. "Along": 128 bytes of a row's k, 8 rows lie together, the next 8 `stride`
// further. "Across", of 16 bits alone: 64 rows at a k are 128 bytes, 8 k lie together, the next 8 k `stride` further, the
// next 64 rows `leading` further.
struct Operand {
    int64_t start, leading, stride;
    bool across;
    int bytes, depth;  // of an element, and its k
    const double* values;

    Operand(uint64_t descriptor, bool across, WgmmaType type)
        : start((int64_t)(descriptor & 0x3fff) << 4), leading((int64_t)(descriptor >> 16 & 0x3fff) << 4),
          stride((int64_t)(descriptor >> 32 & 0x3fff) << 4), across(across), bytes(type == TF32 ? 4 : 2), depth(32 / bytes),
          values(type == TF32 ? nullptr : halves(type == BFLOAT16)) {}
    int64_t offset(int row, int k) const {
        const int64_t along = row / 8 * stride + row % 8 * 128 + k * bytes;
        return swizzled(start + (across ? row / 64 * leading + k / 8 * stride + k % 8 * 128 + row % 64 * 2 : along));
    }
    double at(int row, int k) const {
        const char* place = launch->shared_start + offset(row, k);
        if (values) return values[*(const uint16_t*)place];
        const uint32_t bits = *(const uint32_t*)place & ~0x1fffu;
        float value;
        memcpy(&value, &bits, 4);
        return value;
    }
    // The bytes that some rows take. (Of the last address an instruction can read nothing follows.)
    std::pair<char*, char*> range(int from, int rows) const {
        int64_t first = INT64_MAX, last = 0;
        for (int row = from; row < from + rows; ++row)
            for (int k = 0; k < depth; ++k) {
                first = std::min(first, offset(row, k));
                last = std::max(last, offset(row, k) + bytes);
            }
        return {launch->shared_start + first, launch->shared_start + last};
    }
};

// What the tensor cores read for a warp: of a its 16 rows, and b.
std::array<std::pair<char*, char*>, 2> ranges(const WarpgroupMultiply& m) {
    const int warp = current / 32 % 4;
    return {Operand(m.a, m.across_a, m.type).range(warp * 16, 16), Operand(m.b, m.across_b, m.type).range(0, m.columns)};
}

// They have landed, and this warp knows.
void need_written(const WarpgroupMultiply& m, int line) {
    Report& r = *launch->report;
    const int rows[2] = {16, m.columns}, first[2] = {current / 32 % 4 * 16, 0};
    for (int which = 0; which < 2; ++which) {
        const Operand operand(which ? m.b : m.a, which ? m.across_b : m.across_a, m.type);
        const auto [start, end] = operand.range(first[which], rows[which]);
        r.buffer = -1;
        r.write = 0;
        r.line = line;
        r.offset = end - launch->shared_start;
        if (end > launch->shared_stop) stop(OUT_OF_BOUNDS, nullptr);
        for (Shadow& s : shadows) {
            if (s.buffer != -1) continue;
            for (int row = 0; row < rows[which]; ++row)
                for (int k = 0; k < operand.depth; k += operand.across ? 1 : 4 / operand.bytes) {
                    r.offset = operand.offset(first[which] + row, k);
                    if (!s.touches[r.offset / 4].written) stop(UNINITIALISED, nullptr);
                }
        }
        need_landed(start, end, line);
        r.line = 0;
    }
}

// This lane's part of it: rows g and g + 8 of its warp's 16, columns 2 q and 2 q + 1 of each 8, where lane = 4 g + q.
void multiply(const WarpgroupMultiply& m, std::vector<float>& sums) {
    const Operand a(m.a, m.across_a, m.type), b(m.b, m.across_b, m.type);
    const int row = current / 32 % 4 * 16 + (current & 31) / 4;
    double of_a[2][16];
    for (int h = 0; h < 2; ++h)
        for (int k = 0; k < a.depth; ++k) of_a[h][k] = a.at(row + 8 * h, k);
    for (int i = 0; i < m.columns / 4; ++i) {
        const int column = i / 2 * 8 + (current & 3) * 2 + i % 2;
        double of_b[16];
        for (int k = 0; k < b.depth; ++k) of_b[k] = b.at(column, k);
        for (int h = 0; h < 2; ++h) {
            float& sum = sums[i / 2 * 4 + h * 2 + i % 2];
            double total = sum;
            for (int k = 0; k < a.depth; ++k) total += of_a[h][k] * of_b[k];
            sum = (float)total;
        }
    }
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

// mbarrier.init: phases of `count` arrivals. To the copy engine it is known after fence.mbarrier_init.
void emulator_mbarrier_init(const void* at, int count, int line) {
    launch->report->line = line;
    access(at, 8, true, nullptr, 8);
    launch->report->line = 0;
    if (seen.empty()) {
        seen.assign((fibers.size() + 31) / 32, Clocks((fibers.size() + 31) / 32 + MOST_MBARRIERS));
        for (size_t w = 0; w < seen.size(); ++w) seen[w][w] = 1;
    }
    const int number = (int)(seen.size() + mbarriers.size());
    if (mbarriers.size() == MOST_MBARRIERS) stop_asynchronous(line, "initialises more mbarriers than the emulator counts");
    const Clocks nothing(seen[0].size());
    if (!mbarriers.insert({(const char*)at, {number, count, count, 0, 0, false, nothing, nothing}}).second)
        stop_asynchronous(line, "initialises an mbarrier that is in use");
}

void emulator_mbarrier_fence() {
    for (auto& [at, barrier] : mbarriers) barrier.fenced = true;
}

// mbarrier.arrive, with .expect_tx if copies of so many bytes belong to the phase. What the warp did before is released.
void emulator_mbarrier_arrive(const void* at, int bytes, int line) {
    step(__builtin_return_address(0));
    Mbarrier& barrier = known_mbarrier(at, line);
    Clocks& mine = seen[current / 32];
    join(barrier.arriving, mine);
    ++mine[current / 32];
    barrier.bytes += bytes;
    --barrier.arrivals;
    if (!barrier.arrivals && barrier.bytes < 0)
        stop_asynchronous(line, "arrives at an mbarrier to which %lld bytes more came than it expects", -barrier.bytes);
    complete(barrier);
}

// mbarrier.try_wait.parity until the phase of that parity is complete: at first the one before the first counts as such.
void emulator_mbarrier_wait(const void* at, int parity, int line) {
    step(__builtin_return_address(0));
    Mbarrier& barrier = known_mbarrier(at, line);
    Fiber& f = fibers[current];
    f.waits_for = &barrier;
    f.parity = parity & 1;
    while (!is_passed(f)) wait(AT_MBARRIER, line);
    join(seen[current / 32], barrier.passed);
}

// cp.async.bulk.tensor: the box from `at` on, or the pixels from there on of which each is read `offsets` further. It
// lands when somebody waits for its mbarrier; until then nothing has written its target.
void emulator_tensor_copy(void* shared, const void* map, const void* barrier, const int* at, const int* offsets, int line) {
    step(__builtin_return_address(0));
    Mbarrier& of = known_mbarrier(barrier, line);
    if (!of.fenced) stop_asynchronous(line, "copies by an mbarrier that no fence has shown to the copy engine");
    const TensorMap& m = *(const TensorMap*)map;
    if ((offsets != nullptr) != (m.pixels != 0)) stop_asynchronous(line, "walks a tensor map in the way of the other kind");
    TensorCopy copy = {m, &of, (char*)shared, m.element, {}, {}};
    for (int i = 0; i < (m.pixels ? 2 : m.rank); ++i) copy.bytes *= m.box[i];
    for (int i = 0; i < m.rank; ++i) copy.at[i] = at[i];
    for (int i = 0; i < 2 && m.pixels; ++i) {
        const int from_corner = at[1 + i] - m.lower[i], last = m.sizes[1 + i] - 1 + m.upper[i];
        if (from_corner < 0 || at[1 + i] > last || from_corner % m.stride[i])
            stop_asynchronous(line, "begins a walk at %lld, which is no pixel of the bounding box", at[1 + i]);
        copy.offsets[i] = offsets[i];
        if (offsets[i] < 0 || offsets[i] > 255) stop_asynchronous(line, "has an offset of %lld, not 0 to 255", offsets[i]);
    }
    char* to = copy.to;
    if (to < launch->shared_start || to + copy.bytes > launch->shared_stop)
        stop_asynchronous(line, "copies %lld bytes to byte %lld of shared memory: they do not fit", copy.bytes,
                          to - launch->shared_start);
    if ((to - launch->shared_start) % 1024)
        stop_asynchronous(line, "copies to byte %lld of shared memory, no multiple of 1024, where the swizzle begins",
                          to - launch->shared_start);
    need_free(to, to + copy.bytes, line);
    launch->report->line = line;
    for (int i = 0; i < copy.bytes; i += 16) access(to + i, 16, true, nullptr);
    launch->report->line = 0;
    for (Shadow& s : shadows)
        if (s.buffer == -1)
            for (int64_t i = (to - s.start) / 4; i < (to - s.start + copy.bytes) / 4; ++i) s.touches[i] = Touch();
    memset(to, 0xFF, copy.bytes);
    landings.erase(to);
    tensor_copies.push_back(copy);
}

uint32_t emulator_shared_offset(const void* at) { return (uint32_t)((const char*)at - launch->shared_start); }

void emulator_wgmma_fence() { fibers[current].fenced = true; }

// wgmma.mma_async: m64 n`columns` k16, of TF32 k8, of operands in shared memory. It is done when its group is waited for: until then
// the sums hold NaN, and the operands must stay.
void emulator_wgmma(float* sums, uint64_t a, uint64_t b, int columns, int across_a, int across_b, int type, int line) {
    step(__builtin_return_address(0));
    if (current / 128 * 128 + 128 > (int)fibers.size())
        stop_asynchronous(line, "is no thread of a warpgroup, four warps from a multiple of four on");
    Fiber& f = fibers[current];
    if (!f.fenced) stop_asynchronous(line, "multiplies by wgmma without a wgmma.fence since its registers were used");
    for (uint64_t descriptor : {a, b}) {
        if (descriptor >> 62 != 1) stop_asynchronous(line, "has an operand that is not swizzled by 128 bytes");
        if (descriptor << 4 & 0x380) stop_asynchronous(line, "has an operand that begins within 1024 swizzled bytes");
    }
    f.shown = {{(uint32_t)a, (uint32_t)(a >> 32), (uint32_t)b, (uint32_t)(b >> 32)}};
    wait(AT_WARPGROUP, line);
    const WarpgroupMultiply m = {sums, a, b, columns, across_a != 0, across_b != 0, (WgmmaType)type};
    if (current % 32 == 0)
        for (const auto& [start, stop] : ranges(m)) tensor_reads.push_back({start, stop, current / 32, INT64_MAX});
    if (!f.sums.count(sums)) {
        f.sums[sums].assign(sums, sums + columns / 2);
        std::fill(sums, sums + columns / 2, NAN);
    }
    f.multiplies.back().push_back(m);
}

void emulator_wgmma_commit() { fibers[current].multiplies.push_back({}); }

// wgmma.wait_group: all but the newest groups are done, of the whole warp.
void emulator_wgmma_wait(int newest, int line) {
    step(__builtin_return_address(0));
    Fiber& f = fibers[current];
    f.fenced = false;
    while ((int)f.multiplies.size() - 1 > newest) {
        for (const WarpgroupMultiply& m : f.multiplies.front()) {
            if (current % 32 == 0) {
                need_written(m, line);
                for (const auto& [start, stop] : ranges(m)) {
                    const auto own = [at = start](const TensorRead& r) { return r.start == at && r.warp == current / 32; };
                    const auto past = [&](const TensorRead& r) { return own(r) && r.release != INT64_MAX; };
                    tensor_reads.erase(std::remove_if(tensor_reads.begin(), tensor_reads.end(), past), tensor_reads.end());
                    const auto oldest = std::find_if(tensor_reads.begin(), tensor_reads.end(), own);
                    oldest->release = seen.empty() ? 0 : seen[current / 32][current / 32];
                }
            }
            multiply(m, f.sums[m.sums]);
        }
        f.multiplies.erase(f.multiplies.begin());
    }
    for (auto next = f.sums.begin(); next != f.sums.end();) {
        bool used = false;
        for (const auto& group : f.multiplies)
            for (const WarpgroupMultiply& m : group) used |= m.sums == next->first;
        if (!used) std::copy(next->second.begin(), next->second.end(), next->first);
        next = used ? std::next(next) : f.sums.erase(next);
    }
    need_whole_warp(line);
    meet({}, line);
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
