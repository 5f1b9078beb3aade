"""kho on a live host: the only place where /proc/kcore of a kernel with KHO is to be had."""

import os

import pytest

pytestmark = [pytest.mark.lab, pytest.mark.drgn]


def test_kho_agrees_with_the_machine_it_runs_on(kernel):
    from lab import live

    if not os.environ.get("KHO_TEST_LIVE"):
        pytest.skip("minutes without KVM; set KHO_TEST_LIVE")
    pytest.importorskip("drgn")
    report = live.run(kernel)
    assert report.wrong == []
    assert len(report.seen) > 10
