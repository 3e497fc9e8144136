// The Verilated accelerator, its clock, its memory and its registers behind a plain C interface.
//
// design.h is written by build.py from the configuration and the top module: port widths, limits of
// AXI, register addresses, names of pins.
// Functions that can fail return 0, or -1 with the reason in lutra_error().

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>

#include "Vlutra.h"
#include "axi.h"
#include "design.h"
#include "verilated.h"
#if VM_COVERAGE
#include "verilated_cov.h"
#endif
#if VM_TRACE_FST
#include "verilated_fst_c.h"
using Trace = VerilatedFstC;
#elif VM_TRACE
#include "verilated_vcd_c.h"
using Trace = VerilatedVcdC;
#endif

#define PIN(port, name) top_->LUTRA_PIN(port, name)
// Optional pins.
#define GET(port, name, absent)                                                       \
    [](auto& top) -> uint32_t {                                                       \
        if constexpr (requires { top.LUTRA_PIN(port, name); }) return top.LUTRA_PIN(port, name); \
        else return absent;                                                           \
    }(*top_)
#define SET(port, name, value)                                                        \
    [](auto& top, [[maybe_unused]] uint32_t v) {                                      \
        if constexpr (requires { top.LUTRA_PIN(port, name); }) top.LUTRA_PIN(port, name) = v; \
    }(*top_, value)
#define BYTES(port, name) reinterpret_cast<uint8_t*>(&PIN(port, name))

// Errors of the trace that is being written; null when there is none. An exception out of
// Verilator's trace would leave its file open, and closing that would throw again.
thread_local std::string* trace_fault = nullptr;

// Verilator calls these instead of ending the process (VL_USER_FATAL).
void vl_fatal(const char* file, int line, const char*, const char* message) {
    if (trace_fault) {
        *trace_fault = message;
        return;
    }
    throw std::runtime_error(std::string(file) + ":" + std::to_string(line) + ": " + message);
}

namespace lutra {

constexpr int kResetCycles = 4;
constexpr uint64_t kRegisterCycles = 1000;  // time limit of an access
constexpr uint64_t kPolls = 8;              // reads of UNIT_STATE before the watchdog gives up

constexpr uint32_t log2_of(uint32_t value) { return value > 1 ? 1 + log2_of(value / 2) : 0; }

// One AXI4-Lite access at a time, as a host makes it.
class RegisterPort {
public:
    enum class Phase { kIdle, kWrite, kRead, kDone };

    explicit RegisterPort(Fault& fault, const Settings& settings)
        : fault_(fault), stall_(settings.stall), random_(settings.seed + (uint64_t(9) << 32)),
          r_(std::string(kControl) + "r", fault), b_(std::string(kControl) + "b", fault) {}

    bool idle() const { return phase == Phase::kIdle; }

    void start(bool write, uint32_t at, uint32_t value) {
        phase = write ? Phase::kWrite : Phase::kRead;
        address = at;
        data = value;
        addressing = true;
        writing = write;
    }
    void drive() { ready = !random_.chance(stall_); }

    // The pins settled: move on.
    void sample(bool arready, bool rvalid, uint32_t rdata, uint32_t rresp, bool awready,
                bool wready, bool bvalid, uint32_t bresp) {
        const uint32_t answer[] = {rdata, rresp};
        const bool took_r = r_.transfer(rvalid, ready, answer, sizeof answer);
        const bool took_b = b_.transfer(bvalid, ready, &bresp, sizeof bresp);
        if (phase == Phase::kRead && took_r) {
            data = rdata;
            finish("read", rresp);
        } else if (phase == Phase::kWrite && took_b) {
            finish("write", bresp);
        } else if (took_r || took_b) {
            fault_(kControl, took_r ? 'r' : 'b', "valid without a request");
        } else if (phase == Phase::kRead && arready) {
            addressing = false;
        } else if (phase == Phase::kWrite) {
            addressing = addressing && !awready;
            writing = writing && !wready;
        }
    }
    void reset() {
        phase = Phase::kIdle;
        ready = addressing = writing = false;
        r_.reset();
        b_.reset();
    }

    Phase phase = Phase::kIdle;
    uint32_t address = 0, data = 0;
    bool addressing = false, writing = false, ready = false;

private:
    void finish(const char* what, uint32_t response) {
        if (response) {
            fault_("register ", what, " at ", Hex{address}, " was answered with response ",
                   response);
        }
        phase = Phase::kDone;
        addressing = writing = false;
    }

    Fault& fault_;
    uint32_t stall_;
    Random random_;
    Held r_, b_;
};

class Device {
public:
    Device(uint64_t memory_bytes, const Settings& settings)
        : settings_(settings), fault_(cycle_), memory_(memory_bytes), pool_(settings_),
          top_(std::make_unique<Vlutra>(prepare(context_), "TOP")),
          registers_(fault_, settings_) {
        uint64_t stream = 0;
#define ADD_READ(port, number, bytes)                                                           \
    static_assert(sizeof(PIN(port, rdata)) >= bytes && bytes <= 128, "width of " #port);         \
    reads_.emplace_back(#port, bytes, BYTES(port, rdata), memory_, settings_, rate(number), pool_, \
                        ++stream, fault_);
#define ADD_WRITE(port, number, bytes)                                                          \
    static_assert(sizeof(PIN(port, wdata)) >= bytes && bytes <= 128, "width of " #port);         \
    writes_.emplace_back(#port, bytes, BYTES(port, wdata), BYTES(port, wstrb), memory_, settings_, \
                         rate(number), pool_, ++stream, fault_);
        LUTRA_READ_PORTS(ADD_READ)
        LUTRA_WRITE_PORTS(ADD_WRITE)
        for (auto& read : reads_) {
            for (auto& write : writes_) {
                read.watch(write);
                write.watch(read);
            }
        }
        reset();
    }
    ~Device() {
        try {
            trace_close();
        } catch (const std::exception&) {
            // to see trace errors, close the trace explicitly
        }
        top_->final();
    }

    Memory& memory() { return memory_; }
    uint64_t cycle() const { return cycle_; }
    const std::string& error() const { return broken_.empty() ? fault_.text() : broken_; }
    bool failed() const { return fault_ || !broken_.empty(); }

    // After an exception the model is in an undefined state and cannot continue.
    void broken(const std::string& why) { broken_ = why; }
    void forgive() { fault_.clear(); }

    void reset() {
        for (auto& read : reads_) read.reset();
        for (auto& write : writes_) write.reset();
        registers_.reset();
        set_reset(true);
        set_bus_reset(*top_, 1);  // the ports forget, too
        for (int i = 0; i < kResetCycles; ++i) {
            drive_pins();
            clock();
        }
        set_reset(false);
        set_bus_reset(*top_, 0);
        progress();
    }

    // Reset of the accelerator alone: its memory goes on answering.
    void reset_core(uint64_t n) {
        registers_.reset();
        in_reset_ = true;
        set_reset(true);
        for (uint64_t i = 0; i < n && !failed(); ++i) step();
        set_reset(false);
        for (int i = 0; i < kResetCycles && !failed(); ++i) step();
        in_reset_ = false;
        progress();
    }

    // Port `number`, reading or writing; null if there is none.
    Port* port(uint32_t number, bool writes) {
        size_t read = 0, write = 0;
#define FIND_READ(port, n, bytes)                                                               \
    if (!writes && n == number) return &reads_[read];                                           \
    ++read;
#define FIND_WRITE(port, n, bytes)                                                              \
    if (writes && n == number) return &writes_[write];                                          \
    ++write;
        LUTRA_READ_PORTS(FIND_READ)
        LUTRA_WRITE_PORTS(FIND_WRITE)
        return nullptr;
    }

    int write_register(uint32_t address, uint32_t value) {
        progress();
        return access(true, address, &value);
    }
    int read_register(uint32_t address, uint32_t* value) { return access(false, address, value); }

    // 1 when the interrupt is up, 0 when it is not after n cycles.
    int run(uint64_t n) {
        for (const uint64_t end = cycle_ + n; cycle_ < end;) {
            step();
            if (failed()) return -1;
            if (top_->LUTRA_INTERRUPT) return 1;
            if (settings_.watchdog_cycles && !watch()) return -1;
        }
        return 0;
    }

    // State of every unit that is not idle: "matmul WAIT_WEIGHTS, vector WAIT_DEPENDENCY"
    std::string units(uint32_t state) const {
        std::string text;
        for (const char* unit : kUnits) {
            const uint32_t code = state & 15;
            state >>= 4;
            if (code == 0) continue;
            text += text.empty() ? "" : ", ";
            text += std::string(unit) + " ";
            text += code < std::size(kStates) ? kStates[code] : "state " + std::to_string(code);
        }
        return text.empty() ? "every unit is idle" : text;
    }

    // `scopes` are the instances whose own signals are traced, one a line; all signals if empty.
    void trace_open([[maybe_unused]] const char* path, [[maybe_unused]] uint64_t first,
                    [[maybe_unused]] uint64_t end, [[maybe_unused]] const char* scopes) {
#if VM_TRACE
        trace_close();
        trace_ = std::make_unique<Trace>();
        trace_path_ = path;
        top_->trace(trace_.get(), 99);
        std::istringstream lines(scopes);
        for (std::string scope; std::getline(lines, scope);) trace_->dumpvars(1, scope);
        try {
            trace_->open(path);
        } catch (const std::exception& error) {
            // Verilator's trace is broken from here on: to close it, or free it, would crash
            static_cast<void>(trace_.release());
            fail_trace(error.what());
        }
        if (!trace_->isOpen()) {
            trace_.reset();
            throw std::runtime_error(std::string("cannot write the trace ") + path);
        }
        trace_first_ = first;
        trace_end_ = end;
#else
        throw std::runtime_error("this simulator was built without tracing");
#endif
    }
    void trace_close() {
#if VM_TRACE
        if (!trace_) return;
        const std::unique_ptr<Trace> trace = std::move(trace_);
        write_trace([&] { trace->close(); });
#endif
    }
    void write_coverage([[maybe_unused]] const char* path) {
#if VM_COVERAGE
        context_.coveragep()->write(path);
#else
        throw std::runtime_error("this simulator was built without coverage");
#endif
    }

private:
    static VerilatedContext* prepare(VerilatedContext& context) {
        context.threads(1);
#if VM_TRACE
        context.traceEverOn(true);
#endif
        return &context;
    }

    void set_reset(bool value) { top_->LUTRA_RESET = value != kResetLow; }

    template <class Top>
    static void set_bus_reset([[maybe_unused]] Top& top, [[maybe_unused]] uint8_t value) {
        if constexpr (requires { top.bus_rst; }) top.bus_rst = value;
    }

    Rate rate(uint32_t port) const {
        return {settings_.beats[port], settings_.cycles[port], settings_};
    }

    // Transactions of every port that have no answer: "0 m_axi_0 reads, 1 m_axi_1 writes"
    std::string unanswered() const {
        std::string text;
        for (const auto& read : reads_) text += read.unanswered(" reads, ");
        for (const auto& write : writes_) text += write.unanswered(" writes, ");
        return text.substr(0, text.size() - 2);
    }

    void progress() { last_progress_ = last_poll_ = cycle_; }

    int access(bool write, uint32_t address, uint32_t* value) {
        // the watchdog's own access first
        for (uint64_t end = cycle_ + kRegisterCycles; !registers_.idle() && cycle_ < end;) {
            if (failed()) return -1;
            step();
            if (registers_.phase == RegisterPort::Phase::kDone) {
                registers_.phase = RegisterPort::Phase::kIdle;
            }
        }
        registers_.start(write, address, *value);
        for (uint64_t end = cycle_ + kRegisterCycles; cycle_ < end;) {
            if (failed()) return -1;
            step();
            if (registers_.phase != RegisterPort::Phase::kDone) continue;
            *value = registers_.data;
            registers_.phase = RegisterPort::Phase::kIdle;
            return failed() ? -1 : 0;
        }
        fault_("register ", write ? "write" : "read", " at ", Hex{address},
               " got no answer for ", kRegisterCycles, " cycles");
        return -1;
    }

    // False when nothing has moved for too long.
    bool watch() {
        const uint64_t quiet = cycle_ - last_progress_;
        if (registers_.phase == RegisterPort::Phase::kDone) {
            registers_.phase = RegisterPort::Phase::kIdle;
            if (registers_.data != unit_state_) progress();
            unit_state_ = registers_.data;
        } else if (quiet >= settings_.watchdog_cycles) {
            fault_("no progress for ", quiet, " cycles: ", units(unit_state_), "; unanswered: ",
                   unanswered());
            return false;
        } else if (registers_.idle()
                   && cycle_ - last_poll_ >= settings_.watchdog_cycles / kPolls) {
            last_poll_ = cycle_;
            registers_.start(false, kUnitState, 0);
        }
        return true;
    }

    void step() {
        // another one first in every cycle, so that none has the pool to itself
        const size_t n = reads_.size() + writes_.size();
        pool_.tick();
        for (size_t i = 0; i < n; ++i) {
            const size_t at = (cycle_ + i) % n;
            if (at < reads_.size()) reads_[at].drive(cycle_);
            else writes_[at - reads_.size()].drive(cycle_);
        }
        registers_.drive();
        drive_pins();
        top_->LUTRA_CLOCK = 0;
        top_->eval();
        dump(0);
        if (sample_pins()) progress();
        top_->LUTRA_CLOCK = 1;
        top_->eval();
        dump(1);
        ++cycle_;
    }

    // A cycle with nothing but a clock edge.
    void clock() {
        top_->LUTRA_CLOCK = 0;
        top_->eval();
        dump(0);
        top_->LUTRA_CLOCK = 1;
        top_->eval();
        dump(1);
        ++cycle_;
    }

    void drive_pins() {
        auto read = reads_.begin();
        auto write = writes_.begin();
#define DRIVE_READ(port, number, bytes)                                                         \
    PIN(port, arready) = read->pins.arready;                                                    \
    PIN(port, rvalid) = read->pins.rvalid;                                                      \
    PIN(port, rlast) = read->pins.rlast;                                                        \
    SET(port, rid, read->pins.rid);                                                             \
    SET(port, rresp, read->pins.rresp);                                                         \
    ++read;
#define DRIVE_WRITE(port, number, bytes)                                                        \
    PIN(port, awready) = write->pins.awready;                                                   \
    PIN(port, wready) = write->pins.wready;                                                     \
    PIN(port, bvalid) = write->pins.bvalid;                                                     \
    SET(port, bid, write->pins.bid);                                                            \
    SET(port, bresp, write->pins.bresp);                                                        \
    ++write;
        LUTRA_READ_PORTS(DRIVE_READ)
        LUTRA_WRITE_PORTS(DRIVE_WRITE)

        const bool reads = registers_.phase == RegisterPort::Phase::kRead;
        PIN(LUTRA_CONTROL, araddr) = registers_.address;
        PIN(LUTRA_CONTROL, arvalid) = reads && registers_.addressing;
        PIN(LUTRA_CONTROL, rready) = registers_.ready;
        PIN(LUTRA_CONTROL, awaddr) = registers_.address;
        PIN(LUTRA_CONTROL, awvalid) = !reads && registers_.addressing;
        PIN(LUTRA_CONTROL, wdata) = registers_.data;
        SET(LUTRA_CONTROL, wstrb, 0xF);
        PIN(LUTRA_CONTROL, wvalid) = registers_.writing;
        PIN(LUTRA_CONTROL, bready) = registers_.ready;
    }

    bool sample_pins() {
        if (!in_reset_) {
            registers_.sample(PIN(LUTRA_CONTROL, arready), PIN(LUTRA_CONTROL, rvalid), PIN(LUTRA_CONTROL, rdata),
                              GET(LUTRA_CONTROL, rresp, 0), PIN(LUTRA_CONTROL, awready), PIN(LUTRA_CONTROL, wready),
                              PIN(LUTRA_CONTROL, bvalid), GET(LUTRA_CONTROL, bresp, 0));
        }
        bool moved = false;
        auto read = reads_.begin();
        auto write = writes_.begin();
#define SAMPLE_READ(port, number, bytes)                                                        \
    moved |= read->sample(PIN(port, arvalid),                                                   \
                          {PIN(port, araddr), GET(port, arid, 0), PIN(port, arlen),             \
                           GET(port, arsize, log2_of(bytes)), GET(port, arburst, kBurstIncr)},  \
                          PIN(port, rready), cycle_);                                           \
    ++read;
#define SAMPLE_WRITE(port, number, bytes)                                                       \
    moved |= write->sample(PIN(port, awvalid),                                                  \
                           {PIN(port, awaddr), GET(port, awid, 0), PIN(port, awlen),            \
                            GET(port, awsize, log2_of(bytes)), GET(port, awburst, kBurstIncr)}, \
                           PIN(port, wvalid), PIN(port, wlast), PIN(port, bready), cycle_);     \
    ++write;
        LUTRA_READ_PORTS(SAMPLE_READ)
        LUTRA_WRITE_PORTS(SAMPLE_WRITE)
        return moved;
    }

    void dump([[maybe_unused]] int half) {
#if VM_TRACE
        if (!trace_ || cycle_ < trace_first_ || cycle_ >= trace_end_) return;
        const uint64_t time = cycle_ * settings_.clock_ps + half * (settings_.clock_ps / 2);
        write_trace([&] { trace_->dump(time); });
#endif
    }

#if VM_TRACE
    template <class Action>
    void write_trace(Action action) {
        std::string fault;
        trace_fault = &fault;
        action();
        trace_fault = nullptr;
        if (!fault.empty()) fail_trace(fault);
    }

    [[noreturn]] void fail_trace(const std::string& fault) {
        std::remove(trace_path_.c_str());  // half a trace misleads
        throw std::runtime_error("the trace " + trace_path_ + " cannot be written (" + fault +
                                 "): free some space, or trace fewer cycles");
    }
#endif

    Settings settings_;
    uint64_t cycle_ = 0;
    Fault fault_;
    std::string broken_;
    Memory memory_;
    Pool pool_;
    VerilatedContext context_;
    std::unique_ptr<Vlutra> top_;
    std::deque<ReadPort> reads_;   // in the order of the ports, as are these:
    std::deque<WritePort> writes_;
    RegisterPort registers_;
    bool in_reset_ = false;
    uint64_t last_progress_ = 0, last_poll_ = 0;
    uint32_t unit_state_ = 0;
#if VM_TRACE
    std::unique_ptr<Trace> trace_;
    std::string trace_path_;
    uint64_t trace_first_ = 0, trace_end_ = 0;
#endif
};

}  // namespace lutra

struct lutra_device {
    std::unique_ptr<lutra::Device> device;
    std::string error;
};

namespace {

// Nothing may be thrown into the caller, which is Python.
template <class Action>
int guarded(lutra_device* handle, Action action) {
    lutra::Device& device = *handle->device;
    if (!device.failed()) {
        try {
            const int result = action(device);
            if (result >= 0) return result;
        } catch (const std::exception& exception) {
            device.broken(exception.what());
        }
    }
    handle->error = device.error();
    return -1;
}

// Runs an action that must work after a failed run as well: saving its trace or coverage.
template <class Action>
int recorded(lutra_device* handle, Action action) {
    try {
        action(*handle->device);
        return 0;
    } catch (const std::exception& exception) {
        handle->error = exception.what();
        return -1;
    }
}

int outside(lutra_device* handle, uint64_t address, uint64_t n) {
    const lutra::Memory& memory = handle->device->memory();
    if (memory.contains(address, n)) return 0;
    std::ostringstream text;
    text << n << " bytes at " << lutra::Hex{address} << " lie outside the memory of "
         << memory.size() << " bytes";
    handle->error = text.str();
    return -1;
}

}  // namespace

#define LUTRA_API extern "C" __attribute__((visibility("default")))

LUTRA_API lutra_device* lutra_create(uint64_t memory_bytes, const lutra::Settings* settings) {
    auto handle = std::make_unique<lutra_device>();
    try {
        handle->device = std::make_unique<lutra::Device>(memory_bytes, *settings);
    } catch (const std::exception& exception) {
        handle->error = exception.what();
    }
    return handle.release();
}

LUTRA_API void lutra_destroy(lutra_device* handle) { delete handle; }

LUTRA_API int lutra_created(lutra_device* handle) { return handle->device != nullptr; }

LUTRA_API const char* lutra_error(lutra_device* handle) { return handle->error.c_str(); }

LUTRA_API uint64_t lutra_cycles(lutra_device* handle) { return handle->device->cycle(); }

LUTRA_API int lutra_reset(lutra_device* handle) {
    handle->device->forgive();
    return guarded(handle, [](lutra::Device& device) { return device.reset(), 0; });
}

LUTRA_API int lutra_reset_core(lutra_device* handle, uint64_t cycles) {
    return guarded(handle, [=](lutra::Device& d) {
        d.reset_core(cycles);
        return d.failed() ? -1 : 0;
    });
}

// The `at`-th transfer from now on of a port: a beat that it reads, or a burst that it writes.
LUTRA_API int lutra_disturb(lutra_device* handle, uint32_t port, int writes, uint64_t at,
                            uint32_t response) {
    lutra::Port* found = handle->device->port(port, writes);
    if (!found) {
        handle->error = "there is no such port";
        return -1;
    }
    found->disturb({at, response});
    return 0;
}

// Transfers of a port since it was last disturbed.
LUTRA_API uint64_t lutra_transfers(lutra_device* handle, uint32_t port, int writes) {
    const lutra::Port* found = handle->device->port(port, writes);
    return found ? found->count() : 0;
}

LUTRA_API int lutra_write(lutra_device* handle, uint64_t address, const uint8_t* from,
                          uint64_t n) {
    if (outside(handle, address, n)) return -1;
    handle->device->memory().write(address, from, n);
    return 0;
}

LUTRA_API int lutra_zero(lutra_device* handle, uint64_t address, uint64_t n) {
    if (outside(handle, address, n)) return -1;
    handle->device->memory().zero(address, n);
    return 0;
}

LUTRA_API int lutra_read(lutra_device* handle, uint64_t address, uint8_t* to, uint64_t n) {
    if (outside(handle, address, n)) return -1;
    handle->device->memory().read(address, to, n);
    return 0;
}

// Bytes of the range, from its first, that were written.
LUTRA_API uint64_t lutra_written(lutra_device* handle, uint64_t address, uint64_t n) {
    return handle->device->memory().first_unwritten(address, n);
}

LUTRA_API int lutra_write_register(lutra_device* handle, uint32_t address, uint32_t value) {
    return guarded(handle, [=](lutra::Device& d) { return d.write_register(address, value); });
}

LUTRA_API int lutra_read_register(lutra_device* handle, uint32_t address, uint32_t* value) {
    return guarded(handle, [=](lutra::Device& d) { return d.read_register(address, value); });
}

// 1 when the interrupt is up, 0 when it is not after `cycles`.
LUTRA_API int lutra_run(lutra_device* handle, uint64_t cycles) {
    return guarded(handle, [=](lutra::Device& d) { return d.run(cycles); });
}

// Cycles from `first` to the one before `end`.
LUTRA_API int lutra_trace_open(lutra_device* handle, const char* path, uint64_t first,
                               uint64_t end, const char* scopes) {
    return recorded(handle, [=](lutra::Device& d) { d.trace_open(path, first, end, scopes); });
}

LUTRA_API int lutra_trace_close(lutra_device* handle) {
    return recorded(handle, [](lutra::Device& d) { d.trace_close(); });
}

LUTRA_API int lutra_write_coverage(lutra_device* handle, const char* path) {
    return recorded(handle, [=](lutra::Device& d) { d.write_coverage(path); });
}
