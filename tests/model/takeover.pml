/* Epochs, leases and takeover: F4 to F7 with two heads, three sleds, an authority, delays and crashes. docs/model.md maps
 * it to the code; fence.pml has what a sled does inside.
 *
 * Time is a tick that all clocks share: a promise binds for TTL ticks from the receipt of a heartbeat, a lease serves for
 * TTL - GUARD from the sending of the one that was answered. Messages wait as long as they like: a heartbeat, a record, a
 * request to the authority, its answer. Logs are sets of writes: a new primary's log at its epoch record is the truth.
 *
 * -D of a mutant drops one rule: NO_SEAL, ASK_BEFORE_SEAL, NO_CAS, RESTART_WITHIN_EPOCH, ACK_WHILE_PROMOTING, ACK_ALONE,
 * LEASE_FROM_RECEIPT, SEAL_UNDER_PROMISE, SEALED_STILL_PROMISES, REMOVE_BEFORE_PUT, ADD_AFTER_PUT, WIPED_LOG_ELIGIBLE,
 * SERVE_BEFORE_RECEIPTS, KEEP_WHAT_DIVERGES.
 */
#ifndef EPOCHS
#define EPOCHS 2
#endif
#define WRITES 2
#define TTL 3
#define GUARD 1
#ifndef CRASHES
#define CRASHES 1
#endif

#ifndef CHANGES
#define CHANGES 2
#endif

mtype = { following, sealed, asked, attaching, serving };
mtype = { nothing, takeover, removal, addition };

/* the authority's record; the log that counts of each member is the one that is not wiped */
byte epoch, version;
byte current = 3;              /* bits of the heads */
byte owner = 2;
bool stale_log[2];             /* `current` names a log of this head that is gone */
bool named_gone;               /* so does the addition that is on its way */

/* the heads */
mtype role[2] = following;
byte leads[2];                 /* epoch */
byte seen_version[2];          /* of the record, at a primary: its own view of it */
byte required[2];              /* bits of the other heads that a commit needs */
byte log[2];                   /* durable writes */
bool joined[2];                /* follows the primary that leads now */
bool promises[2] = true;       /* not sealed */
byte bound[2];                 /* ticks for which a promise binds */
byte lease[2];                 /* ticks for which it may serve */
mtype asking[2] = nothing;     /* a request on its way, or its answer not yet read */
byte asked_version[2];
bool answered[2], granted[2];

/* on the links */
byte beat_from = 2, beat_age; bool beat_answered; byte beat_epoch;
byte record_of = 2, record_write, record_epoch;
byte durable_of = 2, durable_write, durable_epoch;

/* the sleds: the epoch of each fence, and the receipts of each head (bits) */
byte fence[3];
byte receipts[2];

/* ghosts */
byte begun, acknowledged, crashes, changes;
byte led;                      /* bits of the epochs that were led */
byte gone;                     /* writes that a new primary did not have: readers may have seen that */

#define OTHER(h) (1 - (h))
#define BIT(h) (1 << (h))
#ifdef NO_CAS
#define FRESH(h) true
#define NEXT_EPOCH(h) (asked_version[h] == version -> epoch + 1 : epoch)
#else
#define FRESH(h) (asked_version[h] == version)
#ifdef RESTART_WITHIN_EPOCH
#define NEXT_EPOCH(h) (owner == h -> epoch : epoch + 1)
#else
#define NEXT_EPOCH(h) (epoch + 1)
#endif
#endif
#ifdef WIPED_LOG_ELIGIBLE
#define ELIGIBLE(h) true
#else
#define ELIGIBLE(h) (!stale_log[h])
#endif
#define REFUSING(h) ((fence[0] >= leads[h]) + (fence[1] >= leads[h]) + (fence[2] >= leads[h]))
#define MAY_SERVE(h) (role[h] == serving && (required[h] == 0 || lease[h] > 0))
#define COUNT(b) (((b) & 1) + (((b) >> 1) & 1) + (((b) >> 2) & 1))

inline step_down(h) {
    role[h] = following; leads[h] = 0; required[h] = 0; lease[h] = 0; receipts[h] = 0; asking[h] = nothing;
    answered[h] = false; granted[h] = false; promises[h] = true; joined[h] = false
}

/* Asking for the next epoch: only a member whose promise has run out, sealed. */
inline candidate(h) {
#ifdef NO_SEAL
    skip;
#elif defined(ASK_BEFORE_SEAL)
    skip;
#else
#ifndef SEALED_STILL_PROMISES
    promises[h] = false;
#endif
#endif
    role[h] = asked; joined[h] = false;
    asking[h] = takeover; asked_version[h] = version; answered[h] = false
}

inline decide(h) {
    if
    :: asking[h] == takeover ->
        if
        :: epoch < EPOCHS && (current & BIT(h)) && FRESH(h) && ELIGIBLE(h) ->
            epoch = NEXT_EPOCH(h);
            version++; owner = h; granted[h] = true; leads[h] = epoch; seen_version[h] = version;
            required[h] = current & BIT(OTHER(h));
        :: else -> granted[h] = false
        fi
    :: asking[h] == removal ->
        if
        :: owner == h && epoch == leads[h] && seen_version[h] == version ->
            current = BIT(h); version++; seen_version[h] = version; granted[h] = true; stale_log[OTHER(h)] = false
        :: else -> granted[h] = false
        fi
    :: asking[h] == addition ->
        if
        :: owner == h && epoch == leads[h] && seen_version[h] == version ->
            current = 3; version++; seen_version[h] = version; granted[h] = true; stale_log[OTHER(h)] = named_gone
        :: else -> granted[h] = false
        fi
    fi;
    answered[h] = true
}

inline read_answer(h) {
    if
    :: asking[h] == takeover && granted[h] ->
        assert(!(led & (1 << leads[h])));   /* F4: an epoch is led once */
        led = led | (1 << leads[h]);
#ifdef ASK_BEFORE_SEAL
        promises[h] = false;
#endif
        role[h] = attaching; receipts[h] = 0; lease[h] = 0
    :: asking[h] == takeover && !granted[h] -> role[h] = following; promises[h] = true
    :: asking[h] == removal && granted[h] -> required[h] = 0
    :: asking[h] == addition && granted[h] -> required[h] = BIT(OTHER(h))
    :: else -> step_down(h)                 /* another epoch has begun */
    fi;
    asking[h] = nothing; answered[h] = false; granted[h] = false
}

inline serve(h) {
    /* F7: N - m sleds refuse every older epoch, so no older primary completes a stripe any more */
    assert(REFUSING(h) >= 2);
    /* D1, F5: everything acknowledged is here, and nothing that a former primary did without */
    assert((log[h] & acknowledged) == acknowledged);
    assert((log[h] & gone) == 0);
    gone = gone | (((1 << begun) - 1) & ~log[h]);
    role[h] = serving
}

inline acknowledge(h, w) {
    /* F7: enough sleds refuse every older epoch, and nobody else may serve at this moment */
    assert(REFUSING(h) >= 2);
    assert(!MAY_SERVE(OTHER(h)) || leads[OTHER(h)] < leads[h]);
    /* F5: whoever may take over has it */
    acknowledged = acknowledged | BIT(w)
}

inline crash(h) {
    crashes++;
    if
    :: true -> step_down(h)
    :: role[h] == following || (current & BIT(OTHER(h))) && !stale_log[OTHER(h)] ->   /* one log is lost, not both */
        if
        :: !(current & BIT(OTHER(h))) || stale_log[OTHER(h)] || crashes > 1 -> step_down(h)
        :: else -> step_down(h); log[h] = 0; named_gone = true; if :: current & BIT(h) -> stale_log[h] = true :: else fi
        fi
    fi;
    bound[h] = TTL                          /* it does not know what it promised */
}

#define STEP(h) \
    :: atomic { role[h] == following && (current & BIT(h)) && (bound[h] == 0 || SEAL_EARLY) && epoch < EPOCHS && asking[h] == nothing -> candidate(h) } \
    :: atomic { asking[h] != nothing && !answered[h] -> decide(h) } \
    :: atomic { asking[h] != nothing && answered[h] -> read_answer(h) } \
    :: atomic { role[h] == attaching && fence[0] <= leads[h] && !(receipts[h] & 1) -> fence[0] = leads[h]; receipts[h] = receipts[h] | 1 } \
    :: atomic { role[h] == attaching && fence[1] <= leads[h] && !(receipts[h] & 2) -> fence[1] = leads[h]; receipts[h] = receipts[h] | 2 } \
    :: atomic { role[h] == attaching && fence[2] <= leads[h] && !(receipts[h] & 4) -> fence[2] = leads[h]; receipts[h] = receipts[h] | 4 } \
    :: atomic { role[h] == attaching && COUNT(receipts[h]) >= RECEIPTS && (required[h] == 0 || joined[OTHER(h)]) && asking[h] == nothing -> serve(h) } \
    /* fenced off: a sled shows a newer epoch (F6) */ \
    :: atomic { (role[h] == attaching || role[h] == serving) && (fence[0] > leads[h] || fence[1] > leads[h] || fence[2] > leads[h]) -> step_down(h) } \
    /* the other head follows: what diverges is cut, what is missing is sent */ \
    :: atomic { (role[h] == attaching || role[h] == serving) && role[OTHER(h)] == following && promises[OTHER(h)] && !joined[OTHER(h)] && leads[h] == epoch -> log[OTHER(h)] = MERGED(h); joined[OTHER(h)] = true } \
    /* membership */ \
    :: atomic { (role[h] == attaching || role[h] == serving) && asking[h] == nothing && required[h] != 0 && (current & BIT(OTHER(h))) && changes < CHANGES -> changes++; asking[h] = removal; answered[h] = false; REMOVE_NOW(h) } \
    :: atomic { role[h] == serving && asking[h] == nothing && required[h] == 0 && joined[OTHER(h)] && CAUGHT_UP(h) && changes < CHANGES -> changes++; named_gone = false; asking[h] = addition; answered[h] = false; ADD_NOW(h) } \
    /* heartbeats */ \
    :: atomic { (role[h] == attaching || role[h] == serving) && beat_from == 2 && joined[OTHER(h)] -> beat_from = h; beat_age = 0; beat_answered = false; beat_epoch = leads[h] } \
    :: atomic { beat_from == OTHER(h) && !beat_answered && promises[h] && LISTENS(h) -> beat_answered = true; bound[h] = TTL } \
    :: atomic { beat_from == h && beat_answered -> if :: leads[h] == beat_epoch && LEASE_AFTER > lease[h] -> lease[h] = LEASE_AFTER :: else fi; beat_from = 2 } \
    /* writes: here first, then there; acknowledged when durable on all that are required */ \
    :: atomic { MAY_ACKNOWLEDGE(h) && begun < WRITES && record_of == 2 && durable_of == 2 -> log[h] = log[h] | BIT(begun); record_of = h; record_write = begun; record_epoch = leads[h]; begun++ } \
    :: atomic { record_of == OTHER(h) && joined[h] && LISTENS(h) && record_epoch == leads[OTHER(h)] -> log[h] = log[h] | BIT(record_write); durable_of = OTHER(h); durable_write = record_write; durable_epoch = record_epoch } \
    :: atomic { record_of == h && durable_of == h && durable_epoch == leads[h] && MAY_ACKNOWLEDGE(h) -> acknowledge(h, record_write); record_of = 2; durable_of = 2 } \
    :: atomic { record_of == h && record_epoch == leads[h] && NEEDS_NOBODY(h) && MAY_ACKNOWLEDGE(h) -> acknowledge(h, record_write); record_of = 2; durable_of = 2 } \
    :: atomic { record_of == h && record_epoch != leads[h] -> record_of = 2; durable_of = 2 } \
    :: atomic { crashes < CRASHES -> crash(h) }

#ifdef SEAL_UNDER_PROMISE
#define SEAL_EARLY true
#else
#define SEAL_EARLY false
#endif
#ifdef SERVE_BEFORE_RECEIPTS
#define RECEIPTS 0
#else
#define RECEIPTS 2
#endif
#ifdef KEEP_WHAT_DIVERGES
#define MERGED(h) (log[OTHER(h)] | log[h])
#define CAUGHT_UP(h) ((log[OTHER(h)] & log[h]) == log[h])
#else
#define MERGED(h) (log[h])
#define CAUGHT_UP(h) (log[OTHER(h)] == log[h])
#endif
#ifdef REMOVE_BEFORE_PUT
#define REMOVE_NOW(h) required[h] = 0
#else
#define REMOVE_NOW(h) skip
#endif
#ifdef ADD_AFTER_PUT
#define ADD_NOW(h) skip
#else
#define ADD_NOW(h) required[h] = BIT(OTHER(h)); lease[h] = 0
#endif
#ifdef LEASE_FROM_RECEIPT
#define LEASE_AFTER (TTL - GUARD)
#else
#define LEASE_AFTER (beat_age < TTL - GUARD -> TTL - GUARD - beat_age : 0)
#endif
#ifdef ACK_WHILE_PROMOTING
#define MAY_ACKNOWLEDGE(h) (role[h] == attaching || MAY_SERVE(h))
#else
#define MAY_ACKNOWLEDGE(h) MAY_SERVE(h)
#endif
#ifdef ACK_ALONE
#define NEEDS_NOBODY(h) true
#else
#define NEEDS_NOBODY(h) (required[h] == 0)
#endif
/* a member that has sealed has closed its link */
#if defined(NO_SEAL) || defined(ASK_BEFORE_SEAL) || defined(SEALED_STILL_PROMISES)
#define LISTENS(h) (role[h] != serving)
#else
#define LISTENS(h) (role[h] == following)
#endif

active proctype world() {
    do
    STEP(0)
    STEP(1)
    :: atomic {
        bound[0] > 0 || bound[1] > 0 || lease[0] > 0 || lease[1] > 0 || (beat_from != 2 && beat_age < TTL) ->
        bound[0] = (bound[0] > 0 -> bound[0] - 1 : 0); bound[1] = (bound[1] > 0 -> bound[1] - 1 : 0);
        lease[0] = (lease[0] > 0 -> lease[0] - 1 : 0); lease[1] = (lease[1] > 0 -> lease[1] - 1 : 0);
        beat_age = (beat_from != 2 && beat_age < TTL -> beat_age + 1 : beat_age)
       }
    od
}
