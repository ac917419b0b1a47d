"""A tiny llama-shaped model with random weights, written as GGUF: a real engine to try things with, 8 MB, no download.

4 layers, hidden 256, vocabulary 2048 (bytes and letter pairs), context 4096. Its words mean nothing; its timing and its queue are real.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from windtunnel.errors import ExtraMissingError

VERSION = 1  # part of the file's name: a change of the model must not meet an old cache
LAYERS, HIDDEN, FFN, HEADS, KV_HEADS, VOCAB, CONTEXT = 4, 256, 768, 8, 4, 2048, 4096
_CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def cache_home() -> Path:
    """`$XDG_CACHE_HOME/windtunnel`, by default under `~/.cache`."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if root.startswith("/") else Path.home() / ".cache") / "windtunnel"


def tiny_model(path: Path | None = None, *, seed: int = 0) -> Path:
    """The model's file, written at the first call. Equal seeds give equal bytes. Raises ExtraMissingError."""
    path = path or cache_home() / f"tiny-v{VERSION}-seed{seed}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")  # a reader never sees a half-written model
        try:
            write_model(part, seed)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    return path


def write_model(path: Path, seed: int) -> None:
    """Write the GGUF file. Raises ExtraMissingError if the package gguf is missing."""
    try:
        import gguf
    except ImportError:
        raise ExtraMissingError("the tiny model", "engine-llamacpp") from None
    writer = gguf.GGUFWriter(str(path), "llama")
    _shape(writer, gguf)
    _vocabulary(writer, gguf)
    _weights(writer, np.random.default_rng(seed))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _shape(writer: Any, gguf: Any) -> None:
    writer.add_name("windtunnel-tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCAB)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def _vocabulary(writer: Any, gguf: Any) -> None:
    """A byte-level vocabulary: every text has tokens, and no text needs an unknown one."""
    alphabet = _byte_letters()
    tokens = ["<unk>", "<s>", "</s>", *alphabet]
    known, merges = set(tokens), []
    letters = [c for c in alphabet if c.isalpha()][:52]
    for pair in ((a, b) for a in letters for b in letters):
        if len(tokens) < VOCAB and "".join(pair) not in known:
            tokens.append("".join(pair))
            known.add("".join(pair))
            merges.append(" ".join(pair))
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds + [gguf.TokenType.NORMAL] * (len(tokens) - len(kinds)))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_chat_template(_CHAT)


def _byte_letters() -> list[str]:
    """The GPT-2 letter of each byte: printable bytes stand for themselves, the others for letters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + n) for n in range(len(others))]


def _weights(writer: Any, rng: np.random.Generator) -> None:
    def random(*shape: int) -> Any:
        return (rng.standard_normal(shape) * 0.05).astype(np.float16)

    ones = np.ones(HIDDEN, np.float32)
    kv = KV_HEADS * HIDDEN // HEADS
    writer.add_tensor("token_embd.weight", random(VOCAB, HIDDEN))
    writer.add_tensor("output_norm.weight", ones)
    writer.add_tensor("output.weight", random(VOCAB, HIDDEN))
    matrices = {"attn_q": (HIDDEN, HIDDEN), "attn_k": (kv, HIDDEN), "attn_v": (kv, HIDDEN), "attn_output": (HIDDEN, HIDDEN),
                "ffn_gate": (FFN, HIDDEN), "ffn_up": (FFN, HIDDEN), "ffn_down": (HIDDEN, FFN)}
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", ones)
        for name, shape in matrices.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", random(*shape))
