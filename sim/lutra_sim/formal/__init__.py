"""Proofs about blocks by model checking: SymbiYosys over the RTL that is also synthesised."""
