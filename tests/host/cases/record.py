"""Records what transformers computes of the checkpoints in :mod:`tests.host.cases.checkpoints`.

``python -m tests.host.cases.record`` writes ``references.npz`` and ``config_defaults.json`` beside
this file; it needs transformers and torch beside what the tests need. These read those files.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tests.host.cases.checkpoints import CASES, TOKENS, Held
from tests.host.cases.references import DEFAULTS, LOGITS, digest

_CLASSES = {
    "BitNetForCausalLM": "BitNetConfig",
    "LlamaForCausalLM": "LlamaConfig",
    "MistralForCausalLM": "MistralConfig",
    "Qwen2ForCausalLM": "Qwen2Config",
    "Qwen3ForCausalLM": "Qwen3Config",
}
_FIELDS = (
    "hidden_act", "max_position_embeddings", "num_key_value_heads", "head_dim", "rms_norm_eps",
    "rope_theta", "attention_bias", "mlp_bias", "use_sliding_window", "sliding_window",
    "max_window_layers", "layer_types", "bos_token_id", "eos_token_id", "tie_word_embeddings",
)  # fmt: skip


def judged(path: Path, held: Held) -> np.ndarray:
    """Logits ``[T, V]`` in float32."""
    import torch
    import transformers

    torch.set_num_threads(1)
    options: dict[str, Any] = {"attn_implementation": "eager"}
    if held.weights is None:
        auto = transformers.AutoModelForCausalLM
        model = auto.from_pretrained(path, dtype=torch.float32, **options).eval()
        torch.nn.Module.float(model)  # ternary weights were unpacked to bfloat16, exactly
    else:
        fields = {k: v for k, v in held.config.items() if k != "architectures"}
        config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
        model = transformers.AutoModelForCausalLM.from_config(config, **options).float().eval()
        state = {name: torch.from_numpy(w.astype(np.float32)) for name, w in held.weights.items()}
        missing, unexpected = model.load_state_dict(state, strict=False)
        tied = held.config["tie_word_embeddings"]
        assert (missing, unexpected) == (["lm_head.weight"] if tied else [], [])
        model.tie_weights()
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS)[None]).logits[0].numpy()


def config_defaults() -> dict[str, dict[str, object]]:
    """Values of the fields that the readers use, of each class."""
    import transformers

    found: dict[str, dict[str, object]] = {"transformers": {"version": transformers.__version__}}
    for architecture, name in _CLASSES.items():
        kind = getattr(transformers, name)
        # of the class, as instances have what follows from them
        fields = {each: getattr(kind, each) for each in _FIELDS if hasattr(kind, each)}
        rope = kind().rope_parameters
        fields["rope_theta"] = rope["rope_theta"]
        assert rope["rope_type"] == "default"
        found[architecture] = fields
    return found


def main() -> None:
    """Write both files."""
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    arrays: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, case) in enumerate(CASES.items()):
            path = Path(folder) / f"{i}{case.suffix}"
            held = case.write(path)
            arrays[f"{name}: logits"] = judged(path, held)
            arrays[f"{name}: digest"] = np.array(digest(path, held))
            print(f"{i + 1} of {len(CASES)}: {name}")
    np.savez_compressed(LOGITS, **arrays)  # pyright: ignore[reportArgumentType]
    DEFAULTS.write_text(json.dumps(config_defaults(), indent=1) + "\n")


if __name__ == "__main__":
    main()
