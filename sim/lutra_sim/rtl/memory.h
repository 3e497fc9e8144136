// The bytes behind the accelerator, random numbers, and the first error of a run.

#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <sstream>
#include <string>

#include "design.h"

namespace lutra {

struct Hex {
    uint64_t value;
    friend std::ostream& operator<<(std::ostream& stream, Hex hex) {
        return stream << "0x" << std::hex << hex.value << std::dec;
    }
};

// The first error since the last reset, as one line; consequential errors are not reported.
class Fault {
public:
    explicit Fault(const uint64_t& cycle) : cycle_(cycle) {}
    explicit operator bool() const { return !text_.empty(); }
    const std::string& text() const { return text_; }
    void clear() { text_.clear(); }

    template <class... Parts>
    void operator()(const Parts&... parts) {
        if (!text_.empty()) return;
        std::ostringstream line;
        (line << ... << parts) << ", in cycle " << cycle_;
        text_ = line.str();
    }

private:
    const uint64_t& cycle_;
    std::string text_;
};

// SplitMix64: small, and the same on every machine.
class Random {
public:
    explicit Random(uint64_t seed) : state_(seed) {}
    uint64_t next() {
        uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        return z ^ (z >> 31);
    }
    bool chance(uint32_t of_2_32) { return of_2_32 && uint32_t(next()) < of_2_32; }
    // 0 to n - 1
    uint64_t below(uint64_t n) { return n > 1 ? next() % n : 0; }

private:
    uint64_t state_;
};

// Bytes, and a record of which were ever written.
class Memory {
public:
    explicit Memory(uint64_t size)
        : size_(size), bytes_(allocate(size)), written_(allocate(size / 8 + 1)) {}
    ~Memory() {
        munmap(bytes_, size_);
        munmap(written_, size_ / 8 + 1);
    }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    uint64_t size() const { return size_; }
    bool contains(uint64_t address, uint64_t n) const {
        return address <= size_ && n <= size_ - address;
    }
    void read(uint64_t address, uint8_t* to, uint64_t n) const {
        std::memcpy(to, bytes_ + address, n);
    }
    void write(uint64_t address, const uint8_t* from, uint64_t n) {
        std::memcpy(bytes_ + address, from, n);
        mark(address, n);
    }
    void zero(uint64_t address, uint64_t n) {
        std::memset(bytes_ + address, 0, n);
        mark(address, n);
    }
    // Bit i of `strobes` enables byte i.
    void write_strobed(uint64_t address, const uint8_t* from, const uint8_t* strobes, uint64_t n) {
        for (uint64_t i = 0; i < n; ++i) {
            if (strobes[i / 8] >> (i % 8) & 1) write(address + i, from + i, 1);
        }
    }
    // Offset of the first byte of the range that was never written, or `n`.
    uint64_t first_unwritten(uint64_t address, uint64_t n) const {
        for (uint64_t i = 0; i < n;) {
            const uint64_t at = address + i;
            if (at % 8 == 0 && n - i >= 8 && written_[at / 8] == 0xFF) {
                i += 8;
            } else if (written_[at / 8] >> (at % 8) & 1) {
                ++i;
            } else {
                return i;
            }
        }
        return n;
    }

private:
    static uint8_t* allocate(uint64_t size) {
        // pages of zeros that are never touched cost nothing, be they more than the machine has
        constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (memory == MAP_FAILED) throw std::bad_alloc();
        return static_cast<uint8_t*>(memory);
    }
    void mark(uint64_t address, uint64_t n) {
        const uint64_t end = address + n;
        while (address < end && address % 8) set(address++);
        std::memset(written_ + address / 8, 0xFF, (end - address) / 8);
        address += (end - address) / 8 * 8;
        while (address < end) set(address++);
    }
    void set(uint64_t at) { written_[at / 8] |= uint8_t(1u << (at % 8)); }

    uint64_t size_;
    uint8_t* bytes_;
    uint8_t* written_;
};

}  // namespace lutra
