// Products of given weights at every level that the processor has: run by tests/kernels/test_arm64.py under emulation.
//
// Input: for each case seven int64 (type, rows, cols, bytes of a row, factors, tokens, threads), then the blocks, the factors
// (float) and the activations (float [tokens, cols]). Output: for each level its name in 16 bytes, then for each case the
// product of decode, the precise one and that of prefill, float [tokens, rows] each. Decode's rows are computed with one token and
// with all at once: status 7 where a bit differs.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "base/abi.h"

extern "C" {
const char* native_isa_name(int index);
int native_set_isa(int index);
int decode_linear(const jamba::Matrix* w, const float* x, int64_t x_stride, float* y, int64_t y_stride, int64_t m, int precise,
                  int threads);
int prefill_linear(const jamba::Matrix* w, const float* x, int64_t x_stride, float* y, int64_t y_stride, int64_t m, int precise,
                   int threads);
}

namespace {

struct Case {
    int64_t type, rows, cols, row_bytes, factors, tokens, threads;
    std::vector<uint8_t> blocks;
    std::vector<float> scale, x;
};

template <class T>
bool read(std::FILE* file, std::vector<T>& values, int64_t count) {
    values.resize(static_cast<size_t>(count));
    return std::fread(values.data(), sizeof(T), values.size(), file) == values.size();
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    std::FILE* in = std::fopen(argv[1], "rb");
    std::FILE* out = std::fopen(argv[2], "wb");
    if (!in || !out) return 3;
    std::vector<Case> cases;
    for (Case c; std::fread(&c, sizeof(int64_t), 7, in) == 7;) {
        if (!read(in, c.blocks, c.rows * c.row_bytes) || !read(in, c.scale, c.factors) || !read(in, c.x, c.tokens * c.cols))
            return 4;
        cases.push_back(c);
    }
    for (int level = 0; const char* name = native_isa_name(level); ++level) {
        if (native_set_isa(level) != level) continue;
        char label[16] = {};
        std::strncpy(label, name, sizeof label - 1);
        std::fwrite(label, 1, sizeof label, out);
        for (const Case& c : cases) {
            jamba::Matrix w{c.blocks.data(), c.factors ? c.scale.data() : nullptr, c.rows, c.cols, c.row_bytes,
                            static_cast<int32_t>(c.type), 0};
            const size_t size = static_cast<size_t>(c.tokens * c.rows);
            std::vector<float> y(size), alone(size);
            const int threads = static_cast<int>(c.threads);
            for (const int precise : {0, 1}) {
                if (decode_linear(&w, c.x.data(), c.cols, y.data(), c.rows, c.tokens, precise, threads)) return 5;
                for (int64_t t = 0; t < c.tokens; ++t) {
                    float* to = alone.data() + t * c.rows;
                    if (decode_linear(&w, c.x.data() + t * c.cols, c.cols, to, c.rows, 1, precise, 1)) return 5;
                }
                if (std::memcmp(y.data(), alone.data(), size * sizeof(float))) return 7;
                std::fwrite(y.data(), sizeof(float), size, out);
            }
            if (prefill_linear(&w, c.x.data(), c.cols, y.data(), c.rows, c.tokens, 0, threads)) return 5;
            std::fwrite(y.data(), sizeof(float), size, out);
        }
    }
    return std::fclose(out) ? 6 : 0;
}
