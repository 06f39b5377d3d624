`default_nettype none

module $MODULE (
    input wire clk,
    input wire rst,
    input wire start,
    input wire [$LAST_PHASE:0] phases,
    output wire busy,
    input wire host_select,
    input wire host_write,
    input wire [$LAST_ADDRESS:0] host_address,
    input wire signed [$LAST_HOST:0] host_in,
    output wire signed [$LAST_HOST:0] host_out
);

$LOCALPARAMS
  localparam signed [WIDTH - 1:0] UNITY = 1;
  localparam $KINDS;
  localparam $OPERANDS;
  localparam IDLE = 0, CLEAR = 1, BEGIN = 2, ISSUE = 3, FINISH = 4;

  reg signed [STATE - 1:0] states [0:STATES - 1];
  reg signed [ACCUMULATOR - 1:0] accumulators [0:ACCUMULATORS - 1];
  reg signed [PARAMETER - 1:0] parameters [0:PARAMETERS - 1];
  reg signed [STATE - 1:0] tables [0:TABLES - 1];
  reg [SLOT - 1:0] winners [0:WINNERS - 1];
  // Nothing there, address of the state, address of the other operand or 1 for a new round, slot.
  reg [2 * ADDRESS + SLOT:0] lists [0:LISTS - 1];
  initial begin
$LOADS
  end

  // To the right to the nearest, ties upwards; to the left where k is negative.
  function automatic signed [WIDTH - 1:0] shr(input signed [WIDTH - 1:0] v, input signed [7:0] k);
    shr = k > 0 ? (v + (UNITY <<< (k - 1))) >>> k : v <<< -k;
  endfunction

  // To the right, downwards.
  function automatic signed [WIDTH - 1:0] floored(input signed [WIDTH - 1:0] v, input signed [7:0] k);
    floored = k >= 0 ? v >>> k : v <<< -k;
  endfunction

  function automatic signed [WIDTH - 1:0] sat(input signed [WIDTH - 1:0] v, input [7:0] bits);
    reg signed [WIDTH - 1:0] top;
    begin
      top = (UNITY <<< (bits - 1)) - UNITY;
      sat = v > top ? top : v < -top - UNITY ? -top - UNITY : v;
    end
  endfunction

  // The passes of a tick: one for each population and each parameter that learns, then one to latch each integrator.
  reg [15:0] pass;
$PASS_FIELDS
  always @* begin
    $PASS_NOTHING
    case (pass)
$PASS_ROM
    endcase
  end

  // The steps for each unit of a pass: a sum of products each.
  reg [15:0] step;
$STEP_FIELDS
  always @* begin
    $STEP_NOTHING
    case (step)
$STEP_ROM
    endcase
  end

  // Counters.
  reg [2:0] doing;
  reg [3:0] left;
  reg [$LAST_PHASE:0] during;
  reg [ADDRESS - 1:0] row, column, slot, unit, at, cleared;
  wire last_slot = slot == slots - 1;
  wire last_column = column == columns - 1;
  wire last_row = row == rows - 1;
  wire last_pass = pass == PASSES - 1;
  assign busy = doing != IDLE;
  always @(posedge clk)
    if (rst) begin
      doing <= CLEAR;
      cleared <= 0;
      pass <= 0;
      step <= 0;
    end else
      case (doing)
        CLEAR: begin
          cleared <= cleared + 1;
          if (cleared == CLEARED - 1) doing <= IDLE;
        end
        IDLE:
          if (start) begin
            doing <= BEGIN;
            during <= phases;
            pass <= 0;
          end
        BEGIN: begin
          row <= 0;
          column <= 0;
          slot <= 0;
          unit <= 0;
          step <= first_step;
          at <= list_base;
          if (!gated || during[phase]) doing <= ISSUE;
          else if (last_pass) doing <= IDLE;
          else pass <= pass + 1;
        end
        ISSUE: begin
          left <= DRAIN;
          slot <= last_slot ? 0 : slot + 1;
          if (listed) at <= at + 1;
          if (last_slot) step <= last_step ? first_step : step + 1;
          if (last_slot && last_step) begin
            unit <= unit + 1;
            column <= last_column ? 0 : column + 1;
            if (last_column) row <= row + 1;
            if (last_column && last_row) doing <= FINISH;
          end
        end
        default: begin
          left <= left - 1;
          if (left == 1) begin
            doing <= last_pass ? IDLE : BEGIN;
            pass <= pass + 1;
          end
        end
      endcase

  // 1: addresses.
  reg valid1, listed1, one1, first1, last1, begin1, end1, negative1, port1;
  reg [1:0] operand1;
  reg [ADDRESS - 1:0] x1, y1, unit1;
  reg [2 * ADDRESS + SLOT:0] entry1;
  reg signed [15:0] factor1;
  reg signed [7:0] shift1;
  always @(posedge clk) begin
    valid1 <= doing == ISSUE && !rst;
    if (doing == ISSUE) begin
      x1 <= x_base + row * x_row + column * x_column + slot * x_slot;
      y1 <= y_base + row * y_row + column * y_column + slot * y_slot;
      entry1 <= lists[at];
      listed1 <= listed;
      one1 <= one;
      operand1 <= operand;
      factor1 <= factor;
      shift1 <= shift;
      negative1 <= negative;
      port1 <= port;
      unit1 <= unit;
      first1 <= slot == 0;
      last1 <= last_slot;
      begin1 <= step == first_step;
      end1 <= last_step;
    end
  end

  // 2: operands, or what the host reads.
  reg valid2, empty2, again2, one2, first2, last2, begin2, end2, negative2, port2, select2;
  reg [1:0] operand2;
  reg [ADDRESS - 1:0] unit2;
  reg [SLOT - 1:0] winner2, slot2;
  reg signed [STATE - 1:0] x2, state2;
  reg signed [PARAMETER - 1:0] parameter2;
  reg signed [15:0] factor2;
  reg signed [7:0] shift2;
  wire [ADDRESS - 1:0] x_at = !busy ? host_address : listed1 ? entry1[2 * ADDRESS + SLOT - 1:ADDRESS + SLOT] : x1;
  wire [ADDRESS - 1:0] y_at = !busy ? host_address : listed1 ? entry1[ADDRESS + SLOT - 1:SLOT] : y1;
  assign host_out = select2 ? parameter2 : x2;
  always @(posedge clk) begin
    valid2 <= valid1 && !rst;
    x2 <= states[x_at];
    parameter2 <= parameters[y_at];
    select2 <= host_select;
    if (valid1) begin
      state2 <= states[y_at];
      winner2 <= winners[y_at];
      slot2 <= entry1[SLOT - 1:0];
      again2 <= entry1[SLOT];
      empty2 <= listed1 && entry1[2 * ADDRESS + SLOT];
      one2 <= one1;
      operand2 <= operand1;
      factor2 <= factor1;
      shift2 <= shift1;
      negative2 <= negative1;
      port2 <= port1;
      unit2 <= unit1;
      first2 <= first1;
      last2 <= last1;
      begin2 <= begin1;
      end2 <= end1;
    end
  end

  // 3: multiply and add up, or keep the best; in a further round, the best of those behind it.
  reg valid3, any3, bounded3, begin3, end3, negative3, port3;
  reg [ADDRESS - 1:0] unit3;
  reg [SLOT - 1:0] best3, slot_bound3;
  reg signed [WIDTH - 1:0] sum3, bound3;
  reg signed [15:0] factor3;
  reg signed [7:0] shift3;
  wire signed [STATE - 1:0] a = one2 ? UNITY[STATE - 1:0] : x2;
  reg signed [$LAST_HOST:0] b;
  always @* begin
    case (operand2)
      BY_PARAMETER: b = parameter2;
      BY_STATE: b = state2;
      BY_WINNER: b = winner2 == slot2 ? 1 : 0;
      default: b = 1;
    endcase
    if (empty2) b = 0;
  end
  wire signed [WIDTH - 1:0] added = a * b;
  wire better = kind == LARGEST ? x2 > sum3 : x2 < sum3;
  wire signed [WIDTH - 1:0] bound = again2 ? sum3 : bound3;
  wire [SLOT - 1:0] slot_bound = again2 ? best3 : slot_bound3;
  wire bounded = !first2 && (again2 || bounded3);
  wire behind = (kind == LARGEST ? x2 < bound : x2 > bound) || (x2 == bound && slot2 > slot_bound);
  wire eligible = !empty2 && (!bounded || behind);
  always @(posedge clk) begin
    valid3 <= valid2 && last2 && !rst;
    if (valid2) begin
      if (kind == LARGEST || kind == SMALLEST) begin
        bound3 <= bound;
        slot_bound3 <= slot_bound;
        bounded3 <= bounded;
        any3 <= eligible || (any3 && !first2 && !again2);
        if (eligible && (first2 || again2 || !any3 || better)) begin
          sum3 <= x2;
          best3 <= slot2;
        end
      end else sum3 <= first2 ? added : sum3 + added;
      factor3 <= factor2;
      shift3 <= shift2;
      negative3 <= negative2;
      port3 <= port2;
      unit3 <= unit2;
      begin3 <= begin2;
      end3 <= end2;
    end
  end

  // 4: scale, add to the ports; read what the unit was.
  reg valid4;
  reg [ADDRESS - 1:0] unit4;
  reg [SLOT - 1:0] best4;
  reg signed [WIDTH - 1:0] port_x, port_y;
  reg signed [ACCUMULATOR - 1:0] held4;
  reg signed [PARAMETER - 1:0] weight4;
  wire signed [WIDTH - 1:0] gained = $GAINED;
  wire signed [WIDTH - 1:0] rounded = shr(gained, shift3);
  wire signed [WIDTH - 1:0] message = negative3 ? -rounded : rounded;
  always @(posedge clk) begin
    valid4 <= valid3 && end3 && !rst;
    if (valid3) begin
      if (!port3) port_x <= begin3 ? message : port_x + message;
      else if (begin3) port_x <= 0;
      if (port3) port_y <= begin3 ? message : port_y + message;
      else if (begin3) port_y <= 0;
      held4 <= accumulators[accumulator + unit3];
      weight4 <= parameters[target + unit3];
      unit4 <= unit3;
      best4 <= best3;
    end
  end

  // 5: what becomes of them.
  reg valid5;
  reg [ADDRESS - 1:0] unit5;
  reg [SLOT - 1:0] best5;
  reg signed [WIDTH - 1:0] result5;
  reg signed [STATE - 1:0] looked5;
  wire signed [WIDTH - 1:0] u = sat(port_x, total_x);
  wire signed [WIDTH - 1:0] v = sat(port_y, total_y);
  wire signed [WIDTH - 1:0] change = (port_x <<< guard) - (leak ? held4 : $signed(1'b0));
  wire signed [WIDTH - 1:0] place = floored(u, table_shift) + (UNITY <<< (table_log - 1));
  wire signed [WIDTH - 1:0] last_place = (UNITY <<< table_log) - UNITY;
  wire [ADDRESS - 1:0] entry = place < 0 ? 0 : place > last_place ? last_place[ADDRESS - 1:0] : place[ADDRESS - 1:0];

  always @(posedge clk) begin
    valid5 <= valid4 && !rst;
    if (valid4) begin
      unit5 <= unit4;
      best5 <= best4;
      looked5 <= tables[table_base + entry];
      case (kind)
        RELU: result5 <= u > 0 ? sat(shr(u, rescale), total) : $signed(1'b0);
        STEP: result5 <= u > 0 ? sat(UNITY <<< fraction, total) : $signed(1'b0);
        PRODUCT: result5 <= sat(shr(u * v, rescale), total);
        INTEGRATE: result5 <= sat(held4 + shr(change, halvings), total + guard);
        COMMIT: result5 <= sat(shr(held4, guard), total);
        LEARN: result5 <= sat(weight4 + port_x, total);
        default: result5 <= u;
      endcase
    end
  end

  // 6: write.
  wire host = host_write && !busy;
  wire to_state = valid5 && kind != INTEGRATE && kind != LEARN;
  wire clear = doing == CLEAR;
  wire [ADDRESS - 1:0] state_at = clear ? cleared : to_state ? target + unit5 : host_address;
  wire signed [STATE - 1:0] state_in =
      clear ? $signed(1'b0) : !to_state ? host_in[STATE - 1:0] : kind == TABLE ? looked5 : result5[STATE - 1:0];
  wire [ADDRESS - 1:0] accumulator_at = clear ? cleared : accumulator + unit5;
  wire [ADDRESS - 1:0] parameter_at = host ? host_address : target + unit5;
  always @(posedge clk) begin
    if (clear ? cleared < STATES : to_state || (host && !host_select)) states[state_at] <= state_in;
    if (clear ? cleared < ACCUMULATORS : valid5 && kind == INTEGRATE)
      accumulators[accumulator_at] <= clear ? $signed(1'b0) : result5[ACCUMULATOR - 1:0];
    if ((valid5 && kind == LEARN) || (host && host_select))
      parameters[parameter_at] <= host ? host_in[PARAMETER - 1:0] : result5[PARAMETER - 1:0];
    if (valid5 && (kind == LARGEST || kind == SMALLEST)) winners[accumulator + unit5] <= best5;
  end
endmodule
`default_nettype wire
