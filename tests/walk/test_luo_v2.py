"""luo-v2: a device tree whose only content is the address of ``struct luo_ser``."""

from __future__ import annotations

from typing import cast

from abi import luo, registry
from abi.fdt_write import FdtWriter
from inspector.detect import detect_luo
from inspector.memory.sparse import SparseMemory
from inspector.survey import Survey
from inspector.walk.luo import walk_luo

TREE, STRUCT, SESSIONS, FLBS = 0x1000, 0x2000, 0x10000, 0x3000


def image(abi_header: int = STRUCT) -> tuple[SparseMemory, bytes]:
    memory = SparseMemory([(0, 1 << 20)])
    writer = FdtWriter()
    writer.begin_node("")
    writer.property_string("compatible", "luo-v2")
    writer.property_u64("luo-abi-header", abi_header)
    writer.end_node()
    tree = writer.finish()
    memory.write(TREE, tree)
    memory.write(
        STRUCT,
        luo.luo_ser_v2.build({"liveupdate_num": 3, "sessions_pa": SESSIONS, "flbs_pa": FLBS}),
    )
    session = luo.luo_session_ser_array.build({"name": b"vm0".ljust(64, b"\0")})
    memory.write(SESSIONS, bytes(16 * 0x1000))
    memory.write(SESSIONS, luo.luo_session_header_ser.build({"count": 1}) + session)
    flb = luo.luo_flb_ser.build({"name": b"pci".ljust(48, b"\0"), "data": 0x5000, "count": 1})
    memory.write(FLBS, bytes(0x1000))
    memory.write(FLBS, luo.luo_flb_header_ser.build({"pgcnt": 1, "count": 1}) + flb)
    return memory, tree


def test_detected_and_walked() -> None:
    memory, tree = image()
    verdict = detect_luo(tree, None, 0x1000)
    assert verdict.generation is registry.get("luo", "luo-v2")
    assert verdict.candidates[0].fits
    survey = Survey(memory, 0x1000)
    found = walk_luo(survey, cast("luo.LuoGeneration", verdict.generation), TREE, tree)
    assert found.number == 3
    assert [s.name for s in found.sessions] == [b"vm0"]
    assert [(f.name, f.data, f.count) for f in found.flbs] == [(b"pci", 0x5000, 1)]
    assert survey.findings.items == []


def test_struct_out_of_reach() -> None:
    memory, tree = image(abi_header=0x7FFF_F000)
    survey = Survey(memory, 0x1000)
    generation = cast("luo.LuoGeneration", registry.get("luo", "luo-v2"))
    found = walk_luo(survey, generation, TREE, tree)
    assert found.lost == ["struct luo_ser"]
    assert found.sessions == []
    assert survey.findings.items or survey.holes
