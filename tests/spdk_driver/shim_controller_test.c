/* The controller behind the shim: resets, loss, timeouts, removal, attaching. */

#include "shim_case.h"

static void a_reset_lets_outstanding_commands_end_first(void)
{
    fake.hold = true;
    submit_writes(3);
    WAIT_UNTIL(COUNT(writes) == 3);
    submit_reset();
    fake.hold = false;
    wait_for(4);
    CHECK(ended[3].tag == RESET_TAG && ended[3].status == 0);
    CHECK(status_of(0) == 0 && fake.performed == 3 && fake.connections == 2);
}

static void a_reset_aborts_what_does_not_end(void)
{
    fake.hold = true;
    submit_writes(3);
    WAIT_UNTIL(COUNT(writes) == 3);
    submit_reset();
    wait_for(4);
    CHECK(status_of(0) == 0x007 && status_of(2) == 0x007);
    CHECK(ended[3].tag == RESET_TAG && ended[3].status == 0);
    CHECK(fake.performed == 0);
}

static void a_reset_takes_queues_away_from_a_silent_drive(void)
{
    fake.hold = fake.silent = true;
    submit_writes(3);
    WAIT_UNTIL(COUNT(writes) == 3);
    submit_reset();
    wait_for(4);
    CHECK(status_of(0) == 0x008 && status_of(2) == 0x008);
    CHECK(ended[3].tag == RESET_TAG && ended[3].status == 0);
    fake.hold = fake.silent = false;
    enter(io(0, SPDK_NVME_OPC_READ, 0));
    drive_submit(drive, 1);
    wait_for(5);
    CHECK(ended[4].status == 0 && fake.performed == 1);
}

static void buffers_belong_to_a_pcie_drive_until_it_is_disabled(void)
{
    fake.hold = fake.silent = fake.slow = true;
    submit_writes(3);
    WAIT_UNTIL(COUNT(writes) == 3);
    submit_reset();
    WAIT_UNTIL(fake.attempts == 1);
    for (uint64_t until = milliseconds() + 300; milliseconds() < until;) { /* longer than a command's timeout */
        listen_once(20);
    }
    CHECK(ended_count == 0);
    fake.slow = false;
    wait_for(4);
    CHECK(status_of(0) == 0x008 && status_of(2) == 0x008 && status_of(RESET_TAG) == 0x370);
}

static void buffers_come_back_when_a_connection_is_closed(void)
{
    fake.hold = fake.silent = fake.slow = true;
    submit_writes(3);
    WAIT_UNTIL(COUNT(writes) == 3);
    submit_reset();
    wait_for(3);
    CHECK(status_of(0) == 0x008 && status_of(2) == 0x008);
    wait_for(4);
    CHECK(ended[3].tag == RESET_TAG && ended[3].status == 0x370);
    submit_reset(); /* while the attempt goes on */
    wait_for(5);
    CHECK(ended[4].tag == RESET_TAG && ended[4].status == 0x370);
    fake.slow = false;
    WAIT_UNTIL(state() == DRIVE_READY);
}

static void a_reset_ends_what_spdk_was_not_given(void)
{
    fake.hold = true;
    fake.room = 1;
    submit_writes(4);
    WAIT_UNTIL(COUNT(queue_full) > 0);
    submit_reset();
    wait_for(5);
    CHECK(status_of(0) == 0x007 && status_of(3) == 0x007 && ended[4].tag == RESET_TAG);
}

static void commands_after_a_reset_wait_for_it(void)
{
    fake.hold = true;
    submit_writes(1);
    WAIT_UNTIL(COUNT(writes) == 1);
    submit_reset();
    enter(io(1, SPDK_NVME_OPC_WRITE, 1));
    drive_submit(drive, 1);
    wait_for(2);
    CHECK(ended[1].tag == RESET_TAG);
    fake.hold = false;
    wait_for(3);
    CHECK(ended[2].tag == 1 && ended[2].status == 0);
}

static void a_reset_that_finds_nobody_says_so(void)
{
    fake.dead = true;
    submit_reset();
    wait_for(1);
    CHECK(ended[0].status == 0x370);
    CHECK(state() == DRIVE_RECOVERING);
}

static void a_lost_controller_ends_its_commands_and_comes_back(void)
{
    fake.hold = true;
    submit_writes(3);
    WAIT_UNTIL(COUNT(writes) == 3);
    fake.dead = true;
    wait_for(3);
    CHECK(status_of(0) == 0x008 && status_of(2) == 0x008);
    ended_count = 0;
    submit_writes(1);
    wait_for(1);
    CHECK(status_of(0) == 0x370);
    fake.dead = fake.hold = false;
    WAIT_UNTIL(state() == DRIVE_READY);
    ended_count = 0;
    submit_writes(2);
    wait_for(2);
    CHECK(status_of(0) == 0 && status_of(1) == 0 && COUNT(lost) == 1);
}

static void a_submission_to_a_dead_queue_is_answered(void)
{
    fake.next_error = -6;
    submit_writes(2);
    wait_for(2);
    CHECK(status_of(0) == 0 && status_of(1) == 0);
    CHECK(COUNT(lost) == 1 && fake.connections == 2);
}

static void another_drive_in_its_place_is_not_used(void)
{
    fake.other = true;
    submit_reset();
    wait_for(1);
    CHECK(ended[0].status == 0x370);
    CHECK(state() == DRIVE_GONE);
    CHECK(strstr(drive_view(drive)->error, "another drive") != NULL);
    submit_writes(1);
    wait_for(2);
    CHECK(ended[1].status == 0x370);
    submit_reset();
    wait_for(3);
    CHECK(ended[2].status == 0x370);
}

static void a_slow_command_is_aborted(void)
{
    fake.hold = true;
    submit_writes(1);
    wait_for(1);
    CHECK(status_of(0) == 0x007);
    CHECK(COUNT(timeouts) == 1 && fake.aborts == 1 && fake.connections == 1);
}

static void a_slow_admin_command_is_aborted(void)
{
    fake.hold = true;
    enter((struct drive_command){.tag = 0, .kind = DRIVE_ADMIN, .opcode = 0x02});
    drive_submit(drive, 1);
    wait_for(1);
    CHECK(status_of(0) == 0x007 && COUNT(timeouts) == 1);
}

static void a_command_that_cannot_be_aborted_resets_the_controller(void)
{
    fake.hold = fake.silent = true;
    submit_writes(2);
    wait_for(2);
    CHECK(status_of(0) == 0x008 && status_of(1) == 0x008);
    WAIT_UNTIL(fake.connections == 2);
    CHECK(COUNT(timeouts) == 2);
}

static void a_pulled_drive_is_gone(void)
{
    fake.hold = true;
    submit_writes(1);
    WAIT_UNTIL(COUNT(writes) == 1);
    fake.pulled = true;
    wait_for(1);
    WAIT_UNTIL(state() == DRIVE_GONE);
    submit_writes(1);
    wait_for(2);
    CHECK(ended[1].status == 0x370);
    CHECK(strstr(drive_view(drive)->error, "removed") != NULL);
}

static void a_drive_in_its_slot_is_not_looked_for(void)
{
    uint64_t until = milliseconds() + 1500;

    while (milliseconds() < until) {
        submit_writes(1);
        wait_for(1);
        ended_count = 0;
    }
    CHECK(fake.scans == 0);
    fake.pulled = true;
    WAIT_UNTIL(state() == DRIVE_GONE);
    CHECK(fake.scans == 0);
}

static void a_pulled_drive_is_let_go_of_while_it_is_open(void)
{
    enter((struct drive_command){.tag = 0, .kind = DRIVE_ADMIN, .opcode = 0x02});
    fake.hold = true;
    drive_submit(drive, 1);
    WAIT_UNTIL(COUNT(other_commands) == 1);
    fake.pulled = true;
    wait_for(1);
    WAIT_UNTIL(fake.controllers == 0);
    enter((struct drive_command){.tag = 1, .kind = DRIVE_RESET});
    drive_submit(drive, 1);
    wait_for(2);
    CHECK(ended[1].status == 0x370 && state() == DRIVE_GONE);
}

static void a_deleted_namespace_is_gone_until_it_is_back(void)
{
    fake.inactive = true;
    WAIT_UNTIL(state() == DRIVE_GONE);
    submit_writes(1);
    wait_for(1);
    CHECK(status_of(0) == 0x00B && fake.performed == 0);
    fake.inactive = false;
    WAIT_UNTIL(state() == DRIVE_READY);
    ended_count = 0;
    submit_writes(1);
    wait_for(1);
    CHECK(status_of(0) == 0);
}

static void closing_forgets_what_is_outstanding(void)
{
    fake.hold = true;
    fake.room = 2;
    submit_writes(4);
    WAIT_UNTIL(COUNT(queue_full) > 0);
}

static void a_drive_that_is_attached_is_not_attached_again(void)
{
    struct drive *first = drive, *second = open_at("trtype:TCP");

    CHECK(second != NULL);
    drive = second;
    WAIT_UNTIL(state() == DRIVE_FAILED);
    CHECK(strstr(drive_view(drive)->error, "already") != NULL);
    drive_close(second);
    drive = first;
    submit_writes(1);
    wait_for(1);
    CHECK(status_of(0) == 0);
}

static void a_drive_that_is_not_there_cannot_be_opened(void)
{
    CHECK(state() == DRIVE_FAILED);
    CHECK(strstr(drive_view(drive)->error, "answers") != NULL);
}

static void a_drive_without_a_namespace_cannot_be_opened(void)
{
    CHECK(state() == DRIVE_FAILED);
    CHECK(strstr(drive_view(drive)->error, "namespace") != NULL);
}

static void an_address_that_is_none_is_refused(void)
{
    CHECK(state() == DRIVE_FAILED);
    CHECK(strstr(drive_view(drive)->error, "transport id") != NULL);
}

static const struct test tests[] = {
    TEST(a_reset_lets_outstanding_commands_end_first),
    TEST(a_reset_aborts_what_does_not_end),
    TEST(a_reset_takes_queues_away_from_a_silent_drive),
    {"buffers_belong_to_a_pcie_drive_until_it_is_disabled", buffers_belong_to_a_pcie_drive_until_it_is_disabled,
     "trtype:PCIe", NOTHING},
    TEST(buffers_come_back_when_a_connection_is_closed),
    TEST(a_reset_ends_what_spdk_was_not_given),
    TEST(commands_after_a_reset_wait_for_it),
    TEST(a_reset_that_finds_nobody_says_so),
    TEST(a_lost_controller_ends_its_commands_and_comes_back),
    TEST(a_submission_to_a_dead_queue_is_answered),
    TEST(another_drive_in_its_place_is_not_used),
    TEST(a_slow_command_is_aborted),
    TEST(a_slow_admin_command_is_aborted),
    TEST(a_command_that_cannot_be_aborted_resets_the_controller),
    {"a_pulled_drive_is_gone", a_pulled_drive_is_gone, "trtype:PCIe", NOTHING},
    {"a_drive_in_its_slot_is_not_looked_for", a_drive_in_its_slot_is_not_looked_for, "trtype:PCIe", NOTHING},
    {"a_pulled_drive_is_let_go_of_while_it_is_open", a_pulled_drive_is_let_go_of_while_it_is_open, "trtype:PCIe", NOTHING},
    TEST(a_deleted_namespace_is_gone_until_it_is_back),
    TEST(closing_forgets_what_is_outstanding),
    TEST(a_drive_that_is_attached_is_not_attached_again),
    {"a_drive_that_is_not_there_cannot_be_opened", a_drive_that_is_not_there_cannot_be_opened, "trtype:TCP", DEAD},
    {"a_drive_without_a_namespace_cannot_be_opened", a_drive_without_a_namespace_cannot_be_opened, "trtype:TCP",
     INACTIVE},
    {"an_address_that_is_none_is_refused", an_address_that_is_none_is_refused, "nowhere", NOTHING},
};

int main(int argc, char **argv)
{
    return run_tests(tests, sizeof(tests) / sizeof(tests[0]), argc, argv);
}
