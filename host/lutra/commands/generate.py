"""``lutra run`` and ``lutra chat``: text from a model, as it comes."""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lutra.commands.conversation import converse
from lutra.commands.options import (
    add_chat_template,
    add_json,
    add_model,
    add_place,
    add_speculation,
    check_kv,
    given_chat_template,
    place,
    real,
    rounding,
    whole,
)
from lutra.commands.report import fail
from lutra.devices.activity import Activity, is_simulated
from lutra.devices.power import PowerMeter
from lutra.llm import LLM, Mismatch
from lutra.models import find_model
from lutra.progress import StepProgress
from lutra.serving.generation import check_room
from lutra.serving.results import FinishReason, RunStats
from lutra.text.sampling import MAX_BIAS, SamplingParams
from lutra.text.tokenizer import Tokenizer
from lutra_golden.errors import LutraError

__all__ = ["add_chat", "add_run"]

_DEFAULT_PROMPT = "Once upon a time there was a king who had three daughters"
_DEFAULT_TOKENS = 64
_WAVE_CYCLES = (0, 10_000)
_WAVE_NOTE = (
    f"note: the waveform has clock cycles 0 to {_WAVE_CYCLES[1]:,} (about 400 MB as .vcd): "
    "--wave-cycles FROM:TO chooses others"
)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``lutra run``."""
    add_model(parser)
    add_json(parser)
    parser.add_argument(
        "-p",
        "--prompt",
        default=_DEFAULT_PROMPT,
        metavar="TEXT",
        help=f"prompt to continue (default {_DEFAULT_PROMPT!r})",
    )
    parser.add_argument(
        "-n",
        "--n-predict",
        type=whole(1),
        metavar="N",
        help=f"number of tokens to generate (default {_DEFAULT_TOKENS}, or to the context's end)",
    )
    _add_generation(parser)
    parser.add_argument(
        "--wave",
        type=Path,
        metavar="FILE",
        help="write a waveform on device rtl: .vcd (about 40 KB a clock cycle), or the smaller "
        ".fst if zlib and lz4 are installed; the first use builds a second simulator",
    )
    parser.add_argument(
        "--wave-cycles",
        type=_cycle_range,
        metavar="FROM:TO",
        help="clock cycles that the waveform has (default "
        f"{_WAVE_CYCLES[0]}:{_WAVE_CYCLES[1]}; a story of 64 tokens takes 1.7 million)",
    )
    parser.set_defaults(command=_run)


def _add_generation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--temp",
        type=real("0 or more", lambda t: t >= 0),
        default=0.7,
        metavar="T",
        help="sampling temperature (default 0.7, 0 for greedy)",
    )
    parser.add_argument(
        "--top-k",
        type=whole(0),
        default=40,
        metavar="K",
        help="sample from the K most likely tokens (default 40, 0 disables)",
    )
    parser.add_argument(
        "--top-p",
        type=real("above 0 and at most 1", lambda p: 0 < p <= 1),
        default=0.95,
        metavar="P",
        help="sample from the most likely tokens that add up to probability P (default 0.95)",
    )
    parser.add_argument(
        "--min-p",
        type=real("0 to 1", lambda p: 0 <= p <= 1),
        default=0.0,
        metavar="P",
        help="sample from tokens with at least P times the probability of the most likely one "
        "(default 0, off)",
    )
    parser.add_argument(
        "--repeat-penalty",
        type=real("above 0", lambda penalty: penalty > 0),
        default=1.0,
        metavar="X",
        help="divide positive logits of tokens that came before by X and multiply negative ones, "
        "over the prompt and the generated text (default 1, off)",
    )
    parser.add_argument(
        "--logit-bias",
        type=_bias,
        action="append",
        default=[],
        metavar="TOKEN=VALUE",
        help=f"add VALUE ({-MAX_BIAS:g} to {MAX_BIAS:g}) to the logit of the token with the id "
        "TOKEN; may be given several times",
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end the text before this one; may be given several times",
    )
    parser.add_argument(
        "--seed",
        type=whole(0),
        default=0,
        metavar="N",
        help="random seed for sampling (default 0)",
    )
    add_speculation(parser)
    add_place(parser, "rtl", "rtl, the simulated hardware")
    parser.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        help="compare every logit with the golden model (default: on simulated hardware only)",
    )


def _bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition("=")
    try:
        return int(token), float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be TOKEN=VALUE, a token id and a number, such as 42=-5, not {text!r}"
        ) from None


def _cycle_range(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    try:
        window = int(first or 0), int(last)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be FROM:TO in cycles, not {text!r}") from None
    if not 0 <= window[0] < window[1]:
        raise argparse.ArgumentTypeError(f"FROM must be below TO, not {text!r}")
    return window


def _on_simulator(args: argparse.Namespace) -> bool:
    return args.device == "rtl" or args.emulate is not None


def _checks(args: argparse.Namespace) -> bool:
    """True if logits are compared: what is simulated has the time."""
    return _on_simulator(args) if args.check is None else args.check


def _run(args: argparse.Namespace) -> int:
    check = _checks(args)
    if args.wave_cycles and not args.wave:
        raise LutraError("--wave-cycles needs --wave FILE")
    check_kv(args.kv, args.device, falls_back=True)
    wave_cycles = args.wave_cycles or (_WAVE_CYCLES if args.wave else None)
    sampling = _sampling(args)
    with StepProgress() as progress:
        llm = LLM(
            args.model,
            args.device,
            **rounding(args),
            **place(args),
            speculation=args.speculate,
            check=check,
            wave=args.wave,
            wave_cycles=wave_cycles,
            progress=progress,
            check_text=lambda tokenizer, context: check_room(
                len(tokenizer.encode(args.prompt)), args.n_predict, context
            ),
            # where nothing is packed, the text is refused before a simulator is built for it
            load=not _on_simulator(args),
        )
        prompt = args.prompt
        room = llm.context - len(llm.encode(prompt))
        n_predict = args.n_predict or min(_DEFAULT_TOKENS, room)
        stream = llm.stream(prompt, n_predict, sampling)
        if _on_simulator(args):
            llm.load()
    _print_notes(llm)
    if wave_cycles != args.wave_cycles:
        print(_WAVE_NOTE, file=sys.stderr)
    text, mismatch, interrupted = "", None, False
    finish_reason: FinishReason | None = None
    power = PowerMeter(llm.device)
    try:
        print(prompt, end="", flush=True)
        with power:
            for piece in stream:
                text += piece.text
                finish_reason = piece.finish_reason
                print(piece.text, end="", flush=True)
    except KeyboardInterrupt:
        interrupted = True
    except Mismatch as error:
        mismatch = error
    print("\n", flush=True)
    figures = _figures(llm, stream.stats, text, finish_reason, interrupted, power)
    if args.json:
        print(json.dumps(figures))
    else:
        _print_table(figures)
    if stream.stats.saturated:
        print(
            "warning: a value left its range: the text may suffer",
            file=sys.stderr,
        )
    llm.close()
    if args.wave:
        print(f"wrote {args.wave}", file=sys.stderr)
    if mismatch:
        return fail(str(mismatch))
    return 130 if interrupted else 0


def _print_notes(llm: LLM) -> None:
    """Print why a faster device is not used."""
    for note in llm.notes:
        print(f"note: {note}", file=sys.stderr)


def _sampling(args: argparse.Namespace) -> SamplingParams:
    return SamplingParams(
        temperature=args.temp,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repeat_penalty,
        logit_bias=dict(args.logit_bias),
        stop=args.stop,
        seed=args.seed,
    )


def add_chat(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``lutra chat``."""
    add_model(parser)
    add_json(parser)
    parser.add_argument("-sys", "--system", metavar="TEXT", help="system prompt")
    parser.add_argument(
        "-n",
        "--n-predict",
        type=whole(1),
        metavar="N",
        help="maximum number of tokens per answer (default: to the context's end)",
    )
    add_chat_template(parser)
    _add_generation(parser)
    parser.set_defaults(command=_chat)


def _chat(args: argparse.Namespace) -> int:
    check_kv(args.kv, args.device, falls_back=True)
    sampling = _sampling(args)
    template = _chat_template(args)
    with StepProgress() as progress:
        llm = LLM(
            args.model,
            args.device,
            **rounding(args),
            **place(args),
            speculation=args.speculate,
            check=_checks(args),
            progress=progress,
        )
    sampling.check_vocabulary(llm.packed.vocab_size)
    if template is not None:
        llm.set_chat_template(template)
    _print_notes(llm)
    talk = converse(llm, sampling, args.n_predict, args.system)
    if args.json:
        figures = {"device": llm.device.name, "model": llm.packed.name}
        figures |= {"interrupted": talk.interrupted, "finish_reason": talk.finish_reason}
        figures |= {"messages": talk.messages}
        print(json.dumps(figures))
    llm.close()
    return 130 if talk.interrupted else 0


def _chat_template(args: argparse.Namespace) -> str | None:
    """Text of ``--chat-template``.

    What does not work, or is missing, is refused before a model is quantised or a simulator built.
    """
    from lutra.text.chat_template import ChatTemplate

    path = find_model(args.model)
    tokenizer, given = Tokenizer.open(path), given_chat_template(args)
    source = tokenizer.chat_template if given is None else given
    if source is None:
        command = f"lutra run -m {shlex.quote(args.model)} -dev auto -p 'Once upon a time'"
        raise LutraError(
            f"the model {path.name} has no chat template: it was not trained to chat, and "
            f"continues texts ({command}); to chat, give -m an instruction-tuned model, or "
            "--chat-template FILE"
        )
    template = ChatTemplate.of_model(path.name, source, tokenizer.special_tokens)
    system = [{"role": "system", "content": args.system}] if args.system else []
    template.render([*system, {"role": "user", "content": "Hello"}])
    return given


def _figures(
    llm: LLM,
    stats: RunStats,
    text: str,
    finish_reason: FinishReason | None,
    interrupted: bool,
    power: PowerMeter,
) -> dict[str, object]:
    facts = llm.device.facts()
    per_token, clock_hz = stats.decode_cycles_per_token, facts.get("target_clock_hz")
    simulated = is_simulated(llm.device)
    modelled = None
    if simulated and per_token and isinstance(clock_hz, int):
        modelled = clock_hz / per_token
    cycles = "simulated" if simulated else "measured"
    # an interrupt resets the device, and its counters with it
    counters = dict(llm.device.counters()) if stats.tokens and not interrupted else {}
    cycles_per_s = stats.simulated_cycles_per_s if simulated else None
    return {
        "device": llm.device.name,
        "plan": facts.get("plan"),
        "emulated": facts.get("emulated"),
        "config": facts.get("config"),
        "engine": facts.get("engine"),
        "format": llm.packed.format,
        "group": llm.packed.group,
        "kv_bits": llm.packed.kv,
        "model": llm.packed.name,
        "text": text,
        "finish_reason": finish_reason,
        "interrupted": interrupted,
        "prompt_tokens": stats.prompt_tokens,
        "reused_tokens": stats.reused_tokens,
        "computed_tokens": stats.computed_tokens,
        "generated_tokens": stats.generated_tokens,
        "drafted_tokens": stats.drafted_tokens,
        "accepted_tokens": stats.accepted_tokens,
        "prefill_cycles": stats.prefill_cycles,
        "decode_cycles_per_token": _round(per_token, 1),
        "simulated_cycles_per_s": _round(cycles_per_s, 0),
        "prefill_tokens_per_s": _round(stats.prefill_tokens_per_s, 2),
        "decode_tokens_per_s": _round(stats.decode_tokens_per_s, 2),
        "predicted_s": _round(stats.predicted_s, 4),
        "prediction_error": _round(stats.prediction_error, 4),
        "modelled_decode_tokens_per_s": _round(modelled, 0),
        "target_clock_hz": clock_hz,
        "power_w": {name: round(watts, 3) for name, watts in power.watts.items()},
        "power_samples": power.n_samples,
        "kinds": {
            name: kind
            for name, kind, value in (
                ("prefill_cycles", cycles, stats.prefill_cycles),
                ("decode_cycles_per_token", cycles, per_token),
                ("simulated_cycles_per_s", "measured", cycles_per_s),
                ("prefill_tokens_per_s", "measured", stats.prefill_tokens_per_s),
                ("decode_tokens_per_s", "measured", stats.decode_tokens_per_s),
                ("modelled_decode_tokens_per_s", "modelled", modelled),
                ("power_w", "measured", power.watts or None),
                ("last_pass_counters", cycles, counters or None),
            )
            if value is not None
        },
        "two_stage_head": _two_stage_head(stats),
        "bit_exact": stats.bit_exact,
        "saturated": stats.saturated,
        "fingerprint": facts.get("fingerprint"),
        "program_fingerprint": facts.get("program_fingerprint"),
        "tokens": stats.tokens,
        "last_pass_counters": counters,
    }


def _two_stage_head(stats: RunStats) -> dict[str, float] | None:
    """Tokens whose best successors were found in two stages, the share of the head's rows that were
    read whole for them, and for how many all were; None if there are none."""
    head = stats.head
    if not head.tokens:
        return None
    return {
        "tokens": head.tokens,
        "rescored_share": round(head.rescored / head.rows, 6),
        "fallbacks": head.fallbacks,
    }


def _round(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _print_table(figures: Mapping[str, Any]) -> None:
    def number(key: str, unit: str = "") -> str:
        value = figures[key]
        if value is None:
            return "-"
        return f"{value:,}{unit}" if isinstance(value, int) else f"{value:,.1f}{unit}"

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    for key in ("device", "plan", "emulated", "config", "engine", "model", "format"):
        if figures[key] is not None:
            title = {"config": "configuration", "emulated": "emulated board"}.get(key, key)
            table.add_row(title, str(figures[key]), "")
    table.add_row("prompt tokens", number("prompt_tokens"), "")
    if figures["interrupted"]:
        table.add_row("prompt tokens computed", number("computed_tokens"), "")
    table.add_row("generated tokens", number("generated_tokens"), "")
    if figures["drafted_tokens"]:
        guessed = f"{figures['accepted_tokens']:,} of {figures['drafted_tokens']:,}"
        table.add_row("guessed tokens that were right", guessed, "")
    clock_hz = figures["target_clock_hz"]
    simulated = figures["device"] == "rtl" or figures["emulated"] is not None
    if simulated:
        table.add_row("prefill cycles", number("prefill_cycles"), "simulated")
        table.add_row("cycles per decoded token", number("decode_cycles_per_token"), "simulated")
        table.add_row(
            "simulated cycles per second", number("simulated_cycles_per_s"), "measured here"
        )
    table.add_row("prefill tokens per second", number("prefill_tokens_per_s"), "measured here")
    table.add_row("decode tokens per second", number("decode_tokens_per_s"), "measured here")
    if simulated and isinstance(clock_hz, int):
        table.add_row(
            f"decode tokens per second at {round(clock_hz / 1e6, 1):g} MHz",
            number("modelled_decode_tokens_per_s"),
            "modelled",
        )
    if (error := figures["prediction_error"]) is not None:
        predicted = f"{figures['predicted_s']:.3f} s, {error:+.1%}"
        table.add_row("all passes as planned, beside what they took", predicted, "predicted")
    for title, value, kind in _hardware_rows(figures):
        table.add_row(title, value, kind)
    exact = (
        "not checked" if figures["bit_exact"] is None else "yes" if figures["bit_exact"] else "NO"
    )
    table.add_row("bit-exact with the golden model", exact, "")
    if figures["interrupted"]:
        table.add_row("interrupted", "yes", "")
    Console(highlight=False, markup=False).print(table)


def _hardware_rows(figures: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Counters of the last pass and power of the board, in words, each with its kind."""
    counters, kinds = figures["last_pass_counters"], figures["kinds"]
    if (activity := Activity.of(counters)) is not None:
        kind = kinds["last_pass_counters"]
        yield "cycles of the last pass", f"{activity.cycles:,}", kind
        for each in activity.units:
            title = f"  {each.unit} unit busy, of it waiting"
            yield title, f"{each.busy:,}, {each.waiting:,}", kind
        title = "  beats of weights and data read, written"
        yield title, ", ".join(f"{each:,}" for each in activity.beats.values()), kind
    for name, watts in figures["power_w"].items():
        samples = figures["power_samples"]
        yield f"power, {name}", f"{watts:.2f} W", f"measured by the board, {samples} samples"
