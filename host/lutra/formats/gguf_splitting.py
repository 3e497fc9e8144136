"""Ways to split text before byte pairs are merged, by ``tokenizer.ggml.pre``.

Names are those that llama.cpp's converter gives; patterns are those of the models' own
``tokenizer.json``, whose meaning the library ``tokenizers`` defines.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers

__all__ = ["PRE_TOKENIZERS", "Splitting"]

_Step = pre_tokenizers.PreTokenizer


@dataclass(frozen=True)
class Splitting:
    """A way to split text; with ``whole``, words that are tokens are kept without merging."""

    make: Callable[[], _Step]
    whole: bool = False
    normal_form: bool = False
    add_bos: bool = False


_SHORT = "'s|'t|'re|'ve|'m|'ll|'d"
_SUFFIX = f"(?i:{_SHORT})"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_ASCII = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
_EAST_ASIAN = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_HAN_AND_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293"
    "\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c"
    "\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5"
    "\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59"
    "\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc"
    "\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107"
    "\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee"
    "\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e"
    "\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
"""Letters of scripts with two cases, as DeepSeek's first tokenizer lists them."""


def _words(
    digits: str,
    *,
    letters: str = r"\p{L}",
    marks: str = "",
    first: str = _SUFFIX + "|",
    after: str = r"+[\r\n]*",
    blanks: str = _BLANKS,
) -> str:
    """Contractions, words, numbers of limited length, punctuation, white space."""
    return (
        rf"{first}[^\r\n\p{{L}}\p{{N}}]?[{letters}]+|{digits}"
        rf"| ?[^\s\p{{L}}{marks}\p{{N}}]{after}|{blanks}"
    )


def _by_case(digits: str, suffix: str, after: str = r"[\r\n/]*", but: str = "") -> str:
    """Words that end where a capital follows a small letter; ``but`` takes letters away."""
    lead, upper, lower = r"[^\r\n\p{L}\p{N}]?", f"[{_UPPER}{but}]", f"[{_LOWER}{but}]"
    return (
        f"{lead}{upper}*{lower}+{suffix}|{lead}{upper}+{lower}*{suffix}|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+{after}|{_BLANKS}"
    )


def _symbols(after: str, blanks: str) -> str:
    """DeepSeek's words: a sign takes the letters behind it along."""
    return (
        rf"{_ASCII}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
        rf"| ?[\p{{P}}\p{{S}}]+{after}|{blanks}"
    )


def _split(*patterns: str) -> Callable[[], _Step]:
    """Splits around what each pattern finds, one after another."""

    def make() -> _Step:
        steps: list[_Step] = [pre_tokenizers.Split(Regex(each), "isolated") for each in patterns]
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*steps, last])

    return make


def _gpt2() -> _Step:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _single_digits() -> _Step:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _falcon() -> _Step:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation("contiguous"),
            _gpt2(),
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
        ]
    )


_THREE = r"\p{N}{1,3}"
_ENDS, _NOT_HAN = r"[\r\n]*", r"&&[^\p{Han}]"
_LLAMA3 = _words(_THREE)
_QWEN2 = _words(r"\p{N}")
_DEEPSEEK3 = (_THREE, _EAST_ASIAN, _symbols(r"[\r\n]*", _BLANKS))
_GPT4O = _by_case(_THREE, f"{_SUFFIX}?")
_TEKKEN = _by_case(r"\p{N}", "")
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_MARKED = _words(r"\p{N}", letters=r"\p{L}\p{M}", marks=r"\p{M}")
_CASCADE = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4, "1,2"))
_GPT2_WORDS = rf"{_SHORT}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
_CHAMELEON = (
    "<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", r"([\t\n]|    |  )", r"\p{N}",
    r"[\p{P}!-/:-@\[-`{-~]", _GPT2_WORDS,
)  # fmt: skip
_DEEPSEEK = (
    r"[\r\n]", rf"\s?[{_CASED}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", r"\s+$",
    _HAN_AND_HANGUL, r"\p{N}+",
)  # fmt: skip
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_AND_HANGUL, r"\p{N}")
_YOUTU = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c"
    f"\u3001-\u303f\ufe30-\ufe4f]+|[\u3105-\u312f]+|{_EAST_ASIAN}"
)
_BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_SEED_CODER = _words(r"\p{N}", after=r"+").replace(r"[^\s\p{L}\p{N}]+", r"[^\s\p{L}\p{N}\r\n]+")
_EXAONE = (
    _SUFFIX + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_KIMI = rf"[\p{{Han}}]+|{_by_case(_THREE, _SUFFIX + '?', _ENDS, _NOT_HAN)}"


def _named(names: str, splitting: Splitting) -> dict[str, Splitting]:
    return dict.fromkeys(names.split(), splitting)


PRE_TOKENIZERS: Mapping[str, Splitting] = {
    **_named(
        "default gpt-2 phi-2 gigachat a.x-4.0 mellum exaone4 jais trillion granite-docling",
        Splitting(_gpt2),
    ),
    # GPT-NeoX's, which has a normal form
    **_named("olmo mpt", Splitting(_gpt2, normal_form=True)),
    **_named(
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 falcon_e falcon-e pixtral midm-2.0 lfm2",
        Splitting(_split(_LLAMA3), whole=True, add_bos=True),
    ),
    **_named("smaug-bpe dbrx glm4 chatglm-bpe", Splitting(_split(_LLAMA3))),
    **_named("qwen2 deepseek-r1-qwen f2llmv2", Splitting(_split(_QWEN2), normal_form=True)),
    **_named("megrez kormo stablelm2 hunyuan solar-open grok-2", Splitting(_split(_QWEN2))),
    "qwen35": Splitting(_split(_MARKED), normal_form=True),
    **_named(
        "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
        Splitting(_single_digits),
    ),
    "tekken": Splitting(_split(_TEKKEN), whole=True, add_bos=True),
    **_named("gpt-4o llama4 kanana2 talkie minimax-m2", Splitting(_split(_GPT4O))),
    "deepseek-llm": Splitting(_split(*_DEEPSEEK)),
    "deepseek-coder": Splitting(_split(*_DEEPSEEK_CODER)),
    **_named("deepseek-v3 hunyuan-dense joyai-llm hy_v4", Splitting(_split(*_DEEPSEEK3))),
    "spark2_5": Splitting(
        _split(_THREE, _EAST_ASIAN, _symbols("", r"[\r\n]|\s+(?!\S)|\s+"), r"\p{N}")
    ),
    "youtu": Splitting(_split(_YOUTU, _by_case(r"\p{N}", f"{_SUFFIX}?")), whole=True),
    "falcon": Splitting(_falcon),
    **_named("bloom poro-chat gpt3-finnish", Splitting(_split(_BLOOM))),
    "viking": Splitting(_split(_BLOOM, r"\p{N}")),
    "jais-2": Splitting(_split(_words(_THREE, blanks=rf"\s*[\r\n]+|{_CASCADE}|\s"))),
    "chameleon": Splitting(_split(*_CHAMELEON), add_bos=True),
    **_named("tiny_aya cohere2moe", Splitting(_split(r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O))),
    "kimi-k2": Splitting(_split(_KIMI)),
    "superbpe": Splitting(_split(r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    **_named("bailingmoe bailingmoe2 llada-moe", Splitting(_split(_BAILING))),
    "seed-coder": Splitting(_split(_SEED_CODER)),
    "ufakzeka": Splitting(_split(_words(r"\p{N}", first=""))),
    "laguna": Splitting(_split(r"[^\n]+|[\n]+", _QWEN2)),
    "exaone-moe": Splitting(_split(_EXAONE)),
    "minicpm5": Splitting(_split(_THREE, _words(r"\p{N}+")), whole=True),
}
"""Ways to split text, by ``tokenizer.ggml.pre``; as the models' own ``tokenizer.json`` have it."""
