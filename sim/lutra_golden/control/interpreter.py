"""The golden interpreter: runs a program on a memory image, instruction by instruction, exactly."""

from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lutra_golden.arith.fixed import Int, Saturation, exact_matmul, round_shift, saturate
from lutra_golden.arith.quantize import Q_MAX, q_max_of
from lutra_golden.arith.scale import Scale, pack_scale, unpack_scale
from lutra_golden.attention.attention import attend, first_seen
from lutra_golden.attention.cache import kv_bytes, kv_elements
from lutra_golden.control.blocks import pack_words, unpack
from lutra_golden.control.check import check_run
from lutra_golden.control.checksum import checksum
from lutra_golden.control.chunks import Chunk, ChunkEntry, chunks
from lutra_golden.control.descriptor import (
    HEADER,
    HEADER_BYTES,
    QUEUE_DEPTH,
    Descriptor,
    Kind,
    body_bytes,
    check_descriptor,
    check_header,
)
from lutra_golden.control.failure import Failure
from lutra_golden.control.isa import (
    FLAG_BIAS,
    FLAG_CENTRE,
    FLAG_FIRST,
    FLAG_LOGITS,
    FLAG_LOW,
    FLAG_PLAIN,
    FLAG_QK_NORM,
    FLAG_STREAM,
    INSTRUCTION_BYTES,
    Instruction,
    NormSource,
    Opcode,
    Unit,
    decode,
)
from lutra_golden.control.memory import Memory
from lutra_golden.control.registers import (
    CONTEXT,
    STATUS_DONE,
    STATUS_ERROR,
    STATUS_SATURATED,
    ErrorCode,
)
from lutra_golden.control.result import RESULT_BYTES, Result
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.matmul.engine import LANES
from lutra_golden.vector.heads import FIXED_FRAC, HeadBias, HeadNorm
from lutra_golden.vector.norm import gate_scale, norm_quantize, relu2_gate, swiglu, swiglu_scale
from lutra_golden.vector.residual import RESIDUAL_WIDTH, logits, residual_sum
from lutra_golden.vector.rope import rope_quantize, rope_quantize_fixed

__all__ = ["Interpreter", "ProgramError", "RunError"]


_LARGE = 1 << 20  # weights of a matrix
_LOW = (1 << 16) - 1  # half of an element of the residual stream
_Weights = tuple[int, NDArray[np.generic], type[np.floating]]
_OPCODES = frozenset(map(int, Opcode))


class ProgramError(RuntimeError):
    """A program that breaks the accelerator's rules: a wait that cannot be met, a bad field."""


class RunError(ProgramError):
    """A run that the accelerator refuses or ends by itself; ``failure`` is in ERROR."""

    def __init__(self, config: AcceleratorConfig, failure: Failure) -> None:
        super().__init__(failure.describe(config))
        self.failure = failure


class _Decoded(NamedTuple):
    """A program, its instructions, and the error of its end if there is no END."""

    code: bytes
    instructions: list[Instruction]
    end: ErrorCode


def _decoded(code: bytes) -> _Decoded:
    instructions = list[Instruction]()
    for i in range(0, len(code), INSTRUCTION_BYTES):
        if code[i] not in _OPCODES:
            return _Decoded(code, instructions, ErrorCode.OPCODE)
        instructions.append(decode(code[i : i + INSTRUCTION_BYTES]))
        if instructions[-1].opcode is Opcode.END:
            break
    return _Decoded(code, instructions, ErrorCode.NO_END)


class Interpreter:
    """An accelerator of ``config`` in NumPy: on-chip buffers, registers and a memory.

    ``registers`` are named as in :data:`lutra_golden.control.registers.REGISTERS`; ``tokens``,
    ``chunks``, ``argmax`` and ``scale`` are its arrays, ``saturated`` a bit of its STATUS.
    ``on_residual``, if set, is called when a RESADD has changed the residual stream,
    ``on_instruction`` with every instruction that was executed. ``doorbells`` are addresses of
    the descriptor that runs and of those that wait.
    """

    def __init__(self, config: AcceleratorConfig, memory: Memory) -> None:
        self.config, self.memory = config, memory
        self.registers: dict[str, int] = dict.fromkeys(CONTEXT, 0)
        m, c = config.pass_tokens, config
        self.tokens = np.zeros(m, np.int64)
        self.chunks = [ChunkEntry()] * m
        self.residual = np.zeros((m, c.vector.hidden_max), np.int64)
        self.params = np.zeros((c.vector.param_words, LANES), np.int64)
        self.rope = np.zeros((m, c.head_dim), np.int64)
        self.activations = np.zeros((m, c.matmul.depth_max), np.int64)
        self.scale = Scale(np.zeros(m, np.int64), np.zeros(m, np.int64))
        self.acc = np.zeros((m, c.matmul.acc_blocks, LANES), np.int64)
        self.queries = np.zeros((m, c.n_heads, c.head_dim), np.int64)
        self.query_scale = Scale(
            np.zeros((m, c.n_heads), np.int64), np.zeros((m, c.n_heads), np.int64)
        )
        self.attention = np.zeros((m, c.n_heads * c.head_dim), np.int64)
        self.argmax = np.zeros(m, np.int64)
        self._best = np.zeros(m, np.int64)
        self.doorbells: deque[int] = deque()
        self._saturation = Saturation()
        self.on_residual: Callable[[], None] | None = None
        self.on_instruction: Callable[[Instruction], None] | None = None
        self._weights: dict[tuple[int, ...], _Weights] = {}
        self._decoded = _Decoded(b"", [], ErrorCode.NO_END)
        # functions, not bound methods: a cycle would keep the memory until it is collected
        self._executors: Mapping[Opcode, Callable[[Interpreter, Instruction], None]] = {
            Opcode.LDPARAM: Interpreter._ldparam,
            Opcode.LDROPE: Interpreter._ldrope,
            Opcode.EMBED: Interpreter._embed,
            Opcode.LMMA: Interpreter._lmma,
            Opcode.NORMQ: Interpreter._normq,
            Opcode.ROPEQ: Interpreter._ropeq,
            Opcode.ATTEND: Interpreter._attend,
            Opcode.RESADD: Interpreter._resadd,
            Opcode.LOGITS: Interpreter._logits,
        }

    @property
    def saturated(self) -> bool:
        """True if a value has left its range since the run began."""
        return self._saturation.seen

    # -- running

    def run(self) -> None:
        """Execute the program at PROGRAM_BASE for the tile that the registers describe.

        RunError where the accelerator has a code for what is wrong; before anything is done, if
        it is a register.
        """
        if code := check_run(self.config, self.registers, self.chunks):
            raise RunError(self.config, Failure(code=code))
        self._saturation.seen = False
        done = dict.fromkeys(Unit, 0)
        for instruction in self.program():
            unit = instruction.opcode.unit
            if unit is None:
                return
            for other, wait in zip(Unit, instruction.waits, strict=True):
                if done[other] < wait:
                    raise ProgramError(
                        f"{instruction.opcode.name} waits for {wait} {other.name} instructions, "
                        f"but only {done[other]} come before it"
                    )
            self.execute(instruction)
            done[unit] += 1
        raise RunError(self.config, Failure(code=self._decoded.end, instruction=sum(done.values())))

    def ring(self, address: int) -> bool:
        """Queue the descriptor at ``address``; False, and nothing done, if the queue is full.

        The first of them runs, and the queue is for those behind it.
        """
        has_room = len(self.doorbells) <= QUEUE_DEPTH
        if has_room:
            self.doorbells.append(address)
        return has_room

    def run_next(self) -> Result:
        """Execute the descriptor that was queued first."""
        return self.run_descriptor(self.doorbells.popleft())

    def run_descriptor(self, address: int) -> Result:
        """Execute the descriptor at ``address``, write its result block, and return that.

        Everything is read and checked before anything is done. RunError where there is no
        descriptor of this version that says where the result goes; nothing is written then.
        """
        config = self.config
        head = self.memory.read(address, HEADER_BYTES).tobytes()
        code, has_result = check_header(config, address, head)
        if not has_result:
            raise RunError(config, Failure(code=code))
        header = unpack(HEADER, head)
        result = Result(fingerprint=config.fingerprint, tag=header["tag"])
        try:
            if code:
                raise RunError(config, Failure(code=code))
            body = self.memory.read(address + HEADER_BYTES, body_bytes(header)).tobytes()
            self._carry_out(Descriptor.decode(head + body), result)
        except RunError as error:
            result.failure = error.failure
            result.status |= STATUS_ERROR
        result.status |= STATUS_DONE
        data = np.frombuffer(result.encode(), np.uint8)
        self.memory.store(header["result_base"], data)
        return result

    def _carry_out(self, descriptor: Descriptor, result: Result) -> None:
        """Do what a descriptor asks for, and note in ``result`` what comes out."""
        if code := check_descriptor(self.config, descriptor):
            raise RunError(self.config, Failure(code=code))
        if descriptor.kind == Kind.CHECKSUM:
            data = self.memory.read(descriptor.program_base, descriptor.program_bytes)
            result.checksum = checksum(data)
            return
        n, table = len(descriptor.tokens), descriptor.chunks
        self.registers |= descriptor.registers
        self.tokens[:n], self.chunks[: len(table)] = descriptor.tokens, table
        self._pass(descriptor, result)
        while result.n_made < descriptor.n_greedy:
            tile = self._chunks()
            made = [int(self.argmax[chunk.tokens.stop - 1]) for chunk in tile]
            if not set(made).isdisjoint(descriptor.ends):
                break
            self.registers |= {"N_TOKENS": len(tile), "LOGITS_FROM": 0}
            self.tokens[: len(tile)] = made
            self.chunks[: len(tile)] = [
                ChunkEntry(chunk.position + chunk.n_tokens, 1, chunk.kv_base) for chunk in tile
            ]
            self._pass(descriptor, result)

    def _pass(self, descriptor: Descriptor, result: Result) -> None:
        """Run a pass of a descriptor; arg-max and scale of its tokens count once they are written.

        The tokens are made, whether or not.
        """
        self.run()
        result.status |= STATUS_SATURATED * self.saturated
        result.n_made += descriptor.n_greedy > 0
        wanted = slice(self.registers["LOGITS_FROM"], self.registers["N_TOKENS"])
        argmax: list[int] = self.argmax[wanted].tolist()
        scale: list[int] = pack_scale(Scale(self.scale.m[wanted], self.scale.e[wanted])).tolist()
        pairs = pack_words([word for pair in zip(argmax, scale, strict=True) for word in pair])
        address = descriptor.result_base + RESULT_BYTES + 8 * len(result.argmax)
        self.write_results(address, pairs)
        result.argmax += argmax
        result.scale += scale

    def write_results(self, address: int, pairs: bytes) -> None:
        """Write arg-maxes and packed scales of a pass; RunError where the memory does not."""
        self.memory.store(address, np.frombuffer(pairs, np.uint8))

    def execute(self, instruction: Instruction) -> None:
        """Execute one instruction, whatever it waits for; END does nothing."""
        if instruction.opcode is not Opcode.END:
            self._executors[instruction.opcode](self, instruction)
            if self.on_instruction is not None:
                self.on_instruction(instruction)

    def program(self) -> list[Instruction]:
        """The instructions in memory up to END, or to one of an unknown opcode."""
        code = self.memory.read(
            self.registers["PROGRAM_BASE"], self.registers["PROGRAM_BYTES"]
        ).tobytes()
        if code != self._decoded.code:
            # at once: an interrupt leaves no part of a program
            self._decoded = _decoded(code)
        return self._decoded.instructions

    def _chunks(self) -> list[Chunk]:
        return list(chunks(self.chunks, self.registers["N_TOKENS"]))

    def _token_range(self, instruction: Instruction) -> slice:
        first = self.registers["LOGITS_FROM"] if instruction.flags & FLAG_LOGITS else 0
        return slice(first, max(first, self.registers["N_TOKENS"]))

    def _int16(self, address: int, count: int) -> Int:
        return self.memory.read(address, 2 * count).view(np.int16).astype(np.int64)

    # -- load unit

    def _ldparam(self, i: Instruction) -> None:
        n, first = i.args["n_words"], i.args["param_word"]
        if first + n > self.config.vector.param_words:
            raise ProgramError(
                f"LDPARAM writes word {first + n - 1} of {self.config.vector.param_words}"
            )
        address = self.registers["WEIGHT_BASE"] + i.args["address"]
        lanes = LANES
        self.params[first : first + n] = self._int16(address, lanes * n).reshape(n, lanes)

    def _ldrope(self, i: Instruction) -> None:
        d, base = self.config.head_dim, self.registers["WEIGHT_BASE"] + i.args["address"]
        for chunk in self._chunks():
            n = chunk.n_tokens
            rows = self._int16(base + chunk.position * d * 2, n * d)
            self.rope[chunk.tokens] = rows.reshape(n, d)

    def _embed(self, i: Instruction) -> None:
        width = LANES * i.args["n_words"]
        base = self.registers["WEIGHT_BASE"] + i.args["address"]
        for m in range(self.registers["N_TOKENS"]):
            row = self._int16(base + int(self.tokens[m]) * width * 2, width)
            row <<= i.args["shift"]
            if i.flags & FLAG_LOW:
                row = self.residual[m, :width] & ~_LOW | row & _LOW
            self.residual[m, :width] = row

    # -- matmul unit

    def _lmma(self, i: Instruction) -> None:
        tokens = self._token_range(i)
        if tokens.start == tokens.stop:
            return
        blocks, base, params = i.args["row_blocks"], i.args["acc_base"], self.config.matmul
        if not params.shift_min <= i.args["shift"] <= params.shift_max:
            raise ProgramError(
                f"LMMA shifts by {i.args['shift']}, the engine by {params.shift_min} to "
                f"{params.shift_max}"
            )
        w = self._weight_matrix(i)
        product = exact_matmul(self.activations[tokens, : w.shape[0]], w)
        product = round_shift(product, i.args["shift"])
        self.acc[tokens, base : base + blocks] = product.reshape(len(product), blocks, -1)

    def _weight_matrix(self, i: Instruction) -> NDArray[np.floating]:
        """The weights of an LMMA, ``[K, N]``, decoded once per content of the memory."""
        args, config = i.args, self.config
        shape = (args["depth_tiles"], args["row_blocks"], args["planes"])
        key = (self.registers["WEIGHT_BASE"] + args["address"], *shape)
        size = config.weight_image_bytes(args["n_words"])
        version = self.memory.version(key[0], size)
        if key not in self._weights or self._weights[key][0] != version:
            if args["n_words"] != config.matmul.n_words(*shape):
                raise ProgramError(
                    f"LMMA of {shape} needs {config.matmul.n_words(*shape)} words, "
                    f"not {args['n_words']}"
                )
            words = config.weight_words(self.memory.read(key[0], size), args["n_words"])
            try:
                w = config.matmul.decode(words[:, : -(-config.matmul.word_bits // 8)], *shape)
            except ValueError as error:
                raise ProgramError(f"LMMA reads no weights at {key[0]:#x}: {error}") from None
            # float32 carries the sums exactly if none can reach 2**24, float64 all that are
            peak = int(np.abs(w).sum(axis=1).max()) << (config.matmul.integer_width - 1)
            kind = np.float32 if peak < 1 << 24 else np.float64
            # a large matrix is kept small, and made floating point whenever it is used
            kept = np.min_scalar_type(-int(np.abs(w).max()) - 1) if w.size > _LARGE else kind
            self._weights[key] = version, np.ascontiguousarray(w.T, kept), kind
        _, weights, kind = self._weights[key]
        return weights.astype(kind, copy=False)

    # -- vector unit

    def _normq(self, i: Instruction) -> None:
        tokens, n = self._token_range(i), LANES * i.args["n_words"]
        scale_a, scale_b = unpack_scale(i.args["scale_a"]), unpack_scale(i.args["scale_b"])
        count = tokens.stop - tokens.start
        if count == 0:
            return
        source = NormSource(i.args["source"])
        if source in (NormSource.GATE, NormSource.SWIGLU):
            gated = source is NormSource.GATE
            gate, up = self._gate_and_up(
                tokens,
                i.args["n_words"],
                self.config.vector.gate_width if gated else self.config.matmul.acc_width,
            )
            s = Scale(self.scale.m[tokens], self.scale.e[tokens])
            v = relu2_gate(gate, up) if gated else swiglu(gate, up, s, scale_a, self._saturation)
            scale = gate_scale(s, scale_a, scale_b) if gated else swiglu_scale(s, scale_b)
        else:
            buffer = self.residual if source is NormSource.RESIDUAL else self.attention
            v = buffer[tokens, :n]
            scale = Scale(np.full(count, scale_a.m), np.full(count, scale_a.e))
        gamma = self.params[i.args["param_word"] :][: i.args["n_words"]].reshape(-1)
        q, s = norm_quantize(
            v,
            scale,
            gamma,
            i.args["gamma_frac"],
            unpack_scale(i.args["inv_n"]),
            unpack_scale(i.args["eps"]),
            normalise=not i.flags & FLAG_PLAIN,
            q_max=q_max_of(self.config.matmul.a_width),
            groups=self.config.attention_groups
            if source is NormSource.ATTENTION
            else self.config.matmul.a_groups,
        )
        self.activations[tokens, :n] = q
        # what lies behind the last word of the last depth tile meets zero weights
        self.scale.m[tokens], self.scale.e[tokens] = s

    def _gate_and_up(self, tokens: slice, n_words: int, width: int) -> tuple[Int, Int]:
        """Gate and up accumulators ``[M, N]``, which lie in alternating blocks."""
        if 2 * n_words > self.config.matmul.acc_blocks:
            raise ProgramError(
                f"NORMQ reads block {2 * n_words - 1} of {self.config.matmul.acc_blocks}"
            )
        count = tokens.stop - tokens.start
        pairs = self.acc[tokens, : 2 * n_words].reshape(count, -1, 2, LANES)
        limit = 1 << (width - 1)
        if pairs.min() < -limit or pairs.max() >= limit:
            raise ProgramError(
                f"gate accumulators must fit signed({width}), not {pairs.min()}..{pairs.max()}"
            )
        return pairs[:, :, 0].reshape(count, -1), pairs[:, :, 1].reshape(count, -1)

    def _ropeq(self, i: Instruction) -> None:
        config, n = self.config, self.registers["N_TOKENS"]
        d, n_q, n_kv = config.head_dim, config.n_heads, config.n_kv_heads
        heads = self._heads(self.acc[:n, : (n_q + 2 * n_kv) * d // LANES])
        s = Scale(self.scale.m[:n], self.scale.e[:n])
        results: list[tuple[Int, Scale]] = []
        biases, norms = self._head_params(i)
        for kind, first, count in ((0, 0, n_q), (1, n_q, n_kv), (2, n_q + n_kv, n_kv)):
            x = heads[:, first : first + count]
            w_scale = unpack_scale(i.args[("scale_q", "scale_k", "scale_v")[kind]])
            table = None if kind == 2 else self.rope[:n]
            q_max = q_max_of(config.attention.key_width) if kind else Q_MAX
            if i.flags & (FLAG_BIAS | FLAG_QK_NORM):
                bias = None
                if biases is not None:
                    centre = biases.centre if kind == 1 else None
                    bias = HeadBias(biases.values[first : first + count], biases.frac, centre)
                norm = norms[kind]
                results.append(
                    rope_quantize_fixed(x, s, w_scale, table, bias, norm, q_max, self._saturation)
                )
            else:
                results.append(rope_quantize(x, s, w_scale, table, q_max))
        (q, q_scale), (k, k_scale), (v, v_scale) = results
        self.queries[:n] = q
        self.query_scale.m[:n], self.query_scale.e[:n] = q_scale

        record = np.zeros((n, config.kv_scale_bytes // 4), np.uint32)
        record[:, : 2 * n_kv] = np.concatenate([pack_scale(k_scale), pack_scale(v_scale)], axis=1)
        for chunk in self._chunks():
            base = chunk.kv_base + i.args["kv_offset"]
            self._store(base, chunk, k, v, record)

    def _store(self, base: int, chunk: Chunk, k: Int, v: Int, record: NDArray[np.uint32]) -> None:
        """Write keys, values and scales of a chunk's tokens into the layer's cache at ``base``."""
        config, position, tokens = self.config, chunk.position, chunk.tokens
        for offset, x in ((0, k), (config.kv_v_offset, v)):
            for g in range(config.n_kv_heads):
                address = base + offset + g * config.kv_head_bytes
                address += position * config.kv_row_bytes
                data = kv_bytes(x[tokens, g], config.attention.key_width)
                self.memory.store(address, data.reshape(-1))
        address = base + config.kv_s_offset + position * config.kv_scale_bytes
        self.memory.store(address, record[tokens].view(np.uint8).reshape(-1))

    def _heads(self, blocks: Int) -> Int:
        """Heads ``[M, heads, head_dim]`` of accumulator blocks ``[M, blocks, lanes]``, whose pairs
        hold eight dimensions of the head's first half and the eight that rotate with them."""
        d, lanes = self.config.head_dim, LANES
        pairs = blocks.reshape(len(blocks), -1, d // (2 * lanes), 2, lanes)
        return pairs.transpose(0, 1, 3, 2, 4).reshape(len(blocks), -1, d)

    def _head_params(
        self, i: Instruction
    ) -> tuple[HeadBias | None, tuple[HeadNorm | None, HeadNorm | None, None]]:
        """Biases of all heads of a ROPEQ, with the centres of keys, and norms of queries, keys and
        values."""
        config, first = self.config, i.args["param_word"]
        flags = (("FLAG_BIAS", FLAG_BIAS, "qkv_bias"), ("FLAG_QK_NORM", FLAG_QK_NORM, "qk_norm"))
        for flag, bit, feature in flags:
            if i.flags & bit and not getattr(config.vector, feature):
                raise ProgramError(
                    f"ROPEQ with {flag} needs a configuration with {feature}, not {config.name}"
                )
        head_words = config.head_dim // LANES
        bias_words = (config.n_heads + 2 * config.n_kv_heads) * head_words
        bias_words *= bool(i.flags & FLAG_BIAS)
        if i.flags & FLAG_CENTRE and i.flags & (FLAG_BIAS | FLAG_QK_NORM) != FLAG_BIAS:
            raise ProgramError("ROPEQ with FLAG_CENTRE needs FLAG_BIAS and not FLAG_QK_NORM")
        more = config.n_kv_heads if i.flags & FLAG_CENTRE else 2 * bool(i.flags & FLAG_QK_NORM)
        end = first + bias_words + more * head_words
        if i.flags & (FLAG_BIAS | FLAG_QK_NORM) and end > config.vector.param_words:
            raise ProgramError(f"ROPEQ reads word {end - 1} of {config.vector.param_words}")
        bias, norms = None, (None, None, None)
        if i.flags & FLAG_BIAS:
            frac = i.args["bias_frac"]
            if frac > FIXED_FRAC:
                raise ProgramError(f"bias_frac of ROPEQ must be at most {FIXED_FRAC}, not {frac}")
            values = self._heads(self.params[None, first : first + bias_words])[0]
            centre = None
            if i.flags & FLAG_CENTRE:
                centre = self._heads(self.params[None, first + bias_words : end])[0]
            bias = HeadBias(values, frac, centre)
        if i.flags & FLAG_QK_NORM:
            gammas = self._heads(self.params[None, first + bias_words : end])[0]
            frac, eps = i.args["gamma_frac"], i.args["eps"]
            norms = HeadNorm(gammas[0], frac, eps), HeadNorm(gammas[1], frac, eps), None
        return bias, norms

    def _resadd(self, i: Instruction) -> None:
        n, width = self.registers["N_TOKENS"], LANES * i.args["n_words"]
        acc = self.acc[:n, : i.args["n_words"]].reshape(n, -1)
        s = Scale(self.scale.m[:n], self.scale.e[:n])
        frac, w_scale = i.args["frac"], unpack_scale(i.args["scale_w"])
        stream = self.residual[:n, :width]
        stream[:] = saturate(
            residual_sum(stream, acc, s, w_scale, frac, self._saturation), RESIDUAL_WIDTH
        )
        if self.on_residual is not None:
            self.on_residual()

    def _logits(self, i: Instruction) -> None:
        tokens = self._token_range(i)
        count = tokens.stop - tokens.start
        if count == 0:
            return
        n_words, base = i.args["n_words"], i.args["acc_base"]
        if i.flags & FLAG_STREAM:
            if LANES * (base + n_words) > self.config.vector.hidden_max:
                raise ProgramError(
                    f"LOGITS reads word {base + n_words - 1} of "
                    f"{self.config.vector.hidden_max // LANES} of the residual stream"
                )
            values = self.residual[tokens, LANES * base : LANES * (base + n_words)]
        else:
            row_scale = self.params[i.args["param_word"] :][:n_words].reshape(-1)
            acc = self.acc[tokens, base : base + n_words].reshape(count, -1)
            values = logits(acc, row_scale)
        best = values.max(axis=1)
        first_row = i.args["row_first"] + values.argmax(axis=1)
        better = (best > self._best[tokens]) | bool(i.flags & FLAG_FIRST)
        self.argmax[tokens] = np.where(better, first_row, self.argmax[tokens])
        self._best[tokens] = np.where(better, best, self._best[tokens])
        data = values.astype(np.int32).view(np.uint8).reshape(count, -1)
        for m in range(count):
            address = self.registers["LOGITS_BASE"] + 4 * i.args["row_first"]
            address += (tokens.start + m) * self.registers["LOGITS_STRIDE"]
            self.memory.store(address, data[m])

    # -- attention unit

    def _attend(self, i: Instruction) -> None:
        for chunk in self._chunks():
            base = chunk.kv_base + i.args["kv_offset"]
            self._attend_chunk(base, chunk, i.args["frac"], i.args["window"])

    def _attend_chunk(self, base: int, chunk: Chunk, frac: int, window: int) -> None:
        config, n, position, at = self.config, chunk.n_tokens, chunk.position, chunk.tokens
        first = first_seen(position, window)
        n_kv, row_bytes, total = config.n_kv_heads, config.kv_row_bytes, position + n - first

        def heads(offset: int) -> Int:
            start = base + offset + first * row_bytes
            rows = [
                self.memory.read(start + g * config.kv_head_bytes, total * row_bytes)
                for g in range(n_kv)
            ]
            return kv_elements(
                np.stack(rows).reshape(n_kv, total, row_bytes), config.attention.key_width
            )

        record = self.memory.read(
            base + config.kv_s_offset + first * config.kv_scale_bytes, total * config.kv_scale_bytes
        )
        words = record.reshape(total, -1)[:, : 8 * n_kv].copy().view(np.uint32)
        k_scale, v_scale = unpack_scale(words[:, :n_kv]), unpack_scale(words[:, n_kv:])
        out = attend(
            config.attention,
            self.queries[at],
            Scale(self.query_scale.m[at], self.query_scale.e[at]),
            heads(0),
            k_scale,
            heads(config.kv_v_offset),
            v_scale,
            position - first,
            frac,
            window,
            self._saturation,
        )
        self.attention[at] = out.reshape(n, -1)
