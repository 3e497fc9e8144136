// Eight memories of 32 words of two bits, each with a reader; all are written where H reads.
module RAM32M16 (
    input WCLK, WE,
    input [4:0] ADDRA, ADDRB, ADDRC, ADDRD, ADDRE, ADDRF, ADDRG, ADDRH,
    input [1:0] DIA, DIB, DIC, DID, DIE, DIF, DIG, DIH,
    output [1:0] DOA, DOB, DOC, DOD, DOE, DOF, DOG, DOH
);
    reg [63:0] a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0;
    assign DOA = a[{ADDRA, 1'b0} +: 2];
    assign DOB = b[{ADDRB, 1'b0} +: 2];
    assign DOC = c[{ADDRC, 1'b0} +: 2];
    assign DOD = d[{ADDRD, 1'b0} +: 2];
    assign DOE = e[{ADDRE, 1'b0} +: 2];
    assign DOF = f[{ADDRF, 1'b0} +: 2];
    assign DOG = g[{ADDRG, 1'b0} +: 2];
    assign DOH = h[{ADDRH, 1'b0} +: 2];
    always @(posedge WCLK)
        if (WE) begin
            a[{ADDRH, 1'b0} +: 2] <= DIA;
            b[{ADDRH, 1'b0} +: 2] <= DIB;
            c[{ADDRH, 1'b0} +: 2] <= DIC;
            d[{ADDRH, 1'b0} +: 2] <= DID;
            e[{ADDRH, 1'b0} +: 2] <= DIE;
            f[{ADDRH, 1'b0} +: 2] <= DIF;
            g[{ADDRH, 1'b0} +: 2] <= DIG;
            h[{ADDRH, 1'b0} +: 2] <= DIH;
        end
endmodule
