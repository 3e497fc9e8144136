// The memory's side of the accelerator's AXI4 masters: timing, random stalls, protocol checks.
//
// In every cycle `drive` decides what the memory offers from what it knew at the end of the last
// one, so nothing it drives depends on the same cycle's requests; `sample` sees the settled pins,
// checks the protocol and moves the transactions on. Both are called before the clock rises.

#pragma once

#include <array>
#include <deque>
#include <limits>
#include <vector>

#include "memory.h"

namespace lutra {

// A valid/ready channel that the accelerator drives: an offer stays as it is until it is taken.
class Held {
public:
    // `channel` as in the pins' names: m_axi_0__ar
    Held(std::string channel, Fault& fault) : channel_(std::move(channel)), fault_(fault) {}

    // True when a transfer takes place; `payload` and `more` are all signals of the channel.
    bool transfer(bool valid, bool ready, const void* payload, size_t size,
                  const void* more = nullptr, size_t more_size = 0) {
        if (pending_ && !valid) {
            fault_(channel_, "valid fell before ", channel_, "ready rose");
        } else if (pending_
                   && (std::memcmp(payload, kept_.data(), size) != 0
                       || (more && std::memcmp(more, kept_.data() + size, more_size) != 0))) {
            fault_("the payload of ", channel_, "valid changed before ", channel_, "ready rose");
        }
        pending_ = valid && !ready;
        if (pending_) {
            kept_.resize(size + more_size);
            std::memcpy(kept_.data(), payload, size);
            if (more) std::memcpy(kept_.data() + size, more, more_size);
        }
        return valid && ready;
    }
    void reset() { pending_ = false; }

private:
    std::string channel_;
    Fault& fault_;
    bool pending_ = false;
    std::vector<uint8_t> kept_;
};

// Beats per cycle as a fraction, less the gaps of refresh.
class Rate {
public:
    Rate(uint32_t beats, uint32_t cycles, const Settings& settings)
        : beats_(beats), cycles_(cycles), interval_(settings.refresh_interval),
          gap_(settings.refresh_cycles), credit_(cycles) {}

    // Call once per cycle; true if a beat can move in it.
    bool tick(uint64_t cycle) {
        // while nothing moves, credit is capped at one beat and its remainder
        credit_ = std::min(credit_ + beats_, cycles_ + beats_ - 1);
        return credit_ >= cycles_ && !(interval_ && cycle % interval_ < gap_);
    }
    void spend() { credit_ -= cycles_; }

private:
    uint32_t beats_, cycles_, interval_, gap_, credit_;
};

// Bytes per cycle of all ports together, as a fraction; no limit if there are none.
class Pool {
public:
    explicit Pool(const Settings& settings)
        : bytes_(settings.total_bytes), cycles_(settings.total_cycles) {}

    // Call once per cycle. What is left of it lapses; what was moved beyond it is made good first.
    void tick() { credit_ = std::min(credit_ + bytes_, bytes_); }
    bool open() const { return bytes_ == 0 || credit_ > 0; }
    void spend(uint32_t bytes) { credit_ -= bytes * cycles_; }

private:
    int64_t bytes_, cycles_, credit_ = 0;
};

struct Address {
    uint64_t address;
    uint32_t id, len, size, burst;
};

struct Burst {
    uint64_t address;
    uint32_t id, beats, done;
    uint64_t ready;  // cycle of the first data (read) or of the response (write)
    uint32_t response;  // of a write
};

// A transfer that goes wrong, one of those that a port makes from now on.
struct Disturbance {
    static constexpr uint64_t kNever = std::numeric_limits<uint64_t>::max();
    static constexpr uint32_t kSilence = 4;  // a response that never comes

    uint64_t at = kNever;
    uint32_t response = 0;
};

// Common part of both directions of a port: its name, its bursts in flight, the burst checks.
class Port {
public:
    Port(const char* name, const char* kind, uint32_t beat_bytes, Memory& memory,
         const Settings& settings, Rate rate, Pool& pool, uint64_t stream, Fault& fault)
        : name_(name), channel_(std::string(name) + kJoin + kind), beat_bytes_(beat_bytes),
          memory_(memory), settings_(settings), rate_(rate), pool_(pool),
          random_(settings.seed + (stream << 32)), fault_(fault), held_(channel_, fault) {}

    // Transactions of `other` that overlap with one of this port are races.
    void watch(const Port& other) { others_.push_back(&other); }
    std::string unanswered(const char* kind) const {
        return std::to_string(bursts_.size()) + " " + name_ + kind;
    }
    void disturb(Disturbance disturbance) {
        disturbance_ = disturbance;
        count_ = 0;
    }
    // Beats that were read, or bursts that were asked to be written, since the last `disturb`.
    uint64_t count() const { return count_; }

protected:
    // Call once per cycle; true if a beat can move in it.
    bool able(uint64_t cycle) { return rate_.tick(cycle) && pool_.open() && !stalls(); }
    void spend() {
        rate_.spend();
        pool_.spend(beat_bytes_);
    }
    bool stalls() { return is_silent() || random_.chance(settings_.stall); }
    bool is_silent() const {
        return disturbance_.response == Disturbance::kSilence && count_ >= disturbance_.at;
    }
    // Response to the next transfer, which is counted.
    uint32_t count_one() { return count_++ == disturbance_.at ? disturbance_.response : 0; }
    uint64_t latency(uint32_t cycles) {
        return cycles + random_.below(uint64_t(settings_.latency_jitter) + 1);
    }
    bool has_room() const { return bursts_.size() < settings_.max_outstanding; }

    // Takes an address when there is one; true when it was taken.
    bool accept(bool valid, bool ready, const Address& a, uint64_t first_ready) {
        if (!held_.transfer(valid, ready, &a, sizeof a)) return false;
        const uint64_t bytes = uint64_t(a.len + 1) * beat_bytes_;
        if (a.burst != kBurstIncr) {
            fault_(channel_, "burst must be ", kBurstIncr, " (INCR), not ", a.burst);
        } else if ((uint64_t(1) << a.size) != beat_bytes_) {
            fault_(channel_, "size must be the port's width of ", beat_bytes_, " bytes, not ",
                   1u << a.size);
        } else if (a.address % beat_bytes_) {
            fault_(channel_, "addr ", Hex{a.address}, " is not aligned to a beat of ", beat_bytes_,
                   " bytes");
        } else if (a.address % kBoundary + bytes > kBoundary) {
            fault_(channel_, "addr ", Hex{a.address}, ": a burst of ", a.len + 1, " beats (",
                   bytes, " bytes) crosses a 4 KB boundary");
        } else if (!memory_.contains(a.address, bytes)) {
            fault_(channel_, "addr ", Hex{a.address}, ": ", bytes,
                   " bytes lie outside the memory of ", memory_.size(), " bytes");
        } else {
            for (const Port* other : others_) check_race(*other, a.address, bytes);
            bursts_.push_back({a.address, a.id, a.len + 1, 0, first_ready, 0});
        }
        return true;
    }

    void reset_port() {
        bursts_.clear();
        held_.reset();
    }

    const char* name_;
    std::string channel_;
    uint32_t beat_bytes_;
    Memory& memory_;
    const Settings& settings_;
    Rate rate_;
    Pool& pool_;
    Random random_;
    Fault& fault_;
    Held held_;
    std::deque<Burst> bursts_;
    Disturbance disturbance_;
    uint64_t count_ = 0;

private:
    void check_race(const Port& other, uint64_t address, uint64_t bytes) {
        for (const Burst& burst : other.bursts_) {
            const uint64_t end = burst.address + uint64_t(burst.beats) * other.beat_bytes_;
            if (address >= end || burst.address >= address + bytes) continue;
            fault_(channel_, "addr ", Hex{address}, ": ", bytes, " bytes overlap with ",
                   other.channel_, "addr ", Hex{burst.address},
                   ", which has not been answered yet");
        }
    }

    std::vector<const Port*> others_;
};

// AR and R of one master; `rdata` points at the pin.
class ReadPort : public Port {
public:
    struct Pins {
        bool arready, rvalid, rlast;
        uint32_t rid, rresp;
    };

    ReadPort(const char* name, uint32_t beat_bytes, uint8_t* rdata, Memory& memory,
             const Settings& settings, Rate rate, Pool& pool, uint64_t stream, Fault& fault)
        : Port(name, "ar", beat_bytes, memory, settings, rate, pool, stream, fault),
          rdata_(rdata) {}

    void reset() {
        reset_port();
        pins = {};
        current_ = kNone;
    }

    void drive(uint64_t cycle) {
        pins.arready = has_room() && !stalls();
        const bool moves = able(cycle);
        if (pins.rvalid) return;
        // under random timing, poison data that is not valid
        if (settings_.latency_jitter) std::memset(rdata_, 0xA5, beat_bytes_);
        if (!moves) return;
        if (current_ == kNone) current_ = choose(cycle);
        if (current_ == kNone) return;
        Burst& burst = bursts_[current_];
        const uint64_t address = burst.address + uint64_t(burst.done) * beat_bytes_;
        const uint64_t unwritten = memory_.first_unwritten(address, beat_bytes_);
        if (unwritten < beat_bytes_) {
            fault_(name_, " reads ", beat_bytes_, " bytes at ", Hex{address}, ", of which ",
                   Hex{address + unwritten}, " was never written");
        }
        memory_.read(address, rdata_, beat_bytes_);
        pins.rresp = count_one();
        if (pins.rresp) {
            for (uint32_t i = 0; i < beat_bytes_; ++i) rdata_[i] = uint8_t(random_.next());
        }
        spend();
        pins.rvalid = true;
        pins.rid = burst.id;
        pins.rlast = ++burst.done == burst.beats;
    }

    // True when anything moved.
    bool sample(bool arvalid, const Address& ar, bool rready, uint64_t cycle) {
        const bool moved = pins.rvalid && rready;
        if (moved) {
            pins.rvalid = false;
            if (pins.rlast) {
                bursts_.erase(bursts_.begin() + static_cast<std::ptrdiff_t>(current_));
                current_ = kNone;
            }
        }
        return accept(arvalid, pins.arready, ar, cycle + latency(settings_.read_latency)) || moved;
    }

    Pins pins{};

private:
    static constexpr size_t kNone = std::numeric_limits<size_t>::max();

    // The next burst to deliver. Order is kept within an id; with jitter, only there.
    size_t choose(uint64_t cycle) {
        if (bursts_.empty()) return kNone;
        if (!settings_.latency_jitter) return bursts_.front().ready <= cycle ? 0 : kNone;
        std::vector<size_t> heads;
        for (size_t i = 0; i < bursts_.size(); ++i) {
            bool head = bursts_[i].ready <= cycle;
            for (size_t j = 0; j < i && head; ++j) head = bursts_[j].id != bursts_[i].id;
            if (head) heads.push_back(i);
        }
        return heads.empty() ? kNone : heads[random_.below(heads.size())];
    }

    uint8_t* rdata_;
    size_t current_ = kNone;
};

// AW, W and B of one master; `wdata` and `wstrb` point at the pins.
class WritePort : public Port {
public:
    struct Pins {
        bool awready, wready, bvalid;
        uint32_t bid, bresp;
    };

    WritePort(const char* name, uint32_t beat_bytes, const uint8_t* wdata, const uint8_t* wstrb,
              Memory& memory, const Settings& settings, Rate rate, Pool& pool, uint64_t stream,
              Fault& fault)
        : Port(name, "aw", beat_bytes, memory, settings, rate, pool, stream, fault),
          wdata_(wdata), wstrb_(wstrb), w_(std::string(name) + kJoin + "w", fault) {}

    void reset() {
        reset_port();
        pins = {};
        n_full_ = 0;
        w_.reset();
    }

    void drive(uint64_t cycle) {
        pins.awready = has_room() && !stalls();
        const bool moves = able(cycle);
        pins.wready = moves && n_full_ < bursts_.size();
        const bool answers = !stalls();
        if (pins.bvalid || !answers || n_full_ == 0 || bursts_.front().ready > cycle) return;
        pins.bvalid = true;
        pins.bid = bursts_.front().id;
        pins.bresp = bursts_.front().response;
    }

    // True when anything moved.
    bool sample(bool awvalid, const Address& aw, bool wvalid, bool wlast, bool bready,
                uint64_t cycle) {
        bool moved = false;
        if (pins.bvalid && bready) {
            moved = true;
            pins.bvalid = false;
            bursts_.pop_front();
            --n_full_;
        }
        std::array<uint8_t, 17> side{wlast};  // and at most 128 strobes
        std::memcpy(side.data() + 1, wstrb_, (beat_bytes_ + 7) / 8);
        if (w_.transfer(wvalid, pins.wready, side.data(), side.size(), wdata_, beat_bytes_)) {
            moved = true;
            take_beat(wlast, cycle);
        }
        const size_t before = bursts_.size();
        moved |= accept(awvalid, pins.awready, aw, 0);
        if (bursts_.size() > before) bursts_.back().response = count_one();
        return moved;
    }

    Pins pins{};

private:
    void take_beat(bool wlast, uint64_t cycle) {
        Burst& burst = bursts_[n_full_];
        if (!burst.response) {
            memory_.write_strobed(burst.address + uint64_t(burst.done) * beat_bytes_, wdata_,
                                  wstrb_, beat_bytes_);
        }
        spend();
        const bool last = ++burst.done == burst.beats;
        if (wlast != last) {
            fault_(name_, kJoin, "wlast is ", wlast, " in beat ", burst.done, " of ", burst.beats,
                   " of the burst to ", Hex{burst.address});
        }
        if (last) {
            burst.ready = cycle + latency(settings_.write_latency);
            ++n_full_;
        }
    }

    const uint8_t* wdata_;
    const uint8_t* wstrb_;
    Held w_;
    size_t n_full_ = 0;  // bursts, from the front, that have all their data
};

}  // namespace lutra
