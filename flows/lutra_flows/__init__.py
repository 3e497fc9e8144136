"""Toolchains and offline flows: synthesis, boards, reports, model training."""

__all__: list[str] = []
