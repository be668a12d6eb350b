// The product of bf16 panels by AMX tiles.
//
// Written with assembly statements that name the memory they touch: GCC 12's own tile intrinsics declare eight of the
// configuration's 64 bytes and none of a tile's, and the optimiser then drops the stores that fill them.
#include "prefill/gemm_amx.h"

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace jamba {
namespace {

#define TILE_LOAD(tile, address) \
    __asm__ __volatile__("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(address), "r"(row_bytes) : "memory")
// Hints that the tile is not read again soon, so that it does not displace others in the first-level cache.
#define TILE_STREAM(tile, address) \
    __asm__ __volatile__("tileloaddt1 (%0,%1,1), %%tmm" #tile : : "r"(address), "r"(row_bytes) : "memory")
#define TILE_STORE(tile, address) \
    __asm__ __volatile__("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(address), "r"(row_bytes) : "memory")
#define TILE_ZERO(tile) __asm__ __volatile__("tilezero %%tmm" #tile : :)
// c += w x
#define TILE_DOT(c, w, x) __asm__ __volatile__("tdpbf16ps %%tmm" #x ", %%tmm" #w ", %%tmm" #c : :)

constexpr long row_bytes = 64;  // of every tile: 16 floats, 32 values of k, or 16 pairs

// Two groups of weights times two groups of inputs: accumulators 0-3, weights 4-5, inputs 6-7. The inputs, 32 KB of 512
// values of k, stay in the first-level cache while weights stream past: without the hint they would be pushed out, and
// the product runs at 1,450 instead of 1,900 GFLOP/s a core (of 2,700).
inline void two_by_two(const uint16_t* w, int64_t w_stride, const uint16_t* x, int64_t x_stride, int64_t chunks, float* c,
                       int64_t c_stride, bool accumulate) {
    if (accumulate) {
        TILE_STREAM(0, c);
        TILE_STREAM(1, c + kTile);
        TILE_STREAM(2, c + c_stride);
        TILE_STREAM(3, c + c_stride + kTile);
    } else {
        TILE_ZERO(0);
        TILE_ZERO(1);
        TILE_ZERO(2);
        TILE_ZERO(3);
    }
    for (int64_t i = 0; i < chunks; ++i, w += kChunkSize, x += kChunkSize) {
        TILE_STREAM(4, w);
        TILE_LOAD(6, x);
        TILE_DOT(0, 4, 6);
        TILE_LOAD(7, x + x_stride);
        TILE_DOT(1, 4, 7);
        TILE_STREAM(5, w + w_stride);
        TILE_DOT(2, 5, 6);
        TILE_DOT(3, 5, 7);
    }
    TILE_STORE(0, c);
    TILE_STORE(1, c + kTile);
    TILE_STORE(2, c + c_stride);
    TILE_STORE(3, c + c_stride + kTile);
}

// The left-over row or column of groups.
inline void two_by_one(const uint16_t* w, int64_t w_stride, const uint16_t* x, int64_t chunks, float* c, int64_t c_stride,
                       bool accumulate) {
    if (accumulate) {
        TILE_STREAM(0, c);
        TILE_STREAM(2, c + c_stride);
    } else {
        TILE_ZERO(0);
        TILE_ZERO(2);
    }
    for (int64_t i = 0; i < chunks; ++i, w += kChunkSize, x += kChunkSize) {
        TILE_STREAM(4, w);
        TILE_LOAD(6, x);
        TILE_DOT(0, 4, 6);
        TILE_STREAM(5, w + w_stride);
        TILE_DOT(2, 5, 6);
    }
    TILE_STORE(0, c);
    TILE_STORE(2, c + c_stride);
}

inline void one_by_two(const uint16_t* w, const uint16_t* x, int64_t x_stride, int64_t chunks, float* c, bool accumulate) {
    if (accumulate) {
        TILE_STREAM(0, c);
        TILE_STREAM(1, c + kTile);
    } else {
        TILE_ZERO(0);
        TILE_ZERO(1);
    }
    for (int64_t i = 0; i < chunks; ++i, w += kChunkSize, x += kChunkSize) {
        TILE_STREAM(4, w);
        TILE_LOAD(6, x);
        TILE_DOT(0, 4, 6);
        TILE_LOAD(7, x + x_stride);
        TILE_DOT(1, 4, 7);
    }
    TILE_STORE(0, c);
    TILE_STORE(1, c + kTile);
}

inline void one_by_one(const uint16_t* w, const uint16_t* x, int64_t chunks, float* c, bool accumulate) {
    if (accumulate)
        TILE_STREAM(0, c);
    else
        TILE_ZERO(0);
    for (int64_t i = 0; i < chunks; ++i, w += kChunkSize, x += kChunkSize) {
        TILE_STREAM(4, w);
        TILE_LOAD(6, x);
        TILE_DOT(0, 4, 6);
    }
    TILE_STORE(0, c);
}

}  // namespace

namespace amx {

bool usable() {
#if defined(__linux__)
    // Linux keeps the permission with the process, not with the thread that asks: threads that exist already and later ones have
    // it too, fork() passes it on and exec() takes it away. It is refused where a thread's stack for signals is too small.
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
    return granted;
#else
    return false;
#endif
}

void enter() {
    struct alignas(64) Config {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {};
    config.palette = 1;
    for (int i = 0; i < 8; ++i) {
        config.row_bytes[i] = 64;
        config.rows[i] = 16;
    }
    __asm__ __volatile__("ldtilecfg %0" : : "m"(config) : "memory");
}

void leave() { __asm__ __volatile__("tilerelease" : : : "memory"); }

void multiply(const void* w, int64_t n_groups, int64_t w_stride, const void* x, int64_t m_groups, int64_t x_stride,
              int64_t chunks, float* c, bool accumulate) {
    const int64_t c_stride = m_groups * kTile;
    const uint16_t* inputs = static_cast<const uint16_t*>(x);
    for (int64_t mg = 0; mg < m_groups; mg += 2, inputs += 2 * x_stride) {  // two groups of inputs stay in the first-level cache
        const uint16_t* weights = static_cast<const uint16_t*>(w);
        float* to = c + mg * kTile;
        const bool two = mg + 1 < m_groups;
        int64_t ng = 0;
        for (; ng + 2 <= n_groups; ng += 2, weights += 2 * w_stride, to += 2 * c_stride) {
            if (two)
                two_by_two(weights, w_stride, inputs, x_stride, chunks, to, c_stride, accumulate);
            else
                two_by_one(weights, w_stride, inputs, chunks, to, c_stride, accumulate);
        }
        if (ng < n_groups) {
            if (two)
                one_by_two(weights, inputs, x_stride, chunks, to, accumulate);
            else
                one_by_one(weights, inputs, chunks, to, accumulate);
        }
    }
}

}  // namespace amx
}  // namespace jamba
