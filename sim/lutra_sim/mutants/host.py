"""Faults in the host: the tests beside each must notice them."""

from lutra_sim.mutants.mutant import planted

__all__ = ["MUTANTS"]

MUTANTS = [
    *planted(
        "host/lutra/text/sampling.py",
        ["host/text/test_sampling.py"],
        (
            "one candidate fewer for the top k",
            "np.partition(logits, -params.top_k)[-params.top_k])",
            "np.partition(logits, -params.top_k)[1 - params.top_k])",
        ),
        ("the token that reaches top p not kept", "params.top_p)) + 1", "params.top_p))"),
        (
            "ties drawn in an unstable order",
            'np.argsort(-logits[kept], kind="stable")',
            'np.argsort(logits[kept], kind="stable")[::-1]',
        ),
        (
            "temperature multiplies",
            "p = np.exp(below / params.temperature)",
            "p = np.exp(below * params.temperature)",
        ),
    ),
    *planted(
        "host/lutra/serving/prefixes.py",
        ["host/serving/test_prefixes.py"],
        (
            "the whole prompt may be known",
            "_common(each.tokens, tokens[:-1])",
            "_common(each.tokens, tokens)",
        ),
        (
            "the earliest used of equals",
            "key=lambda i: (len(self._kept[i].tokens), -i)",
            "key=lambda i: (len(self._kept[i].tokens), i)",
        ),
        (
            "the latest dropped first",
            "dropped.append(self._kept.pop(0))",
            "dropped.append(self._kept.pop())",
        ),
        (
            "a common prefix of one token more",
            "return int(different[0]) if len(different)",
            "return int(different[0]) + 1 if len(different)",
        ),
    ),
    *planted(
        "host/lutra/serving/sequence.py",
        ["host/test_llm.py"],
        ("saturation not compared", "        and result.saturated == expected.saturated\n", ""),
        ("the reference not cut", "            self.reference.truncate(n)\n", "            pass\n"),
        (
            "saturation forgotten by the next tokens",
            "if result.saturated and self.saturated_at is None:",
            "if result.saturated or self.saturated_at is None:",
        ),
    ),
    *planted(
        "host/lutra/quantize/gptq.py",
        ["host/quantize/test_gptq.py"],
        (
            "the smallest columns first",
            'order = np.argsort(-found.power, kind="stable")',
            'order = np.argsort(found.power, kind="stable")',
        ),
        (
            "blocks do not change later ones",
            "rest[last:] -= effect[first:last, last:].T @ errors",
            "rest[last:] -= 0 * (effect[first:last, last:].T @ errors)",
        ),
        ("groups by place in the order", "g = columns[i] // grid.group", "g = i // grid.group"),
    ),
    *planted(
        "host/lutra/quantize/fold.py",
        ["host/quantize/test_fold.py"],
        (
            "the norm multiplied",
            "changed[_NORMS[stack]] = norm / scale",
            "changed[_NORMS[stack]] = norm * scale",
        ),
        (
            "biases of values left",
            'changed["v_bias"] = layer.v_bias / rows',
            'changed["v_bias"] = layer.v_bias',
        ),
        ("heads do not share", "heads.max(axis=1, keepdims=True)", "heads[:, :1]"),
    ),
    *planted(
        "host/lutra/quantize/rtn.py",
        ["host/quantize/test_rtn.py"],
        (
            "importance ignored",
            "if importance is not None and importance.any():",
            "if importance is None:",
        ),
        (
            "the coarsest scale one too high",
            "_SCALE_MAX = (1 << SCALE_WIDTH) - 1",
            "_SCALE_MAX = 1 << SCALE_WIDTH",
        ),
        (
            "no clipped ranges",
            "clips = np.geomspace(1.0, _LEAST_CLIP[bits], _N_CLIPS)",
            "clips = np.geomspace(1.0, 0.999, _N_CLIPS)",
        ),
    ),
]
"""Faults of modules that compute tokens."""
