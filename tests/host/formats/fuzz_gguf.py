"""Damaged GGUF files and safetensors folders, by the thousand: only LutraError may come of them.

A program: ``python tests/host/formats/fuzz_gguf.py --seconds 600 --seed 1``. Each round changes a
valid model, byte by byte or field by field, opens it and reads all of it. Anything but LutraError
is a fault, as is a round that takes seconds or memory out of proportion to the file.
"""

import argparse
import json
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

if __name__ == "__main__":
    ROOT = Path(__file__).resolve().parents[3]
    sys.path[:0] = [str(ROOT), *(str(ROOT / part) for part in ("host", "sim"))]

import numpy as np
from safetensors.numpy import save_file
from tests.host.gguf_model import (
    ENCODERS,
    MODELS,
    GgufModel,
    field_bytes,
    gguf_bytes,
    old_name,
    random_floats,
)

from lutra.checkpoints import open_checkpoint
from lutra.checkpoints.gguf_blocks import read_dense, read_weight
from lutra.checkpoints.weights import Dense
from lutra.formats.gguf import GgufFile
from lutra.formats.gguf_vocabulary import read_vocabulary
from lutra.models import ARCHITECTURES
from lutra_golden.errors import LutraError

__all__ = ["FORMATS", "Fault", "fuzz"]

LIMIT_SECONDS = 10
LIMIT_BYTES = 1 << 30
"""Limit on additional address space; a forged size would exceed it."""
_EXTREMES = (
    0, 1, 2, 7, 31, 255, 256, 0x7FFF, 0xFFFF, 1 << 24, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32,
    1 << 40, (1 << 61) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 32,
)  # fmt: skip


class Fault(Exception):
    """Something other than LutraError came of a damaged file."""


# -- valid models


def _gguf_parts(
    name: str,
) -> tuple[list[tuple[str, int, object]], list[tuple[str, list[int], int, bytes]]]:
    """Fields and tensors of a small valid file."""
    model = GgufModel(
        arch=MODELS[name].arch, reference="", hidden_size=256, intermediate_size=256,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=128,
        vocab_size=264, biases=MODELS[name].biases, qk_norm=MODELS[name].qk_norm,
        sub_norms=MODELS[name].sub_norms, tied=True,
    )  # fmt: skip
    a = model.arch
    tokens = [f"<0x{i:02X}>" for i in range(256)] + ["<s>", "</s>", "a", "b", "ab", " ", "▁", "▁a"]
    fields: list[tuple[str, int, object]] = [
        ("general.architecture", 8, a),
        ("general.alignment", 4, 32),
        (f"{a}.block_count", 4, 1),
        (f"{a}.context_length", 4, 32),
        (f"{a}.embedding_length", 4, 256),
        (f"{a}.feed_forward_length", 4, 256),
        (f"{a}.attention.head_count", 4, 2),
        (f"{a}.attention.head_count_kv", 9, (4, [1])),
        (f"{a}.attention.key_length", 4, 128),
        (f"{a}.attention.layer_norm_rms_epsilon", 6, 1e-5),
        (f"{a}.rope.freq_base", 6, 1e4),
        (f"{a}.rope.scaling.type", 8, "yarn"),
        (f"{a}.rope.scaling.factor", 6, 2.0),
        (f"{a}.rope.scaling.original_context_length", 4, 16),
        ("tokenizer.ggml.model", 8, "llama" if name in ("llama", "bitnet") else "gpt2"),
        ("tokenizer.ggml.pre", 8, "qwen2"),
        ("tokenizer.ggml.tokens", 9, (8, tokens)),
        ("tokenizer.ggml.scores", 9, (6, [-float(i) for i in range(len(tokens))])),
        ("tokenizer.ggml.token_type", 9, (5, [6] * 256 + [3, 3] + [1] * 6)),
        ("tokenizer.ggml.merges", 9, (8, ["a b"])),
        ("tokenizer.ggml.bos_token_id", 4, 256),
        ("tokenizer.ggml.eos_token_id", 4, 257),
        ("tokenizer.ggml.add_bos_token", 7, True),
        ("tokenizer.chat_template", 8, "{{ messages }}"),
        ("other.flags", 9, (7, [True, False])),
    ]
    kinds = iter(sorted(ENCODERS) * 3)
    tensors: list[tuple[str, list[int], int, bytes]] = []
    for new, w in random_floats(model).items():
        number, encode = ENCODERS["F32" if w.ndim == 1 else next(kinds)]
        raw = encode(w)[0].tobytes()
        tensors.append((old_name(new), list(w.shape[::-1]), number, raw))
    return fields, tensors


def _write_safetensors(folder: Path, rng: random.Random) -> None:
    """A small valid folder: Llama or packed BitNet, of one file or sharded."""
    name = rng.choice(["llama", "bitnet"])
    model = GgufModel(
        arch="", reference="", hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, vocab_size=24,
        sub_norms=name == "bitnet", tied=True,
    )  # fmt: skip
    tensors: dict[str, np.ndarray] = dict(random_floats(model))
    config: dict[str, object] = {
        "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "hidden_size": 32,
        "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 24, "tie_word_embeddings": True,
        "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "bos_token_id": 0, "eos_token_id": [1],
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 2.0,
                            "original_max_position_embeddings": 16},
    }  # fmt: skip
    if name == "bitnet":
        config |= {"architectures": ["BitNetForCausalLM"], "hidden_act": "relu2"}
        config["quantization_config"] = {"quant_method": "bitnet", "linear_class": "autobitlinear"}
        for key in [key for key in tensors if "proj" in key]:
            n, k = tensors[key].shape
            tensors[key] = np.full((n // 4, k), 0b01_10_00_01, np.uint8)
            tensors[f"{key}_scale"] = np.array([0.5], np.float32)
    (folder / "config.json").write_text(json.dumps(config))
    if rng.random() < 0.5:
        save_file(tensors, folder / "model.safetensors")
        return
    names, shards = sorted(tensors), ("a.safetensors", "b.safetensors")
    table = {key: shards[i % 2] for i, key in enumerate(names)}
    for shard in shards:
        save_file({key: tensors[key] for key in names if table[key] == shard}, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": table}))


# -- damage


def _damage_bytes(raw: bytes, rng: random.Random) -> bytes:
    """Some bytes, numbers or pieces changed; more often near the beginning, where headers are."""
    data = bytearray(raw)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        if not data:
            break
        at = rng.randrange(min(len(data), rng.choice([24, 200, 4000, len(data)])))
        kind = rng.randrange(7)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.randrange(256)
        elif kind == 2:
            data[at : at + 8] = struct.pack("<Q", rng.choice(_EXTREMES))
        elif kind == 3:
            data[at : at + 4] = struct.pack("<I", rng.choice(_EXTREMES) & 0xFFFFFFFF)
        elif kind == 4:
            del data[at : at + rng.choice([1, 4, 8, 100, len(data)])]
        elif kind == 5:
            data[at:at] = data[at : at + rng.choice([1, 8, 64])]
        else:
            data[at : at + 2] = rng.choice([b"\x00\x7c", b"\xff\xff", b"\x80\x7f"])
    return bytes(data)


def _odd_value(rng: random.Random) -> object:
    return rng.choice(
        [None, True, -1, 0, 1, 3, 1e-300, 1e300, -0.5, "", "silu", "yarn", [], [[]], {}, [0] * 9,
         rng.choice(_EXTREMES), "x" * 300, float("inf"), float("nan")]
    )  # fmt: skip


def _damage_gguf(rng: random.Random, path: Path) -> None:
    fields, tensors = _GGUF[rng.choice(sorted(_GGUF))]
    fields, tensors = list(fields), list(tensors)
    options: dict[str, object] = {}
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        kind = rng.randrange(9)
        i, j = rng.randrange(len(fields)), rng.randrange(len(tensors))
        key, number, _value = fields[i]
        name, dims, of_tensor, raw = tensors[j]
        if kind == 0:
            fields[i] = (key, 4, rng.choice(_EXTREMES) & 0xFFFFFFFF)
        elif kind == 1:
            fields[i] = (key, number, rng.randbytes(rng.choice([0, 1, 8, 24])))
        elif kind == 2:
            fields[i] = (key, 8, rng.choice(["", "llama", "bitnet", "yarn", "gpt2", "x" * 999]))
        elif kind == 3:
            inner = rng.choice([0, 5, 6, 7, 8, 9, 12, 13])
            values = [rng.choice(["", "a", "é" * 600]) if inner == 8 else 1] * rng.randrange(400)
            broken = struct.pack("<IQ", inner, rng.choice(_EXTREMES))
            fields[i] = (key, 9, broken if inner in (9, 13) else (inner, values))
        elif kind == 4:
            del fields[i]
        elif kind == 5:
            dims = [
                rng.choice([*dims, *_EXTREMES]) for _ in range(rng.choice([0, 1, 2, 2, 3, 4, 5]))
            ]
            tensors[j] = (name, dims, of_tensor, raw)
        elif kind == 6:
            tensors[j] = (name, dims, rng.choice([*range(42), 0xFFFFFFFF]), raw)
        elif kind == 7:
            options["offsets"] = {name: rng.choice([*_EXTREMES, 32, len(raw)])}
        else:
            options["counts"] = (
                rng.choice([*_EXTREMES, len(tensors)]), rng.choice([*_EXTREMES, len(fields)])
            )  # fmt: skip
    packed = [field_bytes(*each) for each in fields]
    raw = gguf_bytes(packed, tensors, **options)  # pyright: ignore[reportArgumentType]
    path.write_bytes(_damage_bytes(raw, rng) if rng.random() < 0.6 else raw)


def _damage_safetensors(rng: random.Random, folder: Path) -> None:
    _write_safetensors(folder, rng)
    for _ in range(rng.choice([1, 1, 2])):
        path = rng.choice(sorted(folder.iterdir()))
        raw = path.read_bytes()
        if path.suffix != ".json":
            length = int.from_bytes(raw[:8], "little")
            try:
                header = json.loads(raw[8 : 8 + length])
            except ValueError:
                header = None
            if rng.random() < 0.4 or not isinstance(header, dict) or not header:
                path.write_bytes(_damage_bytes(raw, rng))
                continue
            entry = header[rng.choice(sorted(header))]
            if not isinstance(entry, dict):
                continue
            field = rng.choice(["dtype", "shape", "data_offsets"])
            entry[field] = rng.choice(
                [_odd_value(rng), rng.choice(["F16", "BF16", "I64", "F64", "BOOL", "F8_E4M3"]),
                 [rng.choice(_EXTREMES) for _ in range(rng.randrange(4))]]
            )  # fmt: skip
            text = json.dumps(header).encode()
            path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
            continue
        try:
            content = json.loads(raw)
        except ValueError:  # damaged already
            content = None
        if rng.random() < 0.3 or not isinstance(content, dict):
            path.write_bytes(_damage_bytes(raw, rng))
        else:
            inside = rng.choice([content, *(x for x in content.values() if isinstance(x, dict))])
            if inside:
                inside[rng.choice(sorted(inside))] = _odd_value(rng)
            path.write_text(json.dumps(content))


# -- reading all there is


def _read_model(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    architecture = checkpoint.config.architecture
    if architecture not in ARCHITECTURES:
        raise LutraError("architecture")
    model = ARCHITECTURES[architecture](checkpoint, "fuzz")
    for layer in [model.layers[i] for i in range(min(len(model.layers), 2))]:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
            layer.linear(name).dequantized()


def _read_gguf(path: Path) -> None:
    file = GgufFile(path)
    for tensor in file.tensors.values():
        if len(tensor.shape) <= 2:
            n, k = tensor.shape if len(tensor.shape) == 2 else (1, *tensor.shape)
            for read in (read_weight, read_dense):
                try:
                    weight = read(tensor.kind, file.bytes(tensor), n, k, f"{path}: {tensor.name}")
                    assert weight.shape == (n, k)
                    if isinstance(weight, Dense):
                        assert np.isfinite(weight.dequantized()).all()
                except LutraError:
                    pass
    try:
        vocabulary = read_vocabulary(file.metadata)
        ids = vocabulary.tokenizer.encode("ab a<s>é\n", add_special_tokens=False).ids
        vocabulary.tokenizer.decode(ids)
    except LutraError:
        pass
    _read_model(path)


FORMATS: dict[str, tuple[Callable[[random.Random, Path], None], Callable[[Path], None]]] = {
    "gguf": (_damage_gguf, _read_gguf),
    "safetensors": (_damage_safetensors, _read_model),
}
_GGUF: dict[str, tuple[list[tuple[str, int, object]], list[tuple[str, list[int], int, bytes]]]] = {}


def _too_long(_signal: int, _frame: object) -> None:
    raise TimeoutError(f"a round took over {LIMIT_SECONDS} s")


def fuzz(name: str, seed: int, folder: Path, *, runs: int = 0, seconds: float = 0) -> Counter[str]:
    """So many rounds, or rounds for so long; how many were read and how many refused.

    Fault names the round, whose model is left in ``folder``; its seed makes it again.
    """
    if not _GGUF:
        _GGUF.update({each: _gguf_parts(each) for each in ("llama", "qwen2", "bitnet")})
    damage, read = FORMATS[name]
    counts: Counter[str] = Counter()
    end = time.monotonic() + seconds
    signal.signal(signal.SIGALRM, _too_long)
    n = 0
    while n < runs or (seconds and time.monotonic() < end):
        rng = random.Random(f"{name} {seed} {n}")
        path = folder / "model"
        if path.is_dir():
            shutil.rmtree(path)
        if name == "safetensors":
            path.mkdir()
        damage(rng, path)
        signal.alarm(LIMIT_SECONDS)
        try:
            with np.errstate(all="ignore"):
                read(path)
            counts["read"] += 1
        except LutraError as error:
            text = str(error)
            if "\n" in text or not text:
                raise Fault(f"{name}, seed {seed}, round {n}: not one line: {text!r}") from None
            counts["refused"] += 1
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a panic of a library in Rust is no Exception
            raise Fault(f"{name}, seed {seed}, round {n}: {error!r}") from error
        finally:
            signal.alarm(0)
        n += 1
    return counts


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz both formats, or one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for each format")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--format", choices=FORMATS, action="append")
    chosen = parser.parse_args(arguments)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT_BYTES, resource.RLIM_INFINITY))
    for name in chosen.format or FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            counts = fuzz(name, chosen.seed, Path(folder), seconds=chosen.seconds)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(
            f"{name}: {counts['read']} read, {counts['refused']} refused in "
            f"{chosen.seconds:.0f} s, peak {peak} MiB",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
