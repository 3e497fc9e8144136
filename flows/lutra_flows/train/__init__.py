"""The training recipe of the shipped model: quantisation-aware BitNet b1.58 on a plain text."""

__all__: list[str] = []
