"""The model cards of the shipped models: facts from parameters, figures from measurement."""

from __future__ import annotations

from textwrap import fill

import torch

from lutra_flows.train.evaluate import Perplexity
from lutra_flows.train.llama import LlamaParams
from lutra_flows.train.train import TrainParams

__all__ = ["model_card"]

_TRAIN_BOOKS = (
    "Carroll, Alice's Adventures in Wonderland",
    "Andersen, Fairy Tales",
    "Jacobs, English Fairy Tales; More English Fairy Tales; Indian Fairy Tales",
    "Grimm, Fairy Tales; Household Tales (translated by Margaret Hunt)",
    "Ozaki, Japanese Fairy Tales",
    "Kipling, Just So Stories; The Jungle Book",
    "Barrie, Peter Pan",
    "Collodi, The Adventures of Pinocchio (translated by Carol Della Chiesa)",
    "Lang (editor), the Blue, Brown, Crimson, Green, Lilac and Olive Fairy Books",
    "Lang (editor), the Orange, Pink, Red, Violet and Yellow Fairy Books",
    "Wilde, The Happy Prince and Other Tales",
    "Burnett, The Secret Garden",
    "Grahame, The Wind in the Willows",
    "Baum, The Wonderful Wizard of Oz",
)

_CARD = """\
---
license: apache-2.0
language: en
pipeline_tag: text-generation
tags: [{tags}]
---

# {title}

{what}

{sizes}

{layout}

## Quality

| figure | value | kind |
|---|---|---|
| perplexity, validation text | {ppl:.3f} +/- {stderr:.3f} | measured |
| bits per character | {bits:.4f} | measured |

Measured on this folder's files in float32 with torch, over the whole of `valid.txt`
({tokens} tokens, {chars} characters, a book the model has not seen) in non-overlapping windows of
{context} tokens, each beginning with `<|bos|>`:

    python -m lutra_flows.train.evaluate --model DIR --text valid.txt

A sample (temperature 0.7, seed {seed}; the prompt is `<|bos|>` and the first words):

{sample}

## Use and limits

Meant for demonstrations, tests and benchmarks of low-bit inference. Start a prompt with `<|bos|>`;
a story ends with `<|eos|>`. The context is {context} tokens. It writes English in the manner of its
books, loses the thread after a few sentences, knows no facts and follows no instructions. The books
are of their time: what they say of peoples, of women and of violence is in the model too.

## Training data

Public-domain books (in the United States) from Project Gutenberg, by way of the GITenberg
repositories; paragraphs unwrapped, typography made ASCII, licence texts and transcribers' notes
removed. Training text:

{books}

Validation text: Lang (editor), The Grey Fairy Book. The model is not a Project Gutenberg product
and is not endorsed by it.

## Training

{training}

| what | value |
|---|---|
| steps | {steps}, each {batch} windows of {context} tokens; {total:.1f} million tokens in all |
| optimiser | AdamW, weight decay {decay:g}, gradients clipped at {clip:g} |
| learning rate | up to {lr:g} in {warmup} steps, linearly to {share:.0%} at {stage}, then to 0 |
| dropout | {dropout:g} on block outputs |
| seed | {seed} |
| arithmetic | {precision} matmuls, torch {torch} on the CPU, `torch.compile` |
| wall time (measured) | {minutes:.0f} minutes, {threads} threads of a shared machine |

    python -m lutra_flows.train --model {name} --data DIR --out DIR --run DIR --compile --card

{again}

## Licence

Weights and tokenizer: Apache-2.0.
"""


_TEXTS = {
    "tales": {
        "title": "Tales",
        "tags": "bitnet, ternary, 1.58-bit",
        "what": """\
A BitNet b1.58 language model of {millions:.1f} million parameters that tells fairy tales. It is
small enough to run on a simulated accelerator and is laid out exactly as
microsoft/bitnet-b1.58-2B-4T, so whatever loads that checkpoint (Lutra, Hugging Face transformers)
loads this one.""",
        "layout": """\
Linear layers are ternary with one scale each, packed four to a byte; activations are int8 per
token; embedding (tied to the head) and norms are bfloat16.""",
        "training": """\
Quantisation-aware from the first step: weights are made ternary by the mean of their absolute
values and activations rounded to int8 in every forward pass; gradients pass straight through.""",
        "again": """\
A new run gives a model of the same quality, not these bytes: the shipped run was resumed once and
added up the embedding's gradient in no fixed order, which the recipe now forbids; and another
processor, compiler or number of threads rounds sums differently.""",
    },
    "tales-llama": {
        "title": "Tales, Llama architecture",
        "tags": "llama",
        "what": """\
A Llama language model of {millions:.1f} million parameters that tells fairy tales. It is small
enough to run on a simulated accelerator, and in floating point: what quantises it (Lutra, at 1 to 8
bits) has the whole weights to start from. Whatever loads a ``LlamaForCausalLM`` loads this one.""",
        "layout": "All weights are bfloat16; the head is the embedding.",
        "training": "In floating point, by the recipe of the tales model.",
        "again": """\
The same machine, torch and number of threads give these weights again; another processor, compiler
or number of threads rounds sums differently.""",
    },
}


def _n_parameters(params: TrainParams) -> int:
    p = params.model
    q, kv = p.num_attention_heads * p.head_dim, p.num_key_value_heads * p.head_dim
    attention = p.hidden_size * (2 * q + 2 * kv)
    sub_norms = 0 if isinstance(p, LlamaParams) else q + p.intermediate_size
    norms = 2 * p.hidden_size + sub_norms
    layer = attention + 3 * p.hidden_size * p.intermediate_size + norms
    return p.vocab_size * p.hidden_size + p.num_hidden_layers * layer + p.hidden_size


def _sizes(params: TrainParams) -> str:
    names = {
        "hidden_size": "hidden",
        "intermediate_size": "intermediate",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "num_key_value_heads": "KV heads",
        "head_dim": "head size",
        "vocab_size": "vocabulary",
        "max_position_embeddings": "context",
    }
    values = [str(getattr(params.model, name)) for name in names]
    rows = [names.values(), ["---"] * len(names), values]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def model_card(
    params: TrainParams, measured: Perplexity, sample: str, *, seconds: float, threads: int
) -> str:
    """Render ``README.md`` of a shipped model."""
    name = "tales-llama" if isinstance(params.model, LlamaParams) else "tales"
    millions = _n_parameters(params) / 1e6
    texts = {key: text.format(millions=millions) for key, text in _TEXTS[name].items()}
    paragraphs = [
        fill(p, 96, initial_indent="> ", subsequent_indent="> ") for p in sample.split("\n")
    ]
    return _CARD.format(
        batch=params.batch_size,
        bits=measured.bits_per_char,
        books="\n".join(f"- {book}" for book in _TRAIN_BOOKS),
        chars=measured.n_chars,
        clip=params.max_grad_norm,
        context=params.model.max_position_embeddings,
        decay=params.weight_decay,
        dropout=params.dropout,
        lr=params.peak_learning_rate,
        name=name,
        minutes=seconds / 60,
        ppl=measured.perplexity,
        precision="bfloat16" if params.bfloat16 else "float32",
        sample="\n>\n".join(paragraphs),
        seed=params.seed,
        share=params.stage_share,
        sizes=_sizes(params),
        stage=params.stage_step,
        stderr=measured.stderr,
        steps=params.n_steps,
        threads=threads,
        tokens=measured.n_tokens,
        torch=torch.__version__.split("+")[0],
        total=params.n_steps * params.tokens_per_step / 1e6,
        warmup=params.warmup_steps,
        **texts,
    )
