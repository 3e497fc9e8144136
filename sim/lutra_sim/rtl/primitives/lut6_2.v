// Two functions of five inputs, or one of six with its lower half beside it.
module LUT6_2 #(
    parameter [63:0] INIT = 64'd0
) (
    input I0, I1, I2, I3, I4, I5,
    output O5, O6
);
    wire [4:0] index = {I4, I3, I2, I1, I0};
    assign O5 = INIT[{1'b0, index}];
    assign O6 = INIT[{I5, index}];
endmodule
