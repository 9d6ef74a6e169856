/* A drive of the shim over the fake SPDK, used as Python uses it; included by each program of tests.
 *
 * A program runs one test by name, or names them all without any. */

#ifndef SHIM_CASE_H
#define SHIM_CASE_H

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

static inline void pause_briefly(void)
{
    struct timespec limit = {.tv_nsec = 1000000};

    nanosleep(&limit, NULL);
}

static inline uint64_t milliseconds(void)
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

static inline void listen_once(int wait_ms)
{
    struct pollfd bell = {.fd = drive_eventfd(drive), .events = POLLIN};

    if (poll(&bell, 1, wait_ms) > 0) {
        ended_count += drive_reap(drive, ended + ended_count, COMMANDS);
    }
}

static inline void wait_for(uint32_t count)
{
    uint64_t until = milliseconds() + WAIT_MS;

    while (ended_count < count) {
        CHECK(milliseconds() < until);
        listen_once(100);
    }
    CHECK(ended_count == count);
}

static inline uint32_t status_of(uint32_t tag)
{
    for (uint32_t index = 0; index < ended_count; index++) {
        if (ended[index].tag == tag) {
            return ended[index].status;
        }
    }
    CHECK(!"has ended");
    return 0;
}

static inline enum drive_state state(void)
{
    return (enum drive_state)__atomic_load_n(&drive_view(drive)->state, __ATOMIC_ACQUIRE);
}

static inline struct drive *open_at(const char *transport)
{
    struct drive_options options = {
        .transport = transport, .host_nqn = "nqn.host", .commands_max = COMMANDS, .core = -1, .io_timeout_ms = 150,
        .admin_timeout_ms = 150, .drain_timeout_ms = 100, .keep_alive_ms = 10000};

    return drive_open(&options);
}

static inline void start(const char *transport)
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

static inline void finish(void)
{
    drive_close(drive);
    environment_free(memory);
    CHECK(fake.queues == 0);
    CHECK(fake.dma_pieces == 0);
}

static inline void enter(struct drive_command command)
{
    drive_commands(drive)[next_entry++ % COMMANDS] = command;
}

static inline struct drive_command io(uint32_t tag, uint8_t opcode, uint64_t lba)
{
    return (struct drive_command){
        .tag = tag, .buffer = (uint64_t)(uintptr_t)(memory + tag * BLOCK), .lba = lba, .blocks = 1, .opcode = opcode};
}

static inline void submit_writes(uint32_t count)
{
    for (uint32_t tag = 0; tag < count; tag++) {
        enter(io(tag, SPDK_NVME_OPC_WRITE, tag));
    }
    drive_submit(drive, count);
}

static inline void submit_reset(void)
{
    enter((struct drive_command){.tag = RESET_TAG, .kind = DRIVE_RESET});
    drive_submit(drive, 1);
}

enum before { NOTHING, DEAD, INACTIVE };

struct test {
    const char *name;
    void (*run)(void);
    const char *transport;
    enum before before;
};

#define TEST(name) {#name, name, "trtype:TCP", NOTHING}

static inline int run_tests(const struct test *tests, size_t count, int argc, char **argv)
{
    struct environment_options options = {.name = "test", .core_mask = "0x1", .memory_mib = 64, .quiet = true};

    for (size_t index = 0; index < count; index++) {
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

#endif
