// Memory that a thread keeps between calls, so that no call pays for fresh pages.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(_WIN32)
#include <malloc.h>
#endif

namespace jamba {

// `bytes`, a multiple of a page, aligned to one; null where there is not enough memory.
inline void* allocate_pages(size_t bytes) {
#if defined(_WIN32)
    return _aligned_malloc(bytes, 4096);
#else
    return std::aligned_alloc(4096, bytes);
#endif
}

inline void free_pages(void* data) {
#if defined(_WIN32)
    _aligned_free(data);
#else
    std::free(data);
#endif
}

// Declare it thread_local. What get() returned stays valid until the next, larger get().
class Buffer {
   public:
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { free_pages(data_); }

    // At least this many bytes, aligned to a page; their content is whatever it was. Throws std::bad_alloc.
    void* get(int64_t bytes) {
        if (bytes > size_) {
            free_pages(data_);
            size_ = (bytes + kUnit - 1) / kUnit * kUnit;
            data_ = allocate_pages(static_cast<size_t>(size_));
            if (!data_) {
                size_ = 0;
                throw std::bad_alloc();
            }
        }
        return data_;
    }

   private:
    static constexpr int64_t kUnit = 1 << 16;
    void* data_ = nullptr;
    int64_t size_ = 0;
};

}  // namespace jamba
