/* The shim over the fake SPDK, used as Python uses it: one test by name for each run, or the names without any. */

#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <spdk/nvme.h>

#include "fake_spdk.h"
#include "interface.h"

#define COMMANDS 16u
#define BLOCK 4096u
#define WAIT_MS 5000
#define RESET_TAG (COMMANDS - 1)

#define CHECK(condition)                                                              \
    do {                                                                              \
        if (!(condition)) {                                                           \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);   \
            exit(1);                                                                  \
        }                                                                             \
    } while (0)

#define COUNT(counter) __atomic_load_n(&drive_view(drive)->counter, __ATOMIC_RELAXED)

static struct drive *drive;
static uint8_t *memory; /* a block for each tag */
static uint32_t next_entry;
static uint32_t ended_count;
static struct drive_completion ended[4096];

static void pause_briefly(void)
{
    struct timespec limit = {.tv_nsec = 1000000};

    nanosleep(&limit, NULL);
}

static uint64_t milliseconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

#define WAIT_UNTIL(condition)                                       \
    do {                                                            \
        uint64_t until = milliseconds() + WAIT_MS;                  \
        while (!(condition)) {                                      \
            CHECK(milliseconds() < until && #condition[0] != '\0'); \
            pause_briefly();                                        \
        }                                                           \
    } while (0)

static void listen_once(int wait_ms)
{
    struct pollfd bell = {.fd = drive_eventfd(drive), .events = POLLIN};

    if (poll(&bell, 1, wait_ms) > 0) {
        ended_count += drive_reap(drive, ended + ended_count, COMMANDS);
    }
}

static void wait_for(uint32_t count)
{
    uint64_t until = milliseconds() + WAIT_MS;

    while (ended_count < count) {
        CHECK(milliseconds() < until);
        listen_once(100);
    }
    CHECK(ended_count == count);
}

static uint32_t status_of(uint32_t tag)
{
    for (uint32_t index = 0; index < ended_count; index++) {
        if (ended[index].tag == tag) {
            return ended[index].status;
        }
    }
    CHECK(!"has ended");
    return 0;
}

static enum drive_state state(void)
{
    return (enum drive_state)__atomic_load_n(&drive_view(drive)->state, __ATOMIC_ACQUIRE);
}

static struct drive *open_at(const char *transport)
{
    struct drive_options options = {
        .transport = transport, .host_nqn = "nqn.host", .commands_max = COMMANDS, .core = -1, .io_timeout_ms = 150,
        .admin_timeout_ms = 150, .drain_timeout_ms = 100, .keep_alive_ms = 10000};

    return drive_open(&options);
}

static void start(const char *transport)
{
    uint64_t until = milliseconds() + WAIT_MS;

    memory = environment_allocate(COMMANDS * BLOCK);
    drive = open_at(transport);
    CHECK(drive != NULL);
    while (state() == DRIVE_CONNECTING) {
        CHECK(milliseconds() < until);
        listen_once(100);
    }
}

static void finish(void)
{
    drive_close(drive);
    environment_free(memory);
    CHECK(fake.queues == 0);
    CHECK(fake.dma_pieces == 0);
}

static void enter(struct drive_command command)
{
    drive_commands(drive)[next_entry++ % COMMANDS] = command;
}

static struct drive_command io(uint32_t tag, uint8_t opcode, uint64_t lba)
{
    return (struct drive_command){
        .tag = tag, .buffer = (uint64_t)(uintptr_t)(memory + tag * BLOCK), .lba = lba, .blocks = 1, .opcode = opcode};
}

static void submit_writes(uint32_t count)
{
    for (uint32_t tag = 0; tag < count; tag++) {
        enter(io(tag, SPDK_NVME_OPC_WRITE, tag));
    }
    drive_submit(drive, count);
}

static void submit_reset(void)
{
    enter((struct drive_command){.tag = RESET_TAG, .kind = DRIVE_RESET});
    drive_submit(drive, 1);
}

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

enum before { NOTHING, DEAD, INACTIVE };

static const struct {
    const char *name;
    void (*run)(void);
    const char *transport;
    enum before before;
} tests[] = {
#define TEST(name) {#name, name, "trtype:TCP", NOTHING}
    TEST(what_was_written_is_read_back),
    TEST(both_rings_wrap_many_times),
    TEST(a_batch_ends_in_its_order_with_one_event),
    TEST(a_reaper_with_little_room_is_called_again),
    TEST(commands_beyond_the_room_in_spdk_wait),
    TEST(a_command_that_never_finds_room_fails),
    TEST(a_refused_submission_is_an_invalid_field),
    TEST(statuses_and_flags_pass_unchanged),
    TEST(every_kind_of_command_reaches_the_drive),
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
    struct environment_options options = {.name = "test", .core_mask = "0x1", .memory_mib = 64, .quiet = true};

    for (size_t index = 0; index < sizeof(tests) / sizeof(tests[0]); index++) {
        if (argc < 2) {
            puts(tests[index].name);
        } else if (strcmp(argv[1], tests[index].name) == 0) {
            fake_begin();
            CHECK(environment_start(&options) == 0);
            fake.dead = tests[index].before == DEAD;
            fake.inactive = tests[index].before == INACTIVE;
            start(tests[index].transport);
            tests[index].run();
            finish();
            return 0;
        }
    }
    return argc < 2 ? 0 : 2;
}
