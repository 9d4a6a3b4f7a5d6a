"""Reading a compiled program's text, on a small one whose numbers are computed by hand."""

import runpy
import types

import pytest

from tests import runs

hlo = types.SimpleNamespace(**runpy.run_path(str(runs.ROOT / "benchmarks" / "hlo.py")))

# Three turns of a loop; each reads a row of `stack`, tiled otherwise in place, and puts it into `sums`, in place.
PROGRAM = """HloModule jit_step

%inner (param_0: f32[3,8,128], param_1: s32[]) -> f32[8,128] {
  %param_0 = STACK parameter(0)
  %param_1 = s32[]{:T(128)S(6)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %row = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%param_0, %param_1, %zero, %zero), dynamic_slice_sizes={1,8,128}
  ROOT %bitcast.1 = f32[8,128]{1,0:T(8,128)} bitcast(%row)
}

%again (param_0.3: f32[3,8,128]) -> f32[3,8,128] {
  %param_0.3 = STACK parameter(0)
  ROOT %copy.2 = f32[3,8,128]{2,1,0:T(4,128)} copy(%param_0.3)
}

%fused (param_0.1: f32[3,8,128], param_1.1: s32[], param_2: f32[3,8,128]) -> f32[3,8,128] {
  %param_0.1 = STACK parameter(0)
  %param_1.1 = s32[]{:T(128)S(6)} parameter(1)
  %param_2 = STACK parameter(2)
  %tiled = f32[3,8,128]{2,1,0:T(4,128)} fusion(%param_0.1), kind=kLoop, \
    output_to_operand_aliasing={{}: (0, {})}, calls=%again
  %taken = f32[8,128]{1,0:T(8,128)} fusion(%tiled, %param_1.1), kind=kLoop, calls=%inner
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


# Of a GPU: a product with its workspace, an asynchronous fusion, twelve turns that read a layer and put one into a
# stack, one scatter into a whole, and what augmentation has written.
GPU = """HloModule jit_update

%half (p.0: bf16[64,256]) -> bf16[64,256] {
  %p.0 = bf16[64,256]{1,0} parameter(0)
  ROOT %half.1 = bf16[64,256]{1,0} add(%p.0, %p.0), metadata={op_name="jit(update)/blocks/while/body/mlp/add"}
}

%stacked (p.1: bf16[12,64,256], p.2: bf16[64,256], p.3: s32[]) -> bf16[12,64,256] {
  %p.1 = bf16[12,64,256]{2,1,0} parameter(0)
  %p.2 = bf16[64,256]{1,0} parameter(1)
  %p.3 = s32[] parameter(2)
  %row = bf16[1,64,256]{2,1,0} bitcast(%p.2)
  ROOT %put = bf16[12,64,256]{2,1,0} dynamic-update-slice(%p.1, %row, %p.3)
}

%added (p.4: s32[768], p.5: s32[10,1], p.6: s32[10]) -> s32[768] {
  %p.4 = s32[768]{0} parameter(0)
  %p.5 = s32[10,1]{1,0} parameter(1)
  %p.6 = s32[10]{0} parameter(2)
  ROOT %scatter.1 = s32[768]{0} scatter(%p.4, %p.5, %p.6), to_apply=%sum
}

%body (arg: (s32[], bf16[64,256], bf16[12,64,256])) -> (s32[], bf16[64,256], bf16[12,64,256]) {
  %arg = (s32[], bf16[64,256]{1,0}, bf16[12,64,256]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %x = bf16[64,256]{1,0} get-tuple-element(%arg), index=1
  %stack = bf16[12,64,256]{2,1,0} get-tuple-element(%arg), index=2
  %start = ((bf16[64,256]{1,0}), bf16[64,256]{1,0}, u32[]) fusion-start(%x), kind=kLoop, calls=%half
  %done = bf16[64,256]{1,0} fusion-done(%start)
  %kept = bf16[12,64,256]{2,1,0} fusion(%stack, %done, %i), kind=kLoop, calls=%stacked, \
    metadata={op_name="jit(update)/blocks/while/body/dynamic_update_slice"}
  ROOT %tuple = (s32[], bf16[64,256]{1,0}, bf16[12,64,256]{2,1,0}) tuple(%i, %done, %kept)
}

ENTRY %main (a: bf16[64,128], b: bf16[128,256], c: s32[768], d: s32[10,1], e: s32[10]) -> s32[768] {
  %a = bf16[64,128]{1,0} parameter(0)
  %b = bf16[128,256]{1,0} parameter(1)
  %c = s32[768]{0} parameter(2)
  %d = s32[10,1]{1,0} parameter(3)
  %e = s32[10]{0} parameter(4)
  %product = (bf16[64,256]{1,0}, s8[4194304]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", \
    metadata={op_name="jit(update)/blocks/attn/qkv/dot_general"}
  %y = bf16[64,256]{1,0} get-tuple-element(%product), index=0
  %while.1 = (s32[], bf16[64,256]{1,0}, bf16[12,64,256]{2,1,0}) while(%y), condition=%less, body=%body, \
    backend_config={"known_trip_count":{"n":"12"}}
  ROOT %counts = s32[768]{0} fusion(%c, %d, %e), kind=kInput, calls=%added, \
    metadata={op_name="jit(update)/augment/scatter-add"}
}
"""


def test_a_program_for_a_gpu():
    found = hlo.analyse(GPU)
    layer = 64 * 256 * 2
    assert found.parts == {
        "augmentation": 40 + 40 + 2 * 40,  # places, numbers, and what they are added to
        "scan": 12 * (2 * layer + 4),  # the layer, and where in the stack it is put
        "attention": 64 * 128 * 2 + 128 * 256 * 2 + layer,
        "MLP": 12 * 2 * layer,  # by what is fused in it
        "norms": 0,
        "other": 0,
    }
    assert found.hbm_bytes == sum(found.parts.values())
