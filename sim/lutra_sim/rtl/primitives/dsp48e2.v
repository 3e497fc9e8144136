// The slice as an adder of 48 bits alone, P = A:B + C or A:B + C + PCIN, with one register before
// and one behind it that run always. Written from the equations of UG579; it has not met the
// vendor's model. What else a slice can do is refused: parameters when the design is read, inputs
// when it runs.
module DSP48E2 #(
    // defaults are the vendor's
    parameter USE_MULT = "MULTIPLY",
    parameter USE_SIMD = "ONE48",
    parameter AREG = 1,
    parameter ACASCREG = 1,
    parameter BREG = 1,
    parameter BCASCREG = 1,
    parameter CREG = 1,
    parameter PREG = 1,
    parameter MREG = 1,
    parameter OPMODEREG = 1,
    parameter ALUMODEREG = 1,
    parameter CARRYINREG = 1,
    parameter CARRYINSELREG = 1,
    parameter INMODEREG = 1
) (
    input CLK,
    input [29:0] A,
    input [17:0] B,
    input [47:0] C, PCIN,
    input [8:0] OPMODE,
    input [3:0] ALUMODE,
    input [4:0] INMODE,
    input CARRYIN,
    input [2:0] CARRYINSEL,
    input CEA1, CEA2, CEB1, CEB2, CEC, CEP, RSTA, RSTB, RSTC, RSTP,
    output [47:0] P, PCOUT
);
    localparam ADDER = USE_MULT == "NONE" && MREG == 0 && USE_SIMD == "ONE48";
    localparam REGISTERS = AREG == 1 && ACASCREG == 1 && BREG == 1 && BCASCREG == 1 && CREG == 1
        && PREG == 1;
    localparam STATIC = OPMODEREG == 0 && ALUMODEREG == 0 && CARRYINREG == 0
        && CARRYINSELREG == 0 && INMODEREG == 0;
    generate
        if (!ADDER || !REGISTERS || !STATIC)
            twin_of_DSP48E2_has_no_such_parameters refused();
    endgenerate

    wire cascaded = OPMODE == 9'b00_001_11_11;
    wire modes = (cascaded || OPMODE == 9'b00_000_11_11) && ALUMODE == 0 && INMODE == 0
        && CARRYIN == 0 && CARRYINSEL == 0;
    wire runs = CEA2 && CEB2 && CEC && CEP && !RSTA && !RSTB && !RSTC && !RSTP;

    reg [47:0] ab = 0, c = 0, p = 0;
    always @(posedge CLK) begin
        ab <= {A, B};
        c <= C;
        p <= ab + c + (cascaded ? PCIN : 48'd0);
`ifdef FORMAL
        assert (modes && runs);
`else
        if (!modes || !runs)
            $fatal(1, "the twin of DSP48E2 has no such OPMODE, ALUMODE, carry, enable or reset");
`endif
    end
    assign P = p;
    assign PCOUT = p;
endmodule
