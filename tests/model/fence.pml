/* The sled's side of the fence: F1 (admit), F2 (durable fence), F3 (drain). docs/model.md maps it to the code.
 *
 * One sled (sleds decide each for themselves), two heads, pairs (epoch, attach number). Every head may attach again and
 * again, send commands and be forgotten; the power may go at any time; the authority may, once, issue an epoch a second
 * time (a store restored from a backup). One command per head is under way at a time: its header arrives, its data
 * arrives (R2T), it is admitted or refused, it is on its way to the drive, it has taken effect.
 *
 * -D of a mutant drops one rule: OLD_EPOCHS, OLD_ATTACHES, OTHER_HOLDER, LOWERED, FENCE_VOLATILE, ONE_RECORD, NO_DRAIN,
 * REATTACH_NO_DRAIN, JUDGED_AT_HEADER.
 */
#define HEADS 2
#ifndef EPOCHS
#define EPOCHS 2
#endif
#define ATTACHES 2
#ifndef CUTS
#define CUTS 1
#endif

mtype = { idle, header, refused, judged, inflight };

/* the authority */
byte last_epoch;
bool doubled;

/* what a head holds, 0: nothing */
byte held_epoch[HEADS], held_attach[HEADS];

/* the sled's memory */
byte fence_epoch, fence_attach, fence_holder = HEADS;
bool attached;                 /* the standing pair has its receipt */
bool attaching;                /* a receipt is being prepared for the standing pair */

/* the drive: two records of the fence */
byte record_epoch[2], record_holder[2];
byte rot;                      /* bit of the record that has rotted: one of them may */

/* ghosts */
byte receipt_epoch, receipt_attach;
byte epoch_holder[EPOCHS + 1] = HEADS;

/* commands */
mtype state[HEADS] = idle;
byte cmd_epoch[HEADS], cmd_attach[HEADS];

#define BELOW(e, a, f, b) ((e) < (f) || ((e) == (f) && (a) < (b)))

inline admit(h) {
    if
#ifdef OLD_EPOCHS
    :: attached && (cmd_epoch[h] < fence_epoch || (cmd_epoch[h] == fence_epoch && cmd_attach[h] == fence_attach)) -> state[h] = inflight
#elif defined(OLD_ATTACHES)
    :: attached && cmd_epoch[h] == fence_epoch -> state[h] = inflight
#else
    :: attached && cmd_epoch[h] == fence_epoch && cmd_attach[h] == fence_attach -> state[h] = inflight
#endif
    :: else -> state[h] = idle     /* fenced off or superseded */
    fi
}

inline issue(h) {
    if
    :: last_epoch < EPOCHS -> last_epoch++; held_epoch[h] = last_epoch
    :: last_epoch > 0 && !doubled -> doubled = true; held_epoch[h] = last_epoch
    :: else -> skip
    fi;
    held_attach[h] = 0
}

/* The decision of ATTACH, and the fence raised in memory (F3: before anything else). */
inline attach(h) {
    if
    :: held_epoch[h] > fence_epoch ||
#ifdef LOWERED
       held_epoch[h] < fence_epoch ||
#endif
       (held_epoch[h] == fence_epoch && held_attach[h] > fence_attach
#ifndef OTHER_HOLDER
        && fence_holder == h
#endif
       ) ->
        fence_epoch = held_epoch[h]; fence_attach = held_attach[h]; fence_holder = h;
        attached = false; attaching = true
    :: else -> skip
    fi
}

#define LOWER_IN_FLIGHT(h) (state[h] == inflight && BELOW(cmd_epoch[h], cmd_attach[h], fence_epoch, fence_attach))
#ifdef NO_DRAIN
#define DRAINED true
#elif defined(REATTACH_NO_DRAIN)
#define DRAINED !((LOWER_IN_FLIGHT(0) && cmd_epoch[0] < fence_epoch) || (LOWER_IN_FLIGHT(1) && cmd_epoch[1] < fence_epoch))
#else
#define DRAINED !(LOWER_IN_FLIGHT(0) || LOWER_IN_FLIGHT(1))
#endif

inline receipt() {
#ifndef FENCE_VOLATILE
    record_epoch[0] = fence_epoch; record_holder[0] = fence_holder;
#ifndef ONE_RECORD
    record_epoch[1] = fence_epoch; record_holder[1] = fence_holder;
#endif
#endif
    /* F2, F3: no receipt for less than what was vouched for before, nor for one epoch to two holders */
    assert(!BELOW(fence_epoch, fence_attach, receipt_epoch, receipt_attach) || fence_epoch == receipt_epoch);
    assert(epoch_holder[fence_epoch] == HEADS || epoch_holder[fence_epoch] == fence_holder);
    epoch_holder[fence_epoch] = fence_holder;
    receipt_epoch = fence_epoch; receipt_attach = fence_attach;
    attaching = false; attached = true
}

inline power_cut() {
    state[0] = idle; state[1] = idle;      /* what was in flight is lost; what the drive had begun is over */
    attached = false; attaching = false;
    held_attach[0] = 0; held_attach[1] = 0;
    fence_attach = 0;
    receipt_attach = 0;                    /* sessions are gone, and with them every attach number */
    if                                     /* the highest record that verifies counts */
    :: record_epoch[0] >= record_epoch[1] && rot != 1 -> fence_epoch = record_epoch[0]; fence_holder = record_holder[0]
    :: else -> if
        :: rot != 2 -> fence_epoch = record_epoch[1]; fence_holder = record_holder[1]
        :: else -> fence_epoch = record_epoch[0]; fence_holder = record_holder[0]
        fi
    fi
}

active proctype world() {
    byte h, cuts;
    do
    :: atomic { h = 0; issue(h) }
    :: atomic { h = 1; issue(h) }
    :: atomic { held_epoch[0] > 0 && held_attach[0] < ATTACHES -> h = 0; held_attach[h]++; attach(h) }
    :: atomic { held_epoch[1] > 0 && held_attach[1] < ATTACHES -> h = 1; held_attach[h]++; attach(h) }
    :: atomic { attaching && DRAINED -> receipt() }
    :: atomic { state[0] == idle && held_epoch[0] > 0 -> cmd_epoch[0] = held_epoch[0]; cmd_attach[0] = held_attach[0]; state[0] = header }
    :: atomic { state[1] == idle && held_epoch[1] > 0 -> cmd_epoch[1] = held_epoch[1]; cmd_attach[1] = held_attach[1]; state[1] = header }
#ifdef JUDGED_AT_HEADER
    /* judged when the header is there: not counted in flight until the data is */
    :: atomic { state[0] == header -> h = 0; admit(h); if :: state[0] == inflight -> state[0] = judged :: else fi }
    :: atomic { state[1] == header -> h = 1; admit(h); if :: state[1] == inflight -> state[1] = judged :: else fi }
    :: atomic { state[0] == judged -> state[0] = inflight }
    :: atomic { state[1] == judged -> state[1] = inflight }
#else
    :: atomic { state[0] == header -> h = 0; admit(h) }
    :: atomic { state[1] == header -> h = 1; admit(h) }
#endif
    /* F1, F3: what takes effect is not below a pair that was vouched for */
    :: atomic { state[0] == inflight -> assert(!BELOW(cmd_epoch[0], cmd_attach[0], receipt_epoch, receipt_attach)); state[0] = idle }
    :: atomic { state[1] == inflight -> assert(!BELOW(cmd_epoch[1], cmd_attach[1], receipt_epoch, receipt_attach)); state[1] = idle }
    :: atomic { rot == 0 -> if :: rot = 1 :: rot = 2 fi }
    :: atomic { cuts < CUTS -> cuts++; power_cut() }
    od
}
