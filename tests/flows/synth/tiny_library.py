"""A standard-cell library of five cells, whose areas are powers of ten; a gate takes 500 ps."""

__all__ = ["AREAS", "FLIP_FLOP", "GATES", "LIBRARY"]

AREAS = {"INV": 1, "BUF": 10, "NAND2": 10, "NOR2": 100, "DFF": 1000}

_HEADER = """\
library (tiny_{name}) {{
  time_unit : "1ns";
  capacitive_load_unit (1, ff);
  delay_model : table_lookup;
  lu_table_template (t) {{
    variable_1 : input_net_transition;
    variable_2 : total_output_net_capacitance;
    index_1 ("0.01, 1");
    index_2 ("0.01, 100");
  }}
"""
_TIMING = """\
      timing () {{
        related_pin : "{pin}";
        timing_sense : {sense};
        cell_rise (t) {{ values ("0.5, 0.5", "0.5, 0.5"); }}
        cell_fall (t) {{ values ("0.5, 0.5", "0.5, 0.5"); }}
        rise_transition (t) {{ values ("0.1, 0.1", "0.1, 0.1"); }}
        fall_transition (t) {{ values ("0.1, 0.1", "0.1, 0.1"); }}
      }}
"""


def _gate(name: str, pins: str, function: str) -> str:
    sense = "negative_unate" if function.startswith("!") else "positive_unate"
    inputs = "".join(f"    pin ({pin}) {{ direction : input; capacitance : 1; }}\n" for pin in pins)
    timing = "".join(_TIMING.format(pin=pin, sense=sense) for pin in pins)
    output = f'    pin (Y) {{\n      direction : output;\n      function : "{function}";\n{timing}'
    return f"  cell ({name}) {{\n    area : {AREAS[name]};\n{inputs}{output}    }}\n  }}\n"


_GATE_CELLS = (
    _gate("INV", "A", "!A")
    + _gate("BUF", "A", "A")
    + _gate("NAND2", "AB", "!(A&B)")
    + _gate("NOR2", "AB", "!(A|B)")
)
_FLIP_FLOP_CELL = f"""\
  cell (DFF) {{
    area : {AREAS["DFF"]};
    ff (IQ, IQN) {{
      clocked_on : "C";
      next_state : "D";
    }}
    pin (C) {{ direction : input; clock : true; capacitance : 1; }}
    pin (D) {{ direction : input; capacitance : 1; }}
    pin (Q) {{ direction : output; function : "IQ"; }}
  }}
"""
GATES = _HEADER.format(name="gates") + _GATE_CELLS + "}\n"
FLIP_FLOP = _HEADER.format(name="flip_flops") + _FLIP_FLOP_CELL + "}\n"
LIBRARY = _HEADER.format(name="all") + _GATE_CELLS + _FLIP_FLOP_CELL + "}\n"
