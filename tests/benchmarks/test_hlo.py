"""Reading a compiled program's text, on a small one whose numbers are computed by hand."""

import runpy
import types

import pytest

from tests import runs

hlo = types.SimpleNamespace(**runpy.run_path(str(runs.ROOT / "benchmarks" / "hlo.py")))

# Three turns of a loop; each reads a row of `stack` into a product, and puts a row into `sums`, in place.
PROGRAM = """HloModule jit_step

%inner (param_0: f32[3,8,128], param_1: s32[]) -> f32[8,128] {
  %param_0 = STACK parameter(0)
  %param_1 = s32[]{:T(128)S(6)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %row = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%param_0, %param_1, %zero, %zero), dynamic_slice_sizes={1,8,128}
  ROOT %bitcast.1 = f32[8,128]{1,0:T(8,128)} bitcast(%row)
}

%fused (param_0.1: f32[3,8,128], param_1.1: s32[], param_2: f32[3,8,128]) -> f32[3,8,128] {
  %param_0.1 = STACK parameter(0)
  %param_1.1 = s32[]{:T(128)S(6)} parameter(1)
  %param_2 = STACK parameter(2)
  %taken = f32[8,128]{1,0:T(8,128)} fusion(%param_0.1, %param_1.1), kind=kLoop, calls=%inner
  %bitcast.2 = f32[1,8,128]{2,1,0:T(8,128)} bitcast(%taken)
  ROOT %put = STACK dynamic-update-slice(%param_2, %bitcast.2, %param_1.1)
}

%body (arg: (s32[], f32[3,8,128], f32[3,8,128])) -> (s32[], f32[3,8,128], f32[3,8,128]) {
  %arg = (s32[]{:T(128)}, STACK, /*index=2*/STACK) parameter(0)
  %i = s32[]{:T(128)S(6)} get-tuple-element(%arg), index=0
  %stack = STACK get-tuple-element(%arg), index=1
  %sums = STACK get-tuple-element(%arg), index=2
  %fusion.1 = STACK fusion(%stack, %i, %sums), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"100"}
  ROOT %tuple.1 = (s32[]{:T(128)}, STACK, STACK) tuple(%i, %stack, %fusion.1)
}

%condition (arg.1: (s32[], f32[3,8,128], f32[3,8,128])) -> pred[] {
  %arg.1 = (s32[]{:T(128)}, STACK, STACK) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  %limit = s32[]{:T(128)} constant(3)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (x: bf16[5,130]) -> bf16[5,130] {
  %x = bf16[5,130]{1,0:T(8,128)(2,1)} parameter(0)
  %copy.1 = bf16[5,130]{1,0:T(8,128)(2,1)S(1)} copy(%x), backend_config={"estimated_cycles":"7"}
  %start = (STACK) tuple(%x)
  %while.1 = (s32[]{:T(128)}, STACK) while(%start), condition=%condition, body=%body
  ROOT %all-reduce.1 = bf16[5,130]{1,0:T(8,128)(2,1)} all-reduce(%copy.1), replica_groups={{0,1}}
}
""".replace("STACK", "f32[3,8,128]{2,1,0:T(8,128)}")


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[5,130]{1,0:T(8,128)}", 8 * 256 * 4),  # padded to whole tiles
        ("f32[5,130]{0,1:T(8,128)}", 136 * 128 * 4),  # the first axis is the minor one
        ("bf16[3,5,130]{2,1,0:T(8,128)(2,1)}", 3 * 8 * 256 * 2),
        ("pred[100]{0:T(512)(128)(4,1)}", 512),
        ("(f32[], s32[2]{0}, u8[3]{0})", 4 + 8 + 3),
        ("f32[8,128]{1,0:T(8,128)S(1)}", 0),  # on the chip
    ],
)
def test_size(shape, size):
    assert hlo.size(shape) == size


def test_a_program():
    found = hlo.analyse(PROGRAM)
    row, x = 8 * 128 * 4, 8 * 256 * 2
    assert found.hbm_bytes == 3 * (row + row) + x + x  # rows read and written; x read by the copy, written at the end
    assert found.cycles == 3 * 100 + 7
    assert found.collectives == {"all-reduce": 1}
    assert found.collective_bytes == x
