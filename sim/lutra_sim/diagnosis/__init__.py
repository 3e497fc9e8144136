"""Diagnosis of the RTL: its internal streams compared with what the interpreter expects."""
