// Memory that a thread keeps between calls, so that no call pays for fresh pages.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace jamba {

// Declare it thread_local. What get() returned stays valid until the next, larger get().
class Buffer {
   public:
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { std::free(data_); }

    // At least this many bytes, aligned to a page; their content is whatever it was. Throws std::bad_alloc.
    void* get(int64_t bytes) {
        if (bytes > size_) {
            std::free(data_);
            size_ = (bytes + kUnit - 1) / kUnit * kUnit;
            data_ = std::aligned_alloc(4096, static_cast<size_t>(size_));
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
