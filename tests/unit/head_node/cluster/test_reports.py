"""What becomes of a head's report to the authority is said once and shown: what it does not know it acts against."""

import logging

import pytest
from kit.cluster import Rack, until, with_rack


def test_a_report_that_is_not_taken_is_logged_once_and_shown(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(rack: Rack) -> None:
        rack.create_volume()
        await rack.start(rack.heads[:1])
        head = rack.heads[0].head
        await until(lambda: bool(rack.heads[0].api.reports))
        assert head.status()["authority"]["report_refused"] == ""
        rack.authority.down = True
        for _ in range(2):
            head._report_due.set()
            await until(lambda: not head._report_due.is_set())
            await until(lambda: bool(head.status()["authority"]["report_refused"]))
        assert "out of reach" in head.status()["authority"]["report_refused"]
        rack.authority.down = False
        head._report_due.set()
        await until(lambda: head.status()["authority"]["report_refused"] == "")

    with caplog.at_level(logging.WARNING):
        with_rack(scenario, heads=1)
    assert caplog.text.count("event=report_failed") == 1


def test_what_a_head_notes_while_the_authority_does_not_know_it_is_told_later() -> None:
    async def scenario(rack: Rack) -> None:
        rack.create_volume()
        await rack.start(rack.heads[:1])
        head, reports = rack.heads[0].head, rack.heads[0].api.reports
        await until(lambda: bool(reports))
        await head.watch.close()  # which would find out that it is known
        head.watch.unenrolled = True
        head._note("stepped-down", {"why": "a test"})
        await until(lambda: not head._report_due.is_set())
        head.watch.unenrolled = False
        head._report_due.set()
        await until(lambda: any(event["kind"] == "stepped-down" for each in reports for event in each["events"]))

    with_rack(scenario, heads=1)
