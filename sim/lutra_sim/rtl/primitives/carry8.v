// Eight positions of a carry chain: where S is 1 the carry goes on, elsewhere DI is the next one.
module CARRY8 #(
    parameter CARRY_TYPE = "SINGLE_CY8"
) (
    input CI, CI_TOP,
    input [7:0] DI, S,
    output [7:0] CO, O
);
    generate
        if (CARRY_TYPE != "SINGLE_CY8")
            twin_of_CARRY8_has_no_such_CARRY_TYPE refused();
    endgenerate
    // operands that differ where S is 1, and elsewhere are both DI: their sum has these carries
    wire [7:0] both = DI & ~S;
    wire [8:0] sum = {1'b0, both} + {1'b0, both | S} + {8'd0, CI};
    assign O = sum[7:0];
    assign CO = {sum[8], sum[7:1] ^ S[7:1]};
endmodule
