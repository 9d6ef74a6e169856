/* Commands through the shim: rings, batches, back-pressure, statuses. */

#include "shim_case.h"

static void what_was_written_is_read_back(void)
{
    memset(memory, 7, BLOCK);
    enter(io(0, SPDK_NVME_OPC_WRITE, 3));
    drive_submit(drive, 1);
    wait_for(1);
    enter(io(1, SPDK_NVME_OPC_READ, 3));
    drive_submit(drive, 1);
    wait_for(2);
    CHECK(status_of(0) == 0 && status_of(1) == 0);
    CHECK(memcmp(memory, memory + BLOCK, BLOCK) == 0);
    CHECK(COUNT(reads) == 1 && COUNT(writes) == 1);
}

static void both_rings_wrap_many_times(void)
{
    for (uint32_t round = 0; round < 200; round++) {
        ended_count = 0;
        submit_writes(1 + round % (COMMANDS - 1));
        wait_for(1 + round % (COMMANDS - 1));
    }
    CHECK(next_entry > 10 * COMMANDS);
    CHECK(fake.performed == next_entry);
}

static void a_batch_ends_in_its_order_with_one_event(void)
{
    struct pollfd bell = {.fd = drive_eventfd(drive), .events = POLLIN};

    fake.hold = true;
    submit_writes(COMMANDS - 1);
    WAIT_UNTIL(COUNT(writes) == COMMANDS - 1);
    fake.hold = false;
    wait_for(COMMANDS - 1);
    for (uint32_t index = 0; index < ended_count; index++) {
        CHECK(ended[index].tag == index);
    }
    CHECK(poll(&bell, 1, 0) == 0);
}

static void a_reaper_with_little_room_is_called_again(void)
{
    struct pollfd bell = {.fd = drive_eventfd(drive), .events = POLLIN};
    uint32_t taken = 0;

    submit_writes(5);
    WAIT_UNTIL(fake.performed == 5);
    while (taken < 5) {
        CHECK(poll(&bell, 1, WAIT_MS) == 1);
        taken += drive_reap(drive, ended, 2);
    }
    CHECK(taken == 5);
}

static void commands_beyond_the_room_in_spdk_wait(void)
{
    fake.room = 3;
    fake.hold = true;
    submit_writes(10);
    WAIT_UNTIL(COUNT(queue_full) > 0);
    CHECK(COUNT(writes) == 3);
    fake.hold = false;
    wait_for(10);
    for (uint32_t tag = 0; tag < 10; tag++) {
        CHECK(status_of(tag) == 0);
    }
}

static void a_command_that_never_finds_room_fails(void)
{
    fake.room = 0;
    submit_writes(1);
    wait_for(1);
    CHECK(status_of(0) == 0x006);
}

static void a_refused_submission_is_an_invalid_field(void)
{
    fake.next_error = -22;
    submit_writes(1);
    wait_for(1);
    CHECK(status_of(0) == 0x002);
    enter(io(1, 0x7E, 0));
    drive_submit(drive, 1);
    wait_for(2);
    CHECK(status_of(1) == 0x002);
}

static void statuses_and_flags_pass_unchanged(void)
{
    struct drive_command forced = io(1, SPDK_NVME_OPC_WRITE, 0);

    fake.next_status = 0x285;
    submit_writes(1);
    wait_for(1);
    CHECK(status_of(0) == 0x285);
    CHECK(COUNT(failures) == 1);
    forced.flags = 1 << 14;
    enter(forced);
    drive_submit(drive, 1);
    wait_for(2);
    CHECK(fake.last_flags == 1u << 30);
}

static void every_kind_of_command_reaches_the_drive(void)
{
    const uint8_t opcodes[] = {SPDK_NVME_OPC_FLUSH, SPDK_NVME_OPC_COMPARE, SPDK_NVME_OPC_WRITE_ZEROES};

    for (uint32_t index = 0; index < sizeof(opcodes); index++) {
        enter(io(index, opcodes[index], 5));
        drive_submit(drive, 1);
        wait_for(index + 1);
        CHECK(status_of(index) == 0);
    }
    CHECK(fake.performed == sizeof(opcodes));
    enter((struct drive_command){
        .tag = 9, .kind = DRIVE_ADMIN, .opcode = 0x02, .nsid = 0xFFFFFFFF, .dwords = {2},
        .buffer = (uint64_t)(uintptr_t)memory, .length = 512});
    drive_submit(drive, 1);
    wait_for(sizeof(opcodes) + 1);
    CHECK(status_of(9) == 0 && memory[0] == 2 && memory[511] == 2 && memory[512] == 0);
}

static const struct test tests[] = {
    TEST(what_was_written_is_read_back),
    TEST(both_rings_wrap_many_times),
    TEST(a_batch_ends_in_its_order_with_one_event),
    TEST(a_reaper_with_little_room_is_called_again),
    TEST(commands_beyond_the_room_in_spdk_wait),
    TEST(a_command_that_never_finds_room_fails),
    TEST(a_refused_submission_is_an_invalid_field),
    TEST(statuses_and_flags_pass_unchanged),
    TEST(every_kind_of_command_reaches_the_drive),
};

int main(int argc, char **argv)
{
    return run_tests(tests, sizeof(tests) / sizeof(tests[0]), argc, argv);
}
